"""Routes of the conversation: several columns, answered by the program that holds the models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from tunewright.core.errors import TunewrightError, UsageError, problem
from tunewright.studio import models
from tunewright.studio.asked import Body, Shared
from tunewright.studio.given import Given
from tunewright.studio.stream import as_json, sse

router = APIRouter(prefix="/api/chat")
MOST_COLUMNS, MOST_MESSAGES = 4, 400
ROLES = ("system", "user", "assistant")


@router.get("/targets")
def targets(studio: Shared) -> list[dict[str, Any]]:
    """Everything that can be asked: trained runs first, then models, then exports."""
    heads = studio.runs.heads()
    found = [
        {"id": head["id"], "label": head["name"], "kind": "run", "base": head["model"]}
        for head in heads
        if head["status"] == "finished" or _has_weights(studio.places.root / head["path"])
    ]
    for model in models.models(studio.places, []):
        if model["local"]:
            inside = Path(model["id"]).is_relative_to(studio.places.exports)
            kind = "export" if inside else "base"
            found.append({"id": model["id"], "label": model["label"], "kind": kind})
    return found


def _has_weights(run: Path) -> bool:
    return (run / "adapter").is_dir() or (run / "model").is_dir()


@router.post("")
async def chat(studio: Shared, given: Body) -> StreamingResponse:
    """Ask, and stream the answers."""
    args = _question(studio, given)
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    pieces = _pieces(studio, args)
    return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)


async def _pieces(studio: Any, args: dict[str, Any]) -> AsyncIterator[bytes]:
    """The answerer's events as they come; what goes wrong as a last one."""
    try:
        async for event in studio.answerer.stream("ask", args):
            if not event.get("done"):
                told = {k: v for k, v in event.items() if k not in ("id", "event")}
                yield sse(str(event.get("event", "piece")), as_json(told))
        yield sse("done", "{}")
    except TunewrightError as error:
        problems = [one.as_dict() for one in error.problems]
        yield sse("problem", as_json({"column": None, "problems": problems}))


@router.post("/release")
async def release(studio: Shared, given: Body) -> dict[str, bool]:
    """Let go of the models that are held."""
    if studio.answerer.is_alive:
        await studio.answerer.ask("release", {})
    return {"released": True}


def _question(studio: Any, given: Given) -> dict[str, Any]:
    """A question with its targets resolved and every field of its kind."""
    columns, messages = given.values.get("columns"), given.values.get("messages")
    if not isinstance(columns, list) or not 1 <= len(columns) <= MOST_COLUMNS:
        raise _wrong("columns", f"[{{target, base}}], 1-{MOST_COLUMNS}")
    if not isinstance(messages, list) or len(messages) != len(columns):
        raise _wrong("messages", "[[{role, content}] per column]")
    asked: dict[str, Any] = {
        "columns": [_column(studio, one) for one in columns],
        "messages": [_messages(one) for one in messages],
        "temperature": given.number("temperature", 0.0, 0.0),
        "top_p": given.number("top_p", 1.0, 0.0),
        "top_k": given.whole("top_k", 0),
        "max_new_tokens": given.whole("max_new_tokens", 256, 1),
        "seed": given.whole("seed", 0),
    }
    if "system" in given:
        asked["system"] = given.text("system")
    think = given.flag("think", None)
    return asked if think is None else {**asked, "think": think}


def _column(studio: Any, one: Any) -> dict[str, Any]:
    if not isinstance(one, dict):
        raise _wrong("columns", "{target, base}")
    column = Given(one, "columns.")
    target = studio.checks.target(column.text("target"), "columns.target")
    return {"target": target, "base": bool(column.flag("base"))}


def _messages(rows: Any) -> list[dict[str, str]]:
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_MESSAGES:
        raise _wrong("messages", "[{role, content}]")
    found = []
    for row in rows:
        if not isinstance(row, dict):
            raise _wrong("messages", "{role, content}")
        message = Given(row, "messages.")
        role = message.choice("role", ROLES)
        found.append({"role": role, "content": message.text("content")})
    return found


def _wrong(field: str, wanted: str) -> UsageError:
    return UsageError(problem("E-STUDIO-10", field, field=field, wanted=wanted))
