"""Lists of turns as the tools of others write them, respelt as {role, content}.

- other names for role and content: {role, parts: [{text}]} (Gemini), {from, content}, {speaker,
  text}, also with capitals;
- a question and an answer in one object: {human, assistant} (Firefly), {input, output} with
  `system` in the first (XTuner), {user, bot}, ...;
- texts only, question and answer in turn: [q, a, q, a] (UltraChat), or lists of two: [[q, a], [q,
  a]].

What an object holds besides is kept on its turn, or noted as left where it became two turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunewright.data.formats.common import Columns, RowFault, plain_name


def pairs(names: str) -> tuple[tuple[str, str], ...]:
    """Names of a question and its answer, written question:answer."""
    found = (pair.partition(":") for pair in names.split())
    return tuple((ask, answer) for ask, _, answer in found)


ROLE_KEYS = ("role", "from", "speaker", "sender", "author")
CONTENT_KEYS = ("content", "value", "parts", "text", "message", "utterance")
TURN_PAIRS = pairs(
    """
    human:assistant user:assistant input:output instruction:output instruction:response
    prompt:response prompt:completion prompt:answer question:answer query:response query:answer
    human:gpt human:bot user:bot user:model user:gpt q:a
    """
)
SPEAKING = ("user", "assistant")


def respelt(turns: Any, columns: Columns | None = None) -> list[dict[str, Any]] | None:
    """The turns as {role, content}; None for what is none of the shapes above. Raises RowFault
    where the first turn has a shape and a later one not."""
    if not isinstance(turns, list) or not turns:
        return None
    first = turns[0]
    if isinstance(first, str):
        return _of_texts(turns) if len(turns) > 1 else None
    if isinstance(first, list):
        return _of_lists(turns) if _is_pair(first) else None
    if not isinstance(first, dict):
        return None
    keys = _keys(first)
    role, content = _one_of(keys, ROLE_KEYS), _one_of(keys, CONTENT_KEYS)
    if role is not None and content is not None:
        return [_renamed(turn) for turn in turns]
    pair = next((pair for pair in TURN_PAIRS if pair[0] in keys and pair[1] in keys), None)
    return _of_pairs(turns, pair, columns) if pair is not None else None


def is_respellable(turns: Any) -> bool:
    """Whether a list has one of the shapes above, for looking only."""
    try:
        if isinstance(turns, list) and turns and not isinstance(turns[0], str):
            turns = turns[:1]
        return respelt(turns) is not None
    except RowFault:
        return False


def _keys(turn: Mapping[str, Any]) -> dict[str, str]:
    return {plain_name(key): key for key in turn}


def _one_of(keys: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((keys[name] for name in names if name in keys), None)


def _object(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise RowFault("wrong_type", f"turn: {type(turn).__name__}")
    return turn


def _renamed(turn: Any) -> dict[str, Any]:
    keys = _keys(_object(turn))
    role, content = _one_of(keys, ROLE_KEYS), _one_of(keys, CONTENT_KEYS)
    others = {name: turn[key] for name, key in keys.items() if key not in (role, content)}
    said = {"role": role, "content": content}
    return {name: turn[key] if key else None for name, key in said.items()} | others


def _of_texts(turns: list[Any]) -> list[dict[str, Any]] | None:
    if not all(isinstance(turn, str) for turn in turns):
        return None
    return [{"role": SPEAKING[number % 2], "content": turn} for number, turn in enumerate(turns)]


def _is_pair(value: Any) -> bool:
    is_two = isinstance(value, list) and len(value) == 2
    return is_two and all(isinstance(text, str) for text in value)


def _of_lists(turns: list[Any]) -> list[dict[str, Any]]:
    if not all(map(_is_pair, turns)):
        raise RowFault("wrong_type", "turns")
    return [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(SPEAKING, pair, strict=True)
    ]


def _of_pairs(
    turns: list[Any], pair: tuple[str, str], columns: Columns | None
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for turn in turns:
        keys = _keys(_object(turn))
        if pair[0] not in keys or pair[1] not in keys:
            raise RowFault("wrong_type", f"turn: {', '.join(keys)}"[:60])
        system = turn[keys["system"]] if "system" in keys else None
        found += [{"role": "system", "content": system}] if system not in (None, "") else []
        asked, taken = turn[keys[pair[0]]], {"system", *pair}
        if pair[0] == "instruction":
            taken.add("input")
            more = turn.get(keys.get("input", ""))
            asked = f"{asked}\n{more}" if isinstance(more, str) and more else asked
        # A dialogue that the assistant opens has no question in its first object.
        if asked not in (None, "") or not found:
            found.append({"role": "user", "content": asked})
        found.append({"role": "assistant", "content": turn[keys[pair[1]]]})
        if columns is not None:
            left = {name: turn[key] for name, key in keys.items() if name not in taken}
            columns.fields.update({n: v for n, v in left.items() if v not in (None, "", [], {})})
    return found
