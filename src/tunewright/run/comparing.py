"""`tunewright compare`: the figures, and the files that are left where somebody asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.core.errors import UsageError, problem
from tunewright.core.files import write_json
from tunewright.core.telling import Tell
from tunewright.core.words import say

PAGE, ANSWERS = "compare.html", ".answers.jsonl"
"""The page, and how the table of answers beside it ends: what it holds is not asked again."""


def compare(
    targets: Sequence[str],
    data: str,
    *,
    out: Path | None = None,
    tell: Tell | None = None,
    **how: Any,
) -> dict[str, Any]:
    """`evaluate.compare.compare`; `out` gets its page and figures: a folder, or the name of the
    page. Raises UsageError where a file stands in the way (E-EVAL-44)."""
    from tunewright.evaluate.compare import compare as ask
    from tunewright.report.comparison import write_page

    tell = tell or Tell()
    page = None if out is None else _page_of(out)
    kept = None if page is None else page.with_suffix(ANSWERS)
    result = ask(targets, data, kept=kept, tell=tell, **how)
    if page is not None:
        figures = page.with_suffix(".json")
        write_page(page, result)
        write_json(figures, result)
        result["page"] = str(page)
        tell.line(say("beside.page", path=page))
        tell.line(say("beside.kept", path=figures))
    return result


def _page_of(out: Path) -> Path:
    """Looked at before models are opened for minutes."""
    page = out if out.suffix.lower() in (".html", ".htm") else out / PAGE
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(problem("E-EVAL-44", str(out), cause=e)) from e
    if page.is_dir():
        raise UsageError(problem("E-EVAL-44", str(out), cause=page))
    return page
