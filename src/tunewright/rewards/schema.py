"""A subset of JSON Schema 2020-12, judged by the `jsonschema` library; nothing is silently ignored.

`faults(schema)` names every keyword that is not in the subset or has a value of the wrong kind;
`follows(value, schema)` judges. Left out are `pattern` and `format` (patterns have their own
function with a time limit), references, and keywords that are rare in answers of models.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tunewright.core.words import say

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
ONE = ("items", "additionalProperties", "not")
MANY = ("anyOf", "allOf", "oneOf")
KEYWORDS = (
    *("type", "enum", "const", "properties", "required", "minProperties", "maxProperties"),
    *("minItems", "maxItems", "uniqueItems", "minimum", "maximum", "exclusiveMinimum"),
    *("exclusiveMaximum", "minLength", "maxLength", *ONE, *MANY),
)


@cache
def _validator() -> type[Any]:
    from jsonschema import Draft202012Validator  # takes 0.2 s

    found: type[Any] = Draft202012Validator
    return found


def follows(value: Any, schema: Any) -> bool:
    """Whether a JSON value follows a schema without `faults`."""
    return bool(_validator()(schema).is_valid(value))


def faults(schema: Any, place: str = "") -> list[tuple[str, str]]:
    """(place, what is wrong) for everything that this subset cannot judge; empty for a good
    schema."""
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
        elif keyword in ONE and isinstance(rule, bool | dict):
            found += faults(rule, here)
        elif keyword in MANY and isinstance(rule, list) and rule:
            found += [fault for i, one in enumerate(rule) for fault in faults(one, f"{here}[{i}]")]
        elif keyword == "properties" and isinstance(rule, dict):
            found += [fault for name in rule for fault in faults(rule[name], f"{here}.{name}")]
        elif not follows({keyword: rule}, _validator().META_SCHEMA):
            found.append((here, say("rewards.schema.value")))
    return found
