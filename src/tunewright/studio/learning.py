"""The glossary and the pages of error codes, as the page's room for learning shows them."""

from __future__ import annotations

from typing import Any

from tunewright.advise import glossary
from tunewright.core.errors import UsageError, problem
from tunewright.core.words import error_codes, error_text, language
from tunewright.studio.places import shown


def terms() -> list[dict[str, Any]]:
    """Every term of the glossary, in reading order."""
    found = glossary.terms(language())
    english = glossary.terms("en")
    return [
        {
            "term": key,
            "title": term.name,
            "text": term.text,
            "more": term.ours,
            "page": f"docs/{term.page}" if term.page else "",
            "group": term.group,
            "also": [
                n for n in dict.fromkeys([*term.aliases, english[key].name]) if n != term.name
            ],
            "see": list(term.see),
        }
        for key, term in found.items()
    ]


def error(code: str) -> dict[str, str]:
    """One error code. Raises UsageError for one that there is not."""
    if code not in error_codes():
        raise UsageError(problem("E-STUDIO-12", "code", what=shown(code)))
    return {"code": code, **error_text(code)}


def errors() -> list[dict[str, str]]:
    """Every error code."""
    return [{"code": code, **error_text(code)} for code in error_codes()]
