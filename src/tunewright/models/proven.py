"""What the trial of all families found (`tools/families_page.py`, docs/models.md)."""

from __future__ import annotations

import functools
import json
from typing import Any

from tunewright.core.words import ASSETS, say

WAYS = {"tree": "tree", "joined": "cache", "own": "cache*", "none": "text"}
"""How the answers of a family are written, as it is told: by keys and values of our own, by the
model's cache, by it for questions of one length at a time, by the whole text for every token."""


@functools.cache
def table() -> dict[str, Any]:
    """The data of docs/models.md: `families`, `open`, `cannot`, each by `model_type`."""
    found: dict[str, Any] = json.loads((ASSETS / "models" / "families.json").read_text("utf-8"))
    return found


def doubts(config: Any) -> list[str]:
    """A sentence for a model whose family failed a step of the trial or cannot be trained; none for
    the others."""
    found, family = table(), config.model_type
    if family in found["cannot"]:
        return [say("models.cannot", family=family, reason=found["cannot"][family])]
    steps = found["open"].get(family)
    if not steps:
        return []
    return [say("models.not_proven", family=family, steps=", ".join(steps))]
