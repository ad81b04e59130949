"""The questions of a run: asked of the untouched model, of the trained one, and of the files that were saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunewright.core.errors import DataError, problem
from tunewright.core.seeds import permutation
from tunewright.core.types import Conversation, Judged, Message, Origin, PlainText, Preference, Prompt
from tunewright.data import DataSet
from tunewright.data.reading import RawRow
from tunewright.data.shaping import shape

Asking = Conversation | Preference | Judged | Prompt


@dataclass
class Probe:
    """A question asked before and after. `expected` may be empty."""

    question: str
    messages: list[Message]
    expected: str = ""
    kind: str = "probe"
    before: str = ""
    after: str = ""
    """Of the trained model in memory, where few questions are asked; else of the reloaded one."""
    after_reload: str = ""


def choose_probes(setting: int | list[Any], data: DataSet) -> list[Probe]:
    """The questions asked before and after: as given, or `setting` rows of the data, held-out ones first."""
    if isinstance(setting, list):
        return [_given_probe(item, i) for i, item in enumerate(setting)]
    rows = [(row, "held_out") for row in data.held_out_rows] + [(row, "train") for row in data.train_rows]
    conversations = [(row, kind) for row, kind in rows if not isinstance(row, PlainText)]
    held = [pair for pair in conversations if pair[1] == "held_out"]
    pool = held if len(held) >= setting else conversations
    chosen = sorted(permutation(0, "probes", len(pool))[:setting])
    return [Probe(_last_question(pool[i][0]), pool[i][0].question(), pool[i][0].answer(), pool[i][1]) for i in chosen]


def _last_question(row: Asking) -> str:
    return next((m.content for m in reversed(row.question()) if m.role == "user"), "")


def _bare_question(item: Any) -> Probe | None:
    """The probe of a row without an answer, which no data format would take: `{question: ...}` or `{messages: [..., user]}`; None for other rows."""
    if not isinstance(item, dict):
        return None
    messages = item.get("messages")
    if isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and m.get("role") in ("system", "user") for m in messages
    ):
        turns = [Message(m["role"], m["content"]) for m in messages]
        return Probe(turns[-1].content, turns) if turns and turns[-1].role == "user" else None
    text = next((item[k] for k in ("question", "instruction", "prompt") if isinstance(item.get(k), str)), None)
    if text is None or any(item.get(k) for k in ("answer", "output", "completion", "response")):
        return None
    text = text + (f"\n{item['input']}" if isinstance(item.get("input"), str) and item["input"] else "")
    return Probe(text, [Message("user", text)])


def _given_probe(item: Any, number: int) -> Probe:
    if isinstance(item, str):
        return Probe(item, [Message("user", item)])
    bare = _bare_question(item)
    if bare is not None:
        return bare
    shaped = shape([RawRow(item, Origin(f"probes[{number}]", number + 1, number + 1))])
    if not shaped.rows or isinstance(shaped.rows[0], PlainText):
        why = shaped.dropped[0].reason if shaped.dropped else "text"
        raise DataError(problem("E-DATA-21", f"probes[{number}]", reason=why))
    row = shaped.rows[0]
    return Probe(_last_question(row), row.question(), row.answer())
