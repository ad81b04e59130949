"""One prompt, one answer: `prompt` and `completion` (or `response`), or `question` and `answer`.

The two cells may also be lists of messages; then only the assistant turns of the completion are learnt.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Conversation, Message, Origin
from tunewright.data.formats.common import Columns, RowFault, conversation, guarded, messages_of, text_of

PAIRS = (("prompt", "completion"), ("question", "answer"), ("prompt", "response"))


class PromptCompletion(Section):
    """Rows with a prompt and a completion, or a question and an answer."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with both columns of a pair, 1 with the first of one."""
    return 2 if any(ask in raw and answer in raw for ask, answer in PAIRS) else int("prompt" in raw or "question" in raw)


@formats.register("prompt_completion", PromptCompletion, needs="prompt, completion | question, answer", looks_like=looks_like)
@guarded
def prompt_completion(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """One question and its answer."""
    ask, answer = next(((a, b) for a, b in PAIRS if a in raw and b in raw), ("", ""))
    if not ask:
        raise RowFault("no_answer")
    prompt = _turns(raw[ask], ask, "user", columns)
    completion = _turns(raw[answer], answer, "assistant", columns)
    if not any(m.role == "assistant" for m in completion):
        raise RowFault("no_answer")
    system = text_of(raw.get("system"), "system", columns)
    first = [Message("system", system)] if system.strip() and prompt[0].role != "system" else []
    # What stands in the prompt was given, not asked for: its assistant turns are context.
    given = [replace(m, weight=0.0) if m.role == "assistant" else m for m in prompt]
    return conversation([*first, *given, *completion], origin, raw, columns)


def _turns(value: Any, name: str, role: str, columns: Columns) -> list[Message]:
    if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
        return messages_of(value, "role", "content", columns)
    return [Message(role, text_of(value, name, columns))]
