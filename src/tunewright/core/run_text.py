"""A run as text again: the YAML file and the command line that say the same as its dotted keys.

`load_run` reads both back to the same keys, whatever stands in them; wrong settings are written as
well, so that a form can show what it would ask for.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from tunewright.core.config import RunConfig
from tunewright.core.registry import AXES
from tunewright.core.runfile import parse_value, value_text

LONGEST_COMMENT = 88
COMMENTED_COLUMNS = 100


def yaml_of(given: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """The run file of dotted keys, in the order of the schema, with a comment behind each key that
    `comments` explains."""
    told = comments or {}
    nested, loose = _nested(ordered(given))
    lines = []
    for section, content in nested.items():
        if isinstance(content, _Section):
            lines.append(f"{_key(section)}:")
            for name, value in content.items():
                comment = told.get(f"{section}.{name}", "")
                lines.append(_line(f"  {_key(name)}: {text_of(value)}", comment))
        else:
            lines.append(_line(f"{_key(section)}: {text_of(content)}", told.get(section, "")))
    lines += [_line(f"{_key(key)}: {text_of(value)}", "") for key, value in loose.items()]
    return "\n".join(lines) + "\n" if lines else "{}\n"


def command_of(given: Mapping[str, Any], command: str = "tunewright train") -> str:
    """The command line of dotted keys, quoted for a POSIX shell."""
    words = [f"{key}={_for_shell(value)}" for key, value in ordered(given).items()]
    return " ".join([command, *map(shlex.quote, words)])


def _for_shell(value: Any) -> str:
    """As `text_of`; with double quotes inside, which a shell's single ones can stand around."""
    text = text_of(value)
    if "'" not in text or (isinstance(value, str) and text == value):
        return text
    quoted = _quoted(value)
    return quoted if parse_value(quoted) == value else text


def ordered(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys in long form (`method: lora` is `method.kind`), in the order of the schema; those
    that it does not know stand last."""
    long = {}
    for key, value in given.items():
        whole = key in AXES and isinstance(value, str)
        named = key == "data" and isinstance(value, str | list)
        long[f"{key}.kind" if whole else "data.train" if named else key] = value
    sections = list(RunConfig.model_fields)

    def place(key: str) -> tuple[int, int, str]:
        section, _, name = key.partition(".")
        first = sections.index(section) if section in sections else len(sections)
        return first, 0 if name in ("kind", "train") else 1, ""

    return {key: long[key] for key in sorted(long, key=place)}


def text_of(value: Any) -> str:
    """A value in one line, as `parse_value` reads it again."""
    if isinstance(value, str):
        plain = value_text(value)
        is_plain = "\n" not in plain and parse_value(plain) == value
        return plain if is_plain else _quoted(value)
    text = value_text(value)
    try:
        is_same = "\n" not in text and parse_value(text) == value
    except ValueError:
        is_same = False
    return text if is_same else _quoted(value)


def _quoted(value: Any) -> str:
    """JSON that YAML reads as the same: what YAML does not take as it is stands as an escape."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return "".join(c if c.isprintable() else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class _Section(dict[str, Any]):
    """The keys of a section, apart from a mapping that is a value."""


def _nested(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys in sections, and those that find no place there: below a key that is a value itself."""
    nested: dict[str, Any] = {}
    loose: dict[str, Any] = {}
    whole = {key for key in given if "." not in key}
    for key, value in given.items():
        section, dot, name = key.partition(".")
        if not dot:
            nested[key] = value
        elif section in whole or "." in name:
            loose[key] = value  # `flatten` reads a dotted key at the top as well
        else:
            nested.setdefault(section, _Section())[name] = value
    return nested, loose


def _key(name: str) -> str:
    is_plain = parse_value(name) == name and ":" not in name and "#" not in name
    return name if is_plain else _quoted(name)


def _line(text: str, comment: str) -> str:
    short = " ".join(comment.split())
    if not short or len(short) > LONGEST_COMMENT or len(text) > COMMENTED_COLUMNS:
        return text
    return f"{text}  # {short}"
