"""How a folder appears: filled under a hidden name beside its place, made durable, then renamed.

A reader sees all of it or nothing. After a failure nothing is left; what a killed process left is
removed by the next one that makes the same folder, once it is two days old. Run folders, pipelines,
checkpoints and exports appear so (`folder`), and the entries of the cache of converted models
(`publish`), which have a marker besides: an entry without one, or with a file of another size than
the marker says, is no model. Two processes that convert the same file build separately; they take
turns to publish, and the second finds the first one's folder and uses it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunewright.core.files import fsync_directory, fsync_file, with_retry, write_json

MARKER, BUILDING = "tunewright.json", ".building-"
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
    with _temporary(target.parent, BUILDING) as temporary:
        facts = build(temporary)
        sizes = {
            p.relative_to(temporary).as_posix(): p.stat().st_size
            for p in sorted(temporary.rglob("*"))
            if p.is_file()
        }
        marker = {**facts, "files": sizes}
        write_json(temporary / MARKER, marker)
        # Looking and moving must be one act: a folder that another process published in between
        # would be taken for the broken one and moved away.
        with FileLock(target.parent / f".{target.name}.lock"):
            there = marker_of(target)
            if there:
                return there
            if target.exists():
                # Moved away in one step, so nobody sees a half-deleted folder, then removed.
                aside = target.parent / f"{BUILDING}broken-{secrets.token_hex(4)}"
                with_retry(lambda: os.rename(target, aside))
                shutil.rmtree(aside, ignore_errors=True)
            _take_place(temporary, target)
        return marker


@contextlib.contextmanager
def folder(target: Path, word: str = "tmp") -> Iterator[Path]:
    """A hidden sibling of `target` to fill, which gets its name at the end of the block.

    `target` must be free then: an empty folder gives way, anything else is an OSError. Whatever is
    raised in the block, nothing is left, not even the parents that were made for it. `word` says in
    the hidden name what was going on.
    """
    with scratch(target, word) as temporary:
        yield temporary
        _take_place(temporary, target)


@contextlib.contextmanager
def scratch(target: Path, word: str = "tmp") -> Iterator[Path]:
    """A hidden sibling of `target` to fill, gone at the end of the block unless it was renamed; of
    a failure not even the parents that were made for it are left."""
    made = [place for place in target.absolute().parents if not place.exists()]
    try:
        with _temporary(target.parent, f".{target.name}.{word}-") as temporary:
            yield temporary
    except BaseException:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


def move_file(source: Path, target: Path) -> None:
    """Make a file durable and give it the name `target`, where the old one is replaced."""
    fsync_file(source)
    with_retry(lambda: os.replace(source, target))
    fsync_directory(target.parent)


@contextlib.contextmanager
def _temporary(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent` that is gone after the block, unless it was renamed."""
    temporary = parent / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_left_overs(parent, prefix, STALE_SECONDS)
        temporary.mkdir()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, target: Path) -> None:
    """Make a folder and all in it durable, then rename it to `target`."""
    for path in [*temporary.rglob("*"), temporary]:
        if path.is_dir():
            fsync_directory(path)
        elif path.is_file():
            fsync_file(path)
    if target.is_dir():
        target.rmdir()  # Windows renames over no folder, an empty one neither
    with_retry(lambda: os.rename(temporary, target))
    fsync_directory(target.parent)


def remove_left_overs(parent: Path, prefix: str, older_than: float = 0) -> None:
    """Remove the hidden folders that processes left which died `older_than` seconds ago or earlier;
    with 0 all of them, whatever their clocks said."""
    with contextlib.suppress(OSError):
        for left in [place for place in parent.iterdir() if place.name.startswith(prefix)]:
            if not older_than or time.time() - left.stat().st_mtime > older_than:
                shutil.rmtree(left, ignore_errors=True)
