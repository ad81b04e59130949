"""Writing files so that a reader sees the old or the new one, never half of either.

Rules from the field: flush and fsync before the rename, close before the rename (Windows), retry
only on the errors that a virus scanner causes, never fsync a directory on Windows. Source:
../reference of the checkpoint protocol in docs/engine.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

WINDOWS_BUSY = {5, 32, 33}
"""ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION: somebody else holds the file
for a moment."""


def with_retry(action: Callable[[], None], attempts: int = 7) -> None:
    """Run `action` again, 50 ms doubling, while Windows says that another program holds the file.
    Any other error is raised at once."""
    for attempt in range(attempts):
        try:
            return action()
        except OSError as e:
            if getattr(e, "winerror", None) not in WINDOWS_BUSY or attempt == attempts - 1:
                raise
            time.sleep(0.05 * 2**attempt)


def fsync_directory(path: Path) -> None:
    """Make a rename durable. Windows cannot open a directory, and some file systems refuse to sync
    one: both are left alone."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def fsync_file(path: Path) -> None:
    """Make the contents of a file durable."""
    # Windows syncs only what is open for writing; elsewhere a file may be read-only.
    with open(path, "rb+" if os.name == "nt" else "rb") as handle:
        os.fsync(handle.fileno())


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while piece := handle.read(4 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` through a temporary sibling; durable when it returns."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        with_retry(lambda: os.replace(temporary, path))
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for a JSON document, readable by people. NaN is refused: JSON has none; say
    null and why."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """`write_bytes` for JSON lines. `rows` hold no NaN (`record.events.plain`)."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines. Raises OSError, and ValueError for a line that is no
    JSON."""
    return [json.loads(line) for line in _lines(path.read_text(encoding="utf-8"))]


def read_json_objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines that a crash may have cut: what is no object is left out.
    Raises OSError."""
    found = []
    for line in _lines(path.read_text(encoding="utf-8", errors="replace")):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            found += [value] if isinstance(value, dict) else []
    return found


def _lines(text: str) -> list[str]:
    # split, not splitlines: an answer may hold U+2028, which is no end of a line in JSON.
    return [line for line in text.split("\n") if line.strip()]


def readable_size(num_bytes: float) -> str:
    """1536 -> '1.5 KiB'. Bytes in, text out."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024 or unit == "GiB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return ""
