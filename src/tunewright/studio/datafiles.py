"""The files of rows that the page can choose: those of the workspace, uploads, and the recipes'.

Counting rows reads a file once; the count stands under the file's size and time. An upload is
written beside its place while it comes, and gets its name when it is whole.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.core.errors import UsageError, problem
from tunewright.studio.places import RECIPES, Places, free_name, is_plain_path, name_for_file, shown
from tunewright.studio.recipes import recipe_rows

ENDINGS = (
    *(".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".xlsx"),
    *(".txt", ".md", ".jsonl.gz", ".json.gz", ".csv.gz"),
)
SURE = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".jsonl.gz")
"""Endings of files that hold rows wherever they lie; the others only where data is kept."""
NO_DATA = ("events.jsonl", "before_after.jsonl", "answers.jsonl", "package.json", "tsconfig.json")
REGISTRY = "dataset_info.json"
DEEPEST, MOST_FILES, MOST_FOLDERS = 3, 2000, 5000
COUNTED_BYTES = 256 * 2**20
"""Files above it are not counted for a list: looking at one counts it."""
ROOM_LEFT = 64 * 2**20
"""Bytes of the disk that an upload leaves free."""


class DataFiles:
    """The data of one workspace."""

    def __init__(self, places: Places):
        self.places = places
        self._rows: dict[Path, tuple[tuple[int, int], int | None]] = {}

    def all(self) -> list[dict[str, Any]]:
        """Every file that can be chosen: uploads first, newest first, then the workspace's, then
        the recipes'."""
        own = [self.entry(path) for path in self._uploads()]
        there = [self.entry(path) for path in self._found()]
        newest = sorted(own, key=lambda e: -e["made_at"]) + sorted(
            there, key=lambda e: -e["made_at"]
        )
        return newest + [self.entry(RECIPES / f"{name}.jsonl") for name in recipe_rows()]

    def entry(self, path: Path) -> dict[str, Any]:
        """What the list shows of a file."""
        stat = path.stat()
        kind = "workspace"
        shown_path, identity = self.places.short(path), self.places.id_of(path)
        if path.parent == RECIPES:
            kind, identity = "recipe", f"recipe:{path.stem}"
            shown_path = identity
        elif path.is_relative_to(self.places.uploads):
            kind = "upload"
        return {
            "id": identity,
            "name": path.name,
            "path": shown_path,
            "rows": self._count(path, (stat.st_mtime_ns, stat.st_size)),
            "format": _ending(path).lstrip("."),
            "bytes": stat.st_size,
            "made_at": round(stat.st_mtime, 3),
            "kind": kind,
        }

    def path_of(self, data_id: str) -> Path | None:
        """The file of an id; None where the list has none."""
        if data_id.startswith("recipe:") or len(data_id) != 16:
            return None
        for path in (*self._uploads(), *self._found()):
            if self.places.id_of(path) == data_id:
                return path
        return None

    def delete(self, data_id: str) -> None:
        """Move an upload to the trash. Raises UsageError for what is none."""
        path = next((p for p in self._uploads() if self.places.id_of(p) == data_id), None)
        if path is None:
            raise UsageError(problem("E-STUDIO-12", "data", what=shown(data_id)))
        trash = self.places.private / "trash" / f"data-{time.time_ns():x}"
        trash.mkdir(mode=0o700)
        os.rename(path, trash / path.name)

    def place_for(self, name: object) -> Path:
        """Where an upload of a name goes. Raises UsageError for a name that leads elsewhere, and
        for a kind of file that holds no rows."""
        safe = name_for_file(name, "name")
        if not safe.lower().endswith(ENDINGS) or safe.lower() == REGISTRY:
            raise UsageError(
                problem("E-STUDIO-24", "name", name=shown(name), kinds=", ".join(ENDINGS))
            )
        return free_name(self.places.uploads, safe)

    @contextlib.contextmanager
    def arriving(self, name: object, size: int | None) -> Iterator[tuple[Any, Path]]:
        """(an open file, the place it gets when the block ends well). Raises UsageError where the
        disk has no room for it."""
        target = self.place_for(name)
        self.require_room(size or 0)
        temporary = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with open(temporary, "xb") as handle:
                yield handle, target
                handle.flush()
                os.fsync(handle.fileno())
            os.rename(temporary, target)
        except OSError as error:
            folder = self.places.uploads
            raise UsageError(
                problem("E-STUDIO-21", str(folder), folder=folder, cause=error)
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def require_room(self, size: int) -> None:
        """Raise UsageError where the disk has no room for so many bytes."""
        free = shutil.disk_usage(self.places.uploads).free
        if free - size < ROOM_LEFT:
            cause = f"{free >> 20} MiB free, {(size >> 20) + 1} MiB needed"
            folder = self.places.uploads
            raise UsageError(problem("E-STUDIO-21", str(folder), folder=folder, cause=cause))

    def _uploads(self) -> list[Path]:
        return [path for path in _files(self.places.uploads, 1, [1]) if _is_data(path, sure=False)]

    def _found(self) -> list[Path]:
        found: list[Path] = []
        for root in (self.places.root, *self.places.allowed):
            for path in _files(root, DEEPEST, [MOST_FOLDERS]):
                is_kept = path.parent.name in ("data", "datasets")
                known = _is_data(path, sure=not is_kept)
                # Rows often lie as .json in the folder that a person starts in.
                known = known or (path.parent == root and _is_list(path))
                if known and is_plain_path(str(path)):
                    found.append(path)
                if len(found) >= MOST_FILES:
                    return found
        return found

    def _count(self, path: Path, stamp: tuple[int, int]) -> int | None:
        kept = self._rows.get(path)
        if kept is None or kept[0] != stamp:
            kept = self._rows[path] = (stamp, count_rows(path, stamp[1]))
        return kept[1]


def count_rows(path: Path, size: int) -> int | None:
    """Rows of a file where that is told without understanding it; None elsewhere."""
    ending = _ending(path)
    try:
        if ending == ".parquet":
            import pyarrow.parquet as parquet

            return int(parquet.read_metadata(path).num_rows)
        if ending in (".jsonl", ".ndjson", ".jsonl.gz") and size <= COUNTED_BYTES:
            opened = gzip.open if ending.endswith(".gz") else open
            with opened(path, "rb") as handle:
                most = 8 * COUNTED_BYTES  # of a packed file that unpacks without end
                return sum(bool(line.strip()) for line in _bounded(handle, most))
        if ending == ".json" and size <= COUNTED_BYTES // 8:
            import json

            found = json.loads(path.read_text(encoding="utf-8-sig"))
            return len(found) if isinstance(found, list) else None
        if ending in (".csv", ".tsv") and size <= COUNTED_BYTES // 4:
            import csv

            with open(path, encoding="utf-8-sig", errors="replace", newline="") as text:
                return max(0, sum(1 for row in csv.reader(text) if row) - 1)
    except Exception:  # a count is no promise: what is wrong with a file, checking it says
        return None
    return None


def _bounded(handle: Any, most: int) -> Iterator[bytes]:
    read = 0
    for line in handle:
        read += len(line)
        if read > most:
            raise ValueError("too long")
        yield line


def _ending(path: Path) -> str:
    name = path.name.lower()
    return next((e for e in ENDINGS[::-1] if name.endswith(e)), path.suffix.lower())


def _is_data(path: Path, *, sure: bool) -> bool:
    name = path.name.lower()
    if name.startswith(".") or name in NO_DATA or name == REGISTRY:
        return False
    return name.endswith(SURE if sure else ENDINGS)


def _is_list(path: Path) -> bool:
    """Whether a .json file begins as a list of objects, as data rows do."""
    if path.suffix.lower() != ".json" or not _is_data(path, sure=False):
        return False
    try:
        with open(path, encoding="utf-8-sig") as handle:
            return re.match(r"\s*\[\s*\{", handle.read(200)) is not None
    except (OSError, UnicodeDecodeError):
        return False


def _files(root: Path, deepest: int, left: list[int]) -> Iterator[Path]:
    """Files down to a depth; what is hidden, linked, a run or a model is left out, and so is what
    comes after `left` folders."""
    left[0] -= 1
    if left[0] < 0:
        return
    try:
        with os.scandir(root) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    names = {entry.name for entry in found}
    if names & {"run.yaml", "config.json", "adapter_config.json", "package.json", "pyproject.toml"}:
        names_kept = [e for e in found if not e.is_dir(follow_symlinks=False)]
        found = [] if names & {"run.yaml", "config.json", "adapter_config.json"} else names_kept
    for entry in found:
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
        elif deepest > 1 and entry.name not in ("node_modules", "exports", "__pycache__"):
            yield from _files(Path(entry.path), deepest - 1, left)
