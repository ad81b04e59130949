"""What the formats share: renamed columns, and cells that become text, numbers, lists or yes and
no.

A row that cannot be used is no exception for the caller: a format returns `Unusable` with a short
reason, which the report counts and whose sentence stands in the locale under `data.reason.*`.
Inside a format `RowFault` carries it; `guarded` turns one into the other.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tunewright.core.registry import formats
from tunewright.core.types import Origin, Row
from tunewright.core.written import DECODER, spelt
from tunewright.data.files.source import ending_of
from tunewright.data.formats.ledger import Ledger, Seen
from tunewright.data.formats.literals import ARRAY, NotLiteral, python_value

MOST_PLANS = 1000
YES, NO = {"true", "1", "yes"}, {"false", "0", "no"}
TABLES, COLUMNAR = {".csv", ".tsv", ".tab"}, {".parquet", ".arrow", ".feather"}
SHOWN_CELL = 40
_objects = re.compile(r"\s*(?:array\(\s*)?\[\s*(?:array\(\s*)?[{\[]")
_placeholder = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Unusable:
    """Why a row cannot be trained on: a key of `data.reason.*`, and what exactly was found."""

    reason: str
    detail: str = ""


class RowFault(Exception):
    """Raised inside a format; `guarded` returns its `Unusable`."""

    def __init__(self, reason: str, detail: str = ""):
        self.unusable = Unusable(reason, detail)
        super().__init__(reason)


class Columns(dict[str, str]):
    """Our column names to the file's (`{instruction: question}`), and `notes`: what was converted
    on the way, counted.

    `wording` is how a question is made of several columns (`data.wording`), `labels` the names of
    the labels 0, 1, ... (`data.labels`); None where the run says nothing. `ending` is that of the
    file whose row is read. `ledger` counts which columns were used; `fields` is what the turns of
    the row at hand hold that nobody took.
    """

    def __init__(
        self,
        names: Mapping[str, str] | None = None,
        wording: str | None = None,
        labels: Sequence[str] | None = None,
    ):
        super().__init__(names or {})
        self.wording, self.labels = wording, labels
        self.notes: Counter[str] = Counter()
        self.ending = ""
        self.ledger = Ledger()
        self.fields: dict[str, Any] = {}
        self._plans: dict[tuple[str, ...], tuple[dict[str, str], list[str]]] = {}

    @property
    def blank_is_none(self) -> bool:
        """In a table of texts a cell without a value and one with an empty text look alike."""
        return self.ending in TABLES

    @property
    def fills_objects(self) -> bool:
        """A columnar file gives every object of a column the names of all others, with null."""
        return self.ending in COLUMNAR

    def renamed(self, raw: Mapping[str, Any]) -> Seen:
        """The row with our names; a column that was not renamed keeps its own, in small letters
        where that makes it a name of ours (`Instruction`)."""
        theirs, _ = self.plan(tuple(raw))
        if not theirs:
            return Seen(raw)
        return Seen({ours: raw[name] for ours, name in theirs.items()}, theirs)

    def plan(self, columns: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
        """For a row with these columns: our names to the file's (empty where they are the same),
        and columns that had to make way for a renamed one."""
        plan = self._plans.get(columns)
        if plan is None:
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            plan = self._plans[columns] = self._planned(columns)
        return plan

    def _planned(self, columns: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
        there, taken = set(columns), set(self.values())
        given = {ours: theirs for ours, theirs in self.items() if theirs in there}
        free = [name for name in columns if name not in taken]
        spelt = Counter(map(plain_name, free))
        known = known_names()
        found: dict[str, str] = {}
        for name in free:
            plain = plain_name(name)
            ours = plain if plain in known and spelt[plain] == 1 and plain not in given else name
            found[ours] = name
        shadowed = [name for ours, name in found.items() if ours in given]
        found |= given
        is_same = len(found) == len(columns) and all(ours == name for ours, name in found.items())
        return ({} if is_same else found), shadowed


Format = Callable[[Any, Origin, Columns], "Row | Unusable"]
R = TypeVar("R", bound=Row)


def plain_name(name: str) -> str:
    """A name in small letters, with _ for spaces and hyphens."""
    if not isinstance(name, str):
        return name
    return name.strip().lower().replace(" ", "_").replace("-", "_")


@functools.cache
def known_names() -> frozenset[str]:
    """Every column that some format reads."""
    return frozenset(name for entry in formats for name in entry.facts.get("reads", ()))


def row_format(
    name: str, config: type, **facts: Any
) -> Callable[[Callable[[dict[str, Any], Origin, Columns], R]], Format]:
    """Decorator: the function reads rows of the format `name` (`formats/__init__` tells the facts).

    It is given a renamed object only; what it could not use is returned as `Unusable`, and the
    ledger is told which columns it took.
    """
    return lambda function: formats.register(name, config, **facts)(_guarded(function))


def _guarded(function: Callable[[dict[str, Any], Origin, Columns], Row]) -> Format:

    @functools.wraps(function)
    def convert(raw: Any, origin: Origin, columns: Columns | dict[str, str]) -> Row | Unusable:
        named = columns if isinstance(columns, Columns) else Columns(columns)
        if not isinstance(raw, dict):
            return Unusable("not_an_object", type(raw).__name__)
        named.ending = file_ending(origin.file)
        named.fields.clear()
        seen = named.renamed(raw)
        try:
            made = function(seen, origin, named)
        except RowFault as fault:
            named.ledger.drop(raw)
            return fault.unusable
        except RecursionError:
            named.ledger.drop(raw)
            return Unusable("wrong_type", "nested too deeply")
        names = tuple(raw)
        named.ledger.keep(seen, names, named.fields, origin, made)
        for name in named.plan(names)[1] if named else ():
            named.ledger.shadowed(name, raw[name], origin)
        return made

    return convert


@functools.lru_cache(maxsize=256)
def file_ending(file: str) -> str:
    """The ending that tells what kind of file a row comes from."""
    return ending_of(Path(file))[0]


def text_of(value: Any, name: str, columns: Columns) -> str:
    """The text of a cell, its line ends as one character. Numbers and booleans are legal (a label 1
    or 0), counted, and spelt as the file spells them; null is empty; a list of text parts is
    joined."""
    if value is None:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        raise RowFault("wrong_type", f"{name}: {value}")
    if isinstance(value, (bool, int, float)):
        columns.notes["number_as_text"] += 1
        return spelt(value)
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = "".join(_part(part, name) for part in value)
    if not isinstance(value, str):
        raise RowFault("wrong_type", f"{name}: {type(value).__name__}")
    check_unicode(value, name)
    return with_line_ends(value, columns) if "\r" in value else value


def with_line_ends(text: str, columns: Columns) -> str:
    """The text with the line ends of Windows as one character, which models write; a carriage
    return by itself stays. Both are counted."""
    if "\r" not in text:
        return text
    made = text.replace("\r\n", "\n")
    columns.notes["line_ends"] += made != text
    columns.notes["carriage_returns"] += "\r" in made
    return made


def check_unicode(text: str, name: str) -> None:
    """Raises RowFault for half a character, which no encoding can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault("bad_unicode", f"{name}: U+{ord(text[error.start]):04X}") from error


THOUGHT_PARTS = ("thinking", "reasoning")
"""Types of parts that hold a thought, as Anthropic's and Mistral's messages have them."""


def _part(part: dict[str, Any], name: str) -> str:
    if part.get("type") in THOUGHT_PARTS:
        inner = part.get(part["type"], part.get("text"))
        if isinstance(inner, list) and all(isinstance(one, dict) for one in inner):
            inner = "".join(_part(one, name) for one in inner)
        if isinstance(inner, str):
            return f"<think>\n{inner.strip()}\n</think>\n\n" if inner.strip() else ""
    if part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise RowFault("wrong_type", f"{name}: {str(part.get('type', 'part'))[:40]}")


def weight_of(raw: Mapping[str, Any]) -> float:
    """The `weight` of a row or message, 1 where there is none. Tables write numbers as text."""
    weight = raw.get("weight")
    if weight is None or weight == "":
        return 1.0
    number = number_of(weight)
    if number is None or number < 0:
        raise RowFault("bad_weight", repr(weight)[:40])
    return number


def number_of(value: Any) -> float | None:
    """A finite number, also one written as text; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def truth_of(value: Any) -> bool | None:
    """Yes or no as files write it: true, 1, "True", "0" ...; None for everything else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return True if value == 1 else False if value == 0 else None
    word = value.strip().lower().removesuffix(".0") if isinstance(value, str) else ""
    return True if word in YES else False if word in NO else None


def json_cell(value: Any, name: str, columns: Columns) -> Any:
    """The value of a cell that holds a list or an object as text, as tables and some sets write
    them; blank is none, any other cell as it is.

    The text is JSON, or what Python prints, which is counted. Raises RowFault for text that begins
    like one and is neither.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not text:
        return None
    if text[0] not in "[{" and not text.startswith(ARRAY):
        return value
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        try:
            found = python_value(text)
        except NotLiteral as reason:
            shown = f"{name}: {text[:SHOWN_CELL]} ({_where(error) or reason})"
            raise RowFault("not_json", shown) from error
    columns.notes["python_lists"] += 1
    return found


def _where(error: Exception) -> str:
    """The character at which a text stopped being JSON."""
    return f"{error.msg}, {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""


def looked_into(value: Any) -> Any:
    """Like `json_cell`, for looking only: a text that begins like a list but is none stays a text,
    and only lists of objects are read as Python's."""
    if not isinstance(value, str):
        return value
    if value.lstrip()[:1] == "[":
        try:
            return DECODER.decode(value)
        except (ValueError, RecursionError):
            pass
    if _objects.match(value):
        try:
            return python_value(value)
        except NotLiteral:
            pass
    return value


def first_of(raw: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of these columns that the row has."""
    return next((name for name in names if name in raw), None)


def worded(wording: str, raw: Mapping[str, Any], columns: Columns, **texts: str) -> str:
    """A wording with its places filled in, by `texts` or by any other column of the row; braces
    inside the texts stay as they are."""

    def filled(place: re.Match[str]) -> str:
        name = place.group(1)
        if name in texts:
            return texts[name]
        return text_of(raw[name], name, columns) if name in raw else place.group()

    return _placeholder.sub(filled, wording)
