"""Rows as the bytes of a file, by its ending."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any


def _json(rows: list[dict[str, Any]]) -> bytes:
    return (json.dumps(rows, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode("utf-8")


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return "".join(lines).encode("utf-8")


def _csv(rows: list[dict[str, Any]]) -> bytes:
    """Comma-separated, with a header of every column that any row has, and a byte order mark,
    without which spreadsheets show no Chinese."""
    out = io.StringIO(newline="")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode("utf-8-sig")


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = list(dict.fromkeys(column for row in rows for column in row))
    out = io.BytesIO()
    made = pyarrow.table({column: [row.get(column) for row in rows] for column in columns})
    parquet.write_table(made, out)
    return out.getvalue()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
