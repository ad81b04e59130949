"""What every route takes from its request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from tunewright.core.errors import UsageError, problem
from tunewright.core.words import language
from tunewright.studio.given import Given
from tunewright.studio.state import Studio


def studio_of(request: Request) -> Studio:
    """The workspace that is served."""
    found: Studio = request.app.state.studio
    return found


async def body_of(request: Request) -> Given:
    """The JSON object of a request."""
    return Given.read(await request.body())


def listed(text: str, most: int = 50) -> list[str]:
    """Ids between commas. Raises UsageError for none, and for too many."""
    found = [one for one in text.split(",") if one]
    if not found or len(found) > most:
        raise UsageError(problem("E-STUDIO-10", "ids", field="ids", wanted=f"1-{most} ids"))
    return found


def spoken() -> str:
    """The language of this request, for what goes on after it."""
    return language()


Shared = Annotated[Studio, Depends(studio_of)]
Body = Annotated[Given, Depends(body_of)]
