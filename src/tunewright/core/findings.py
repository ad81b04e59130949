"""What was found out once about files that do not change, and is not worked out again: one small
file a finding, named by everything that decides it.

A finding is never wrong, only unused: another key is another file, and a file that cannot be read,
or that speaks of another key, counts as none. It appears whole or not at all. Where nothing can be
written, everything is worked out anew each time. What nobody asked for in MOST_DAYS is removed when
something new is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunewright.core.files import write_text
from tunewright.core.publish import cache_root

MOST_DAYS = 60
DAY = 24 * 3600


def place_of(kind: str, key: Any) -> Path:
    """The file of a finding. `kind` is a word, `key` plain values (JSON)."""
    text = json.dumps(key, sort_keys=True)
    name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return cache_root() / "found" / kind / f"{name}.json"


def read(kind: str, key: Any) -> Any:
    """What was kept under `key`; None where nothing was, or nothing that can be read."""
    path = place_of(kind, key)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] != json.loads(json.dumps(key)):
            return None
        if time.time() - path.stat().st_mtime > DAY:
            os.utime(path)
        return stored["value"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def keep(kind: str, key: Any, value: Any) -> None:
    """Keep `value` (JSON, not None) under `key`, if anything can be written at all."""
    path = place_of(kind, key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"key": key, "value": value}) + "\n")
        _sweep(path.parent)


def once(kind: str, key: Any, work_out: Callable[[], Any]) -> Any:
    """What was kept under `key`, else what `work_out` gives, which is kept."""
    found = read(kind, key)
    if found is None:
        found = work_out()
        keep(kind, key, found)
    return found


def _sweep(folder: Path) -> None:
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > MOST_DAYS * DAY:
                path.unlink()
