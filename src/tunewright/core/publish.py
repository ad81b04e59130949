"""Where converted models lie, and how one appears there: built in a folder of its own, published by
one rename, marker written last.

A folder without a marker, or with a file of another size than the marker says, is no model: an
interrupted conversion leaves nothing that looks valid. Two processes that convert the same file
build separately; they take turns to publish, and the second finds the first one's folder and uses
it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunewright.core.files import with_retry, write_json

MARKER = "tunewright.json"
STALE_SECONDS = 2 * 24 * 3600


def cache_root() -> Path:
    """The folder for what we make ourselves: TUNEWRIGHT_CACHE, else the platform's place for
    caches."""
    given = os.environ.get("TUNEWRIGHT_CACHE")
    if given:
        return Path(given).expanduser()
    if sys.platform == "win32":
        return (
            Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "tunewright"
        )
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tunewright"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunewright"


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while piece := handle.read(4 << 20):
            digest.update(piece)
    return digest.hexdigest()


def marker_of(folder: Path) -> dict[str, Any] | None:
    """The marker of a published folder, or None when there is none or a file is missing or has
    another size."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        whole = all(
            (folder / name).stat().st_size == size for name, size in marker["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return marker if whole and marker["files"] else None


def publish(target: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Let `build` fill a temporary sibling of `target`, mark it, and rename it into place; returns
    the marker that stands there.

    `build(folder)` returns the facts for the marker. Whatever it raises is raised on, and the
    temporary folder is removed. If another process published a valid `target` meanwhile, that one
    is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    temporary = target.parent / f".building-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        facts = build(temporary)
        sizes = {
            p.relative_to(temporary).as_posix(): p.stat().st_size
            for p in sorted(temporary.rglob("*"))
            if p.is_file()
        }
        marker = {**facts, "files": sizes}
        write_json(temporary / MARKER, marker)
        return _rename(temporary, target) or marker
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, target: Path) -> dict[str, Any] | None:
    """Put `temporary` in the place of `target`. Returns the marker of somebody else's valid target,
    which then stays."""
    # Looking and moving must be one act: a folder that another process published in between would
    # be taken for the broken one and moved away.
    with FileLock(target.parent / f".{target.name}.lock"):
        there = marker_of(target)
        if there:
            return there
        if target.exists():
            # Moved away in one step, so nobody sees a half-deleted folder, then removed.
            aside = target.parent / f".building-broken-{uuid.uuid4().hex[:8]}"
            with_retry(lambda: os.rename(target, aside))
            shutil.rmtree(aside, ignore_errors=True)
        with_retry(lambda: os.rename(temporary, target))
        return None


def _sweep(parent: Path) -> None:
    """Remove what interrupted conversions left more than two days ago."""
    for left in parent.glob(".building-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
