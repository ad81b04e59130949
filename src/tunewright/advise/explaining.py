"""`tunewright explain`: an error code, a key of a run file or a term, in the reader's language."""

from __future__ import annotations

import difflib
import re
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tunewright.advise import glossary, listing
from tunewright.core import registry
from tunewright.core.config import RunConfig
from tunewright.core.errors import UsageError, problem
from tunewright.core.words import catalogue, error_codes, error_text, language, say

CODE = re.compile(r"E-[A-Z]+-\d+")
KEY = re.compile(r"[a-z]+\.[a-z_0-9]+")
PLACES = {
    "methods": ("method: {{kind: {}}}", "methods/{}.md"),
    "objectives": ("objective: {{kind: {}}}", "objectives/{}.md"),
    "formats": ("data.format: {}", "data.md"),
    "rewards": ("objective.reward: {}", "rewards.md"),
}
"""Axis -> (where a run file names one of it, its page below docs/)."""


def explain(word: str) -> dict[str, Any]:
    """What is known of a word: `is` says code, term, key or name. Raises UsageError with the
    closest words for one that nobody knows."""
    code = word.strip().upper()
    if code in error_codes():
        return {"is": "code", "code": code, **error_text(code)}
    term = glossary.find(word)
    if term is not None:
        return _term(term)
    # What costs least to know comes first: the names of formats load the whole room of data.
    found = _registered(word.strip(), "methods", "objectives") if "." not in word else None
    if found:
        return found
    keys = keys_named(word.strip())
    if keys:
        return {"is": "key", "keys": [_key(key) for key in keys]}
    found = _registered(word.strip(), "formats", "rewards")
    if found:
        return found
    near = ", ".join(closest(word))
    raise UsageError(
        problem("E-RUN-13", word)
        if CODE.fullmatch(code)
        else problem("E-LIST-01", word=word, near=near)
    )


def lines(found: dict[str, Any]) -> list[str]:
    """The same for a terminal."""
    if found["is"] == "code":
        said = [_template(found[part]) for part in ("what", "do") if found[part]]
        return [found["code"], "", *said, "", found["page"]]
    if found["is"] == "key":
        return [line for key in found["keys"] for line in [*_key_lines(key), ""]][:-1]
    about = [found["name"], "", found["text"], ""]
    facts = {name: found.get(name) for name in ("also", "ours", "page", "paper", "see")}
    about += [
        f"{say(f'explain.{name}')}: {', '.join(v) if isinstance(v, list) else v}"
        for name, v in facts.items()
        if v
    ]
    return about + [line for key in found.get("keys", []) for line in ["", *_key_lines(key)]]


def _template(text: str) -> str:
    """A message without its case: what is only known where it is raised is left open."""
    text = re.sub(r"(?<!\{)\{\w+(?:![rs])?(?::[^{}]*)?\}(?!\})", "…", text)
    return text.replace("{{", "{").replace("}}", "}")


def closest(word: str, count: int = 5) -> list[str]:
    """The known words that look most like a word: terms, keys with and without their section,
    registered names, error codes."""
    sections = {key.rpartition(".")[2]: key for key in all_keys()}
    known = {
        glossary.plain(w): w
        for w in (*error_codes(), *sections, *all_keys(), *_names(), *glossary.words())
    }
    asked = glossary.plain(word)
    inside = [known[w] for w in known if asked and len(asked) > 1 and asked in w]
    guesses = [known[w] for w in difflib.get_close_matches(asked, known, n=count, cutoff=0.5)]
    found = list(dict.fromkeys([*guesses, *inside]))[:count]
    return found or [known[w] for w in difflib.get_close_matches(asked, known, n=count, cutoff=0.0)]


def _term(key: str) -> dict[str, Any]:
    term, names = glossary.terms(language())[key], glossary.terms("en")[key]
    others = [name for name in dict.fromkeys([*term.aliases, names.name]) if name != term.name]
    see = [glossary.terms(language())[other].name for other in term.see]
    page = f"docs/{term.page}" if term.page else ""
    found = {
        "is": "term",
        "term": key,
        "name": term.name,
        "also": others,
        "text": term.text,
        "ours": term.ours,
        "page": page,
        "see": see,
    }
    # Keys load the configs of all methods and objectives, so they are looked up only where the term
    # has one or is one.
    own = (word for word in (key, *names.aliases) if word in RunConfig.model_fields)
    named = term.ours if KEY.fullmatch(term.ours) else next(own, "")
    return found | ({"keys": [_key(named)]} if named in all_keys() else {}) if named else found


def _names() -> list[str]:
    axes = (registry.methods, registry.objectives, registry.formats, registry.rewards)
    return [name for axis in axes for name in axis.names()]


def _registered(word: str, *axes: str) -> dict[str, Any] | None:
    """A method, objective, format or reward that is no term of its own."""
    for axis in axes:
        ours, page = PLACES[axis]
        entry = getattr(registry, axis).get(word.lower().replace("-", "_"))
        if entry is not None:
            page = f"docs/{glossary.page_in(language(), page.format(entry.name))}"
            return {
                "is": "name",
                "axis": axis,
                "name": entry.name,
                "text": listing.about(axis, entry),
                "ours": ours.format(entry.name),
                "page": page if entry.is_ours else str(entry.facts.get("page", "")),
                "paper": str(entry.facts.get("source", "")),
            }
    return None


# ---- keys of a run file


def all_keys() -> dict[str, dict[tuple[str, str, str], list[str]]]:
    """Dotted key -> (type, default, help) -> the kinds that have it so; no kinds for keys outside
    of `method` and `objective`."""
    return _keys_in(language())


@cache
def _keys_in(lang: str) -> dict[str, dict[tuple[str, str, str], list[str]]]:
    found: dict[str, dict[tuple[str, str, str], list[str]]] = {}

    def keep(key: str, info: FieldInfo, kind: str = "") -> None:
        inner = _section(info.annotation)
        if inner is not None:
            for name, more in inner.model_fields.items():
                keep(f"{key}.{name}", more, kind)
            return
        about = (
            glossary.in_language(info.description or "", lang)
            if f"explain.key.{key}" not in catalogue("en")
            else say(f"explain.key.{key}")
        )
        facts = (_type(info), _default(info), " ".join(about.split()))
        found.setdefault(key, {}).setdefault(facts, []).extend([kind] if kind else [])

    for name, info in RunConfig.model_fields.items():
        if name not in registry.AXES:
            keep(name, info)
            continue
        for entry in registry.AXES[name]:
            config: Any = entry.config
            for inner, more in config.model_fields.items():
                keep(f"{name}.{inner}", more, entry.name)
    return found


def keys_named(word: str) -> list[str]:
    """The keys that a word names: the whole key, or its last part in every section that has it."""
    asked = word.casefold().replace("-", "_")
    return (
        [asked] if asked in all_keys() else [key for key in all_keys() if key.endswith(f".{asked}")]
    )


def _key(key: str) -> dict[str, Any]:
    forms = [
        {"type": t, "default": d, "help": h, "kinds": kinds}
        for (t, d, h), kinds in all_keys()[key].items()
    ]
    return {"key": key, "forms": forms}


def _key_lines(key: dict[str, Any]) -> list[str]:
    out = [key["key"]]
    for form in key["forms"]:
        kinds = f"  {say('explain.kinds')} {', '.join(form['kinds'])}" if form["kinds"] else ""
        form_type = f"{say('explain.type')}: {form['type']}"
        default = f"{say('explain.default')}: {form['default']}"
        out += [f"  {form_type} · {default}{kinds}", f"  {form['help']}"]
    return out


def _section(annotation: Any) -> type[BaseModel] | None:
    return (
        annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    )


def _type(info: FieldInfo) -> str:
    """A type in words, with its bounds: `int` above 0 -> `whole number > 0`."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(mark, name)}"
        for mark in info.metadata
        for name, sign in signs.items()
        if getattr(mark, name, None) is not None
    ]
    return " ".join([_words(info.annotation), ", ".join(bounds)]).strip()


def _words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f" {say('explain.type.or')} ".join(str(value) for value in inner)
    if origin in (Union, UnionType):
        return f" {say('explain.type.or')} ".join(
            _words(part) for part in inner if part is not NoneType
        )
    base = origin or annotation
    return say(
        f"explain.type.{base.__name__ if base in (int, float, str, bool, list, dict) else 'any'}"
    )


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return say("explain.required")
    value = info.get_default(call_default_factory=True)
    return (
        say("explain.none")
        if value in (None, "", [], {})
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
