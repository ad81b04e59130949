"""The recipes of the first screen: settings that were measured to teach well on two processors,
with rows that come with the package."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tunewright.core.words import say
from tunewright.studio.places import RECIPES


@cache
def _read() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((RECIPES / "recipes.json").read_text(encoding="utf-8"))
    return found


def recipes() -> list[dict[str, Any]]:
    """Every recipe with its title and sentence in the reader's language."""
    return [_told(recipe) for recipe in _read()]


def _told(recipe: dict[str, Any]) -> dict[str, Any]:
    config, name = recipe["config"], recipe["id"]
    return {
        **recipe,
        "title": say(f"studio.recipe.{name}.title"),
        "text": say(f"studio.recipe.{name}.text"),
        "model": config.get("model") or config.get("target") or "",
        "data": config.get("data.train", ""),
        "method": config.get("method.kind", ""),
        "objective": config.get("objective.kind", ""),
    }


def recipe_rows() -> list[str]:
    """Names of the recipes that bring rows."""
    return [recipe["id"] for recipe in _read() if (RECIPES / f"{recipe['id']}.jsonl").is_file()]
