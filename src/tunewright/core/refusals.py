"""Why pydantic refused a value, in the reader's language.

Pydantic speaks English only. Its types of refusal are few (`ErrorDetails["type"]`); those that a
setting can meet have words in `assets/locales` under `refused.*`, and so have the refusals of our
own rules (`refused`). Any other keeps pydantic's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from tunewright.core.words import catalogue, say

ALIKE = {
    "int_parsing": "int_type",
    "int_from_float": "int_type",
    "float_parsing": "float_type",
    "bool_parsing": "bool_type",
    "model_type": "dict_type",
    "model_attributes_type": "dict_type",
    "dataclass_type": "dict_type",
    "tuple_type": "list_type",
}
"""Types of refusal that ask the same of the reader."""


def reason_of(item: Mapping[str, Any]) -> str:
    """The reason of one entry of `ValidationError.errors()`, to stand inside a message."""
    kind = ALIKE.get(item["type"], item["type"])
    key = f"refused.{kind}"
    if key in catalogue("en"):
        fields = {name: str(value) for name, value in (item.get("ctx") or {}).items()}
        if "expected" in fields:
            fields["expected"] = fields["expected"].replace(" or ", say("refused.or"))
        return say(key, **fields)
    return str(item["msg"]).removeprefix("Value error, ")


def refused(reason: str, **fields: str) -> PydanticCustomError:
    """The error of a rule of ours, to be raised in a validator: its words stand under
    `refused.<reason>`."""
    return PydanticCustomError(reason, catalogue("en")[f"refused.{reason}"], fields)
