"""One prompt, one answer, under the names in use: `prompt` and `completion`, `question` and `answer`, `prompt` and `response`, ... (`PAIRS`).

The two cells may also be lists of messages; then only the assistant turns of the completion are learnt.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Conversation, Origin
from tunewright.data.formats.common import Columns, RowFault, guarded
from tunewright.data.formats.dialogue import as_context, conversation, turns_or_text, with_system

PAIRS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("input", "output"),
)
COMPLETIONS = frozenset(answer for _, answer in PAIRS)


class PromptCompletion(Section):
    """Rows with a prompt and a completion, or a question and an answer."""


def pair_of(raw: dict[str, Any]) -> tuple[str, str] | None:
    """The columns of question and answer."""
    if "instruction" in raw:
        return next(((a, b) for a, b in PAIRS if a in raw and b in raw and a != "input"), None)
    return next(((a, b) for a, b in PAIRS if a in raw and b in raw), None)


def looks_like(raw: dict[str, Any]) -> int:
    """2 with both columns of a pair, 1 with the first of one."""
    return 2 if pair_of(raw) else int("prompt" in raw or "question" in raw)


@formats.register("prompt_completion", PromptCompletion, needs="prompt, completion | question, answer", looks_like=looks_like)
@guarded
def prompt_completion(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """One question and its answer."""
    pair = pair_of(raw)
    if pair is None:
        raise RowFault("no_answer")
    ask, answer = pair
    prompt = turns_or_text(raw[ask], ask, "user", columns)
    completion = turns_or_text(raw[answer], answer, "assistant", columns)
    if not any(m.role == "assistant" for m in completion):
        raise RowFault("no_answer")
    return conversation(with_system([*as_context(prompt), *completion], raw, columns), origin, raw, columns)
