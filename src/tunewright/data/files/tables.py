"""CSV and TSV: the first row names the columns, every other row is an object of texts.

A row with another number of cells than the header has lost or gained a comma or a quote: it is an
error with its line, all counted, five shown. The delimiter of a `.csv` file is the one of `,` `;`
and tab that stands most often in its first line; a first line `sep=;`, as Excel writes it, says so.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import TextIO

from tunewright.core.errors import DataError, Problem, problem
from tunewright.core.types import Origin
from tunewright.core.words import say
from tunewright.data.files.source import SHOWN_PROBLEMS, RawRow, Source, reads

DELIMITERS = ",;\t"
# The csv module refuses cells over 128 KiB, and a quote that is never closed makes one cell of the
# rest of the file.
MOST_CELL_CHARACTERS = 64 * 2**20
SHOWN_NAMES, SHOWN_NAME_CHARACTERS = 5, 60


@reads("csv", ".csv")
def read_csv(source: Source) -> Iterator[RawRow]:
    """Rows of a table whose cells are separated by commas, semicolons or tabs."""
    return _table(source, None)


@reads("tsv", ".tsv", ".tab")
def read_tsv(source: Source) -> Iterator[RawRow]:
    """Rows of a table whose cells are separated by tabs."""
    return _table(source, "\t")


def _table(source: Source, delimiter: str | None) -> Iterator[RawRow]:
    csv.field_size_limit(MOST_CELL_CHARACTERS)
    with source.text(newline="") as text:
        skipped = 0
        if delimiter is None:
            delimiter, skipped = _delimiter(text)
    with source.text(newline="") as text:
        for _ in range(skipped):
            text.readline()
        yield from _rows(source.name, csv.reader(text, delimiter=delimiter, strict=True), skipped)


def _delimiter(text: TextIO) -> tuple[str, int]:
    """The delimiter, and how many lines only name it."""
    line = text.readline(2**20)
    if line.lower().startswith("sep=") and len(line.strip("\r\n")) == 5:
        return line[4], 1
    bare = "".join(line.split('"')[::2])  # what stands outside quotes
    return max(DELIMITERS, key=lambda d: (bare.count(d), -DELIMITERS.index(d))), 0


def _rows(name: str, reader: Iterator[list[str]], skipped: int) -> Iterator[RawRow]:
    header: list[str] | None = None
    problems: list[Problem] = []
    bad = row = 0
    line = skipped + 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            problems = [*problems[: SHOWN_PROBLEMS - 1], _broken(name, line, error)]
            bad += 1
            break
        started, line = line, skipped + reader.line_num + 1  # type: ignore[attr-defined]
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _names(name, cells, started)
            continue
        if "\x00" in "".join(cells):  # newer csv modules let it pass
            bad += 1
            if bad <= SHOWN_PROBLEMS:
                problems.append(
                    problem("E-DATA-36", f"{name}, line {started}", cause=say("data.table.nul"))
                )
            continue
        if len(cells) != len(header) and (
            len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :])
        ):
            bad += 1
            if bad <= SHOWN_PROBLEMS:
                cause = say("data.table.cells", found=len(cells), wanted=len(header))
                problems.append(problem("E-DATA-36", f"{name}, line {started}", cause=cause))
            continue
        row += 1
        if not bad:
            yield RawRow(dict(zip(header, cells, strict=False)), Origin(name, started, row))
    if bad > SHOWN_PROBLEMS:
        problems.append(
            problem(
                "E-DATA-36",
                name,
                cause=say("data.table.more", count=bad - len(problems), total=bad),
            )
        )
    if problems:
        raise DataError(problems)


def _broken(name: str, line: int, error: csv.Error) -> Problem:
    """What the csv module complained about, at the line on which its row begins."""
    message = str(error)
    key = next(
        (
            key
            for part, key in (
                ("end of data", "open_quote"),
                ("field larger", "open_quote"),
                ("NUL", "nul"),
            )
            if part in message
        ),
        "quote",
    )
    return problem(
        "E-DATA-36", f"{name}, line {line}", cause=say(f"data.table.{key}", message=message)
    )


def _names(name: str, cells: list[str], line: int) -> list[str]:
    """The names of the columns. A column without a name, as an index column has none, is called by
    its number."""
    names = [cell.strip() or f"column_{number}" for number, cell in enumerate(cells, start=1)]
    while len(cells) > 1 and not cells[len(names) - 1].strip() and len(names) > 1:
        names.pop()  # cells that a spreadsheet left behind the table
    seen: set[str] = set()
    twice = [one for one in names if one in seen or seen.add(one)]  # type: ignore[func-returns-value]
    if twice:
        shown = ", ".join(one[:SHOWN_NAME_CHARACTERS] for one in dict.fromkeys(twice[:SHOWN_NAMES]))
        raise DataError.of("E-DATA-35", f"{name}, line {line}", columns=shown)
    return names
