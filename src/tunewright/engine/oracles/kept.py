"""What another model says of the branches of a run, on disk: memory stays flat however many rows
there are.

A branch has one record: `count` lines in every column (one for a summed log-probability, one a
label for a teacher's scores). Records are appended to nameless files beside the run; `save` writes
them into one safetensors file in one rename, and `load` maps that file. In memory stays an index of
24 bytes a branch. A branch is known by its content, so rows may come in any order and as often as
they like.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.core.errors import CheckpointError, problem
from tunewright.core.key_index import KEY_BYTES, KeyIndex
from tunewright.core.types import Branch, Sample
from tunewright.engine import ranks

NAMES = {"<f8": "F64", "<f4": "F32", "<i4": "I32", "<i8": "I64", "|u1": "U8"}
"""numpy's dtypes as safetensors calls them."""
COPY_BYTES = 16 << 20


def key_of(branch: Branch) -> bytes:
    """What identifies a branch: its tokens and which of them count."""
    digest = hashlib.blake2b(array("q", branch.tokens).tobytes(), digest_size=KEY_BYTES)
    digest.update(array("q", branch.learnt).tobytes())
    return digest.digest()


class KeptValues:
    """Records of branches in columns `{name: (dtype, width)}`, width 0 for plain numbers.
    `folder` is where files wait until `save`."""

    def __init__(self, columns: dict[str, tuple[str, int]], folder: Path | None = None):
        self.columns, self.folder = columns, folder
        self.index = KeyIndex()
        self._mapped: dict[str, np.ndarray] = {}
        """What was loaded, `keys` and `ends` beside the columns."""
        self._written: dict[str, Any] = {}
        """What came since: a nameless file for each column and the keys."""
        self._ends = array("q")
        self._views: dict[str, np.ndarray] = {}
        # Not `__del__`: where a cycle is collected, a file may be ended before it.
        weakref.finalize(self, _close, self._written)

    def __len__(self) -> int:
        """Records, those of a branch that was added twice counted twice."""
        return self._num_mapped + len(self._ends)

    @property
    def _num_mapped(self) -> int:
        return len(self._mapped["keys"]) if self._mapped else 0

    def has(self, samples: Sequence[Sample]) -> bool:
        """Whether every branch of the samples has a record."""
        return all(branch in self for sample in samples for branch in sample.branches)

    def __contains__(self, branch: Branch) -> bool:
        return key_of(branch) in self.index

    def add(self, branch: Branch, **values: np.ndarray) -> None:
        """The record of a branch: for every column its lines. It replaces an earlier one."""
        key = key_of(branch)
        if not self._written:
            self._written |= {
                name: tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - they live as long as this object
                for name in ("keys", *self.columns)
            }
        self._written["keys"].write(key)
        count = 0
        for name, (kind, _) in self.columns.items():
            lines = np.ascontiguousarray(values[name], kind)
            count = len(lines)
            self._written[name].write(lines.tobytes())
        self.index.add(key, len(self))
        self._ends.append((self._ends[-1] if self._ends else 0) + count)
        self._views = {}

    def get(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """The lines of all branches, one after the other. Raises KeyError for a branch that nobody
        added."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.columns}
        for branch in (b for s in samples for b in s.branches):
            number = self.index.find(key_of(branch))
            if number is None:
                raise KeyError(f"branch of row {samples[0].origin}")
            part, begin, end = self._lines(number)
            for name, lines in found.items():
                lines.append(part[name][begin:end])
        return {
            name: np.concatenate(lines) if lines else self._empty(name)
            for name, lines in found.items()
        }

    def _lines(self, number: int) -> tuple[dict[str, np.ndarray], int, int]:
        """Where the lines of a record stand: the columns, the first line and the one after the
        last."""
        mapped = self._num_mapped
        ends: Any = self._mapped["ends"] if number < mapped else self._ends
        place = number if number < mapped else number - mapped
        begin, end = int(ends[place - 1]) if place else 0, int(ends[place])
        return self._mapped if number < mapped else self._since(), begin, end

    def _since(self) -> dict[str, np.ndarray]:
        """The columns of what was added since loading, as they stand in their files now."""
        if not self._views:
            for name in self.columns:
                self._views[name] = self._view(name)
        return self._views

    def _view(self, name: str) -> np.ndarray:
        file, (kind, width) = self._written[name], self.columns[name]
        file.flush()
        lines = self._ends[-1]
        return (
            np.memmap(file, kind, "r", shape=(lines, width) if width else (lines,))
            if lines
            else self._empty(name)
        )

    def _empty(self, name: str) -> np.ndarray:
        kind, width = self.columns[name]
        return np.empty((0, width) if width else (0,), kind)

    # ---- files

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write everything into `path` in one rename, with `about` in its head. From then on the
        file is what is read."""
        temporary = path.with_name(f".{path.name}")
        lines = (int(self._mapped["ends"][-1]) if self._num_mapped else 0) + (
            self._ends[-1] if self._ends else 0
        )
        shapes = {"keys": ("|u1", [len(self), KEY_BYTES]), "ends": ("<i8", [len(self)])}
        shapes |= {
            name: (kind, [lines, width] if width else [lines])
            for name, (kind, width) in self.columns.items()
        }
        head: dict[str, Any] = {"__metadata__": {"about": json.dumps(about, sort_keys=True)}}
        at = 0
        for name, (kind, shape) in shapes.items():
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            head[name] = {"dtype": NAMES[kind], "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 8)
        with open(temporary, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in shapes:
                self._copy(name, out)
        number = len(self)
        self._let_go()  # a file that is mapped cannot be replaced on Windows
        os.replace(temporary, path)
        self._map(path, number)

    def save_for_all(self, path: Path, about: dict[str, Any]) -> None:
        """As `save`, where every rank of a run has the same records: the first writes the file, and
        all read it."""
        team = ranks.current()
        if team.is_first:
            self.save(path, about)
        team.wait()
        if not team.is_first:
            number = len(self)
            self._let_go()
            self._map(path, number)
            self._count()

    def _count(self) -> None:
        """Know where the records of the mapped file stand."""
        self.index = KeyIndex()
        keys = self._mapped["keys"]
        for start in range(0, len(keys), COPY_BYTES // KEY_BYTES):
            part = keys[start : start + COPY_BYTES // KEY_BYTES]
            self.index.add_all(part.tobytes(), start)

    def _copy(self, name: str, out: Any) -> None:
        if self._mapped:
            for start in range(0, len(self._mapped[name]), COPY_BYTES // KEY_BYTES):
                out.write(
                    np.ascontiguousarray(
                        self._mapped[name][start : start + COPY_BYTES // KEY_BYTES]
                    ).tobytes()
                )
        if name == "ends":
            before = int(self._mapped["ends"][-1]) if self._num_mapped else 0
            out.write(
                (np.frombuffer(self._ends, "<i8") + before).astype("<i8").tobytes()
                if self._ends
                else b""
            )
        elif self._written:
            file = self._written[name]
            file.seek(0)
            while piece := file.read(COPY_BYTES):
                out.write(piece)

    def _let_go(self) -> None:
        _close(self._written)
        self._mapped, self._views, self._ends = {}, {}, array("q")

    @classmethod
    def load(cls, path: Path, columns: dict[str, tuple[str, int]]) -> KeptValues:
        """What was saved in `path`. Raises ValueError, OSError or KeyError for a file that does not
        hold just that."""
        kept = cls(columns, path.parent)
        kept._map(path)
        kept._count()
        return kept

    def _map(self, path: Path, expected: int | None = None) -> None:
        head, length = _head(path)
        size = path.stat().st_size - 8 - length
        wanted = {"keys": ("|u1", KEY_BYTES), "ends": ("<i8", 0), **self.columns}
        found: dict[str, np.ndarray] = {}
        for name, (kind, width) in wanted.items():
            if name == "ends" and name not in head:  # files of earlier versions: one line a record
                found["ends"] = np.arange(1, len(found["keys"]) + 1)
                continue
            begin, end = head[name]["data_offsets"]
            shape = tuple(head[name]["shape"])
            fits = head[name]["dtype"] == NAMES[kind] and (shape[1:] == ((width,) if width else ()))
            if (
                not fits
                or not 0 <= begin <= end <= size
                or end - begin != int(np.prod(shape)) * np.dtype(kind).itemsize
            ):
                raise ValueError(f"{name}: {head[name]}")
            found[name] = (
                np.memmap(path, kind, "r", 8 + length + begin, shape)
                if end > begin
                else np.empty(shape, kind)
            )
        lines = int(found["ends"][-1]) if len(found["ends"]) else 0
        if len(found["ends"]) != len(found["keys"]) or any(
            len(found[name]) != lines for name in self.columns
        ):
            raise ValueError("columns of different length")
        if expected is not None and len(found["keys"]) != expected:
            raise ValueError(f"{expected} records were written, {len(found['keys'])} are there")
        self._mapped = found


def _close(files: dict[str, Any]) -> None:
    while files:
        files.popitem()[1].close()


def load_bound(
    path: Path,
    columns: dict[str, tuple[str, int]],
    about: dict[str, Any],
    unreadable: str,
    another: str,
) -> KeptValues | None:
    """What was saved in `path` for the model that `about` describes; None where nothing was.

    Raises CheckpointError: the code `unreadable` for a file that cannot be read, `another` for one
    that was saved for another model.
    """
    if not path.is_file():
        return None
    try:
        stated = about_of(path)
        found = KeptValues.load(path, columns) if stated == about else None
    except Exception as e:
        raise CheckpointError(
            problem(unreadable, str(path), cause=str(e).splitlines()[0][:160])
        ) from e
    if found is None:
        raise CheckpointError(problem(another, str(path), stated=stated, found=about))
    return found


def about_of(path: Path) -> Any:
    """The `about` of a saved file. Raises ValueError or OSError for a file that is none."""
    return json.loads(_head(path)[0].get("__metadata__", {}).get("about", "null"))


def _head(path: Path) -> tuple[dict[str, Any], int]:
    """The head of a safetensors file and its length in bytes."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= 1 << 20:
            raise ValueError("the head of the file is not one of safetensors")
        head = json.loads(file.read(length))
    if not isinstance(head, dict):
        raise ValueError("the head of the file is not one of safetensors")
    return head, length


__all__ = ["KEY_BYTES", "KeptValues", "about_of", "key_of"]
