"""The JSON body of a request, read field by field: what is missing or of another kind is a problem
with the field's name, and nothing is taken that was not asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from tunewright.core.errors import UsageError, problem

MISSING = object()
DEEPEST = 40


class Given:
    """The fields of one body. Every reader raises UsageError (E-STUDIO-10) for a value of another
    kind, and for a missing one without a default."""

    def __init__(self, values: dict[str, Any], where: str = ""):
        self.values, self.where = values, where

    @classmethod
    def read(cls, body: bytes) -> Given:
        """From the bytes of a request. Raises UsageError (E-STUDIO-09)."""
        try:
            found = json.loads(body.decode("utf-8"), parse_constant=_no_constant) if body else {}
            if not isinstance(found, dict):
                raise ValueError("the body is no object {...}")
            _require_shallow(found, DEEPEST)
            # Half of a surrogate pair (`\ud800`) is no text: no file could hold it.
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError) as error:
            raise UsageError(problem("E-STUDIO-09", cause=str(error)[:200])) from error
        return cls(found)

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def text(self, name: str, default: Any = MISSING, most: int = 100_000) -> str:
        """A text of at most `most` characters."""
        value = self._value(name, default)
        if value is default:
            return default
        if not isinstance(value, str) or len(value) > most or "\x00" in value:
            raise self._wrong(name, f"text <= {most:,}")
        return value

    def number(self, name: str, default: Any = MISSING, low: float = -math.inf) -> Any:
        """A finite number."""
        value = self._value(name, default)
        if value is default:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or value < low:
            raise self._wrong(name, "number" if low == -math.inf else f"number >= {low:g}")
        return value

    def whole(self, name: str, default: Any = MISSING, low: int = 0) -> Any:
        """A whole number."""
        value = self.number(name, default, low)
        if value is default:
            return default
        if int(value) != value:
            raise self._wrong(name, f"whole number >= {low}")
        return int(value)

    def flag(self, name: str, default: bool | None = False) -> bool | None:
        """True or false."""
        value = self._value(name, default)
        if value is not default and not isinstance(value, bool):
            raise self._wrong(name, "true / false")
        return value

    def choice(self, name: str, choices: Iterable[str], default: Any = MISSING) -> str:
        """One of some words."""
        known, value = list(choices), self._value(name, default)
        if value is not default and (not isinstance(value, str) or value not in known):
            raise self._wrong(name, " | ".join(known))
        return value

    def mapping(self, name: str, default: Any = MISSING) -> dict[str, Any]:
        """An object."""
        value = self._value(name, default)
        if value is not default and not isinstance(value, dict):
            raise self._wrong(name, "{...}")
        return value

    def texts(self, name: str, default: Any = MISSING, most: int = 10_000) -> list[str]:
        """A list of texts."""
        value = self._value(name, default)
        if value is default:
            return default
        if not isinstance(value, list) or not all(
            isinstance(one, str) and len(one) <= most and "\x00" not in one for one in value
        ):
            raise self._wrong(name, "[text, ...]")
        return value

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            if default is MISSING:
                raise self._wrong(name, "-")
            return default
        return value

    def _wrong(self, name: str, wanted: str) -> UsageError:
        return UsageError(problem("E-STUDIO-10", f"{self.where}{name}", field=name, wanted=wanted))


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _require_shallow(value: Any, left: int) -> None:
    if left == 0:
        raise ValueError("nested too deeply")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        _require_shallow(one, left - 1)
