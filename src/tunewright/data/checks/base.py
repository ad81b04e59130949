"""What a check of the data is: something cheap is taken from every row, gathered in row order, and
turned into findings with places.

`feature` runs wherever the rows are encoded (perhaps in worker processes) and is all a check ever
sees of a row's text; `add` runs in one process in the order of the rows. What a check keeps for a
row is a few numbers, never its text, so that sets larger than memory can be checked.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from itertools import islice
from typing import Any, Literal, Protocol

from tunewright.core.types import Judged, Origin, PlainText, Preference, Row, Sample, turns_of
from tunewright.core.words import say

Severity = Literal["stop", "warn", "info"]
SHOWN_PLACES, WORTH_A_WARNING = 5, 0.005
TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True)
class Finding:
    """One thing that was found. `count` of `total` rows (or answers, or tokens) are concerned;
    `places` are up to five file:line.

    A `stop` makes training meaningless, a `warn` makes it worse, an `info` is worth knowing. The
    sentences stand in the locale under `check.<key>.what` and `check.<key>.do`.
    """

    key: str
    severity: Severity
    count: int
    total: int
    places: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    def name(self, lang: str | None = None) -> str:
        """Two or three words for a heading."""
        return say(f"check.{self.key}.name", lang)

    def what(self, lang: str | None = None) -> str:
        """What was found, in the reader's language."""
        return say(f"check.{self.key}.what", lang, **self._spoken(lang))

    def remedy(self, lang: str | None = None) -> str:
        """What to do about it."""
        return say(f"check.{self.key}.do", lang, **self._spoken(lang))

    @classmethod
    def of_dict(cls, told: Mapping[str, Any]) -> Finding:
        """What `as_dict` gave."""
        return cls(**{one.name: told[one.name] for one in dataclass_fields(cls)})

    def _spoken(self, lang: str | None) -> dict[str, Any]:
        share = f"{self.count / self.total:.1%}".replace(".0%", "%") if self.total else "-"
        shown = {
            k: f"{v:,}" if isinstance(v, int) else v
            for k, v in self.fields.items()
            if not isinstance(v, (dict, list))
        }
        if "unit" in shown:
            shown["unit"] = say(f"check.unit.{shown['unit']}", lang)
        if "languages" in self.fields:
            shown["shown"] = _language_shares(self.fields["languages"], lang)
        return {"count": f"{self.count:,}", "total": f"{self.total:,}", "share": share, **shown}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields and both sentences."""
        return {**asdict(self), "name": self.name(), "what": self.what(), "do": self.remedy()}


def _language_shares(counts: Mapping[str, int], lang: str | None) -> str:
    """Languages (`zh`), or pairs of question and answer (`zh-en`), with their shares."""
    total = sum(counts.values())
    told = []
    for names, count in list(counts.items())[:6]:
        said = " -> ".join(say(f"check.language.{name}", lang) for name in names.split("-"))
        told.append(f"{said} {count / total:.1%}" if count < total else f"{said} 100%")
    return say("check.language.between", lang).join(told)


class Check(Protocol):
    """One subject. An instance is picklable before the first `add`."""

    name: str

    def feature(self, row: Row, sample: Sample | None) -> Any:
        """What is kept of a row: small, picklable, the same in every process. `sample` is None
        without a tokenizer. Never changes the check."""

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Take one row's feature, in row order. `side` is `train` or `held_out`."""

    def findings(self) -> list[Finding]:
        """Everything found, after the last row."""


@dataclass(frozen=True)
class View:
    """The text of a row in the parts that the checks look at."""

    users: tuple[str, ...]
    """What was asked: user turns; nothing for running text."""
    answers: tuple[str, ...]
    """What is learnt: assistant turns (chosen ones first, then rejected), or the running text
    itself."""
    others: tuple[str, ...]
    """System prompts and tool results."""
    kind: str
    """`dialogue` or `text`."""
    last: str = ""
    """The last answer (of a preference the chosen one): what two rows with the same question are
    compared by."""

    @property
    def question(self) -> str:
        """The last user turn."""
        return self.users[-1] if self.users else ""

    def all(self) -> tuple[str, ...]:
        """Every text of the row."""
        return (*self.others, *self.users, *self.answers)


_latest: tuple[Row, View] | None = None


def view_of(row: Row) -> View:
    """The parts of a row. All checks ask for the same row one after the other, so the latest answer
    is remembered."""
    global _latest
    if _latest is None or _latest[0] is not row:
        _latest = (row, _view(row))
    return _latest[1]


def _view(row: Row) -> View:
    if isinstance(row, PlainText):
        return View((), (row.text,), (), "text", row.text)
    turns = turns_of(row)
    users = tuple(m.content for m in turns if m.role == "user")
    answers = tuple(m.content for m in turns if m.role == "assistant")
    others = tuple(m.content for m in turns if m.role not in ("user", "assistant"))
    if isinstance(row, Preference):
        last = row.chosen[-1].content
    elif isinstance(row, Judged):
        last = row.messages[-1].content
    else:
        last = answers[-1] if answers else ""
    return View(users, answers, others, "dialogue", last)


@dataclass
class Tally:
    """How many rows had something, and the first places."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, origin: Origin, count: int = 1) -> None:
        """Count a row and remember where the first ones stand."""
        self.count += count
        if len(self.places) < SHOWN_PLACES:
            self.places.append(str(origin))

    def finding(
        self, key: str, severity: Severity, total: int | None = None, **fields: Any
    ) -> Finding:
        """What was counted as a finding, of `total` (or of all that was counted)."""
        whole = self.count if total is None else total
        return Finding(key, severity, self.count, whole, self.places, fields)


def by_share(count: int, total: int, least: float = WORTH_A_WARNING) -> Severity:
    """A warning from this share of the rows on; fewer are worth knowing."""
    return "warn" if count >= least * total else "info"


class Places:
    """file:line of every row in ten bytes each, because only the findings know at the end which
    rows they name."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._file = array("H")
        self._line = array("Q")

    def __len__(self) -> int:
        return len(self._line)

    def add(self, origin: Origin) -> None:
        """Remember the next row's place."""
        # Past 65,535 files the last number stands for all further ones; a set of so many files is
        # named by its first ones.
        self._file.append(min(self._files.setdefault(origin.file, len(self._files)), 0xFFFF))
        self._line.append(origin.line)

    def __getitem__(self, row: int) -> str:
        files = list(self._files)
        return f"{files[self._file[row]]}:{self._line[row]}"

    def first(self, rows: Iterable[int]) -> list[str]:
        """Where the first few of these rows stand."""
        return [self[int(row)] for row in islice(rows, SHOWN_PLACES)]
