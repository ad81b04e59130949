"""`tunewright compare`: the figures, and the files that are left where somebody asked for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain, count
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
    page. The page of another comparison that stands there stays: the new one gets a number. Raises
    UsageError where a file stands in the way (E-EVAL-44)."""
    from tunewright.evaluate.compare import compare as ask
    from tunewright.report.comparison import write_page

    tell = tell or Tell()
    asked = {"targets": [*targets], "data": data, "base": bool(how.get("base"))}
    first = None if out is None else _page_of(out)
    page = None if first is None else _own_page(first, asked)
    kept = None if first is None else first.with_suffix(ANSWERS)  # answers serve all comparisons
    result = ask(targets, data, kept=kept, tell=tell, **how)
    if page is not None:
        figures = page.with_suffix(".json")
        write_page(page, result)
        write_json(figures, {**result, "asked": asked})
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


def _own_page(page: Path, asked: dict[str, Any]) -> Path:
    """`page`, or the first numbered name beside it that no other comparison has: the same models on
    the same rows are the same comparison, gone on with."""
    names = chain([page], (page.with_stem(f"{page.stem}-{n}") for n in count(2)))
    return next(name for name in names if _before(name.with_suffix(".json")) in (None, asked))


def _before(figures: Path) -> Any:
    """What the comparison whose figures these are had asked; None where there are none."""
    try:
        content = json.loads(figures.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return "unknown"
    return content.get("asked", "unknown") if isinstance(content, dict) else "unknown"
