"""One prompt, one answer, under the names in use: `prompt` and `completion`, `question` and
`answer`, `prompt` and `response`, ... (`PAIRS`).

The two cells may also be lists of messages; then only the assistant turns of the completion are
learnt. What belongs to the question or the answer and stands in columns of its own (history, input,
context, choices, reasoning) is read with them (`beside.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunewright.core.config import Section
from tunewright.core.types import Conversation, Message, Origin, Row
from tunewright.data.formats.beside import (
    ANSWER_KEYS,
    BESIDE_ANSWER,
    BESIDE_QUESTION,
    has_choices,
    question_of,
    right_choice,
    thoughtful,
)
from tunewright.data.formats.common import Columns, RowFault, first_of, looked_into, row_format
from tunewright.data.formats.dialogue import (
    BESIDE,
    as_context,
    conversation,
    turns_or_text,
    with_system,
)
from tunewright.data.formats.ledger import peek
from tunewright.data.formats.turn_names import pairs
from tunewright.data.formats.writing import of_kind, system_and_turns

PAIRS = pairs(
    """
    prompt:completion question:answer prompt:response prompt:answer question:response
    query:response query:answer problem:answer problem:response problem:solution
    question:solution query:solution question:completion query:completion prompt:output
    question:output query:output input:output input:response input:answer input:completion
    user:assistant human:assistant human:gpt human:bot user:bot
    """
)
ASKS = tuple(dict.fromkeys(ask for ask, _ in PAIRS))
_columns = (name for pair in PAIRS for name in pair)
READS = tuple(dict.fromkeys([*_columns, *ANSWER_KEYS, *BESIDE_QUESTION, *BESIDE_ANSWER, *BESIDE]))


class PromptCompletion(Section):
    """Rows with a prompt and a completion, or a question and an answer."""


def pair_of(raw: Mapping[str, Any]) -> tuple[str, str] | None:
    """The columns of question and answer; an `input` beside an instruction is no question."""
    has_instruction = "instruction" in raw
    there = (pair for pair in PAIRS if pair[0] in raw and pair[1] in raw)
    found = next((pair for pair in there if not (has_instruction and pair[0] == "input")), None)
    if found is not None or has_instruction:
        return found
    ask, key = first_of(raw, ASKS), first_of(raw, ANSWER_KEYS)
    return (ask, key) if ask is not None and key is not None and has_choices(raw) else None


def looks_like(raw: dict[str, Any]) -> int:
    """2 with both columns of a pair, 1 with the first of one. A question under an instruction
    belongs to it (`alpaca`)."""
    pair = pair_of(raw)
    if pair and ("instruction" not in raw or pair[0] == "prompt"):
        return 2
    return int("prompt" in raw or ("question" in raw and "instruction" not in raw))


def write(row: Row) -> dict[str, Any]:
    """Two texts for one question and answer. Earlier turns become a list of messages, where their
    answers are not learnt in the row either."""
    system, turns = system_and_turns(of_kind(row, Conversation).messages)
    if any(m.weight != 0 for m in turns[:-1] if m.role == "assistant"):
        raise RowFault("turns")
    if turns[-1].weight != 1:
        raise RowFault("turn_weights")
    if len(turns) == 2:
        return {"prompt": turns[0].content, "completion": turns[1].content, **system}
    said = [{"role": m.role, "content": m.content} for m in turns]
    return {"prompt": said[:-1], "completion": said[-1:], **system}


@row_format(
    "prompt_completion",
    PromptCompletion,
    needs="prompt, completion | question, answer",
    reads=READS,
    looks_like=looks_like,
    write=write,
)
def prompt_completion(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """One question and its answer."""
    pair = pair_of(raw)
    if pair is None:
        raise RowFault("no_answer")
    ask, answer = pair
    prompt = question_of(raw, ask, columns)
    # Answers in a prompt that is a list of messages are context; those of a history are learnt, as
    # they are beside an instruction.
    if isinstance(looked_into(peek(raw, ask)), list):
        prompt = as_context(prompt)
    completion = completion_of(raw, answer, columns)
    if not any(m.role == "assistant" for m in completion):
        raise RowFault("no_answer")
    said = thoughtful([*prompt, *completion], raw, columns, answer)
    return conversation(with_system(said, raw, columns), origin, raw, columns)


def completion_of(raw: Mapping[str, Any], name: str, columns: Columns) -> list[Message]:
    """The turns that the column of the answer holds."""
    return turns_or_text(right_choice(raw[name], raw, columns), name, "assistant", columns)
