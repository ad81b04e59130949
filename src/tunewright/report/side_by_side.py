"""Before and after on a terminal: question, answer before, answer after, with a mark where the
answer now holds what was expected."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tunewright.core.comparing import contains
from tunewright.core.words import say

if TYPE_CHECKING:
    from rich.table import Table

NARROW = 60
LONGEST = 600
# What a terminal would obey instead of show: an answer must not move the cursor, set the title or
# turn the writing direction.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: Any) -> str:
    """Text that a terminal shows and does not obey, cut at `LONGEST` characters."""
    shown = _OBEYED.sub("\ufffd", "" if text is None else str(text)).strip()
    return shown if len(shown) <= LONGEST else shown[:LONGEST].rstrip() + " …"


def table(rows: Iterable[Mapping[str, Any]], width: int | None = None) -> Table:
    """A rich table of `before_after.jsonl` rows for a terminal of `width` columns (None: as wide as
    this one). Narrow ones get one column.

    ✓ marks an answer after training that holds the expected text, ✗ one that does not; rows without
    an expectation have no mark.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    width = width or shutil.get_terminal_size().columns
    stacked = width < NARROW
    made = Table(
        box=box.SIMPLE_HEAD if stacked else box.ROUNDED,
        width=width,
        show_lines=True,
        pad_edge=not stacked,
    )
    names = ("question",) if stacked else ("question", "before", "after")
    for name in names:
        made.add_column(
            say(f"report.answers.{name}"),
            ratio=2 if name == "question" else 3,
            overflow="fold",
            style="dim" if name == "before" else None,
        )
    for row in rows:
        mark = _mark(row)
        after = Text.assemble(
            *([(mark + " ", "green" if mark == "✓" else "yellow")] if mark else []),
            plain(row.get("after")),
        )
        question, before = Text(plain(row.get("question"))), Text(plain(row.get("before")))
        if stacked:
            parts = [("report.answers.before", before), ("report.answers.after", after)]
            made.add_row(
                Text("\n").join(
                    [
                        question,
                        *(Text.assemble((say(key) + ": ", "bold"), text) for key, text in parts),
                    ]
                )
            )
        else:
            made.add_row(question, before, after)
    return made


def _mark(row: Mapping[str, Any]) -> str:
    expected = str(row.get("expected") or "")
    if not expected.strip():
        return ""
    return "✓" if contains(str(row.get("after") or ""), expected) else "✗"
