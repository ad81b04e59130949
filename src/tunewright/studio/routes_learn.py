"""Routes that only tell: this machine, recipes, models, glossary, error codes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from tunewright.studio import about, learning, models, recipes
from tunewright.studio.asked import Body, Shared

router = APIRouter(prefix="/api")


@router.get("/about")
def get_about(studio: Shared) -> dict[str, Any]:
    """This machine and its health."""
    return {**about.about(studio.places), "started": studio.started}


@router.get("/recipes")
def get_recipes() -> list[dict[str, Any]]:
    """The recipes."""
    return recipes.recipes()


@router.get("/models")
def get_models(studio: Shared) -> list[dict[str, Any]]:
    """The models that can be chosen."""
    return models.models(studio.places, studio.runs.heads())


@router.post("/models/check")
async def check_model(studio: Shared, given: Body) -> Any:
    """What one model is, or what is wrong with it."""
    return await studio.desk.ask("check_model", {"model": studio.checks.model(given.text("model"))})


@router.get("/glossary")
def get_glossary() -> list[dict[str, Any]]:
    """Every term."""
    return learning.terms()


@router.get("/explain/{code}")
def get_explain(code: str) -> dict[str, str]:
    """One error code."""
    return learning.error(code)


@router.get("/errors")
def get_errors() -> list[dict[str, str]]:
    """Every error code."""
    return learning.errors()
