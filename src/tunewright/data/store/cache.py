"""Where tokenised sets are kept between runs: one folder a set, named by the hash of everything
that decides what is in it.

The key holds the SHA-256 of every data file, the tokenizer and template, every setting that changes
a row, a token or the split, and CACHE_VERSION, which rises with every change of ours to the result.
So a folder is never wrong, only unused: what was not opened for MOST_DAYS, and the least lately
used beyond MOST_BYTES, is removed when a new set is published. A folder whose columns do not have
their check sums is built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunewright.core.files import sha256_of
from tunewright.core.publish import MARKER, cache_root, marker_of, publish
from tunewright.data.store.columns import Damaged, Store

CACHE_VERSION = 5
SMALLEST_BYTES = 1 << 20
"""Sets of less text than this are worked on anew each time: that takes less than two seconds, and a
folder on disk would be a surprise."""
MOST_DAYS, MOST_BYTES = 30, 20 << 30


def data_cache() -> Path:
    """The folder of all kept sets."""
    return cache_root() / "data"


def key_of(facts: dict[str, Any], files: list[Path]) -> str:
    """The name of a set: `facts` are plain values, `files` whatever was read."""
    hashes = [[str(path), sha256_of(path)] for path in files]
    text = json.dumps(
        [CACHE_VERSION, facts, hashes], sort_keys=True, ensure_ascii=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def kept(key: str, build: Callable[[Path], object]) -> tuple[Store, bool]:
    """The store of `key`, and whether it was there. `build(folder)` writes it otherwise; several
    processes that want the same set build it once."""
    from filelock import FileLock

    folder = data_cache() / key
    found = _opened(folder)
    if found is not None:
        return found, True
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{key}.build"):
        found = _opened(folder)
        if found is not None:
            return found, True
        shutil.rmtree(folder, ignore_errors=True)

        def fill(temporary: Path) -> dict[str, Any]:
            build(temporary)
            return {"kind": "tokens"}

        publish(folder, fill)
        sweep(folder)
    return Store.open(folder, verify=False), False


def _opened(folder: Path) -> Store | None:
    if marker_of(folder) is None:
        return None
    try:
        found = Store.open(folder)
    except Damaged:
        return None
    with contextlib.suppress(OSError):
        os.utime(folder / MARKER)
    return found


def sweep(newest: Path) -> None:
    """Remove what the bounds of this module no longer allow. `newest` always stays."""
    held = 0
    aged = sorted(
        (
            (_last_used(folder), folder)
            for folder in newest.parent.iterdir()
            if folder.is_dir() and not folder.name.startswith(".")
        ),
        reverse=True,
    )
    for used, folder in aged:
        held += sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        if folder != newest and (held > MOST_BYTES or time.time() - used > MOST_DAYS * 24 * 3600):
            shutil.rmtree(folder, ignore_errors=True)
    for lock in newest.parent.glob(".*.build"):
        with contextlib.suppress(OSError):
            if time.time() - lock.stat().st_mtime > MOST_DAYS * 24 * 3600:
                lock.unlink()


def _last_used(folder: Path) -> float:
    try:
        return (folder / MARKER).stat().st_mtime
    except OSError:
        return 0.0
