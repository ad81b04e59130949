"""Queries learnt from examples, without a language model: do the answers live in a table?

A small model may fail to write SQL although every answer stands in the table. So the queries that a
question could mean are listed (`candidates`): the cells that the question names, and from them a
cell of another column, a count, a sum, a mean, the row with the largest or smallest value. For
training rows it is seen which of them give the expected answer; a new question takes the query of
the questions that are worded most alike. Nothing knows a word of any language.

`reached` says whether ANY candidate gives a row's answer; how often it gives answers that were
exchanged between the rows says how much of that is chance.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from tunewright.commands.advising.passages import terms
from tunewright.commands.advising.tables import Column, Database, Table, quoted_if_needed, shown
from tunewright.core.comparing import folded, normalised

MOST_CELLS = 200_000
"""Different values of a column that questions are searched for."""
LONGEST_CELL = 80
INFLECTED = 4
"""Characters of a name that may have an ending."""
MOST_ENTITIES = 8
YEAR = 1000
"""Whole numbers from here on may be names."""
MOST_CANDIDATES = 400
LEARNT_FROM = 200
"""Training rows whose queries are searched."""
MOST_SEARCH_SECONDS = 30.0
NEIGHBOURS = 5


@dataclass(frozen=True)
class Entity:
    """A cell that a question names."""

    table: str
    column: str
    value: str | int | float
    start: int
    end: int


@dataclass(frozen=True)
class Candidate:
    """A query that a question could mean. `shape` is the same for the same query about another
    entity."""

    shape: tuple[str, ...]
    sql: str


@dataclass(frozen=True)
class Asked:
    """A question as it is looked at: the cells that it names, the numbers besides, and its wording
    without them."""

    entities: list[Entity]
    numbers: list[str]
    wording: frozenset[str]


class Lookup:
    """Queries learnt from examples."""

    def __init__(self, database: Database):
        self.database = database
        self._cells: dict[str, list[tuple[str, str, str | int | float]]] = defaultdict(list)
        for table in database.tables:
            for column in table.columns:
                for value in database.cells(table.name, column.name, MOST_CELLS):
                    text = folded(shown(value))
                    if 0 < len(text) <= LONGEST_CELL and not isinstance(value, bytes | None):
                        self._cells[text].append((table.name, column.name, value))
        self._learnt: list[tuple[frozenset[str], set[tuple[str, ...]]]] = []
        self._counts: Counter[tuple[str, ...]] = Counter()
        self.examples: list[tuple[str, str]] = []
        """(question, SQL that gives its answer) of training rows."""

    # ---- questions

    def read(self, question: str) -> Asked:
        """The cells that a question names: the longest, wherever several overlap; a number where it
        may be the key of a row or a year."""
        text = folded(question)
        found: list[tuple[int, int, str]] = []
        starts = [i for i in range(len(text)) if _edge(text, i)]
        for start in starts:
            for end in range(min(len(text), start + LONGEST_CELL), start, -1):
                if text[start:end] in self._cells and _ends(text, start, end):
                    found.append((start, end, text[start:end]))
                    break
        chosen: list[tuple[int, int, str]] = []
        for start, end, cell in sorted(found, key=lambda one: (one[0] - one[1], one[0])):
            if all(end <= a or start >= b for a, b, _ in chosen):
                chosen.append((start, end, cell))
        chosen.sort()
        entities: list[Entity] = []
        masked = list(text)
        for start, end, cell in chosen:
            for table, column, value in self._cells[cell]:
                # A figure that may stand in many rows is a figure and no name; a year may be both.
                is_name = isinstance(value, str) or self._is_key(table, column)
                if is_name or (isinstance(value, int) and abs(value) >= YEAR):
                    entities.append(Entity(table, column, value, start, end))
                if is_name:
                    masked[start:end] = " " * (end - start)
        rest = "".join(masked)
        numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\d)", rest)
        wording = frozenset(terms(re.sub(r"\d+(?:\.\d+)?", " ", rest)))
        return Asked(entities[:MOST_ENTITIES], numbers[:2], wording)

    def _is_key(self, table: str, column: str) -> bool:
        known = next(t for t in self.database.tables if t.name == table)
        if known.columns[0].name == column:
            return True
        return (
            re.search(r"(?:^|_|\b)(id|no|nr|number|code|key)$", column, re.IGNORECASE) is not None
        )

    # ---- queries

    def candidates(self, asked: Asked) -> Iterator[Candidate]:
        """The queries that a question could mean, the simplest first."""
        yield from islice(self._candidates(asked), MOST_CANDIDATES)

    def _candidates(self, asked: Asked) -> Iterator[Candidate]:
        for table in self.database.tables:
            entities = [e for e in asked.entities if e.table == table.name]
            filters = list(_filters(entities))
            for columns, where in filters:
                rest = [c for c in table.columns if c.name not in columns]
                yield from _cells_of(table, rest, columns, where)
            for columns, where in [*filters, ((), "")]:
                rest = [c for c in table.columns if c.name not in columns]
                yield from _figures_of(table, rest, columns, where)
            for columns, where in [*_either(entities), *filters, ((), "")]:
                yield from _extremes_of(table, columns, where)
            for number in asked.numbers:
                yield from _beyond(table, number, filters)
            yield from self._joined(table, filters)

    def _joined(
        self, table: Table, filters: list[tuple[tuple[str, ...], str]]
    ) -> Iterator[Candidate]:
        """A cell of another table that shares a column with this one."""
        names = {c.name for c in table.columns}
        for other in self.database.tables:
            shared = sorted(names & {c.name for c in other.columns})
            if other.name == table.name or not shared:
                continue
            key = quoted_if_needed(shared[0])
            for columns, where in filters:
                for column in other.columns:
                    if column.name in names:
                        continue
                    sql = (
                        f"SELECT DISTINCT b.{quoted_if_needed(column.name)} FROM "  # noqa: S608
                        f"{quoted_if_needed(other.name)} AS b WHERE b.{key} IN (SELECT {key} FROM "
                        f"{quoted_if_needed(table.name)}{where})"
                    )
                    yield Candidate(("join", table.name, other.name, column.name, *columns), sql)

    # ---- learning and answering

    def learn(self, rows: Sequence[tuple[str, str]]) -> None:
        """See which queries give the answers of training rows (question, answer)."""
        end = time.monotonic() + MOST_SEARCH_SECONDS
        found: list[tuple[str, Asked, list[Candidate]]] = []
        for question, expected in rows[:LEARNT_FROM]:
            asked = self.read(question)
            right = [c for c in self.candidates(asked) if self._gives(c, question, expected)]
            if right:
                found.append((question, asked, right))
            if time.monotonic() > end:
                break
        # What gives an answer by chance is seldom right twice: of the queries that fit a row, the
        # one that fits most rows is meant.
        self._counts = Counter(c.shape for _, _, right in found for c in right)
        self._learnt = [(asked.wording, {c.shape for c in right}) for _, asked, right in found]
        self.examples = [
            (question, max(right, key=lambda c: self._counts[c.shape]).sql)
            for question, _, right in found
        ]

    def query(self, question: str) -> str | None:
        """The SQL that a question means, by the training questions that are worded alike; None
        where none is."""
        asked = self.read(question)
        there: dict[tuple[str, ...], str] = {}
        for candidate in self.candidates(asked):
            there.setdefault(candidate.shape, candidate.sql)
        near = sorted(
            ((_alike(asked.wording, wording), i) for i, (wording, _) in enumerate(self._learnt)),
            key=lambda one: (-one[0], one[1]),
        )
        votes: dict[tuple[str, ...], float] = defaultdict(float)
        used = 0
        for likeness, i in near:
            fitting = self._learnt[i][1] & there.keys()
            if not fitting or likeness <= 0 or used >= NEIGHBOURS:
                continue
            used += 1
            for shape in fitting:
                votes[shape] += likeness**2
        order = {shape: i for i, shape in enumerate(there)}
        best = max(votes, key=lambda s: (votes[s], self._counts[s], -order[s]), default=None)
        return None if best is None else there[best]

    def reached(self, question: str, expected: str) -> bool:
        """Whether any query that the question could mean gives the answer."""
        return any(
            self._gives(candidate, question, expected)
            for candidate in self.candidates(self.read(question))
        )

    def _gives(self, candidate: Candidate, question: str, expected: str) -> bool:
        result = self.database.ask(candidate.sql)
        return result is not None and same(expected, result, question)


def same(expected: str, result: str, question: str = "") -> bool:
    """Whether a query's result is the expected answer: the same text, the same number as far as the
    answer's digits go, or what a sentence says that does not stand in the question."""
    if not result.strip() or not expected.strip():
        return False
    if normalised(expected) == normalised(result):
        return True
    if ", " in result:  # several rows, in whatever order
        parts = [
            sorted(map(normalised, re.split(r"[,;、，]\s*|\s+and\s+", t)))
            for t in (expected, result)
        ]
        if parts[0] == parts[1]:
            return True
    wanted, given = _plain_number(expected), _plain_number(result)
    if wanted is not None and given is not None:
        digits = len(expected.strip().partition(".")[2])
        return abs(wanted - given) <= 0.5000001 * 10**-digits and (
            digits > 0 or float(given).is_integer() or abs(wanted) >= 1
        )
    inside, whole = folded(result), folded(expected)
    place = whole.find(inside)
    if place < 0 or inside in folded(question) or len(inside) == len(whole):
        return False
    after = place + len(inside)
    return _edge(whole, place) and _edge(whole, after)


def _plain_number(text: str) -> float | None:
    bare = text.strip().replace(",", "")
    return float(bare) if re.fullmatch(r"[-+]?\d+(\.\d+)?", bare) else None


def _edge(text: str, i: int) -> bool:
    """Whether a word may begin or end between characters i - 1 and i."""
    if i in (0, len(text)):
        return True
    a, b = text[i - 1], text[i]
    if _is_wide(a) or _is_wide(b):
        return True
    if (a.isdigit() and b == ".") or (a == "." and b.isdigit()):
        return i == len(text) - 1 or not text[i + (b == ".")].isdigit() if b == "." else False
    return not (a.isalnum() and b.isalnum())


def _ends(text: str, start: int, end: int) -> bool:
    """Whether a name may end here: at the end of a word, or before one or two letters that inflect
    a longer name (lamps, Lampen)."""
    if _edge(text, end):
        return True
    inflected = end - start >= INFLECTED and text[start:end].isascii()
    return inflected and any(text[end : end + n].isalpha() and _edge(text, end + n) for n in (1, 2))


def _is_wide(sign: str) -> bool:
    return "\u3040" <= sign <= "\u9fff" or "\uf900" <= sign <= "\ufaff"


def _alike(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared words, from 0 to 1; 1 for two questions without any."""
    return len(a & b) / len(a | b) if a or b else 1.0


def _literal(value: str | int | float) -> str:
    return shown(value) if isinstance(value, int | float) else "'" + value.replace("'", "''") + "'"


def _filters(entities: Sequence[Entity]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(columns, WHERE) of each cell alone, and of cells of different columns together."""
    for entity in entities:
        yield (
            (entity.column,),
            f" WHERE {quoted_if_needed(entity.column)} = {_literal(entity.value)}",
        )
    for i, a in enumerate(entities):
        for b in entities[i + 1 :]:
            if a.column != b.column and (a.end <= b.start or b.end <= a.start):
                yield (
                    (a.column, b.column),
                    f" WHERE {quoted_if_needed(a.column)} = {_literal(a.value)} AND "
                    f"{quoted_if_needed(b.column)} = {_literal(b.value)}",
                )


def _either(entities: Sequence[Entity]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Rows of two cells of one column: which of the two ..."""
    for i, a in enumerate(entities):
        for b in entities[i + 1 :]:
            if a.column == b.column and a.value != b.value:
                yield (
                    ("in", a.column),
                    f" WHERE {quoted_if_needed(a.column)} IN "
                    f"({_literal(a.value)}, {_literal(b.value)})",
                )


def _cells_of(
    table: Table, rest: Sequence[Column], columns: tuple[str, ...], where: str
) -> Iterator[Candidate]:
    source = quoted_if_needed(table.name)
    for column in rest:
        name = quoted_if_needed(column.name)
        sql = f"SELECT {name} FROM {source}{where}"  # noqa: S608
        yield Candidate(("cell", table.name, column.name, *columns), sql)


def _figures_of(
    table: Table, rest: Sequence[Column], columns: tuple[str, ...], where: str
) -> Iterator[Candidate]:
    source = quoted_if_needed(table.name)
    yield Candidate(("count", table.name, *columns), f"SELECT COUNT(*) FROM {source}{where}")  # noqa: S608
    for column in rest:
        name = quoted_if_needed(column.name)
        wanted = ("SUM", "AVG", "MAX", "MIN") if column.is_number else ()
        for figure in wanted:
            sql = f"SELECT {figure}({name}) FROM {source}{where}"  # noqa: S608
            yield Candidate((figure, table.name, column.name, *columns), sql)
        if not column.is_number:
            sql = f"SELECT COUNT(DISTINCT {name}) FROM {source}{where}"  # noqa: S608
            yield Candidate(("different", table.name, column.name, *columns), sql)


def _extremes_of(table: Table, columns: tuple[str, ...], where: str) -> Iterator[Candidate]:
    """A name of the row with the largest or the smallest value."""
    source = quoted_if_needed(table.name)
    texts = [c for c in table.columns if not c.is_number][:4]
    for column in [c for c in table.columns if c.is_number][:8]:
        for order in ("DESC", "ASC"):
            for text in texts:
                sql = (
                    f"SELECT {quoted_if_needed(text.name)} FROM {source}{where} "  # noqa: S608
                    f"ORDER BY {quoted_if_needed(column.name)} {order} LIMIT 1"
                )
                yield Candidate((order, table.name, text.name, column.name, *columns), sql)


def _beyond(
    table: Table, number: str, filters: Sequence[tuple[tuple[str, ...], str]]
) -> Iterator[Candidate]:
    """How many rows are above or below a number."""
    source = quoted_if_needed(table.name)
    for columns, where in [*filters, ((), "")]:
        for column in [c for c in table.columns if c.is_number and c.name not in columns]:
            for sign in (">", "<", ">=", "<=", "="):
                more = f"{quoted_if_needed(column.name)} {sign} {number}"
                clause = f"{where} AND {more}" if where else f" WHERE {more}"
                sql = f"SELECT COUNT(*) FROM {source}{clause}"  # noqa: S608
                yield Candidate((sign, table.name, column.name, *columns), sql)
