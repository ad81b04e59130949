"""`events.jsonl`: one JSON object a line, append-only, flushed line by line, so that a crash leaves
every full line readable."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """A value JSON can hold: NaN and infinities become the words "NaN", "Infinity", "-Infinity",
    which float() reads back."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


class EventLog:
    """Appends to one file. Every event gets `time` (seconds since 1970). `hear` is told of every
    event once its line is written."""

    def __init__(self, path: Path, hear: Callable[[str, Mapping[str, Any]], None] | None = None):
        self.path, self.hear = path, hear
        _drop_half_line(path)
        self._handle = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the run

    def write(self, event: str, **fields: Any) -> None:
        """Append one event."""
        line = json.dumps(
            {"event": event, "time": round(time.time(), 3), **plain(fields)}, ensure_ascii=False
        )
        self._handle.write(line + "\n")
        self._handle.flush()
        if self.hear is not None:
            self.hear(event, fields)

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def _drop_half_line(path: Path) -> None:
    """A crash may have cut the last line; appending to it would spoil two."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with open(path, "r+b") as handle:
            handle.truncate(data.rfind(b"\n") + 1)
