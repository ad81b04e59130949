"""The table of answers: `answers.jsonl`, one line an answered row, written as the answers end.

A line carries the name of everything that decided its answer: the files of the model, what
computes, the tokens of the question, the stop tokens and the most tokens. Whoever measures again
into the same folder, after a kill or with more metrics, asks only what has no line of that name. A
line that a kill cut off counts as none. Lines that belong to another model or other settings are
never thrown away: the file that has them is kept under another name, and that is said.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, get_args

from tunewright.core.errors import UsageError, problem
from tunewright.core.files import write_text
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.engine.decoding import answers as generate
from tunewright.engine.decoding.answers import Answer, AnsweringModel, End
from tunewright.sources.fingerprint import computed_by, fingerprint

NAME = "answers.jsonl"


def about(opened: opening.Opened) -> str:
    """The name of what answers: every file that decides it, how it is held, and what computes."""
    found, world = opened.target, opened.world
    facts = {
        "model": fingerprint(found.source.folder),
        "adapter": "" if found.adapter is None else fingerprint(found.adapter),
        "held": opening.base_of(found.settings).model_dump(mode="json"),
        "device": world.device.split(":")[0],
        "dtype": world.dtype,
        "by": computed_by() | {"generator": str(generate.GENERATOR)},
    }
    return digest(facts)


def name_of(who: str, model: AnsweringModel, prompt: list[int], most: int) -> str:
    """The name of one answer."""
    return digest([who, prompt, most, model.stop_ids, model.vocabulary])


def digest(value: Any) -> str:
    """A short name of plain values."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class AnswerTable:
    """The table in `folder`; None keeps nothing. Raises UsageError where the folder cannot be
    written to (E-EVAL-22)."""

    def __init__(self, folder: Path | None):
        self.path = None if folder is None else folder / NAME
        self._file: TextIO | None = None
        self._foreign = False
        self._stored = self._read()
        self._used: set[str] = set()

    def find(self, name: str) -> Answer | None:
        """The answer of that name; None where there is none."""
        line = self._stored.get(name)
        if line is None:
            return None
        self._used.add(name)
        return Answer(line["answer"], line["end"], line["ids"])

    def open(self, tell: Tell) -> None:
        """Make ready to add. Where lines were not found they are set aside."""
        if self.path is None:
            return
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._foreign or set(self._stored) - self._used:
                aside = _free_name(self.path)
                self.path.rename(aside)
                tell.line(say("evaluate.table_aside", file=self.path, aside=aside))
            kept = [self._stored[name] for name in self._stored if name in self._used]
            write_text(self.path, "".join(map(_line, kept)))
            self._file = self.path.open("a", encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        """Add a line, at once on the disk."""
        if self._file is not None and self.path is not None:
            with writing(self.path):
                self._file.write(_line(line))
                self._file.flush()

    def finish(self, lines: Sequence[dict[str, Any]]) -> None:
        """The whole table, in the order of the rows, with what was found out about each."""
        if self.path is not None:
            self.close()
            write(self.path, lines)

    def close(self) -> None:
        """Close the file; lines that were added stay."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> dict[str, dict[str, Any]]:
        if self.path is None or not self.path.is_file():
            return {}
        with writing(self.path):
            text = self.path.read_text(encoding="utf-8", errors="replace")
        *whole, _ = text.split("\n")  # what stands after the last line end was cut off
        found = [_stored_line(line) for line in whole if line]
        self._foreign = None in found
        return {line["key"]: line for line in found if line is not None}


def write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """A whole table. Raises UsageError where it cannot be written (E-EVAL-22)."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(map(_line, lines)))


def _stored_line(text: str) -> dict[str, Any] | None:
    """A line of a table; None for what is none, as a line that was cut off."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("key"), str):
        return None
    ids = line.get("ids")
    whole = isinstance(ids, list) and all(isinstance(token, int) for token in ids)
    good = whole and isinstance(line.get("answer"), str) and line.get("end") in get_args(End)
    return line if good else None


def _line(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"answers.before-{number}.jsonl")).exists():
        number += 1
    return aside


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, what the disk refuses is said with its place."""
    try:
        yield
    except OSError as e:
        raise UsageError(problem("E-EVAL-22", str(path), cause=e)) from e
