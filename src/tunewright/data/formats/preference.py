"""Preferences: two ways to go on, `chosen` better than `rejected`, after a question in any of the
shapes in use.

- Alpaca: `instruction`, `input`, and two texts; or `prompt` (also `question`, `query`) and two
  texts.
- ShareGPT: `conversations` (or `messages`) up to the question, and two turns {from, value}.
- `prompt` as a text or messages, and two lists of messages.
- No prompt: chosen and rejected are whole dialogues, as lists of messages or as transcripts
  ("\\n\\nHuman: ...\\n\\nAssistant: ..."); their common
  beginning is the prompt.

`margin`, or the difference of `score_chosen` and `score_rejected`, says by how much.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from tunewright.core.config import Section
from tunewright.core.types import Message, Origin, Preference, Row
from tunewright.data.formats import alpaca
from tunewright.data.formats.alpaca import asked
from tunewright.data.formats.beside import BESIDE_QUESTION, question_of
from tunewright.data.formats.common import (
    Columns,
    RowFault,
    first_of,
    looked_into,
    number_of,
    row_format,
    text_of,
)
from tunewright.data.formats.dialogue import (
    BESIDE,
    TURN_COLUMNS,
    first_role,
    keys_of,
    messages_of,
    ordered,
    turn_column,
    turns_or_text,
    with_system,
)
from tunewright.data.formats.marks import no_list, row_weight
from tunewright.data.formats.tool_calls import tools_of
from tunewright.data.formats.writing import as_turns, of_kind

PROMPTS = ("prompt", "question", "query", "problem")
SIDES = ("chosen", "rejected", "margin", "score_chosen", "score_rejected")
READS = (*SIDES, *TURN_COLUMNS, *PROMPTS, "instruction", *alpaca.INPUTS, *BESIDE_QUESTION, *BESIDE)
_speaker = re.compile(r"(?:\A\s*|\n\s*\n)(Human|Assistant|H|A):[ \t]*")


class PreferencePairs(Section):
    """Rows with a chosen and a rejected answer to the same question."""


def looks_like(raw: dict[str, Any]) -> int:
    """3 with a chosen and a rejected column, whatever else there is."""
    return 3 if "chosen" in raw and "rejected" in raw else 0


def write(row: Row) -> dict[str, Any]:
    """The question and both ways to go on, as lists of messages."""
    pair = of_kind(row, Preference)
    sides = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    out: dict[str, Any] = {name: as_turns(turns) for name, turns in sides.items()}
    return out | ({"margin": pair.margin} if pair.margin is not None else {})


@row_format(
    "preference",
    PreferencePairs,
    needs="chosen, rejected (prompt | instruction | conversations)",
    reads=READS,
    looks_like=looks_like,
    write=write,
)
def preference(raw: dict[str, Any], origin: Origin, columns: Columns) -> Preference:
    """A question and its two answers."""
    if raw.get("chosen") is None or raw.get("rejected") is None:
        raise RowFault("no_rejected")
    no_list(raw, columns)
    sides = [looked_into(raw[name]) for name in ("chosen", "rejected")]
    prompt = [] if all(map(_is_whole, sides)) else _prompt(raw, columns)
    chosen, rejected = (
        _answers(raw[name], name, prompt, columns) for name in ("chosen", "rejected")
    )
    if not prompt:
        prompt, chosen, rejected = _split(chosen, rejected)
    prompt = with_system(prompt, raw, columns)
    if not prompt or prompt[-1].role not in ("user", "tool"):
        raise RowFault("no_question")
    if chosen == rejected:
        raise RowFault("same_answers")
    length = len(prompt)
    made = []
    for turns in (chosen, rejected):
        whole = ordered([*prompt, *turns], columns if turns is chosen else Columns())
        if not turns or turns[-1].role != "assistant":
            raise RowFault("no_answer")
        made.append(whole[len(whole) - len(turns) :])
        length = len(whole) - len(turns)
    return Preference(
        prompt[len(prompt) - length :],
        made[0],
        made[1],
        origin,
        tools_of(raw, columns),
        row_weight(raw, columns),
        _margin(raw),
    )


def _prompt(raw: dict[str, Any], columns: Columns) -> list[Message]:
    """The turns before the answers; empty where the row has none of its own."""
    name = turn_column(raw)
    if name is not None:
        return messages_of(raw[name], *keys_of(raw[name]), columns, name)
    if "instruction" in raw:
        return asked(raw, columns)
    name = first_of(raw, PROMPTS)
    if name is None or raw[name] is None:
        return []
    value = raw[name]
    if isinstance(value, str) and _speaker.match(value) and value.rstrip().endswith("Assistant:"):
        return _transcript(text_of(value, name, columns), columns)[:-1]
    return question_of(raw, name, columns)


def _answers(value: Any, name: str, prompt: list[Message], columns: Columns) -> list[Message]:
    """The turns of one side: a text is one answer after a prompt, and a transcript where there is
    none."""
    turns = turns_or_text(value, name, "assistant", columns)
    if prompt or not isinstance(value, str) or len(turns) != 1 or turns[0].role != "assistant":
        return turns
    return _transcript(text_of(value, name, columns), columns)


def _transcript(text: str, columns: Columns) -> list[Message]:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."; a text without them has no question."""
    parts = _speaker.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise RowFault("no_question")
    columns.notes["transcript_split"] += 1
    roles = ("user" if speaker.startswith("H") else "assistant" for speaker in parts[1::2])
    return [Message(role, said.strip()) for role, said in zip(roles, parts[2::2], strict=True)]


def _is_whole(side: Any) -> bool:
    """Whether a cell is a whole dialogue: a list of turns that begins with a question."""
    if not isinstance(side, list) or not side or not isinstance(side[0], dict):
        return False
    return first_role(side) in ("user", "system")


def _split(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """The common beginning of two dialogues, up to a question, and how each goes on."""
    common = 0
    while common < min(len(chosen), len(rejected)) and _same(chosen[common], rejected[common]):
        common += 1
    while common and chosen[common - 1].role not in ("user", "tool"):
        common -= 1
    return [replace(m, weight=1.0) for m in chosen[:common]], chosen[common:], rejected[common:]


def _same(one: Message, other: Message) -> bool:
    return (one.role, one.content, one.tool_calls) == (other.role, other.content, other.tool_calls)


def _margin(raw: dict[str, Any]) -> float | None:
    margin = number_of(raw.get("margin"))
    if margin is not None:
        return margin
    scores = [number_of(raw.get(name)) for name in ("score_chosen", "score_rejected")]
    return scores[0] - scores[1] if scores[0] is not None and scores[1] is not None else None
