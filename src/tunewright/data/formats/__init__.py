"""The shapes that rows come in. Each module registers one with `core.registry.formats`.

A format is a function `(raw, origin, columns) -> Row | Unusable`. Its facts are `needs`, a sentence for people, and `looks_like`, which says of
one raw row how much it resembles the format: 0 not at all, 1 it could be, 2 it has the columns that only this format has.
"""

from tunewright.data.formats import alpaca, messages, prompt_completion, sharegpt, text

__all__ = ["alpaca", "messages", "prompt_completion", "sharegpt", "text"]
