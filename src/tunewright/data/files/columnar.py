"""Parquet, Arrow and Feather, a small batch at a time, through pyarrow.

Values become what JSON could hold: times are ISO texts, decimals and bytes that are UTF-8 are
texts. Where the file says what its labels are called (the `ClassLabel` of the datasets library,
kept in the file's own metadata) a label's number becomes its name, counted.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from tunewright.core.errors import DataError
from tunewright.core.types import Origin
from tunewright.data.files.source import CHUNK_BYTES, RawRow, Source, reads

BATCH_BYTES = 8 * 2**20
BATCH_ROWS, BATCH_CELLS = 1024, 100_000
PLAIN = (str, int, float, bool, type(None))
MAGIC = b"ARROW1"


@reads("parquet", ".parquet", is_text=False)
def read_parquet(source: Source) -> Iterator[RawRow]:
    """Rows of a Parquet file. Raises DataError for one that is cut off or damaged."""
    return _rows(source, _parquet_batches)


@reads("arrow", ".arrow", ".feather", is_text=False)
def read_arrow(source: Source) -> Iterator[RawRow]:
    """Rows of an Arrow file or stream, or of a Feather file (version 2 is an Arrow file). Raises
    DataError for one that is cut off or damaged."""
    return _rows(source, _arrow_batches)


def _parquet_batches(file: IO[bytes]) -> Iterator[Any]:
    import pyarrow.parquet as parquet

    opened = parquet.ParquetFile(file, pre_buffer=False)
    about = opened.metadata
    total = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    yield opened.schema_arrow
    rows = _batch_rows(len(opened.schema_arrow), total // max(1, about.num_rows))
    yield from opened.iter_batches(batch_size=rows, use_threads=False)


def _arrow_batches(file: IO[bytes]) -> Iterator[Any]:
    import pyarrow as arrow

    is_file = file.read(len(MAGIC)) == MAGIC
    file.seek(0)
    opened = arrow.ipc.open_file(file) if is_file else arrow.ipc.open_stream(file)
    yield opened.schema
    batches = (
        (opened.get_batch(i) for i in range(opened.num_record_batches)) if is_file else iter(opened)
    )
    for batch in batches:
        # Offsets come from the file as they are; unchecked, a damaged one would be read outside its
        # buffer.
        batch.validate(full=True)
        rows = _batch_rows(batch.num_columns, batch.nbytes // max(1, batch.num_rows))
        yield from (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))


def _batch_rows(columns: int, row_bytes: int) -> int:
    """How many rows become Python objects at once."""
    return max(1, min(BATCH_ROWS, BATCH_CELLS // max(1, columns), BATCH_BYTES // max(1, row_bytes)))


def _rows(source: Source, batches: Callable[[IO[bytes]], Iterator[Any]]) -> Iterator[RawRow]:
    import pyarrow as arrow

    row = 0
    with _seekable(source) as file, arrow.PythonFile(file, mode="r") as opened:
        found = batches(opened)
        try:
            schema = next(found)
            if len(set(schema.names)) < len(schema.names):
                twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
                raise DataError.of("E-DATA-35", source.name, columns=", ".join(twice[:5]))
            labels = _label_names(schema)
            narrow = _narrow_fields(schema)
            for batch in found:
                for value in batch.to_pylist():
                    row += 1
                    for column, convert in narrow.items():
                        value[column] = convert(value[column])
                    yield RawRow(_named(value, labels, source), Origin(source.name, row, row))
        except (
            arrow.ArrowException,
            OSError,
            ValueError,
            OverflowError,
            MemoryError,
            RecursionError,
            TypeError,
        ) as error:
            cause = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError.of("E-DATA-37", source.name, file=source.name, cause=cause) from error


@contextmanager
def _seekable(source: Source) -> Iterator[IO[bytes]]:
    """The file itself; one that is packed is unpacked to a temporary file, because these formats
    are read from their end."""
    with source.bytes() as content:
        if not source.packed:
            yield content
            return
        with tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(content, unpacked, CHUNK_BYTES)
            unpacked.seek(0)
            yield cast("IO[bytes]", unpacked)


def _narrow(kind: Any) -> Callable[[Any], Any] | None:
    """Turns the numbers of a column of 32 or 16 bits into the ones that their shortest decimals
    name (0.1, not 0.10000000149011612); None for other columns."""
    import numpy
    from pyarrow import types

    if types.is_float32(kind) or types.is_float16(kind):
        number = numpy.float32 if types.is_float32(kind) else numpy.float16
        return lambda value: None if value is None else float(str(number(value)))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _narrow(kind.value_type)
        if inner is not None:
            return lambda value: None if value is None else [inner(one) for one in value]
    if types.is_struct(kind) and (fields := _narrow_fields(kind)):
        return lambda value: (
            None if value is None else value | {name: fields[name](value[name]) for name in fields}
        )
    return None


def _narrow_fields(fields: Iterable[Any]) -> dict[str, Callable[[Any], Any]]:
    """`_narrow` of the fields of a schema or an object that have such numbers."""
    found = {field.name: _narrow(field.type) for field in fields}
    return {name: convert for name, convert in found.items() if convert is not None}


def _label_names(schema: Any) -> dict[str, list[str]]:
    """The names of the labels by column, from the metadata that the datasets library writes."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"]
        found = {
            column: feature["names"]
            for column, feature in features.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, AttributeError, TypeError):
        return {}
    return {
        column: names
        for column, names in found.items()
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
    }


def _named(value: dict[str, Any], labels: dict[str, list[str]], source: Source) -> dict[str, Any]:
    row = {
        column: cell if isinstance(cell, PLAIN) else _plain(cell) for column, cell in value.items()
    }
    for column, names in labels.items():
        number = row.get(column)
        if isinstance(number, int) and not isinstance(number, bool):
            # Test sets without answers write -1.
            row[column] = names[number] if 0 <= number < len(names) else None
            source.notes["label_named"] += 1
    return row


def _plain(value: Any) -> Any:
    """A value as JSON could hold it."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode("ascii")}
    return str(value)
