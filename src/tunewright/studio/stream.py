"""One stream of events a tab: lines of a run's events and log as they are written, jobs and heads
as they change.

The id of every event says how far the two files were told, in bytes (`<events>.<log>`), so a
browser that comes back with `Last-Event-ID`, to this server or to its successor, goes on there
without a gap or a duplicate. Files are looked at, not watched: it works on every file system, and
200 milliseconds are soon enough for a curve.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.studio.jobs import read_text

LOOK_SECONDS, JOBS_SECONDS, PING_SECONDS = 0.2, 0.5, 10.0
MOST_BYTES = 256 * 1024
"""Of a file at one look; a browser that comes late gets the rest at the next."""
IDENTITY = re.compile(r"(\d{1,15})\.(\d{1,15})")


@dataclass
class Told:
    """How far a stream has told its files, in bytes."""

    events: int = 0
    log: int = 0

    @classmethod
    def of(cls, text: str | None) -> Told:
        """From the id of an event; the start of both files for anything else."""
        found = IDENTITY.fullmatch((text or "").strip())
        return cls(int(found[1]), int(found[2])) if found else cls()

    @property
    def identity(self) -> str:
        return f"{self.events}.{self.log}"


def sse(event: str, data: str, identity: str | None = None) -> bytes:
    """One event as it goes over the wire."""
    lines = [f"event: {event}", *([f"id: {identity}"] if identity else [])]
    lines += [f"data: {line}" for line in data.split("\n")]
    return ("\n".join(lines) + "\n\n").encode("utf-8")


def as_json(value: Any) -> str:
    """A value in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@dataclass
class Source:
    """What a stream tells. `files` gives the run's events and log as they are named now; `jobs` and
    `heads` what the page shows, by id; `started` is the server's start."""

    files: Callable[[], tuple[Path, Path] | None]
    jobs: Callable[[], dict[str, Any]]
    heads: Callable[[], dict[str, Any]]
    started: float


async def follow(
    source: Source, told: Told, gone: Callable[[], Any], ended: asyncio.Event
) -> AsyncIterator[bytes]:
    """The events until the reader is gone or the server ends."""
    yield sse("hello", as_json({"started": source.started}), told.identity)
    known: dict[str, dict[str, str]] = {"job": {}, "run": {}}
    looked, spoke = 0.0, time.monotonic()
    while not ended.is_set() and not await gone():
        pieces = await asyncio.to_thread(_of_files, source, told)
        if time.monotonic() - looked >= JOBS_SECONDS:
            looked = time.monotonic()
            pieces += await asyncio.to_thread(_of_lists, source, known, told)
        if not pieces and time.monotonic() - spoke >= PING_SECONDS:
            pieces = [sse("ping", as_json({"time": round(time.time(), 3)}), told.identity)]
        for piece in pieces:
            yield piece
            spoke = time.monotonic()
        if not pieces:
            try:
                await asyncio.wait_for(ended.wait(), LOOK_SECONDS)
            except asyncio.TimeoutError:
                continue


def _of_files(source: Source, told: Told) -> list[bytes]:
    """New full lines of the events, and new text of the log."""
    files = source.files()
    if files is None:
        return []
    events, log = files
    pieces = []
    for line, after in _lines(events, told.events):
        told.events = after
        pieces.append(sse("event", line, told.identity))
    text, after = read_text(log, told.log, MOST_BYTES)
    if text:
        told.log = after
        pieces.append(sse("log", as_json({"text": text}), told.identity))
    return pieces


def _lines(path: Path, offset: int) -> list[tuple[str, int]]:
    """(line, the offset after it) of every full line from an offset on."""
    try:
        with open(path, "rb") as handle:
            handle.seek(offset)
            data = handle.read(MOST_BYTES)
            while data and b"\n" not in data and (more := handle.read(MOST_BYTES)):
                data += more
    except OSError:
        return []
    found, start = [], 0
    while (end := data.find(b"\n", start)) >= 0:
        line = data[start:end].decode("utf-8", "replace").rstrip("\r")
        start = end + 1
        if line.strip():
            found.append((line, offset + start))
    return found


def _of_lists(source: Source, known: dict[str, dict[str, str]], told: Told) -> list[bytes]:
    """Jobs and runs that changed since they were told; what vanished is told by its id."""
    pieces = []
    for event, now in (("job", source.jobs()), ("run", source.heads())):
        before = known[event]
        texts = {name: as_json(value) for name, value in now.items()}
        for name, text in texts.items():
            if before.get(name) != text:
                pieces.append(sse(event, text, told.identity))
        for name in before.keys() - texts.keys():
            pieces.append(sse(event, as_json({"id": name, "gone": True}), told.identity))
        known[event] = texts
    return pieces
