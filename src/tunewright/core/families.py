"""The families of models that have a card: what their parts are called, as data
(`assets/anatomies.json`)."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tunewright.core.words import ASSETS


@cache
def cards() -> dict[str, dict[str, Any]]:
    """Model type -> card (`blocks`: names of the list of blocks; `roles`: role -> names inside a
    block), from `assets/anatomies.json`."""
    families: dict[str, dict[str, Any]] = json.loads(
        (ASSETS / "anatomies.json").read_text(encoding="utf-8")
    )
    return {model_type: card for card in families.values() for model_type in card["model_types"]}
