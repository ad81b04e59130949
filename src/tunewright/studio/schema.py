"""The forms of the page, made from the schema of a run by introspection.

Every key of a run file becomes a field with type, bounds, default and help, and so does every
option of every registered method and objective, those of other packages too: what is registered
stands in the forms without a line of the page. English help is the text beside the field in its
config class; `assets/glossary/help.zh.json` has the Chinese for each of these texts, so a text that
is changed has no Chinese until it is translated again. Titles stand in the locales
(`fields.json`), families and pictures in `assets/studio/kinds.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tunewright.advise import glossary, listing
from tunewright.core import registry
from tunewright.core.config import RunConfig
from tunewright.core.words import ASSETS, catalogue, language, say

SIMPLE = {"model", "data.train", "data.held_out", "engine.epochs", "engine.learning_rate", "probes"}
"""Keys that a beginner sees; everything else stands under "more"."""
SIMPLE_OPTIONS = ("rank", "teacher", "reward", "tokens", "type")
"""Options of methods and objectives that stand beside them: what decides the size of the update,
and what must be chosen."""
PATH_KEYS = (
    "model",
    "adapter",
    "data.train",
    "data.held_out",
    "data.dir",
    "objective.teacher",
    "objective.reward",
    "gate",
    "out",
)
"""Keys whose value may name a place on this machine."""
LISTED_HELD_BACK = ("python",)
"""Rewards that run a person's own code: never from a page."""
TYPES: dict[Any, str] = {bool: "bool", int: "int", float: "float", str: "text"}
STUDIO = ASSETS / "studio"


def schema(_: Any = None) -> dict[str, Any]:
    """Everything that forms are made of, in the language of the moment."""
    return {
        "language": language(),
        "sections": list(_sections()),
        "methods": _methods(),
        "objectives": _objectives(),
        "formats": _listed("formats", listing.formats()),
        "rewards": [
            row
            for row in _listed("rewards", listing.rewards())
            if row["name"] not in LISTED_HELD_BACK
        ],
        "families": _families(),
        "path_keys": list(PATH_KEYS),
    }


# ---- keys of a run


def _sections() -> Iterator[dict[str, Any]]:
    plain: list[dict[str, Any]] = []
    found: list[tuple[str, type[BaseModel]]] = []
    for name, info in RunConfig.model_fields.items():
        section = _section(info.annotation)
        if name in registry.AXES:
            continue
        if section is None:
            plain.append(field_of(name, info))
        else:
            found.append((name, section))
    yield _group("run", say("section.run.text"), plain)
    for name, section in found:
        yield _group(name, in_language(_one_line(section.__doc__)), list(_fields(name, section)))


def _group(key: str, text: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    title = _said(f"section.{key}.title") or _humanised(key)
    return {"key": key, "title": title, "text": text, "fields": fields}


def _fields(prefix: str, section: type[BaseModel], kind: str = "") -> Iterator[dict[str, Any]]:
    for name, info in section.model_fields.items():
        inner = _section(info.annotation)
        if inner is not None:
            yield from _fields(f"{prefix}.{name}", inner, kind)
        else:
            yield field_of(f"{prefix}.{name}", info, kind)


def _section(annotation: Any) -> type[BaseModel] | None:
    return (
        annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    )


def field_of(key: str, info: FieldInfo, kind: str = "") -> dict[str, Any]:
    """One key as the page's form needs it."""
    shape = shape_of(info.annotation, info.metadata)
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    name = key.rpartition(".")[2]
    simple = key in SIMPLE or (bool(kind) and (name in SIMPLE_OPTIONS or info.is_required()))
    return {
        "key": key,
        "title": title_of(key, kind),
        "text": help_of(info),
        **shape,
        **_suggested(key),
        "default": default,
        "required": info.is_required(),
        "more": not simple,
        "path": key in PATH_KEYS,
    }


def _suggested(key: str) -> dict[str, Any]:
    """Words that a text may be, where they are names of a registry."""
    names: list[str] = []
    if key == "data.format":
        names = ["auto", *registry.formats.names()]
    elif key == "objective.reward":
        names = [n for n in registry.rewards.names() if n not in LISTED_HELD_BACK]
    return {"choices": names} if names else {}


def shape_of(annotation: Any, metadata: Iterable[Any] = ()) -> dict[str, Any]:
    """Type and bounds: `type` as the page's inputs have it, `choices` (all of them for a choice,
    words that are taken besides for a number), `minimum` and `maximum` (`above`, `below` where the
    bound itself is not allowed), `optional` where null may stand, `accepts` the types one by one.
    """
    parts, bounds, words, optional = [], list(metadata), list[Any](), False
    for part, more in _parts(annotation):
        bounds += more
        if part is NoneType:
            optional = True
        elif get_origin(part) is Literal:
            words += get_args(part)
        else:
            parts.append(part)
    kinds = list(dict.fromkeys(_kind(part) for part in parts)) or ["choice"]
    # One word or several of them: the form offers one; a run file may list more.
    one = bool(words) and kinds == ["list"]
    kind = "choice" if one else _type(kinds)
    shape: dict[str, Any] = {"type": kind, "optional": optional, "accepts": kinds}
    if words:
        shape["choices"] = words
    for part in parts:
        if _kind(part) == "list" and not one:
            shape |= _items(part)
    return shape | _bounds(bounds, shape["type"])


def _type(kinds: list[str]) -> str:
    """The input for a value of several types: the one in which each can be written."""
    if len(kinds) == 1:
        return kinds[0]
    if set(kinds) == {"int", "float"}:
        return "float"
    if "text" in kinds:
        return "text"
    return "list" if "list" in kinds else kinds[0]


def _parts(annotation: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The members of a union, each with the bounds that stand on it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        marks = [m for one in inner[1:] for m in getattr(one, "metadata", [one])]
        for part, more in _parts(inner[0]):
            yield part, [*more, *marks]
    elif origin in (Union, UnionType):
        for part in inner:
            yield from _parts(part)
    else:
        yield annotation, []


def _kind(part: Any) -> str:
    origin = get_origin(part) or part
    if origin in (list, tuple, set, frozenset):
        return "list"
    if isinstance(origin, type) and issubclass(origin, dict | Mapping | BaseModel):
        return "map"
    return TYPES.get(origin, "text")


def _items(part: Any) -> dict[str, Any]:
    inner = [one for one in get_args(part) if one is not Ellipsis]
    kinds = [_kind(p) for one in inner for p, _ in _parts(one) if get_origin(p) is not Literal]
    fixed = get_origin(part) is tuple and Ellipsis not in get_args(part)
    return {"of": _type(list(dict.fromkeys(kinds))) if kinds else "text"} | (
        {"length": len(inner)} if fixed else {}
    )


def _bounds(metadata: Iterable[Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mark in metadata:
        for name, ours in (("ge", "minimum"), ("le", "maximum"), ("gt", "above"), ("lt", "below")):
            value = getattr(mark, name, None)
            if value is not None:
                found[ours] = value
    if kind == "int":
        if "above" in found:
            found["minimum"] = found.pop("above") + 1
        if "below" in found:
            found["maximum"] = found.pop("below") - 1
    return found


# ---- words


def title_of(key: str, kind: str = "") -> str:
    """The label of a key: its own, else that of its last part anywhere, else the name in words."""
    section, _, name = key.rpartition(".")
    tried = [f"field.{section}.{kind}.{name}"] if kind else []
    tried += [f"field.{key}", f"field.{name}"]
    return next((text for one in tried if (text := _said(one))), _humanised(name))


def _said(key: str) -> str:
    """The sentence of a key, or nothing where nobody wrote one."""
    return say(key) if key in catalogue("en") else ""


def _humanised(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def english_help(info: FieldInfo) -> str:
    """The text beside a field in its class, in one line."""
    return _one_line(info.description)


def help_of(info: FieldInfo) -> str:
    """The help of a field in the reader's language."""
    return in_language(english_help(info))


def in_language(text: str) -> str:
    """An English help text in the reader's language; English where there is no other."""
    return glossary.in_language(text, language())


def comments(given: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> the first sentence of its help, for the keys of a run."""
    kinds = {axis: given.get(f"{axis}.kind", given.get(axis)) for axis in registry.AXES}
    found: dict[str, str] = {}
    for axis, kind in kinds.items():
        entry = registry.AXES[axis].get(kind) if isinstance(kind, str) else None
        if entry is not None:
            found[f"{axis}.kind"] = listing.about(f"{axis}s", entry)
            config: Any = entry.config
            for name, info in config.model_fields.items():
                found[f"{axis}.{name}"] = help_of(info)
    for name, info in RunConfig.model_fields.items():
        section = _section(info.annotation)
        for inner, more in section.model_fields.items() if section else ():
            found[f"{name}.{inner}"] = help_of(more)
        if section is None and name not in registry.AXES:
            found[name] = help_of(info)
    return {key: _first_sentence(found[key]) for key in given if found.get(key)}


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.;])\s|(?<=[。；])", text, maxsplit=1)[0].rstrip(".。;； ")


# ---- methods and objectives


@cache
def known_kinds() -> dict[str, dict[str, dict[str, Any]]]:
    """Axis -> name -> family and picture, for what this package registers."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(
        (STUDIO / "kinds.json").read_text(encoding="utf-8")
    )
    return found


def _methods() -> list[dict[str, Any]]:
    shares = {row["name"]: row for row in listing.methods()}
    return _in_order(
        "methods",
        (
            {
                **_kind_of("methods", entry),
                "trainable_share": shares[entry.name]["share"],
                "peft": shares[entry.name]["by"] == "PEFT",
                "by": shares[entry.name]["by"],
                "merges": shares[entry.name]["merges"],
                "on_quantised": shares[entry.name]["on_quantised"],
                "leaves_model": entry.facts.get("leaves") == "model",
                "rate": entry.facts.get("rate"),
            }
            for entry in registry.methods
        ),
    )


def _objectives() -> list[dict[str, Any]]:
    return _in_order(
        "objectives",
        (
            {
                **_kind_of("objectives", entry),
                "rows": list(entry.facts.get("rows", ())),
                "row_titles": [say(f"list.rows.{kind}") for kind in entry.facts.get("rows", ())],
                "usual_for": list(entry.facts.get("usual_for", ())),
                "judges": entry.facts.get("judges", ""),
            }
            for entry in registry.objectives
        ),
    )


def _kind_of(axis: str, entry: registry.Entry[Any]) -> dict[str, Any]:
    known = known_kinds()[axis].get(entry.name, {}) if entry.is_ours else {}
    section, config = axis.removesuffix("s"), entry.config
    term = glossary.find(entry.name)
    terms = glossary.terms(language())
    return {
        "name": entry.name,
        "title": _said(f"kind.{axis}.{entry.name}") or _humanised(entry.name),
        "text": _said(f"kind.{axis}.{entry.name}.text") or listing.about(axis, entry),
        "about": listing.about(axis, entry),
        "family": known.get("family", "other"),
        "picture": known.get("picture", "plugin" if axis == "methods" else "other"),
        "source": str(entry.facts.get("source", "")),
        "package": entry.package,
        "page": f"{axis}/{entry.name}.md" if entry.is_ours else "",
        "term": term,
        "aliases": list(terms[term].aliases) if term in terms else [],
        "fields": list(_fields(section, config, entry.name)),
    }


def _in_order(axis: str, kinds: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What most people want first: the order of `kinds.json`, then the others by name."""
    order = list(known_kinds()[axis])
    return sorted(
        kinds,
        key=lambda kind: (
            order.index(kind["name"]) if kind["name"] in order else len(order),
            kind["name"],
        ),
    )


def _families() -> dict[str, list[dict[str, str]]]:
    """Axis -> its families in order, with their titles."""
    found: dict[str, list[dict[str, str]]] = {}
    for axis, kinds in known_kinds().items():
        names = dict.fromkeys([*(kind["family"] for kind in kinds.values()), "other"])
        found[axis] = [{"key": name, "title": say(f"family.{axis}.{name}")} for name in names]
    return found


def _listed(axis: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**row, "title": _said(f"kind.{axis}.{row['name']}") or _humanised(row["name"])}
        for row in rows
    ]
