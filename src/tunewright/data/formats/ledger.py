"""The column ledger: which columns of the rows were read, which were left, and what those held.

A format is given its row as a `Seen`, a dictionary that remembers what was taken out of it; what
nobody took is left. So no format has to say what it reads, a new column is counted the day somebody
reads it, and the sum always holds: the columns of a file are those that were used and those that
are named as left. A column counts as used where at least one kept row used it. Asking whether a
column is there (`in`) takes nothing; `peek` looks at a value that may turn out not to be needed.

Everything is plain and can be added up, so that worker processes send theirs home and the token
cache keeps the sum.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunewright.core.types import PlainText, Row, turns_of

SHOWN_CHARACTERS = 80
COMPARED_CHARACTERS = 200
"""Of a value that is left so much is kept, to tell whether the next row has another and to show it.
"""
HARMLESS_CHARACTERS = 300
"""A column called `source` whose cells are longer than this is no note about where a row came from.
"""
MOST_NAMES = 10_000
OF_TURNS = "turns[]."
"""Before the name of what turns hold besides role and content."""
COPY_CHARACTERS, MOSTLY = 12, 0.9
BOOKKEEPING = frozenset(
    """
    id ids idx index no nr uid uuid guid key hash source sources url urls uri link lang language
    locale date datetime time timestamp created updated added dataset datasource split license
    licence author username file filename path filepath version model generator engine dump meta
    metadata commit revision annotator worker size length tokens domain_name website site repo
    extension ext mimetype seed 编号 序号 来源 链接 网址 日期 时间 语言 作者 数据集
    """.split()
)
"""Names of columns that say where a row came from."""
_ending = re.compile(
    r"_(?:ids?|idx|index|no|uuid|uid|key|hash|hexsha|md5|sha\d*|urls?|uri|link|path|file|filename|date|datetime|time|timestamp|at|lang|language|license|"
    r"source|version|count|tokens|length|len|size|model)$|^(?:meta|num|n|is|has|max|min)_|^_|^(?:hexsha|md5|sha\d+|unnamed.*)$"
)
_camel = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Seen(dict[str, Any]):
    """A row, or a turn of one, that remembers which of its values were taken out. `names` says what
    the file calls a column that was renamed."""

    __slots__ = ("names", "taken")

    def __init__(
        self,
        values: Iterable[tuple[str, Any]] | Mapping[str, Any],
        names: Mapping[str, str] | None = None,
    ):
        super().__init__(values)
        self.taken: set[str] = set()
        self.names = names or {}

    def __getitem__(self, name: str) -> Any:
        self.taken.add(name)
        return dict.__getitem__(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        """The value or the default, as of any dictionary."""
        self.taken.add(name)
        return dict.get(self, name, default)

    def left(self) -> set[str]:
        """The names that nobody took."""
        return self.keys() - self.taken

    def theirs(self, name: str) -> str:
        """What the file calls a column."""
        return self.names.get(name, name)


def peek(raw: Mapping[str, Any], name: str) -> Any:
    """A value that is only looked at; None where there is none."""
    return dict.get(raw, name) if isinstance(raw, dict) else raw.get(name)


@dataclass
class Left:
    """What is known of a column that was left in some rows."""

    rows: int = 0
    filled: int = 0
    """Rows in which it holds something."""
    texts: int = 0
    """Rows in which that is more than a number."""
    copies: int = 0
    """Rows in which it holds the question and the answer once more, as a text that was made of them
    does."""
    differs: bool = False
    longest: int = 0
    first: str = ""
    place: str = ""

    def add(self, value: Any, place: object, is_copy: bool) -> None:
        """One more row."""
        self.rows += 1
        shown, is_text = _shown(value)
        if not shown:
            return
        if not self.filled:
            self.first, self.place = shown, str(place)
        elif not self.differs:
            self.differs = shown != self.first
        self.filled += 1
        self.texts += is_text
        self.copies += is_copy
        self.longest = max(self.longest, len(value) if isinstance(value, str) else 0)

    def merge(self, other: Left) -> None:
        """Add what another process saw later."""
        if other.filled and not self.filled:
            self.first, self.place = other.first, other.place
        elif other.filled:
            self.differs = self.differs or self.first != other.first
        self.differs = self.differs or other.differs
        for name in ("rows", "filled", "texts", "copies"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)

    def why(self, name: str) -> str:
        """`lesson`: text that differs from row to row, so that something is lost; else why nothing
        is: `bookkeeping`, `empty`, `same`, `copy`, `number`."""
        if not self.filled:
            return "empty"
        if is_bookkeeping(name) and self.longest <= HARMLESS_CHARACTERS:
            return "bookkeeping"
        if self.copies >= MOSTLY * self.filled:
            return "copy"
        if not self.texts:
            # A number or a yes and no on some turns and not on others is a mark.
            return "lesson" if name.startswith(OF_TURNS) and self.differs else "number"
        return "same" if self.filled > 1 and not self.differs else "lesson"


def is_bookkeeping(name: str) -> bool:
    """Whether a name is one of those that say where a row came from."""
    plain = _camel.sub("_", name.rpartition(".")[2].strip()).lower()
    plain = plain.replace("-", "_").replace(" ", "_")
    return plain in BOOKKEEPING or bool(_ending.search(plain))


def _whole(text: str) -> str:
    """A text that can be written down: half a character is shown as its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _shown(value: Any) -> tuple[str, bool]:
    """The beginning of a value as text, empty for nothing, and whether it is more than a number."""
    if value is None or value == "" or value == [] or value == {}:
        return "", False
    if isinstance(value, str):
        text = value[:COMPARED_CHARACTERS].strip()
        return text, any(map(str.isalpha, text))
    if isinstance(value, bool | int | float):
        return str(value), False
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)[:COMPARED_CHARACTERS]
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text, any(map(str.isalpha, text))


@dataclass
class Ledger:
    """The columns of some rows."""

    had: Counter[str] = field(default_factory=Counter)
    """Column -> kept rows that have it."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Column -> rows that have it and cannot be used: of them nothing is learnt."""
    left: dict[str, Left] = field(default_factory=dict)
    _kept: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def keep(
        self,
        row: Seen,
        columns: tuple[str, ...],
        fields: Mapping[str, Any],
        place: object,
        made: Row,
    ) -> None:
        """A row that was used. `columns` are the file's names, `fields` what its turns hold that
        nobody took, `made` is what it became."""
        self._kept[columns] += 1
        names = row.left()
        if names and row.names:
            # One column of the file may stand under two names of ours; taken under one of them it
            # is used.
            taken = {row.theirs(name) for name in row.taken}
            names = {name for name in names if row.theirs(name) not in taken}
        if names:
            whole = "\n".join(turn.content for turn in turns_of(made))
            for name in names:
                value = dict.get(row, name)
                self._entry(row.theirs(name)).add(value, place, _is_copy(value, made, whole))
        for name, value in fields.items():
            self._entry(OF_TURNS + name).add(value, place, False)

    def shadowed(self, name: str, value: Any, place: object) -> None:
        """A column that had to make way for one that was renamed to its name."""
        self._entry(name).add(value, place, False)

    def drop(self, columns: Iterable[str]) -> None:
        """A row that cannot be used."""
        for name in columns:
            if name in self.dropped or len(self.dropped) < MOST_NAMES:
                self.dropped[name] += 1

    def _entry(self, name: str) -> Left:
        if name not in self.left and len(self.left) >= MOST_NAMES:
            return Left()
        return self.left.setdefault(name, Left())

    def _count(self) -> None:
        for columns, rows in self._kept.items():
            for name in columns:
                if name in self.had or len(self.had) < MOST_NAMES:
                    self.had[name] += rows
        self._kept.clear()

    def plain(self) -> dict[str, Any]:
        """Plain values, for a pipe or a file."""
        self._count()
        return {
            "had": dict(self.had),
            "dropped": dict(self.dropped),
            "left": {name: list(vars(one).values()) for name, one in self.left.items()},
        }

    def merge(self, plain: Mapping[str, Any]) -> None:
        """Add what another ledger says in plain values. In the order of the rows, so that the
        examples are the first ones."""
        self._count()
        self.had.update(plain["had"])
        self.dropped.update(plain["dropped"])
        for name, values in plain["left"].items():
            self._entry(name).merge(Left(*values))

    def used(self) -> list[str]:
        """The columns that at least one kept row used."""
        self._count()
        return [
            _whole(name)
            for name, rows in self.had.items()
            if name not in self.left or self.left[name].rows < rows
        ]

    def unused(self) -> list[dict[str, Any]]:
        """The columns that some kept row did not use, and those that only unusable rows have: name,
        in how many rows of how many, why, an example."""
        self._count()
        found = []
        for name, one in self.left.items():
            total, example = self.had.get(name, one.rows), _whole(one.first[:SHOWN_CHARACTERS])
            example += "..." if len(one.first) > SHOWN_CHARACTERS else ""
            found.append(_unused(name, one.rows, total, one.why(name), example, one.place))
        for name, rows in self.dropped.items():
            if name not in self.had:
                found.append(_unused(name, rows, rows, "dropped"))
        order = {_whole(name): i for i, name in enumerate(self.had)}
        return sorted(found, key=lambda one: (order.get(one["name"], len(order)), one["name"]))


def _unused(
    name: str, rows: int, of: int, why: str, example: str = "", place: str = ""
) -> dict[str, Any]:
    about = {"name": _whole(name), "rows": rows, "of": of, "why": why}
    return about | {"example": example, "place": place}


def _is_copy(value: Any, made: Row, whole: str) -> bool:
    """Whether a text stands in the turns already, or holds question and answer once more (the
    `text` of Stanford's Alpaca rows)."""
    if not isinstance(value, str) or isinstance(made, PlainText):
        return False
    if len(value) >= COPY_CHARACTERS and value.strip() in whole:
        return True
    asked = next((m.content for m in reversed(made.question()) if m.role == "user"), "")
    begins, answer = asked.partition("\n")[0], made.answer()
    if not answer or len(begins) + len(answer) < COPY_CHARACTERS:
        return False
    return answer in value and begins in value
