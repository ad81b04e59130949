"""A subset of JSON Schema 2020-12, small enough to read: what is in `KEYWORDS`, and nothing is
ignored in silence.

`faults(schema)` names every keyword that is not in the subset or has a value of the wrong kind;
`follows(value, schema)` judges. Left out are `pattern` and `format` (patterns have their own
function with a time limit), references, and keywords that are rare in answers of models. Source:
json-schema.org, draft 2020-12, validation vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunewright.core.words import say

TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda v: v is None,
    "boolean": lambda v: isinstance(v, bool),
    "string": lambda v: isinstance(v, str),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    # 3.0 is an integer: JSON knows one kind of number.
    "integer": lambda v: (
        (isinstance(v, int) and not isinstance(v, bool))
        or (isinstance(v, float) and v.is_integer())
    ),
}
NOTES = {
    "$schema",
    "$id",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
}
"""Keywords that say nothing about validity."""


def same(a: Any, b: Any) -> bool:
    """Equality of JSON: 1 is 1.0, and true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    both_numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return (both_numbers or type(a) is type(b)) and bool(a == b)


def _is_count(value: Any) -> bool:
    return TYPES["integer"](value) and value >= 0


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _types(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


def _additional(value: dict[str, Any], rule: Any, schema: dict[str, Any]) -> bool:
    known = schema.get("properties", {})
    return all(follows(inner, rule) for key, inner in value.items() if key not in known)


# keyword -> (type it speaks about or None, check of the keyword's own value, judgement(value, rule,
# whole schema))
_Judge = Callable[[Any, Any, dict[str, Any]], bool]
KEYWORDS: dict[str, tuple[str | None, Callable[[Any], bool], _Judge]] = {
    "type": (
        None,
        _types,
        lambda v, r, s: any(TYPES[name](v) for name in (r if isinstance(r, list) else [r])),
    ),
    "enum": (None, lambda r: isinstance(r, list), lambda v, r, s: any(same(v, one) for one in r)),
    "const": (None, lambda r: True, lambda v, r, s: same(v, r)),
    "properties": (
        "object",
        lambda r: isinstance(r, dict),
        lambda v, r, s: all(follows(v[key], inner) for key, inner in r.items() if key in v),
    ),
    "required": ("object", _strings, lambda v, r, s: all(key in v for key in r)),
    "additionalProperties": ("object", lambda r: isinstance(r, bool | dict), _additional),
    "minProperties": ("object", _is_count, lambda v, r, s: len(v) >= r),
    "maxProperties": ("object", _is_count, lambda v, r, s: len(v) <= r),
    "items": (
        "array",
        lambda r: isinstance(r, bool | dict),
        lambda v, r, s: all(follows(one, r) for one in v),
    ),
    "minItems": ("array", _is_count, lambda v, r, s: len(v) >= r),
    "maxItems": ("array", _is_count, lambda v, r, s: len(v) <= r),
    "uniqueItems": (
        "array",
        lambda r: isinstance(r, bool),
        lambda v, r, s: not r or not any(same(v[i], v[j]) for i in range(len(v)) for j in range(i)),
    ),
    "minimum": ("number", TYPES["number"], lambda v, r, s: v >= r),
    "maximum": ("number", TYPES["number"], lambda v, r, s: v <= r),
    "exclusiveMinimum": ("number", TYPES["number"], lambda v, r, s: v > r),
    "exclusiveMaximum": ("number", TYPES["number"], lambda v, r, s: v < r),
    "minLength": ("string", _is_count, lambda v, r, s: len(v) >= r),
    "maxLength": ("string", _is_count, lambda v, r, s: len(v) <= r),
    "anyOf": (
        None,
        lambda r: isinstance(r, list) and bool(r),
        lambda v, r, s: any(follows(v, one) for one in r),
    ),
    "allOf": (
        None,
        lambda r: isinstance(r, list) and bool(r),
        lambda v, r, s: all(follows(v, one) for one in r),
    ),
    "oneOf": (
        None,
        lambda r: isinstance(r, list) and bool(r),
        lambda v, r, s: sum(follows(v, one) for one in r) == 1,
    ),
    "not": (None, lambda r: isinstance(r, bool | dict), lambda v, r, s: not follows(v, r)),
}


def follows(value: Any, schema: Any) -> bool:
    """Whether a JSON value follows a schema without `faults`."""
    if isinstance(schema, bool):
        return schema
    for keyword, rule in schema.items():
        if keyword in NOTES:
            continue
        kind, _, judge = KEYWORDS[keyword]
        if (kind is None or TYPES[kind](value)) and not judge(value, rule, schema):
            return False
    return True


def faults(schema: Any, place: str = "") -> list[tuple[str, str]]:
    """(place, what is wrong) for everything that this subset cannot judge; empty for a good schema."""
    if isinstance(schema, bool):
        return []
    if not isinstance(schema, dict):
        return [(place, say("rewards.schema.no_mapping"))]
    found: list[tuple[str, str]] = []
    for keyword, rule in schema.items():
        here = f"{place}.{keyword}" if place else str(keyword)
        if keyword in NOTES:
            continue
        if keyword not in KEYWORDS:
            found.append((here, say("rewards.schema.unknown")))
        elif not KEYWORDS[keyword][1](rule):
            found.append((here, say("rewards.schema.value")))
        elif keyword in ("items", "additionalProperties", "not"):
            found += faults(rule, here)
        elif keyword in ("anyOf", "allOf", "oneOf"):
            found += [fault for i, one in enumerate(rule) for fault in faults(one, f"{here}[{i}]")]
        elif keyword == "properties":
            found += [
                fault for name, one in rule.items() for fault in faults(one, f"{here}.{name}")
            ]
    return found
