"""`data.turns`: of the assistant's turns of a dialogue only the last, or those after the last
question, are learnt; the others are context.

Only dialogues are changed: pairs and judged answers are about what follows their shared beginning.
"""

from __future__ import annotations

from dataclasses import replace

from tunewright.core.types import Conversation, Row


def with_turns(row: Row, turns: str) -> tuple[Row, int]:
    """The row with the weight 0 on every assistant turn that `turns` (`last`, `last_round`) leaves
    unlearnt, and how many those are. The last turn stays the last even where its own weight is
    0."""
    if not isinstance(row, Conversation):
        return row, 0
    spoken = [i for i, m in enumerate(row.messages) if m.role == "assistant"]
    asked = [i for i, m in enumerate(row.messages) if m.role == "user" and i < (spoken or [0])[-1]]
    first = spoken[-1] if spoken else 0
    if turns == "last_round" and spoken:
        first = next(i for i in spoken if i > (asked or [-1])[-1])
    left_out = {i for i in spoken if i < first and row.messages[i].weight > 0}
    if not left_out:
        return row, 0
    messages = [replace(m, weight=0.0) if i in left_out else m for i, m in enumerate(row.messages)]
    return replace(row, messages=messages), len(left_out)
