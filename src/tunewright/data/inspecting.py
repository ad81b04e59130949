"""Everything about the data before anything is trained: what was read, kept, dropped and why, and which tokens will be learnt.

`inspect` is the only door of this room for a run. It refuses data from which nothing would be learnt: no usable row, no learnt token, or no
answer whose stop token is learnt (a model trained so never stops). What is merely odd becomes a warning in the report.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError, problem
from tunewright.core.types import ROW_KINDS, Conversation, Judged, Message, PlainText, Preference, Row, Sample
from tunewright.core.words import say
from tunewright.data.encoding import Encoded, encode
from tunewright.data.reading import RawFile, RawRow, data_files, read
from tunewright.data.shaping import Dropped, shape
from tunewright.data.splitting import question_key, split_indices, wanted_rows

if TYPE_CHECKING:
    from tunewright.models.rendering import Renderer

EXAMPLES, LISTED = 5, 1000
EXAMPLE_TOKENS = 600
ENTRY_KEYS = {"file", "format", "columns", "weight"}


@dataclass
class DataSet:
    """What a run trains on and measures with. `train[i]` was made from `train_rows[i]`; without tokens the sample lists are empty."""

    train: list[Sample]
    held_out: list[Sample]
    train_rows: list[Row]
    held_out_rows: list[Row]
    report: dict[str, Any]


@dataclass
class _Source:
    """Rows of all files of one place, before tokens."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    rows_read: int = 0
    files: list[RawFile] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def inspect(config: DataConfig, renderer: Renderer | None, context_length: int | None = None, seed: int = 0, needs_tokens: bool = True) -> DataSet:
    """Read, shape, encode and split the data of a run, and report on it (keys in `docs/data.md`).

    `context_length` is the model's, in tokens; `config.max_tokens` may only lower it. Without tokens (`needs_tokens` False, or no renderer)
    nothing is encoded and the token counts of the report are None. Raises DataError for everything that would make the run worthless.
    """
    source = _load(config)
    place = _held_out_file(config)
    other = _load(config.model_copy(update={"train": place, "limit": None})) if place is not None else None
    tokens = needs_tokens and renderer is not None
    limits = [n for n in (config.max_tokens, context_length) if n is not None]
    made, rows = _encoded(source, renderer if tokens else None, min(limits, default=None), config)
    made_other, rows_other = _encoded(other, renderer if tokens else None, min(limits, default=None), config) if other else (Encoded([], []), [])
    if not rows:
        raise DataError(problem("E-DATA-12", _first_file(source), rows=source.rows_read, reasons=_reason_line(source.dropped)))
    warnings: list[str] = []
    chosen = _choose(rows, config, seed, warnings) if other is None else set()
    train_rows = [row for i, row in enumerate(rows) if i not in chosen]
    held_rows = [row for i, row in enumerate(rows) if i in chosen] if other is None else rows_other
    train = _numbered(s for i, s in enumerate(made.samples) if i not in chosen)
    held = _numbered(s for i, s in enumerate(made.samples) if i in chosen) if other is None else _numbered(made_other.samples)
    report = _counts(source, rows) | _question_counts(train_rows, held_rows)
    report |= {"train": len(train_rows), "held_out": len(held_rows), "held_out_dropped": len(other.dropped) if other else 0}
    notes = source.notes + made.notes
    report |= _token_report(train, renderer) if tokens and renderer is not None else dict.fromkeys(TOKEN_KEYS)
    if tokens:
        _refuse_worthless(report, source)
    report["notes"] = {key: count for key, count in sorted(notes.items()) if count and key not in ROW_KINDS.values()}
    report["warnings"] = warnings + _warnings(report)
    return DataSet(train, held, train_rows, held_rows, report)


# ---- rows


def _load(config: DataConfig) -> _Source:
    """All rows of `config.train`, limited to the first `config.limit`."""
    entries = config.train if isinstance(config.train, list) else [config.train]
    source = _Source()
    for number, entry in enumerate(entries):
        known = {"file": entry} if isinstance(entry, str) else entry
        if not isinstance(known.get("file"), str) or set(known) - ENTRY_KEYS:
            raise DataError(problem("E-DATA-19", f"data.train[{number}]", keys=", ".join(map(str, known)), known=", ".join(sorted(ENTRY_KEYS))))
        _load_entry(source, known, config)
    if not entries:
        raise DataError(problem("E-DATA-01", "data.train", file="data.train", here=str(Path.cwd())))
    return source


def _load_entry(source: _Source, entry: dict[str, Any], config: DataConfig) -> None:
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
        raise DataError(problem("E-DATA-20", str(entry["file"]), weight=weight))
    for path in data_files(entry["file"], config.dir):
        file = read(path)
        left = len(file.rows) if config.limit is None else max(0, config.limit - source.rows_read)
        raw: list[RawRow] = file.rows[:left]
        source.files.append(file)
        if not raw:
            continue
        # The format is told from the file, not from the few rows that a limit leaves.
        name = str(entry.get("format", config.format))
        shaped = shape(raw, name, entry.get("columns", config.columns))
        source.rows_read += len(raw)
        source.rows += [_finished(row, config.system, float(weight)) for row in shaped.rows]
        source.dropped += shaped.dropped
        source.formats.append(shaped.format)
        source.notes += shaped.notes


def _finished(row: Row, system: str | None, weight: float) -> Row:
    """The row with the run's system prompt where it brings none, and its source's weight."""
    if isinstance(row, Conversation) and system and not (row.messages and row.messages[0].role == "system"):
        row = replace(row, messages=[Message("system", system), *row.messages])
    return replace(row, weight=row.weight * weight) if weight != 1 else row


def _held_out_file(config: DataConfig) -> str | None:
    """The file of `held_out`, or None where it is a number or absent."""
    return config.held_out if isinstance(config.held_out, str) and _number(config.held_out) is None else None


def _number(value: float | str | None) -> float | None:
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return None


def _choose(rows: list[Row], config: DataConfig, seed: int, warnings: list[str]) -> set[int]:
    """Indices of the held-out rows."""
    number = _number(config.held_out)
    chosen = split_indices([question_key(row) for row in rows], number, seed)
    wanted = wanted_rows(number, len(rows))
    if len(chosen) < wanted:
        warnings.append(say("data.warning.held_out_short", wanted=wanted, found=len(chosen)))
    return set(chosen)


def _encoded(source: _Source, renderer: Renderer | None, max_tokens: int | None, config: DataConfig) -> tuple[Encoded, list[Row]]:
    """Samples of a source and the rows they were made from; what cannot be encoded joins the dropped."""
    if renderer is None:
        return Encoded([], []), source.rows
    made = encode(source.rows, renderer, max_tokens=max_tokens, oversize=config.oversize)
    source.dropped += made.dropped
    return made, [source.rows[sample.index] for sample in made.samples]


def _numbered(samples: Any) -> list[Sample]:
    """The samples with indices of their own list."""
    found = list(samples)
    for index, sample in enumerate(found):
        sample.index = index
    return found


# ---- the report


def _first_file(source: _Source) -> str:
    return str(source.files[0].path) if source.files else "data.train"


def _reason_line(dropped: Sequence[Dropped]) -> str:
    counted = Counter(one.reason for one in dropped).most_common()
    return ", ".join(f"{count} {reason_text(reason)}" for reason, count in counted) or "-"


def reason_text(reason: str) -> str:
    """The sentence of a reason; the key itself for one that an outside format brought."""
    key = f"data.reason.{reason}"
    found = say(key)
    return reason if found == key else found


def _counts(source: _Source, rows: Sequence[Row]) -> dict[str, Any]:
    reasons: dict[str, dict[str, Any]] = {}
    for one in source.dropped:
        entry = reasons.setdefault(one.reason, {"count": 0, "what": reason_text(one.reason), "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < EXAMPLES:
            entry["examples"].append(str(one.origin))
    listed = sorted(source.dropped, key=lambda d: (d.origin.file, d.origin.line))[:LISTED]
    return {
        "rows_read": source.rows_read,
        "rows_kept": len(rows),
        "rows_dropped": len(source.dropped),
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1]["count"], item[0]))),
        "dropped": {"total": len(source.dropped), "rows": [str(one) for one in listed]},
        "format": ", ".join(dict.fromkeys(source.formats)),
        "files": [str(file.path) for file in source.files],
        "encoding": ", ".join(dict.fromkeys(file.encoding for file in source.files)),
    }


def _question_counts(train_rows: Sequence[Row], held_rows: Sequence[Row]) -> dict[str, Any]:
    """Exact duplicates among all rows, and held-out questions that are also trained on."""
    whole = Counter(_whole_key(row) for row in [*train_rows, *held_rows])
    trained = {question_key(row) for row in train_rows}
    overlap = sum(question_key(row) in trained for row in held_rows)
    return {"duplicates": sum(count - 1 for count in whole.values()), "held_out_overlap": overlap}


def _whole_key(row: Row) -> str:
    if isinstance(row, PlainText):
        return row.text
    turns = [*row.prompt, *row.chosen, Message("rejected", ""), *row.rejected] if isinstance(row, Preference) else row.messages
    label = str(row.good) if isinstance(row, Judged) else ""
    return "\x1e".join([*(f"{m.role}\x1f{m.content}\x1f{m.tool_calls or ''}" for m in turns), label])


TOKEN_KEYS = (
    "tokens_total",
    "learnt_tokens",
    "learnt_share",
    "answers",
    "stop_learnt_share",
    "length_percentiles",
    "shared_prefix",
    "example",
    "template",
)


def _token_report(samples: Sequence[Sample], renderer: Renderer) -> dict[str, Any]:
    """The keys of TOKEN_KEYS, over the rows that are trained on."""
    sequences = [branch.tokens for sample in samples for branch in sample.branches]
    total = sum(map(len, sequences))
    learnt = sum(len(branch.learnt) for sample in samples for branch in sample.branches)
    answers = sum(sample.facts["answers"] for sample in samples)
    stops = sum(sample.facts["stops_learnt"] for sample in samples)
    return {
        "tokens_total": total,
        "learnt_tokens": learnt,
        "learnt_share": learnt / total if total else 0.0,
        "answers": answers,
        "stop_learnt_share": stops / answers if answers else 0.0,
        "length_percentiles": _percentiles([len(s) for s in sequences]),
        "shared_prefix": shared_prefix(sequences),
        "example": _example(samples[0], renderer) if samples else None,
        "template": renderer.template_name,
    }


def _percentiles(lengths: list[int]) -> dict[str, int]:
    """Nearest-rank percentiles of lengths in tokens."""
    ordered = sorted(lengths) or [0]
    ranks = {name: ordered[max(0, math.ceil(share * len(ordered)) - 1)] for name, share in (("50", 0.5), ("90", 0.9), ("99", 0.99))}
    return {"min": ordered[0], **ranks, "max": ordered[-1]}


def shared_prefix(sequences: Sequence[list[int]]) -> dict[str, float | int]:
    """Token rows of all sequences, and how many are left when every common beginning is computed once (the size of their trie)."""
    ordered = sorted(sequences)
    logical = sum(map(len, ordered))
    shared = sum(_common(one, two) for one, two in pairwise(ordered))
    return {"rows_logical": logical, "rows_physical_estimate": logical - shared, "share": shared / logical if logical else 0.0}


def _common(one: list[int], two: list[int]) -> int:
    """Length of the common beginning, by halving: comparing slices is much faster than comparing items."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == two[low:middle] else (low, middle - 1)
    return low


def _example(sample: Sample, renderer: Renderer) -> dict[str, Any]:
    """One sample decoded, cut into runs of learnt and not learnt tokens."""
    branch = sample.branches[0]
    learnt = set(branch.learnt)
    runs: list[tuple[bool, list[int]]] = []
    for index, token in enumerate(branch.tokens[:EXAMPLE_TOKENS]):
        if not runs or runs[-1][0] != (index in learnt):
            runs.append((index in learnt, []))
        runs[-1][1].append(token)
    pieces = [{"text": renderer.decode(ids), "learnt": is_learnt} for is_learnt, ids in runs]
    return {"origin": str(sample.origin), "pieces": pieces, "cut": len(branch.tokens) > EXAMPLE_TOKENS}


def _refuse_worthless(report: dict[str, Any], source: _Source) -> None:
    if not report["learnt_tokens"]:
        raise DataError(problem("E-DATA-13", _first_file(source), rows=report["rows_kept"]))
    if not report["stop_learnt_share"]:
        raise DataError(problem("E-DATA-14", _first_file(source), answers=report["answers"]))


def _warnings(report: dict[str, Any]) -> list[str]:
    """Sentences for what is odd but can be trained."""
    found = [say("data.warning.dropped", count=report["rows_dropped"], rows=report["rows_read"])] if report["rows_dropped"] else []
    for key in ("duplicates", "held_out_overlap"):
        if report[key]:
            found.append(say(f"data.warning.{key}", count=report[key]))
    if report["stop_learnt_share"] is not None and report["stop_learnt_share"] < 1:
        found.append(say("data.warning.stop_share", share=f"{report['stop_learnt_share']:.0%}"))
    if report["template"] == "plain":
        found.append(say("data.warning.plain_template"))
    return found + [say(f"data.note.{key}", count=count) for key, count in report["notes"].items()]
