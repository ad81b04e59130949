"""Running text: `text`. Every token is learnt."""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Origin, PlainText
from tunewright.data.formats.common import Columns, RowFault, guarded, text_of, weight_of


class Text(Section):
    """Rows with a text."""


def looks_like(raw: dict[str, Any]) -> int:
    """1 with a text column: rows of other formats often carry one as well, so any other format wins."""
    return int("text" in raw)


@formats.register("text", Text, needs="text", looks_like=looks_like)
@guarded
def text(raw: dict[str, Any], origin: Origin, columns: Columns) -> PlainText:
    """One document."""
    if "text" not in raw:
        raise RowFault("no_text")
    found = text_of(raw["text"], "text", columns)
    if not found.strip():
        raise RowFault("empty_text")
    return PlainText(found, origin, weight_of(raw))
