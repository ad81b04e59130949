"""Every sentence the program says, looked up by key in the reader's language.

Sentences live as data in `assets/locales/<language>/*.json`, one file a room, so a translator needs
no Python and a test can compare the languages key by key. English is the fallback for a missing key
only at run time; the tests allow no missing key.
"""

from __future__ import annotations

import contextlib
import json
import locale
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "zh")
ASSETS = Path(__file__).resolve().parent.parent / "assets"

_chosen: str | None = None
_spoken: ContextVar[str | None] = ContextVar("spoken", default=None)


def language() -> str:
    """The language of messages: that of the context (`speaking`), else `set_language`, else
    TUNEWRIGHT_LANG, else the locale of the terminal, else English."""
    spoken = _spoken.get()
    if spoken:
        return spoken
    if _chosen:
        return _chosen
    for name in ("TUNEWRIGHT_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(name, "")
        if value:
            return "zh" if value.lower().startswith("zh") else "en"
    # Windows sets none of the variables above; its locale says what language the desktop speaks.
    return "zh" if (locale.getlocale()[0] or "").lower().startswith(("zh", "chinese")) else "en"


def set_language(name: str | None) -> None:
    """Choose the language for this process; None goes back to the environment's."""
    global _chosen
    _chosen = name


@contextlib.contextmanager
def speaking(name: str | None) -> Iterator[None]:
    """Choose the language inside the block, for this thread or task alone: two readers of one
    server may speak two languages. None leaves it as it is."""
    token = _spoken.set(name or _spoken.get())
    try:
        yield
    finally:
        _spoken.reset(token)


@cache
def catalogue(lang: str) -> dict[str, Any]:
    """All keys of one language, merged from its files."""
    merged: dict[str, Any] = {}
    for path in sorted((ASSETS / "locales" / lang).glob("*.json")):
        merged.update(json.loads(path.read_text(encoding="utf-8")))
    return merged


class _Fields(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def say(key: str, /, lang: str | None = None, **fields: Any) -> str:
    """The sentence of `key` with `fields` filled in. A key nobody wrote comes back as itself, so
    nothing fails while speaking."""
    chosen = lang or language()
    text = catalogue(chosen).get(key, catalogue("en").get(key, key))
    if not isinstance(text, str):
        return key
    return text.format_map(_Fields(fields))


def said_again(text: str, *keys: str) -> str:
    """A sentence that a record keeps in English, in the reader's language: it was said with one of
    `keys`. Any other text comes back as it is."""
    for key in keys:
        template = re.escape(catalogue("en")[key])
        found = re.fullmatch(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", template), text)
        if found is not None:
            return say(key, **found.groupdict())
    return text


def error_text(code: str, lang: str | None = None) -> dict[str, str]:
    """`what`, `do` and `page` of an error code; empty strings for a code nobody wrote."""
    chosen = lang or language()
    entry = catalogue(chosen).get(code) or catalogue("en").get(code) or {}
    return {"what": "", "do": "", "page": "", **entry}


def error_codes() -> list[str]:
    """Every error code with a text, sorted."""
    return sorted(key for key in catalogue("en") if key.startswith("E-"))
