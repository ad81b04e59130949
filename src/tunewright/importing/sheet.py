"""The keys of one foreign run file, each answered exactly once, and the run that comes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunewright.core.registry import AXES
from tunewright.core.words import say

SAME, CHANGED, DEFAULT, NOT_NEEDED, LOST, EMPTY = (
    "same",
    "changed",
    "default",
    "not_needed",
    "lost",
    "empty",
)
"""What becomes of a key. `default`: not in the file, the other system's default. `lost`: it would
change the training and cannot be had."""


@dataclass(frozen=True)
class Line:
    """One key of theirs: its value, its fate, our keys with their values, the reason, and where it
    stands."""

    key: str
    value: Any
    fate: str
    ours: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    where: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "key": self.key,
            "value": self.value,
            "fate": self.fate,
            "ours": self.ours,
            "why": self.why,
            "where": self.where,
        }


class Sheet:
    """`given` are the dotted keys of the file, `where` their places; `run` fills with our dotted
    keys, `lines` with one answer a key."""

    def __init__(self, system: str, given: dict[str, Any], where: dict[str, str]):
        self.system, self.given, self.where = system, given, where
        self.lines: dict[str, Line] = {}
        self.run: dict[str, Any] = {}

    def has(self, key: str) -> bool:
        """Whether the file gives the key a value."""
        return self.given.get(key) not in (None, "")

    def get(self, key: str, default: Any = None) -> Any:
        """The key's value, or the default where there is none."""
        return self.given[key] if self.has(key) else default

    def is_on(self, key: str) -> bool:
        """Whether a switch is on: `true`, in whatever case, or any other value that is not off."""
        return str(self.get(key, "false")).strip().lower() not in (
            "false",
            "0",
            "0.0",
            "none",
            "no",
            "off",
            "[]",
            "{}",
        )

    def answer(
        self, key: str, fate: str, ours: dict[str, Any] | None = None, why: str = "", **fields: Any
    ) -> None:
        """Say what becomes of a key. A key that is not in the file is only noted as a default that
        was written out."""
        if key not in self.given and fate != DEFAULT:
            return
        self.run.update(ours or {})
        reason = say(f"import.why.{why}", **fields) if why else ""
        self.lines[key] = Line(
            key,
            self.given.get(key, fields.get("value")),
            fate,
            dict(ours or {}),
            reason,
            self.where.get(key, ""),
        )

    def part(self, key: str, name: str, value: Any, fate: str, why: str, **fields: Any) -> None:
        """Say what becomes of a key inside the value of `key`: `name` is how it is called, for
        example `datasets[1].shards`."""
        self.lines[name] = Line(
            name, value, fate, {}, say(f"import.why.{why}", **fields), self.where.get(key, "")
        )

    def take(self, key: str, ours: str, value: Any = None, why: str = "", **fields: Any) -> None:
        """Take a key over under our name; `value` where ours differs from theirs."""
        if not self.has(key):
            return
        new = self.given[key] if value is None else value
        self.answer(
            key, SAME if new == self.given[key] and not why else CHANGED, {ours: new}, why, **fields
        )

    def fill(self, key: str, ours: dict[str, Any], value: Any) -> None:
        """Write out the other system's default of a key that the file does not give, because ours
        is another."""
        if not self.has(key):
            self.answer(key, DEFAULT, ours, "default", value=value, system=self.system)

    def number(self, key: str, default: float | None = None) -> float | int | None:
        """The key's value as a number: "1e-4" in quotes is one, too."""
        value = self.get(key, default)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return (
            int(value)
            if isinstance(value, float) and value.is_integer() and isinstance(self.get(key), int)
            else value
        )

    def take_number(self, key: str, ours: str) -> None:
        """Take over a number; what is none is lost."""
        if not self.has(key):
            return
        value = self.number(key)
        if value is None:
            self.answer(key, LOST, why="no_number")
        else:
            self.take(key, ours, value)

    def take_if_known(
        self, key: str, axis: str, name: str, value: Any, why: str = "", default: Any = None
    ) -> None:
        """Take over a setting of a method or objective where its kind has such a field, or where
        the kind is not known here at all."""
        if not self.has(key):
            return
        entry = AXES[axis].get(str(self.run.get(f"{axis}.kind", "")))
        if entry is None or name in getattr(entry.config, "model_fields", {}):
            self.take(key, f"{axis}.{name}", value, why)
        elif default is not None and value == default:
            self.answer(key, NOT_NEEDED, why="off")
        else:
            self.answer(key, LOST, why="no_field", kind=self.run.get(f"{axis}.kind"), axis=axis)

    def pass_over(self, not_needed: dict[str, str], lost: dict[str, str]) -> None:
        """Answer the keys of two tables: those nothing is lost with, and those that cannot be had
        where they are on."""
        for key in self.given:
            if key in self.lines or not self.has(key):
                continue
            if key in not_needed:
                self.answer(key, NOT_NEEDED, why=not_needed[key])
            elif key.split(".")[0] in lost:
                if self.is_on(key):
                    self.answer(key, LOST, why=lost[key.split(".")[0]])
                else:
                    self.answer(key, NOT_NEEDED, why="off")

    def finish(self) -> list[Line]:
        """Every key in the file's order, then the defaults; what nobody answered is empty or not
        known."""
        for key in self.given:
            if key not in self.lines:
                fate, why = (LOST, "unknown") if self.has(key) else (EMPTY, "empty")
                self.answer(key, fate, why=why, system=self.system)
        parts = {
            key: [name for name in self.lines if name.startswith(f"{key}[")] for key in self.given
        }
        ordered = [name for key in self.given for name in (key, *parts[key])]
        ordered += [key for key in self.lines if key not in ordered]
        return [self.lines[key] for key in ordered]


def words_of(value: Any) -> list[str]:
    """A list, or a text with commas, as words."""
    parts = value if isinstance(value, list) else str(value).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]
