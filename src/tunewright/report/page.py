"""What the sections of a report share: the record, the language, how figures are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.core.files import readable_size
from tunewright.core.words import say
from tunewright.report.markup import Child, Html, el, words
from tunewright.report.record import Record, finite
from tunewright.report.verdict import Finding

DASH = "–"


@dataclass(frozen=True)
class Page:
    """One report in one language."""

    record: Record
    lang: str

    def say(self, key: str, **fields: Any) -> Html:
        """The sentence `report.<key>`, escaped."""
        return words(f"report.{key}", self.lang, **fields)

    def text(self, key: str, **fields: Any) -> str:
        """The same as plain text, for attributes and titles."""
        return say(f"report.{key}", lang=self.lang, **fields)

    def finding(self, finding: Finding) -> Html:
        """A finding as a list item."""
        return el("li", words(finding.key, self.lang, **finding.fields), class_=finding.tone)

    def section(self, key: str, *children: Child) -> Html:
        """A section with the heading `report.<key>.title`."""
        return el("section", el("h2", self.say(f"{key}.title")), *children, id=key)

    def table(self, rows: Sequence[tuple[Child, Child]], class_: str = "facts") -> Html:
        """Names and values, one pair a row; pairs without a value are left out."""
        cells = [
            el("tr", el("th", name, scope="row"), el("td", value))
            for name, value in rows
            if value not in (None, "", DASH)
        ]
        return el("table", *cells, class_=class_) if cells else Html("")

    def fold(self, summary: Child, *children: Child, open_: bool = False) -> Html:
        """A part that opens at a click."""
        return el("details", el("summary", summary), *children, open=open_)

    def seconds(self, value: Any) -> str:
        """A duration in words: 7.3 s, 2 min 5 s, 1 h 4 min."""
        told = finite(value)
        if told is None or told < 0:
            return DASH
        if told < 60:
            return self.text("unit.seconds", seconds=f"{told:.1f}" if told < 10 else f"{told:.0f}")
        minutes, seconds = divmod(round(told), 60)
        if minutes < 60:
            return self.text("unit.minutes", minutes=minutes, seconds=seconds)
        hours, minutes = divmod(minutes, 60)
        return self.text("unit.hours", hours=hours, minutes=minutes)


def whole(value: Any) -> str:
    """12345 -> 12,345; a dash for nothing."""
    told = finite(value)
    return DASH if told is None else f"{told:,.0f}"


def share(value: Any, digits: int = 0) -> str:
    """0.61 -> 61 %."""
    told = finite(value)
    return DASH if told is None else f"{100 * told:.{digits}f} %"


def size(value: Any) -> str:
    """Bytes for people."""
    told = finite(value)
    return DASH if told is None or told <= 0 else readable_size(told)


def ratio(above: Any, below: Any) -> float | None:
    """above / below, or None where it makes no sense."""
    top, bottom = finite(above), finite(below)
    return top / bottom if top is not None and bottom else None


def strings(value: Any) -> list[str]:
    """A list of texts from a JSON value that should be one."""
    return [str(v) for v in value] if isinstance(value, list) else []


def listing(value: Any) -> list[Any]:
    """A JSON list, or an empty one."""
    return value if isinstance(value, list) else []
