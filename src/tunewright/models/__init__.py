"""Floor 1: models on disk and in memory, what their parts are called, how text becomes tokens, and how a tree of tokens goes through them."""

from tunewright.models.sources import Source, resolve
from tunewright.models.vet import problems_of

__all__ = ["Source", "problems_of", "resolve"]
