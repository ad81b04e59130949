"""The curves of a run, from `events.jsonl`: every point, read again only from where the last
reading ended.

A run of 50,000 steps has 17 MB of events, and an overlay shows ten of them, so no Python object is
made of a line: one key is found by a pattern in the form in which the program writes, all keys are
read by pyarrow's columns. What does not go that way (words like "NaN", a line by another hand) is
read with `json`, line by line. A step that came again after a resume counts once, as it came last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import threading
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.report.record import number

WHOLE_POINTS = 4000
"""Up to here a key is given whole."""
STEP, EVALUATION = "step", "evaluation"
PLAIN = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "seconds", "memory_bytes")
MOST_RUNS = 64
"""Runs whose figures are kept in memory; each costs 16 bytes a point and key."""
PIECE_BYTES = 8 << 20
KEPT_BYTES = 1 << 20
"""What is read of a file at one time before it is worth a file of its own."""

Points = list[list[float | None]]


@dataclass
class Column:
    """One key: its steps and values as they came, and again in the order of steps."""

    steps: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    _sorted: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, steps: np.ndarray, values: np.ndarray) -> None:
        """Append points that were read."""
        if len(steps):
            self.steps.append(steps)
            self.values.append(values)
            self._sorted = None

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps, ascending and each once, and the value that came last for each."""
        if self._sorted is None:
            steps, values = np.concatenate(self.steps), np.concatenate(self.values)
            if len(steps) > 1 and not (np.diff(steps) > 0).all():
                order = np.argsort(steps, kind="stable")
                steps, values = steps[order], values[order]
                last = np.append(steps[1:] != steps[:-1], True)
                steps, values = steps[last], values[last]
            self.steps, self.values, self._sorted = [steps], [values], (steps, values)
        return self._sorted


@dataclass
class _Kept:
    """What was read of one file: from its start to `offset`."""

    identity: tuple[int, int]
    offset: int = 0
    columns: dict[str, Column] = field(default_factory=dict)


class Curves:
    """The curves of the runs that were asked for lately. What took long to read is kept in
    `folder`, too, for the next server; it may be deleted at any time."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def all(self, events: Path, points: int = WHOLE_POINTS) -> dict[str, Any]:
        """Every key of a run: `{keys, last_offset, total, thinned}`."""
        kept = self._read(events, "")
        whole = {name: column.sorted() for name, column in kept.columns.items()}
        keys = {name: thin(*pair, points) for name, pair in whole.items()}
        total = max((len(steps) for steps, _ in whole.values()), default=0)
        thinned = any(len(steps) > most_of(points) for steps, _ in whole.values())
        return {"keys": keys, "last_offset": kept.offset, "total": total, "thinned": thinned}

    def one(self, events: Path, key: str, points: int = WHOLE_POINTS) -> Points:
        """One key of a run."""
        everything = self._kept.get((str(events), ""))
        kept = self._read(events, "" if everything is not None else key)
        column = kept.columns.get(key)
        return thin(*column.sorted(), points) if column else []

    def _read(self, events: Path, key: str) -> _Kept:
        name = (str(events), key)
        with self._lock:
            lock = self._locks.setdefault(str(events), threading.Lock())
        with lock:
            try:
                stat = events.stat()
            except OSError:
                return _Kept((0, 0))
            kept, identity = self._kept.get(name), (stat.st_dev, stat.st_ino)
            if kept is None or kept.identity != identity or kept.offset > stat.st_size:
                kept = self._load(events, identity, stat.st_size, key) or _Kept(identity)
            if kept.offset < stat.st_size:
                before = kept.offset
                _read_on(events, kept, key)
                if kept.offset - before >= KEPT_BYTES:
                    self._save(events, kept, key)
            with self._lock:
                self._kept[name] = kept
                self._kept.move_to_end(name)
                while len(self._kept) > MOST_RUNS:
                    self._locks.pop(self._kept.popitem(last=False)[0][0], None)
            return kept

    def _place(self, events: Path, key: str) -> Path | None:
        name = hashlib.sha256(os.fsencode(events) + b"|" + key.encode()).hexdigest()[:24]
        return None if self.folder is None else self.folder / f"{name}.npz"

    def _save(self, events: Path, kept: _Kept, key: str) -> None:
        """Keep what was read, with the end of the part that was read, by which it is known."""
        place = self._place(events, key)
        if place is None:
            return
        arrays: dict[str, Any] = {}
        for n, (name, column) in enumerate(kept.columns.items()):
            arrays[f"name{n}"] = np.array(name)
            arrays[f"steps{n}"], arrays[f"values{n}"] = column.sorted()
        about = np.array([*kept.identity, kept.offset])
        temporary = place.with_name(f".{place.name}-{os.getpid()}-{threading.get_ident()}.npz")
        with contextlib.suppress(OSError):
            place.parent.mkdir(mode=0o700, exist_ok=True)
            np.savez(temporary, about=about, end=_end_of(events, kept.offset), **arrays)
            os.replace(temporary, place)

    def _load(self, events: Path, identity: tuple[int, int], size: int, key: str) -> _Kept | None:
        place = self._place(events, key)
        if place is None or not place.is_file():
            return None
        try:
            with open(place, "rb") as handle, np.load(handle, allow_pickle=False) as found:
                *known, offset = (int(n) for n in found["about"])
                same = tuple(known) == identity and offset <= size
                if not same or not np.array_equal(found["end"], _end_of(events, offset)):
                    return None
                kept, n = _Kept(identity, offset), 0
                while f"name{n}" in found:
                    column = kept.columns.setdefault(str(found[f"name{n}"]), Column())
                    column.add(found[f"steps{n}"], found[f"values{n}"])
                    n += 1
                return kept
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None


def _end_of(events: Path, offset: int, count: int = 256) -> np.ndarray:
    """The bytes before an offset."""
    with open(events, "rb") as handle:
        handle.seek(max(0, offset - count))
        return np.frombuffer(handle.read(min(count, offset)), dtype=np.uint8)


def most_of(points: int) -> int:
    """How many points a key may have before it is thinned."""
    return max(2, min(points, WHOLE_POINTS)) if points else WHOLE_POINTS


def thin(steps: np.ndarray, values: np.ndarray, points: int) -> Points:
    """The points of one key as JSON holds them; of more than allowed the lowest and highest of
    each bucket, first and last always, so that no spike is lost."""
    most = most_of(points)
    if len(steps) > most:
        edges = np.linspace(0, len(steps), most // 2 + 1).astype(np.int64)
        low = np.where(np.isnan(values), np.inf, values)
        high = np.where(np.isnan(values), -np.inf, values)
        chosen = {0, len(steps) - 1}
        for start, end in pairwise(edges.tolist()):
            if start < end:
                chosen |= {start + int(low[start:end].argmin())}
                chosen |= {start + int(high[start:end].argmax())}
        index = np.array(sorted(chosen))
        steps, values = steps[index], values[index]
    if np.isfinite(values).all():
        return [[s, v] for s, v in zip(steps.tolist(), values.tolist(), strict=True)]
    shown = [v if math.isfinite(v) else None for v in values.tolist()]
    return [[s, v] for s, v in zip(steps.tolist(), shown, strict=True)]


def _read_on(events: Path, kept: _Kept, key: str) -> None:
    """Read the full lines from the kept offset on, in pieces."""
    with open(events, "rb") as handle:
        handle.seek(kept.offset)
        rest = b""
        while piece := handle.read(PIECE_BYTES):
            data = rest + piece
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            if end:
                _take(data[:end], kept, key)
                kept.offset += end


def _take(data: bytes, kept: _Kept, key: str) -> None:
    found = _by_pattern(data, key)
    if found is None and len(data) > 64 * 1024:
        found = _by_arrow(data, key)
    for name, (steps, values) in (found if found is not None else _by_line(data, key)).items():
        kept.columns.setdefault(name, Column()).add(steps, values)


Found = dict[str, tuple[np.ndarray, np.ndarray]]
FIGURE = rb"(-?[0-9][0-9.e+-]*)"
ORDER = ("loss", "terms", "learning_rate", "gradient_norm", "seconds", "tokens_per_second")
"""The keys of a step as `engine.loop` writes them, in their order."""


@cache
def _pattern(key: str) -> tuple[re.Pattern[bytes], bytes] | None:
    """(what finds step and value in the lines of one kind, how such a line begins) for a key that
    stands at a fixed place; None for others."""
    kind = EVALUATION if key == "held_out_loss" else STEP
    start = b'{"event": "%s", ' % kind.encode()
    head = re.escape(start) + rb'"time": [0-9.]+, "step": ([0-9]+), '
    if key == "held_out_loss":
        return re.compile(head + rb'"held_out_loss": ' + FIGURE + rb"[,}]"), start
    if key not in ORDER or key == "terms":
        return None
    for name in ORDER[: ORDER.index(key)]:
        value = rb"\{[^{}\n]*\}" if name == "terms" else rb"[^,\n]*"
        head += b'"%s": ' % name.encode() + value + rb", "
    return re.compile(head + b'"%s": ' % key.encode() + FIGURE + rb"[,}]"), start


def _by_pattern(data: bytes, key: str) -> Found | None:
    """One key of lines that the program wrote: three times as fast as understanding them. None
    where a line of that kind is written otherwise, so that nothing is left out."""
    known = _pattern(key)
    if known is None:
        return None
    pattern, start = known
    found = pattern.findall(data)
    if len(found) != data.count(b'"event": "%s"' % start[11:-3]):
        return None
    count = len(found)
    try:
        steps = np.fromiter((int(step) for step, _ in found), dtype=np.int64, count=count)
        values = np.fromiter((float(value) for _, value in found), dtype=np.float64, count=count)
    except ValueError:
        return None
    return {key: (steps, values)} if count else {}


def _by_line(data: bytes, key: str) -> Found:
    """The points of some lines, slowly and whatever stands there."""
    rows: dict[str, tuple[list[int], list[float]]] = {}
    for line in data.split(b"\n"):
        try:
            event = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        if not isinstance(event, dict) or not isinstance(event.get("step"), int):
            continue
        for name, value in figures_of(event).items():
            if not key or name == key:
                steps, values = rows.setdefault(name, ([], []))
                steps.append(event["step"])
                values.append(value)
    return {
        name: (np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))
        for name, (steps, values) in rows.items()
    }


def figures_of(event: dict[str, Any]) -> dict[str, float]:
    """The points that one event gives: key -> value."""
    kind = event.get("event")
    if kind not in (STEP, EVALUATION):
        return {}
    found: dict[str, Any] = {}
    if kind == STEP:
        found = {name: event.get(name) for name in PLAIN}
        found |= {f"terms.{k}": v for k, v in _inner(event, "terms").items()}
        found |= dict(_inner(event, "figures"))
    else:
        found = {"held_out_loss": event.get("held_out_loss")}
        found |= {f"held_out.{k}": v for k, v in _inner(event, "figures").items()}
    numbers = {name: number(value) for name, value in found.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def _inner(event: dict[str, Any], name: str) -> dict[str, Any]:
    value = event.get(name)
    return value if isinstance(value, dict) else {}


def _by_arrow(data: bytes, key: str) -> Found | None:
    """The same by columns; None where the lines are not alike enough for that."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    schema = _schema(data, key)
    if schema is None:
        return {} if key else None
    options = arrow_json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="ignore", newlines_in_values=False
    )
    try:
        table = arrow_json.read_json(
            pa.BufferReader(data),
            read_options=arrow_json.ReadOptions(block_size=1 << 20),
            parse_options=options,
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    return _columns(table, key)


def _schema(data: bytes, key: str) -> Any:
    """The columns to read, from what stands in the first and last lines of each kind; None where
    there are none. Lines in the middle are looked at, too: a figure may come late."""
    import pyarrow as pa

    names: dict[str, set[str]] = {"": set(), "terms": set(), "figures": set()}
    for line in _sample(data):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") in (STEP, EVALUATION):
            names[""] |= {n for n in (*PLAIN, "held_out_loss") if n in event}
            for inner in ("terms", "figures"):
                names[inner] |= set(_inner(event, inner))
    if key:
        names = _only(names, key)
    if not any(names.values()):
        return None
    fields = [pa.field("event", pa.string()), pa.field("step", pa.int64())]
    fields += [pa.field(name, pa.float64()) for name in sorted(names[""])]
    for inner in ("terms", "figures"):
        if names[inner]:
            kinds = [pa.field(name, pa.float64()) for name in sorted(names[inner])]
            fields.append(pa.field(inner, pa.struct(kinds)))
    return pa.schema(fields)


def _only(names: dict[str, set[str]], key: str) -> dict[str, set[str]]:
    if key.startswith("terms."):
        return {"": set(), "terms": names["terms"] & {key[6:]}, "figures": set()}
    if key in (*PLAIN, "held_out_loss"):
        return {"": names[""] & {key}, "terms": set(), "figures": set()}
    return {
        "": set(),
        "terms": set(),
        "figures": names["figures"] & {key.removeprefix("held_out.")},
    }


def _sample(data: bytes, each: int = 64) -> list[bytes]:
    """Some full lines from everywhere in the data: the first, the last, and those after evenly
    spread places."""
    found, size = [], len(data)
    for n in range(each + 1):
        start = size * n // (each + 1)
        start = data.find(b"\n", start) + 1 if n else 0
        end = data.find(b"\n", start)
        if end > start:
            found.append(data[start:end])
    last = data.rfind(b"\n", 0, size - 1) + 1
    found.append(data[last:].strip())
    # Evaluations are rare among steps; each is found by its name.
    place = data.find(b'"event": "evaluation"')
    while place >= 0 and len(found) < 4 * each:
        start, end = data.rfind(b"\n", 0, place) + 1, data.find(b"\n", place)
        found.append(data[start : end if end >= 0 else size])
        place = data.find(b'"event": "evaluation"', place + 1)
    return found


def _columns(table: Any, key: str) -> Found:
    import pyarrow.compute as pc

    found: Found = {}
    for kind in (STEP, EVALUATION):
        rows = table.filter(pc.equal(table["event"], kind))
        if not rows.num_rows:
            continue
        for name, column in _named(rows, kind):
            if key and name != key:
                continue
            there = pc.and_(column.is_valid(), rows["step"].is_valid())
            steps = rows["step"].filter(there).to_numpy()
            values = column.filter(there).to_numpy()
            if len(steps):
                found[name] = (steps.astype(np.int64), values.astype(np.float64))
    return found


def _named(rows: Any, kind: str) -> list[tuple[str, Any]]:
    """(key, column) of the events of one kind."""
    import pyarrow.compute as pc

    wanted = PLAIN if kind == STEP else ("held_out_loss",)
    found = [(name, rows[name]) for name in wanted if name in rows.column_names]
    prefix = "" if kind == STEP else "held_out."
    for inner, lead in (("terms", "terms."), ("figures", prefix)):
        if inner in rows.column_names and (kind == STEP or inner == "figures"):
            for i in range(rows.schema.field(inner).type.num_fields):
                name = rows.schema.field(inner).type.field(i).name
                found.append((f"{lead}{name}", pc.struct_field(rows[inner], [i])))
    return found


def newest_events(events: Path, most: int = 64 * 1024) -> list[dict[str, Any]]:
    """The last events of a run that fit into some bytes, oldest first."""
    try:
        with open(events, "rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - most))
            lines = handle.read().split(b"\n")
    except OSError:
        return []
    found = []
    # The first line may be cut, the last one half written.
    for line in lines[(1 if size > most else 0) : -1]:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            found.append(event)
    return found
