"""Running text: `text`. Every token is learnt."""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.types import Origin, PlainText, Row
from tunewright.data.formats.common import Columns, RowFault, first_of, row_format, text_of
from tunewright.data.formats.marks import row_weight
from tunewright.data.formats.naming import DOCUMENT, refuse_text_with_answer
from tunewright.data.formats.writing import of_kind


class Text(Section):
    """Rows with a text."""


class Documents(Section):
    """Rows that are whole documents; a text file is one row, however many blank lines it has."""


def looks_like(raw: dict[str, Any]) -> int:
    """1 with a text column: rows of other formats often carry one as well, so any other format
    wins.

    0 for single messages of a tree of dialogues (OpenAssistant's export): one message alone is no
    document.
    """
    return int("text" in raw and not ("role" in raw and "parent_id" in raw))


def looks_like_documents(raw: dict[str, Any]) -> int:
    """1 with a column `document` or `content` and no `text`."""
    return int("text" not in raw and first_of(raw, DOCUMENT) is not None and "role" not in raw)


def write(row: Row) -> dict[str, Any]:
    """The text."""
    return {"text": of_kind(row, PlainText).text}


@row_format(
    "text",
    Text,
    needs="text",
    reads=("text", "weight"),
    looks_like=looks_like,
    refuse=refuse_text_with_answer,
    write=write,
)
def text(raw: dict[str, Any], origin: Origin, columns: Columns) -> PlainText:
    """One document."""
    return _plain_text(raw, ("text",), origin, columns)


@row_format(
    "documents",
    Documents,
    needs="document | content | text",
    reads=(*DOCUMENT, "weight"),
    looks_like=looks_like_documents,
    refuse=refuse_text_with_answer,
    whole_file=True,
)
def documents(raw: dict[str, Any], origin: Origin, columns: Columns) -> PlainText:
    """One document, under any of its usual names."""
    return _plain_text(raw, DOCUMENT, origin, columns)


def _plain_text(
    raw: dict[str, Any], names: tuple[str, ...], origin: Origin, columns: Columns
) -> PlainText:
    name = first_of(raw, names)
    if name is None:
        raise RowFault("no_text")
    found = text_of(raw[name], name, columns)
    if not found.strip():
        raise RowFault("empty_text")
    return PlainText(found, origin, row_weight(raw, columns))
