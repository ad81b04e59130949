"""Rows of one form written in another: alpaca, sharegpt, messages, prompt_completion, preference,
kto or text; JSON, JSONL, CSV or Parquet.

A form that cannot hold a row does not get a part of it. Each row is written as a candidate, the
candidate is read back by the form's own reader, and only when that gives the same row is it kept;
otherwise the row is left out with a reason, and the command refuses unless it was told to leave
such rows out. The finished file is read back once more before it takes its place. Kinds are not
turned into one another: a preference is not half an answer.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunewright.core.errors import DataError
from tunewright.core.files import write_bytes
from tunewright.core.registry import formats
from tunewright.core.types import (
    ROW_KINDS,
    Conversation,
    Judged,
    Message,
    Origin,
    PlainText,
    Preference,
    Row,
    Stepwise,
)
from tunewright.core.words import say
from tunewright.data.catalogue.names import ResolvedEntry, chosen_rows, resolve
from tunewright.data.checks.columns import column_findings
from tunewright.data.describing import note
from tunewright.data.files.reading import RawRow, stream
from tunewright.data.formats.common import Columns, RowFault, Unusable
from tunewright.data.formats.ledger import Ledger
from tunewright.data.formats.shaping import shape
from tunewright.data.reporting import under_key

EXAMPLES = 5
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
NOWHERE = Origin("", 0, 0)


@dataclass
class Converted:
    """What a conversion wrote and left out. `unread` are rows that could not be used at all,
    `unheld` rows that the target cannot hold."""

    file: str
    to: str
    source_formats: list[str]
    rows_read: int = 0
    rows_written: int = 0
    unread: dict[str, list[Origin]] = field(default_factory=dict)
    unheld: dict[str, list[Origin]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    parts: list[str] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`; every row read is written, unread or unheld."""
        reasons = {name: _counted(rows, "data") for name, rows in self.unread.items()}
        reasons |= {name: _counted(rows, "convert") for name, rows in self.unheld.items()}
        return {
            "file": self.file,
            "to": self.to,
            "format": ", ".join(dict.fromkeys(self.source_formats)),
            "rows_read": self.rows_read,
            "rows_written": self.rows_written,
            "rows_dropped": sum(map(len, [*self.unread.values(), *self.unheld.values()])),
            "reasons": {name: {"what": _reason(name), **entry} for name, entry in reasons.items()},
            "notes": {name: count for name, count in sorted(self.notes.items()) if count},
            "parts": self.parts,
            "columns": {
                "found": len(self.ledger.had),
                "used": self.ledger.used(),
                "unused": self.ledger.unused(),
            },
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        shown = self.as_dict()
        out = [
            say(
                "convert.done",
                **{
                    key: shown[key]
                    for key in ("file", "to", "format", "rows_read", "rows_written", "rows_dropped")
                },
            )
        ]
        out += [
            f"  {e['count']}: {e['what']} ({', '.join(e['examples'])})"
            for e in shown["reasons"].values()
        ]
        out += [*self.parts, *(f"! {note(name, count)}" for name, count in shown["notes"].items())]
        return out + [f"! {one.what()}" for one in column_findings(shown)]


def _counted(rows: list[Origin], stage: str) -> dict[str, Any]:
    return {
        "count": len(rows),
        "stage": stage,
        "examples": [str(origin) for origin in rows[:EXAMPLES]],
    }


def _reason(name: str) -> str:
    return next(
        (
            text
            for key in (f"convert.reason.{name}", f"data.reason.{name}")
            if (text := say(key)) != key
        ),
        name,
    )


def convert(
    source: str,
    out: Path,
    to: str,
    *,
    data_format: str = "auto",
    columns: dict[str, str] | None = None,
    data_dir: str | None = None,
    drop: bool = False,
    force: bool = False,
) -> Converted:
    """Read `source` (whatever `data.train` names) and write its rows to `out` in the form `to`, in
    their order.

    Raises DataError, with nothing written, where `out` exists and `force` is not set, where the
    form or the ending is not known, where no row is left, and where the form cannot hold some rows
    and `drop` is not set.
    """
    if to not in WRITERS:
        raise DataError.of("E-DATA-48", "--to", to=to, known=", ".join(WRITERS))
    ending = out.suffix.lower()
    if ending not in FILES:
        raise DataError.of("E-DATA-48", str(out), to=ending or "-", known=", ".join(FILES))
    if out.exists() and (not force or out.is_dir()):
        raise DataError.of("E-DATA-47", str(out), file=str(out))
    made = Converted(str(out), to, [])
    written: list[dict[str, Any]] = []
    kept: list[Row] = []
    for row in _rows(source, data_format, columns, data_dir, made):
        try:
            written.append(_held(row, to, ending))
            kept.append(row)
        except RowFault as fault:
            made.unheld.setdefault(fault.unusable.reason, []).append(row.origin)
    made.rows_written = len(written)
    if not written or (made.unheld and not drop):
        shown = made.as_dict()["reasons"]
        reasons = "; ".join(
            f"{e['count']} {e['what']} ({', '.join(e['examples'])})" for e in shown.values()
        )
        raise DataError.of(
            "E-DATA-49",
            source,
            rows=made.rows_read,
            fit=len(written),
            to=f"{to} ({ending})",
            reasons=reasons or "-",
        )
    content = FILES[ending](written, str(out))
    _prove(content, to, ending, kept, source)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, content)
    return made


def _rows(
    source: str,
    data_format: str,
    columns: dict[str, str] | None,
    data_dir: str | None,
    made: Converted,
) -> Iterator[Row]:
    """The usable rows of everything that `source` names; the others are counted in `made`."""
    for entry in resolve(
        {"file": source, "format": data_format, "columns": columns or {}}, data_dir
    ):
        found: list[tuple[Any, Origin]] = []
        made.parts += filter(None, [entry.parts.said([])])
        for path in entry.files:
            opened = (
                stream(path, whole=True)
                if entry.convert is None and entry.format == "documents"
                else entry.stream(path)
            )
            found += [(row.value, row.origin) for row in opened.rows]
            made.notes += opened.notes
            made.parts += map(under_key, opened.under)
        for row in _shaped(entry, found, made):
            if isinstance(row, tuple):
                made.unread.setdefault(row[0], []).append(row[1])
            else:
                yield row
        made.notes += entry.notes.notes
        made.ledger.merge(entry.notes.ledger.plain())


def _shaped(
    entry: ResolvedEntry, found: list[tuple[Any, Origin]], made: Converted
) -> Iterator[Row | tuple[str, Origin]]:
    """Rows of one entry, or (reason, where) for those that cannot be used."""
    if entry.convert is not None:
        entry.check_columns(
            {name for value, _ in found if isinstance(value, dict) for name in value}
        )
        made.source_formats.append(entry.format)
        chosen = chosen_rows(len(found), entry.limit, entry.name)
        made.rows_read += len(chosen)
        for index in chosen:
            value, origin = found[index]
            row = entry.convert(value, origin)
            yield (row.reason, origin) if isinstance(row, Unusable) else row
        return
    shaped = shape([RawRow(value, origin) for value, origin in found], entry.format, entry.columns)
    made.source_formats.append(shaped.format)
    made.rows_read += len(found)
    made.notes += shaped.notes
    made.ledger.merge(shaped.ledger.plain())
    yield from shaped.rows
    yield from ((one.reason, one.origin) for one in shaped.dropped)


def _prove(content: bytes, to: str, ending: str, kept: list[Row], source: str) -> None:
    """Read the finished file as anybody would; raise DataError, before it stands anywhere, where it
    holds other rows than were written."""
    entry = formats.get(to)
    if entry is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{ending}"
        path.write_bytes(content)
        again = [entry.function(row.value, row.origin, Columns()) for row in stream(path).rows]
    wrong = [
        str(row.origin)
        for row, found in zip(kept, again, strict=False)
        if isinstance(found, Unusable) or _bare(found) != _bare(row)
    ]
    if wrong or len(again) != len(kept):
        reasons = f"{_reason('differs_when_read')} ({', '.join(wrong[:EXAMPLES]) or len(again)})"
        raise DataError.of(
            "E-DATA-49",
            source,
            rows=len(kept),
            fit=len(kept) - len(wrong),
            to=f"{to} ({ending})",
            reasons=reasons,
        )


# ---- forms


def _held(row: Row, to: str, ending: str) -> dict[str, Any]:
    """The row in the form `to`. Raises RowFault with a key of `convert.reason.*` where reading it
    back would not give the same row."""
    candidate = WRITERS[to](row)
    if row.weight != 1:
        candidate["weight"] = row.weight
    tools = None if isinstance(row, PlainText) else row.tools
    if tools:
        candidate["tools"] = tools
    if ending == ".csv" and not all(isinstance(cell, str) for cell in candidate.values()):
        raise RowFault("only_text_in_csv")
    if ending == ".parquet" and (tools or any(m.tool_calls for m in _messages(row))):
        # A column has one type, so every call would get the arguments of all others, empty.
        raise RowFault("no_tools_in_parquet")
    entry = formats.get(to)
    if entry is not None:
        again = entry.function(candidate, replace(NOWHERE, file=f"rows{ending}"), Columns())
        if isinstance(again, Unusable) or _bare(again) != _bare(row):
            raise RowFault("differs_when_read")
    return candidate


def _bare(row: Row) -> Row:
    """The row without where it came from."""
    return replace(row, origin=NOWHERE)


def _messages(row: Row) -> list[Message]:
    if isinstance(row, PlainText):
        return []
    return (
        [*row.prompt, *row.chosen, *row.rejected] if isinstance(row, Preference) else row.messages
    )


def _kind(row: Row, kind: type[Any]) -> Any:
    if not isinstance(row, kind):
        raise RowFault(f"kind_{ROW_KINDS[type(row)]}")
    return row


def _turns(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as {role, content}, with what else they carry."""
    return [{"role": m.role, "content": m.content, **_more(m)} for m in messages]


def _more(message: Message) -> dict[str, Any]:
    more: dict[str, Any] = {"weight": message.weight} if message.weight != 1 else {}
    more |= {"tool_calls": message.tool_calls} if message.tool_calls else {}
    return more | ({"name": message.name} if message.name else {})


def _to_messages(row: Row) -> dict[str, Any]:
    return {"messages": _turns(_kind(row, Conversation).messages)}


def _to_sharegpt(row: Row) -> dict[str, Any]:
    return {
        "conversations": [
            {"from": SPEAKERS[m.role], "value": m.content, **_more(m)}
            for m in _kind(row, Conversation).messages
        ]
    }


def _plain(messages: list[Message]) -> tuple[str | None, list[Message]]:
    """The system prompt and the turns after it. Raises RowFault for turns of tools and for weights,
    which two text columns cannot hold."""
    if any(m.tool_calls or m.role == "tool" for m in messages):
        raise RowFault("tool_turns")
    if any(m.weight not in (0, 1) for m in messages):
        raise RowFault("turn_weights")
    if messages and messages[0].role == "system":
        return messages[0].content, messages[1:]
    return None, messages


def _to_alpaca(row: Row) -> dict[str, Any]:
    """The last question and answer, the earlier ones as history; all answers are learnt, in this
    form as in the row."""
    system, turns = _plain(_kind(row, Conversation).messages)
    if any(m.weight != 1 for m in turns if m.role == "assistant"):
        raise RowFault("turn_weights")
    if len(turns) % 2:
        raise RowFault("turns")
    pairs = [[turns[i].content, turns[i + 1].content] for i in range(0, len(turns), 2)]
    out: dict[str, Any] = {"instruction": pairs[-1][0], "input": "", "output": pairs[-1][1]}
    out |= {"system": system} if system is not None else {}
    return out | ({"history": pairs[:-1]} if len(pairs) > 1 else {})


def _to_prompt_completion(row: Row) -> dict[str, Any]:
    """Two texts for one question and answer. Earlier turns become a list of messages, where their
    answers are not learnt in the row either."""
    system, turns = _plain(_kind(row, Conversation).messages)
    out: dict[str, Any] = {"system": system} if system is not None else {}
    if any(m.weight != 0 for m in turns[:-1] if m.role == "assistant"):
        raise RowFault("turns")
    if turns[-1].weight != 1:
        raise RowFault("turn_weights")
    if len(turns) == 2:
        return {"prompt": turns[0].content, "completion": turns[1].content, **out}
    return {"prompt": _given(turns[:-1]), "completion": _given(turns[-1:]), **out}


def _given(turns: list[Message]) -> list[dict[str, Any]]:
    return [{"role": m.role, "content": m.content} for m in turns]


def _to_preference(row: Row) -> dict[str, Any]:
    pair: Preference = _kind(row, Preference)
    out: dict[str, Any] = {
        "prompt": _turns(pair.prompt),
        "chosen": _turns(pair.chosen),
        "rejected": _turns(pair.rejected),
    }
    return out | ({"margin": pair.margin} if pair.margin is not None else {})


def _to_kto(row: Row) -> dict[str, Any]:
    judged: Judged = _kind(row, Judged)
    return {
        "prompt": _turns(judged.messages[:-1]),
        "completion": _turns(judged.messages[-1:]),
        "label": judged.good,
    }


def _to_stepwise(row: Row) -> dict[str, Any]:
    judged: Stepwise = _kind(row, Stepwise)
    texts, labels = zip(*judged.steps, strict=True)
    return {
        "prompt": _turns(judged.messages[:-1]),
        "completions": list(texts),
        "labels": list(labels),
    }


def _to_text(row: Row) -> dict[str, Any]:
    return {"text": _kind(row, PlainText).text}


WRITERS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "alpaca": _to_alpaca,
    "sharegpt": _to_sharegpt,
    "messages": _to_messages,
    "prompt_completion": _to_prompt_completion,
    "preference": _to_preference,
    "kto": _to_kto,
    "stepwise": _to_stepwise,
    "text": _to_text,
}


# ---- kinds of files


def _json(rows: list[dict[str, Any]], name: str) -> bytes:
    return (json.dumps(rows, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode("utf-8")


def _jsonl(rows: list[dict[str, Any]], name: str) -> bytes:
    return "".join(
        json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows
    ).encode("utf-8")


def _csv(rows: list[dict[str, Any]], name: str) -> bytes:
    """Comma-separated, with a header of every column that any row has, and a byte order mark,
    without which spreadsheets show no Chinese."""
    out = io.StringIO(newline="")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode("utf-8-sig")


def _parquet(rows: list[dict[str, Any]], name: str) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError.of(
            "E-DATA-48",
            name,
            to=".parquet (pip install pyarrow)",
            known=", ".join(k for k in FILES if k != ".parquet"),
        ) from error
    columns = list(dict.fromkeys(column for row in rows for column in row))
    out = io.BytesIO()
    pq.write_table(pa.table({column: [row.get(column) for row in rows] for column in columns}), out)
    return out.getvalue()


FILES: dict[str, Callable[[list[dict[str, Any]], str], bytes]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
