"""Every draw of `data think`, in a file beside the result, written as each question ends.

A line carries the name of everything that decided it: the files of the model, the tokens of the
question, how was drawn. Whoever runs the command again, after a kill or with another judgement,
draws only what has no line of that name. A line that a kill cut off counts as none.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from tunewright.core.errors import UsageError, problem
from tunewright.core.files import write_text


@dataclass(frozen=True)
class Draw:
    """One answer that was drawn. `tokens` counts the stop token where it ended (`finished`)."""

    thought: str
    text: str
    tokens: int
    finished: bool


class DrawFile:
    """The file of draws. Raises UsageError where it cannot be read or written (E-THINK-06)."""

    def __init__(self, path: Path):
        self.path = path
        self._file: TextIO | None = None
        self._stored: dict[str, list[Draw]] = {}
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
        except (OSError, UnicodeDecodeError) as e:
            raise self._refused(e) from e
        *whole, cut = text.split("\n")
        for line in whole:
            self._take(line)
        if cut:
            try:
                write_text(path, "".join(line + "\n" for line in whole))
            except OSError as e:
                raise self._refused(e) from e

    def find(self, name: str) -> list[Draw] | None:
        """The draws of that name; None where there are none."""
        return self._stored.get(name)

    def add(self, name: str, question: str, draws: list[Draw]) -> None:
        """Add the draws to one question, at once on the disk."""
        self._stored[name] = draws
        line = {"key": name, "question": question, "draws": [asdict(one) for one in draws]}
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as e:
            raise self._refused(e) from e

    def close(self) -> None:
        """Close the file; what was added stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, text: str) -> None:
        try:
            line: Any = json.loads(text)
            self._stored[line["key"]] = [Draw(**one) for one in line["draws"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return

    def _refused(self, error: Exception) -> UsageError:
        return UsageError(problem("E-THINK-06", str(self.path), cause=error))
