"""What a tracker's file has to offer, and how it is registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar

from typing_extensions import Unpack

from tunewright.core.registry import trackers


@dataclass(frozen=True)
class About:
    """The run as a tracker needs it."""

    run: Path
    name: str
    settings: dict[str, Any]
    """The run file by dotted key."""
    folder: Path
    """Where the tracker's own files go; it exists."""
    key: str
    """32 hexadecimal letters: the same whenever this run is told to this tracker."""
    goes_on: bool
    """It was told to this tracker before."""


class Sink(Protocol):
    """One run in one tracker. Every method may raise whatever its library raises."""

    def figures(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Figures of one step, in the order of steps."""

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Questions and answers."""

    def picture(self, name: str, step: int, png: bytes) -> None:
        """A picture."""

    def file(self, path: Path) -> None:
        """A file of the run folder, where the tracker keeps files."""

    def flush(self) -> None:
        """Make what was told so far safe."""

    def reached(self) -> Mapping[str, int] | None:
        """The last step of every figure that the tracker's files hold; None where they cannot be
        asked."""

    def finish(self, status: str) -> None:
        """The run has ended as `status` says: done, stopped, failed, or running where it goes
        on elsewhere."""


class TrackerFacts(TypedDict, total=False):
    """What is known of a tracker before its library is loaded."""

    needs: tuple[str, ...]
    """Modules that have to be installed."""
    view: str
    """The command that shows its files; `{folder}` stands for the place."""


F = TypeVar("F", bound=Callable[..., Sink])


def tracker(kind: str, config: type, **facts: Unpack[TrackerFacts]) -> Callable[[F], F]:
    """Decorator: the function opens the tracker `kind`, `(settings, about) -> Sink`."""

    def keep(function: F) -> F:
        trackers.register(kind, config, **facts)(function)
        return function

    return keep


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Questions and answers as a table in Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for row in rows:
        cells = (_cell(row.get(name)) for name in names)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return text.replace("\r\n", "\n").replace("\n", "<br>")


def columns_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and every row as texts in their order."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, [["" if row.get(n) is None else str(row.get(n)) for n in names] for row in rows]
