"""Terms that a learner meets, as data: `assets/glossary/{en,zh}.yaml`, found by any of their names
in either language.

One file a language, so that a translator needs no Python. What is the same in both (our own word,
the page, other entries) stands in the English one.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from tunewright.core.words import ASSETS, LANGUAGES

PLACE = ASSETS / "glossary"
ENGLISH_ONLY = ("README.md", "objectives/README.md")
"""Pages without a Chinese copy."""


@dataclass(frozen=True)
class Term:
    """One entry in one language. `ours` is what to write in Tunewright, `page` lies below docs/,
    `see` are keys of other entries."""

    key: str
    group: str
    """The part of the glossary that it stands in."""
    name: str
    aliases: tuple[str, ...]
    text: str
    ours: str
    page: str
    see: tuple[str, ...]


@cache
def terms(lang: str) -> dict[str, Term]:
    """Key -> term, in reading order."""
    shared, own = _read("en"), _read(lang)
    found, group = {}, ""
    for key, entry in own.items():
        group = entry.get("group", group)
        both = shared[key]
        aliases = tuple(str(word) for word in entry.get("aliases", []))
        page = page_in(lang, both.get("page", ""))
        found[key] = Term(
            key,
            group,
            entry["name"],
            aliases,
            entry["text"],
            both.get("ours", ""),
            page,
            tuple(both.get("see", [])),
        )
    return found


def page_in(lang: str, page: str) -> str:
    """The copy of a page below docs/ for readers of a language."""
    return (
        page
        if lang == "en" or not page or page in ENGLISH_ONLY
        else f"{page.removesuffix('.md')}.zh-CN.md"
    )


def find(word: str) -> str | None:
    """The key of the term that has this name in any language and spelling, or None."""
    return _index().get(plain(word))


def words() -> list[str]:
    """Every name of every term in every language, for guesses."""
    return [
        word
        for lang in LANGUAGES
        for term in terms(lang).values()
        for word in (term.name, *term.aliases)
    ]


def plain(word: str) -> str:
    """A word without case, spaces, hyphens and other signs: `P-Tuning v2`, `p_tuning_v2` and
    `ptuning V2` are one."""
    return "".join(c for c in unicodedata.normalize("NFKC", word).casefold() if c.isalnum())


def in_language(text: str, lang: str) -> str:
    """The help of a key, as it stands beside its field in the code, in a language; English where it
    has no other."""
    plain_text = " ".join(text.split())
    return translated(lang).get(plain_text, plain_text)


@cache
def translated(lang: str) -> dict[str, str]:
    """English help of a key -> the same in another language. Whoever changes the English has to
    translate it anew: the old translation is of a text that no field has."""
    path = PLACE / f"help.{lang}.json"
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


@cache
def _index() -> dict[str, str]:
    found: dict[str, str] = {}
    for lang in LANGUAGES:
        for key, term in terms(lang).items():
            for word in (key, term.name, *term.aliases):
                found.setdefault(plain(word), key)
    return found


@cache
def _read(lang: str) -> dict[str, dict[str, Any]]:
    # libyaml reads the file in 10 ms, the loader written in Python in 150.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(
        (PLACE / f"{lang}.yaml").read_text(encoding="utf-8")
    )
    entries: dict[str, dict[str, Any]] = loader.get_single_data()
    return entries
