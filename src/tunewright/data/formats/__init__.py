"""The shapes that rows come in. Each module registers one or two with `common.row_format`.

A format is a function `(raw, origin, columns) -> Row | Unusable`. Its facts:
- `needs`, a sentence for people, and `reads`, the columns that it knows;
- `looks_like` says of one raw row how much it resembles the format: 0 not at all, 1 it could be, 2
  it has the columns that this format has, 3 it has columns that make a row of this format out of
  what would be a row of another (a chosen and a rejected answer, a judgement, a context);
- `write`, the inverse (`writing.py`), where rows can be converted into it;
- `refuse(rows, name, where)` raises where its rows look like half of something else, though nobody
  named the format;
- `whole_file`: a text file is one row.
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
