"""Samples and rows as columns of numbers, in memory or memory-mapped from a folder, read one at a
time.

A set of two million rows as Python lists would fill a machine; as columns it is a few bytes a
token, and a step touches only the pages it reads. Columns are written front to back while rows
arrive, and a published folder is never changed. Each file's CRC-32 stands in `store.json`, so that
a cut or damaged one is noticed when it is opened. Nothing is pickled: numbers are raw little-endian
columns, rows are JSON.
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunewright.core import written
from tunewright.core.types import (
    ROW_KINDS,
    Branch,
    Conversation,
    Judged,
    Message,
    Origin,
    PlainText,
    Preference,
    Prompt,
    Row,
    Sample,
    Stepwise,
)

if TYPE_CHECKING:
    import numpy as np

    from tunewright.data.labels import EncodedRow

T = TypeVar("T")
META = "store.json"
ROLES = ("answer", "chosen", "rejected", "good", "bad", "prompt")
KINDS = tuple(ROW_KINDS.values())
SIDES = ("prompt", "chosen", "rejected")
COLUMNS = {
    # of each branch
    "tokens": "<i4",
    "token_end": "<i8",
    "span": "<i4",
    "span_weight": "<f8",
    "span_end": "<i8",
    "role": "u1",
    # of each row
    "branch_end": "<i8",
    "answers": "<i4",
    "stops": "<i4",
    "last_span": "<i4",
    "facts": "u1",
    "facts_end": "<i8",
    "kind": "u1",
    "source": "<i4",
    "file": "<i4",
    "line": "<i8",
    "number": "<i8",
    "text": "u1",
    "text_end": "<i8",
    # of the set: which rows are trained on and which are held out
    "train": "<i8",
    "held_out": "<i8",
}
ENDS = {
    "token_end": "tokens",
    "span_end": "span_weight",
    "branch_end": "role",
    "facts_end": "facts",
    "text_end": "text",
}
"""Columns that hold, for each item, where its part of another column ends."""


class Damaged(Exception):
    """A folder whose columns are not what was written."""


# ---- rows as JSON


def row_bytes(row: Row) -> bytes:
    """A row without its origin, as compact JSON."""
    fields: dict[str, Any] = {}
    if isinstance(row, PlainText):
        fields["text"] = row.text
    else:
        if isinstance(row, Preference):
            fields |= {name: _turns(getattr(row, name)) for name in SIDES}
            fields |= {"margin": row.margin} if row.margin is not None else {}
        else:
            fields["messages"] = _turns(row.messages)
            fields |= {"good": row.good} if isinstance(row, Judged) else {}
            fields |= {"steps": row.steps} if isinstance(row, Stepwise) else {}
            fields |= {"facts": row.facts} if isinstance(row, Prompt) and row.facts else {}
        fields |= {"tools": row.tools} if row.tools is not None else {}
    fields |= {"weight": row.weight} if row.weight != 1.0 else {}
    # A reward is given a fact as its file writes it.
    return _as_written(fields) if "facts" in fields else json_bytes(fields)


def json_bytes(value: Any) -> bytes:
    """Compact JSON. Half a surrogate pair, which a tool call may hold, survives; what JSON has no
    word for (a date) becomes its text."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return text.encode("utf-8", "surrogatepass")


def _as_written(value: Any) -> bytes:
    """`json_bytes` with every number in the spelling of its file."""
    return written.json_text(value).encode("utf-8", "surrogatepass")


def from_json_bytes(data: bytes) -> Any:
    """What `json_bytes` wrote."""
    return written.DECODER.decode(data.decode("utf-8", "surrogatepass"))


_USUAL = [1.0, None, None, None]


def _turns(messages: Sequence[Message]) -> list[list[Any]]:
    made = []
    for m in messages:
        values = [m.role, m.content, m.weight, m.tool_calls, m.name, m.tool_call_id]
        made.append(values[:2] if values[2:] == _USUAL else values)
    return made


def _messages(turns: list[list[Any]]) -> list[Message]:
    return [Message(*turn) for turn in turns]


def row_of(kind: str, data: bytes, origin: Origin) -> Row:
    """The row that `row_bytes` wrote."""
    fields = from_json_bytes(data)
    weight, tools = fields.get("weight", 1.0), fields.get("tools")
    if kind == "text":
        return PlainText(fields["text"], origin, weight)
    if kind == "preference":
        prompt, chosen, rejected = (_messages(fields[name]) for name in SIDES)
        return Preference(prompt, chosen, rejected, origin, tools, weight, fields.get("margin"))
    messages = _messages(fields["messages"])
    if kind == "judged":
        return Judged(messages, fields["good"], origin, tools, weight)
    if kind == "stepwise":
        steps = tuple((text, good) for text, good in fields["steps"])
        return Stepwise(messages, fields["good"], origin, tools, weight, steps)
    if kind == "prompt":
        return Prompt(messages, origin, tools, weight, fields.get("facts", {}))
    return Conversation(messages, origin, tools, weight)


# ---- writing


def pack(
    rows: Sequence[Row], encoded: Sequence[EncodedRow] | None, source: int, file: int
) -> dict[str, bytes]:
    """Columns of some rows; ends count from the first. `encoded` None: rows without tokens."""
    import numpy as np

    parts: dict[str, Any] = {name: [] for name in COLUMNS}
    parts["tokens"] = array("i")  # numpy would look at every number of a list twice
    text = [row_bytes(row) for row in rows]
    facts = [_put(one, parts) for one in encoded or ()]
    parts["facts_end"], parts["text_end"] = list(map(len, facts)), list(map(len, text))
    parts["source"], parts["file"] = [source] * len(rows), [file] * len(rows)
    for row in rows:
        parts["kind"].append(KINDS.index(ROW_KINDS[type(row)]))
        parts["line"].append(row.origin.line)
        parts["number"].append(row.origin.row)
    made = {name: np.asarray(values, dtype=COLUMNS[name]) for name, values in parts.items()}
    for name in ENDS:
        made[name] = np.cumsum(made[name], dtype="<i8")
    columns = {name: values.tobytes() for name, values in made.items()}
    return columns | {"text": b"".join(text), "facts": b"".join(facts)}


def _put(one: EncodedRow, parts: dict[str, Any]) -> bytes:
    """Append a row's branches and counts to the columns. Returns its other facts as JSON."""
    parts["branch_end"].append(len(one.branches))
    for branch in one.branches:
        parts["tokens"].fromlist(branch.tokens)
        parts["token_end"].append(len(branch.tokens))
        parts["span_end"].append(len(branch.spans))
        parts["role"].append(ROLES.index(branch.role))
        for first, after, weight in branch.spans:
            parts["span"] += (first, after)
            parts["span_weight"].append(weight)
    rest = dict(one.facts)
    parts["answers"].append(rest.pop("answers"))
    parts["stops"].append(rest.pop("stops_learnt"))
    parts["last_span"] += rest.pop("last_span")
    return _as_written(rest) if rest else b""


class Writer:
    """Columns that grow, in a folder or (None) in memory."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.sizes = dict.fromkeys(COLUMNS, 0)
        self._crc = dict.fromkeys(COLUMNS, 0)
        self._files = (
            {name: (folder / f"{name}.bin").open("wb") for name in COLUMNS} if folder else {}
        )
        self._parts: dict[str, list[bytes]] = {name: [] for name in COLUMNS}

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self._files.values():
            handle.close()

    def add(self, columns: dict[str, bytes]) -> None:
        """Append what `pack` made."""
        import numpy as np

        # Ends count from the start of the whole column, so they are moved by what lies before; the
        # columns they point into grow afterwards.
        begins = {name: self.count(into) for name, into in ENDS.items()}
        for name, data in columns.items():
            if name in ENDS and begins[name]:
                data = (np.frombuffer(data, "<i8") + begins[name]).tobytes()
            self.put(name, data)

    def count(self, name: str) -> int:
        """Items of a column so far."""
        import numpy as np

        return self.sizes[name] // np.dtype(COLUMNS[name]).itemsize

    def put(self, name: str, data: bytes) -> None:
        """Append bytes to one column."""
        self.sizes[name] += len(data)
        if self.folder is None:
            self._parts[name].append(data)
        else:
            self._crc[name] = zlib.crc32(data, self._crc[name])
            self._files[name].write(data)

    def column(self, name: str) -> np.ndarray:
        """A column as it is so far, for what is counted at the end."""
        import numpy as np

        if self.folder is None:
            self._parts[name] = [b"".join(self._parts[name])]
            return np.frombuffer(self._parts[name][0], COLUMNS[name])
        self._files[name].flush()
        return _mapped(self.folder / f"{name}.bin", COLUMNS[name])

    def finish(self, meta: dict[str, Any]) -> Store:
        """Close the columns and describe them. `meta` must be JSON, and holds at least `files`."""
        if self.folder is None:
            return Store({name: self.column(name) for name in COLUMNS}, meta)
        for handle in self._files.values():
            handle.close()
        check = {name: [self.sizes[name], self._crc[name]] for name in COLUMNS}
        (self.folder / META).write_bytes(json_bytes({**meta, "columns": check}))
        return Store(_all_mapped(self.folder), meta)


def _mapped(path: Path, kind: str) -> np.ndarray:
    import numpy as np

    # An empty file cannot be mapped.
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, kind)


def _all_mapped(folder: Path) -> dict[str, np.ndarray]:
    return {name: _mapped(folder / f"{name}.bin", kind) for name, kind in COLUMNS.items()}


# ---- reading


class Store:
    """All rows of a set with their tokens. `meta` is what the writer was given."""

    def __init__(self, columns: dict[str, Any], meta: dict[str, Any]):
        self.columns, self.meta = columns, meta
        self.num_rows = len(columns["kind"])
        self.has_tokens = len(columns["branch_end"]) == self.num_rows and self.num_rows > 0

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> Store:
        """The store of a folder. Raises Damaged when a column is missing, cut or (not looked for
        without `verify`) changed."""
        try:
            meta = from_json_bytes((folder / META).read_bytes())
            for name, (size, crc) in meta["columns"].items():
                path = folder / f"{name}.bin"
                if name not in COLUMNS or path.stat().st_size != size:
                    raise Damaged(name)
                if verify and _crc_of(path) != crc:
                    raise Damaged(name)
            return cls(_all_mapped(folder), meta)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(str(error)) from error

    def part(self, name: str, item: int) -> slice:
        """Where item `item` lies in the column that the ends `name` point into."""
        ends = self.columns[name]
        return slice(int(ends[item - 1]) if item else 0, int(ends[item]))

    def origin(self, row: int) -> Origin:
        """Where a row came from."""
        c = self.columns
        return Origin(
            self.meta["files"][c["file"][row]], int(c["line"][row]), int(c["number"][row])
        )

    def row(self, row: int) -> Row:
        """One row, read again from its JSON."""
        data = self.columns["text"][self.part("text_end", row)].tobytes()
        return row_of(KINDS[self.columns["kind"][row]], data, self.origin(row))

    def branch(self, number: int) -> Branch:
        """One branch with its learnt tokens spelt out."""
        c = self.columns
        spans = self.part("span_end", number)
        learnt: list[int] = []
        weights: list[float] = []
        places = c["span"][2 * spans.start : 2 * spans.stop].reshape(-1, 2).tolist()
        for (first, after), weight in zip(places, c["span_weight"][spans].tolist(), strict=True):
            learnt += range(first, after)
            weights += [weight] * (after - first)
        tokens = c["tokens"][self.part("token_end", number)].tolist()
        return Branch(tokens, learnt, weights, role=ROLES[c["role"][number]])

    def sample(self, row: int, index: int) -> Sample:
        """The sample of a row. `index` is its place in the list it is read from."""
        c = self.columns
        part = self.part("branch_end", row)
        facts: dict[str, Any] = {
            "answers": int(c["answers"][row]),
            "stops_learnt": int(c["stops"][row]),
        }
        facts["last_span"] = tuple(c["last_span"][2 * row : 2 * row + 2].tolist())
        rest = self.part("facts_end", row)
        if rest.stop > rest.start:
            facts |= from_json_bytes(c["facts"][rest].tobytes())
        branches = [self.branch(b) for b in range(part.start, part.stop)]
        return Sample(branches, index, self.origin(row), facts=facts)

    def branches_of(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of the branches of `rows`, in their order."""
        import numpy as np

        if not len(rows):
            return np.empty(0, "<i8")
        ends = self.columns["branch_end"]
        starts = np.concatenate([np.zeros(1, "<i8"), ends[:-1]])[rows]
        counts = ends[rows] - starts
        before = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def _crc_of(path: Path) -> int:
    found = 0
    with open(path, "rb") as handle:
        while piece := handle.read(4 << 20):
            found = zlib.crc32(piece, found)
    return found


class _View(Sequence[T]):
    """Some rows of a store, read when they are asked for. A slice is a list."""

    def __init__(self, store: Store, which: Any):
        self.store, self.which = store, which

    def _make(self, place: int) -> T:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._make(i) for i in range(*place.indices(len(self)))]
        found = place + len(self) if place < 0 else place
        if not 0 <= found < len(self):
            raise IndexError(place)
        return self._make(found)

    def __iter__(self) -> Iterator[T]:
        return (self._make(i) for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}>"


class Samples(_View[Sample]):
    """Samples made when they are asked for: the same values every time, never the same object."""

    def _make(self, place: int) -> Sample:
        return self.store.sample(int(self.which[place]), place)


class Rows(_View[Row]):
    """Rows read again when they are asked for."""

    def _make(self, place: int) -> Row:
        return self.store.row(int(self.which[place]))


def asking_places(rows: Sequence[Row]) -> Sequence[int]:
    """Places of the rows that ask something (all but running text), without reading rows of a
    store."""
    if not isinstance(rows, Rows):
        return [i for i, row in enumerate(rows) if not isinstance(row, PlainText)]
    import numpy as np

    places: list[int] = np.flatnonzero(
        rows.store.columns["kind"][rows.which] != KINDS.index("text")
    ).tolist()
    return places


def asked_lengths(samples: Sequence[Sample]) -> Sequence[int]:
    """Tokens of each sample's question, up to where its last learnt answer begins, without making
    the samples of a store."""
    if not isinstance(samples, Samples):
        return [s.facts["last_span"][0] or len(s.branches[0].tokens) for s in samples]
    c, rows = samples.store.columns, samples.which
    if not len(rows):
        return []
    import numpy as np

    first = np.concatenate([np.zeros(1, "<i8"), c["branch_end"][:-1]])  # of each row's branches
    length = np.diff(c["token_end"], prepend=0)[first]
    begins = c["last_span"][::2]
    lengths: list[int] = np.where(begins > 0, begins, length)[rows].tolist()
    return lengths
