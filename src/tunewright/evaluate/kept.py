"""Lines of a table that are found again: what was measured before a kill is not measured twice.

A line carries the name of everything that decided it (`answer_table.about` names a model). A line
that a kill cut off counts as none; lines of another model or other settings stay in the file and
are not used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from tunewright.core.errors import UsageError, problem
from tunewright.evaluate.answer_table import digest

KEY = "key"


def name_of(*facts: Any) -> str:
    """The name of what a line says, from everything that decides it."""
    return digest(facts)


class Kept:
    """The lines in `path`; None keeps nothing. Raises UsageError (E-EXAM-13) where the file cannot
    be read or written."""

    def __init__(self, path: Path | None):
        self.path, self._file = path, None if path is None else self._opened(path)
        self._lines: dict[str, dict[str, Any]] = {}
        if path is not None:
            for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                self._take(text)

    @staticmethod
    def _opened(path: Path) -> TextIO:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
            file = path.open("a", encoding="utf-8")
            if not whole:  # a line that was cut off stays a line of its own
                file.write("\n")
            return file
        except OSError as e:
            raise UsageError(problem("E-EXAM-13", str(path), cause=e)) from e

    def _take(self, text: str) -> None:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(line, dict) and isinstance(line.get(KEY), str):
            self._lines[line[KEY]] = line

    def find(self, name: str) -> Mapping[str, Any] | None:
        """The line of that name."""
        return self._lines.get(name)

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        """Add lines, at once on the disk; those that stand there already are not written again."""
        if self._file is None:
            return
        for line in lines:
            if line[KEY] not in self._lines:
                self._lines[line[KEY]] = line
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        try:
            self._file.flush()
        except OSError as e:
            raise UsageError(problem("E-EXAM-13", str(self.path), cause=e)) from e

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
