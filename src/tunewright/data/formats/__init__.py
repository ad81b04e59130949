"""The shapes that rows come in. Each module registers one or two with `core.registry.formats`.

A format is a function `(raw, origin, columns) -> Row | Unusable`. Its facts are `needs`, a sentence
for people, and `looks_like`, which says of one raw row how much it resembles the format: 0 not at
all, 1 it could be, 2 it has the columns that this format has, 3 it has columns that make a row of
this format out of what would be a row of another (a chosen and a rejected answer, a judgement, a
context).
"""

from tunewright.data.formats import (
    alpaca,
    classification,
    kto,
    messages,
    preference,
    prompt_completion,
    prompts,
    question_context,
    sharegpt,
    stepwise,
    text,
)

__all__ = [
    "alpaca",
    "classification",
    "kto",
    "messages",
    "preference",
    "prompt_completion",
    "prompts",
    "question_context",
    "sharegpt",
    "stepwise",
    "text",
]
