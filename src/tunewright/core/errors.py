"""What went wrong, where, and what to do: one exception tree for people.

    TunewrightError            exit code 1: the run failed
    |- UsageError              exit code 2: wrong usage or input; nothing was created or changed
    |  |- ConfigError          a key or value of the run
    |  |- CompatError          parts that do not go together
    |  |- DataError            rows that cannot be trained on
    |  |- ModelError           a model that is missing, incomplete or not safe to open
    |- TrainingError           a step that cannot be taken (non-finite values, no memory)
    |- CheckpointError         a checkpoint that cannot be written or trusted
    |- UnexpectedError         what nobody foresaw; its traceback is in a file (`core/faults.py`)
    |- Interrupted             exit code 128 + signal

Each carries a list of problems, so all that is wrong is said at once. The texts stand in
`assets/locales`, by code.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tunewright.core.words import _Fields, catalogue, error_text, say

E = TypeVar("E", bound="TunewrightError")
LINE = re.compile(r"(?:^|, )line (?P<line>\d+)(?:, column (?P<column>\d+))?$")
"""How a place inside a file ends: `rows.jsonl, line 6, column 35`."""


def place_words(where: str) -> str:
    """A place in the reader's language: the file and the key stay, the words round them do not.
    `run.yaml, line 9`, `command line` and `demo` are such places (`ParsedRun.source`)."""
    if where in ("command line", "default", "demo"):
        return say(f"place.{where.replace(' ', '_')}")
    found = LINE.search(where)
    if found is None:
        return where
    head = where[: found.start()]
    key = "place.column" if found["column"] else "place.line"
    return say(key, file=head + say("place.comma") if head else "", **found.groupdict())


def system_reason(error: OSError) -> str:
    """What the operating system refused, in the reader's language. The system itself speaks that
    of its own settings; what has no words here (`system.*`) is left in its own."""
    name = (
        "NO_HOST" if isinstance(error, socket.gaierror) else errno.errorcode.get(error.errno or 0)
    )
    if f"system.{name}" in catalogue("en"):
        return say(f"system.{name}")
    return error.strerror or first_line(error)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `code` names its text and its page; `where` is a file, line, row or
    key. An OSError among the fields is said in the reader's language."""

    code: str
    where: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    def what(self) -> str:
        """What happened, in the reader's language."""
        return (
            error_text(self.code)["what"].format_map(self._known()) or f"{self.code} {self.fields}"
        )

    def remedy(self) -> str:
        """What to do about it."""
        return error_text(self.code)["do"].format_map(self._known())

    def _known(self) -> _Fields:
        told = {
            name: system_reason(value) if isinstance(value, OSError) else value
            for name, value in self.fields.items()
        }
        return _Fields({"where": self.where, **told})

    def place(self) -> str:
        """`where` in the reader's language."""
        return place_words(self.where)

    def line(self) -> str:
        """One line for a terminal: code, what, where, remedy."""
        what = self.what()
        said = "/" in self.where and self.where in what  # a path is not told twice
        place = f"  ({self.place()})" if self.where and not said else ""
        return f"{self.code}  {what}{place} {self.remedy()}".rstrip()

    def as_dict(self) -> dict[str, Any]:
        """The same for `--json`. With `fields` another program says it again in another language
        (`problem_of`)."""
        said = {"code": self.code, "what": self.what(), "where": self.where, "do": self.remedy()}
        return {**said, "fields": _plain(self.fields)}


def problem(code: str, where: str = "", /, **fields: Any) -> Problem:
    """Short form of `Problem(code, where, fields)`."""
    return Problem(code, where, fields)


def problem_of(said: dict[str, Any]) -> Problem:
    """The problem whose `as_dict` is given, to be said again."""
    fields = said.get("fields")
    return Problem(
        str(said.get("code", "")),
        str(said.get("where") or ""),
        fields if isinstance(fields, dict) else {},
    )


def _plain(value: Any) -> Any:
    """A value as JSON holds it; what it cannot hold becomes the text that a message would show."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, OSError):
        return system_reason(value)
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else str(value)


class TunewrightError(Exception):
    """Base of all errors meant for people. `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(self, problems: Problem | Iterable[Problem]):
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(p.line() for p in self.problems))

    @classmethod
    def of(cls: type[E], code: str, where: str = "", /, **fields: Any) -> E:
        """The error of a single problem."""
        return cls(Problem(code, where, fields))

    def add(self, one: Problem) -> None:
        """Say one thing more."""
        self.problems.append(one)
        self.args = ("\n".join(p.line() for p in self.problems),)

    def text(self, about: str = "") -> str:
        """The whole message as printed on a terminal."""
        head = say("error.head", count=len(self.problems), about=about or say("error.this_command"))
        if len(self.problems) == 1:
            head = say("error.head_one", about=about or say("error.this_command"))
        return "\n".join([head, *(f"  {p.line()}" for p in self.problems)])


class UsageError(TunewrightError):
    """Wrong usage or input; nothing was created or changed."""

    exit_code = 2


class ConfigError(UsageError):
    """A key or value of the run that is not understood."""


class CompatError(UsageError):
    """Parts of a run that do not go together."""


class DataError(UsageError):
    """Rows that cannot be read or trained on."""


class ModelError(UsageError):
    """A model that is missing, incomplete or not safe to open."""


class TrainingError(TunewrightError):
    """A step that could not be taken; the weights are those before it."""


class CheckpointError(TunewrightError):
    """A checkpoint that could not be written, or that none can be trusted."""


class UnexpectedError(TunewrightError):
    """Something that nobody foresaw: `__cause__` is the exception, and its traceback stands in the
    file that the message names."""


class Interrupted(TunewrightError):
    """Stopped by a signal after the state was made safe."""

    def __init__(self, signal_number: int, problems: Problem | Iterable[Problem]):
        super().__init__(problems)
        self.exit_code = 128 + signal_number


def raise_all(problems: Iterable[Problem], kind: type[TunewrightError] = UsageError) -> None:
    """Raise `kind` with every problem in one message, or return when there is none."""
    found = list(problems)
    if found:
        raise kind(found)


def first_line(cause: object, limit: int = 300) -> str:
    """The first line of an error's text, with passwords in addresses and hub tokens blotted out, so
    that no secret reaches a log.

    A first line that only announces the next (it ends with a colon, as PyTorch's about weights that
    do not fit) is said together with it.
    """
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [
        type(cause).__name__
    ]
    said = next((n for n, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    text = " ".join(lines[:said])[:limit].rstrip(" .:")
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}", "***", re.sub(r"//[^/@\s]+@", "//***@", text))
