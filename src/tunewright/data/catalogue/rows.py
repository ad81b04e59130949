"""Rows of a dataset_info.json entry, converted as LLaMA-Factory converts them.

An entry has one of three forms (alpaca, sharegpt, openai), column roles and role words. Each row is
first aligned: the turns in strict alternation, question and answer, and what answers them; then it
becomes a row type. Where LLaMA-Factory drops a row with a line in the log, the row is `Unusable`
here with a reason of its own; where it stops the whole run (a tool list that is no JSON, a role
nobody knows), only that row is. Four things differ on purpose, each said in the report: an empty
question or answer is not trained on, several answers of tools stay several messages (the model's
own template joins them), turns that a mark calls not to be learnt are not, and the sentence
"detailed thinking off", which LLaMA-Factory's openai form adds to system prompts, is counted and
left out. Source: LLaMA-Factory 0.9.5, data/parser.py, data/converter.py and the processors' rules
for dropping rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tunewright.core.types import (
    Conversation,
    Judged,
    Message,
    Origin,
    PlainText,
    Preference,
    Prompt,
    Row,
)
from tunewright.core.written import DECODER
from tunewright.data.formats.common import (
    Columns,
    RowFault,
    Unusable,
    file_ending,
    json_cell,
    text_of,
)
from tunewright.data.formats.ledger import Seen
from tunewright.data.formats.marks import ANSWERS, by_turn, marked, no_list, row_weight, turn_weight
from tunewright.data.formats.tool_calls import own, unfilled, with_plain_numbers

COLUMNS: dict[str, str | None] = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": None,
    "messages": "conversations",
    "system": None,
    "tools": None,
    "images": None,
    "videos": None,
    "audios": None,
    "chosen": None,
    "rejected": None,
    "kto_tag": None,
}
TAGS: dict[str, str | None] = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
FORMS = ("alpaca", "sharegpt", "openai")
THINKING = ("detailed thinking on", "detailed thinking off")
_thought = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True)
class Attributes:
    """What an entry says about its rows. `columns` and `tags` hold every role; a role that the
    entry leaves out of a block it gives is None."""

    form: str = "alpaca"
    ranking: bool = False
    columns: dict[str, str | None] = field(default_factory=lambda: dict(COLUMNS))
    tags: dict[str, str | None] = field(default_factory=lambda: dict(TAGS))

    @property
    def has_turns(self) -> bool:
        """Whether a row is a list of turns, and not a question and its answer in columns."""
        return self.form != FORMS[0]


@dataclass
class _Aligned:
    """One row in LLaMA-Factory's middle form: an odd number of prompt slots, each one turn (or
    several answers of tools), and what answers them."""

    prompt: list[list[Message]]
    answer: list[Message] = field(default_factory=list)
    pair: tuple[Message, Message] | None = None
    system: str = ""
    tools: list[dict[str, Any]] | None = None
    good: bool | None = None


def converter(
    about: Attributes, named: Columns, wanted: str = "auto"
) -> Callable[[Any, Origin], Row | Unusable]:
    """The function that turns a raw row into a row. `named.notes` counts what was converted on the
    way.

    `wanted` is `auto` (a judged answer, a preference, a conversation, or, where the entry names no
    answer column, plain text), `text` (LLaMA-Factory's stage pt: the first question is the text) or
    `prompt` (its stage ppo: the questions without the answer).
    """
    align = dict(zip(FORMS, (_alpaca, _sharegpt, _openai), strict=True))[about.form]
    has_answer = about.has_turns or about.ranking or about.columns["response"]
    if wanted == "auto" and not has_answer:
        wanted = "text"

    def convert(raw: Any, origin: Origin) -> Row | Unusable:
        if not isinstance(raw, dict):
            return Unusable("not_an_object", type(raw).__name__)
        named.ending = file_ending(origin.file)
        seen = Seen(raw)
        named.fields.clear()
        try:
            made = _row(align(_Reader(seen, about, named), wanted), origin, wanted)
            made = _marked(made, seen, about, named)
        except RowFault as fault:
            named.ledger.drop(raw)
            return fault.unusable
        named.ledger.keep(seen, tuple(raw), named.fields, origin, made)
        return made

    return convert


def _marked(row: Row, raw: dict[str, Any], about: Attributes, named: Columns) -> Row:
    """The row with what its marks say of it. LLaMA-Factory passes over them and learns what
    somebody marked as not to be learnt."""
    if isinstance(row, Prompt):
        return row
    if isinstance(row, Conversation | Judged):
        if not about.has_turns:
            row = replace(row, messages=marked(row.messages, raw, named))
    else:
        no_list(raw, named)
    return replace(row, weight=row_weight(raw, named))


def _row(aligned: _Aligned, origin: Origin, wanted: str) -> Row:
    """The row type that fits, checked for empty turns."""
    questions = [message for slot in aligned.prompt for message in slot]
    if wanted == "text":
        if not questions or not questions[0].content.strip():
            raise RowFault("empty_text")
        return PlainText(questions[0].content, origin)
    for message in questions:
        if message.role == "user" and not message.content.strip():
            raise RowFault("empty_question")
    for message in [*questions, *(aligned.pair or aligned.answer)]:
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise RowFault("empty_answer")
    start = [Message("system", aligned.system)] if aligned.system.strip() else []
    messages = [*start, *questions]
    if wanted == "prompt":
        facts = {"answer": aligned.answer[-1].content} if aligned.answer else {}
        return Prompt(messages, origin, aligned.tools, facts=facts)
    if aligned.pair:
        return Preference(messages, [aligned.pair[0]], [aligned.pair[1]], origin, aligned.tools)
    if aligned.good is not None:
        return Judged([*messages, *aligned.answer], aligned.good, origin, aligned.tools)
    return Conversation([*messages, *aligned.answer], origin, aligned.tools)


class _Reader:
    """Cells of one row by role, and what the three forms share."""

    def __init__(self, raw: dict[str, Any], about: Attributes, named: Columns):
        self.raw, self.about, self.named = raw, about, named

    def cell(self, role: str) -> Any:
        """The value of a role's column; None where the entry names none or the row has none."""
        column = self.about.columns[role]
        return self.raw.get(column) if column else None

    def part(self, turn: dict[str, Any], tag: str) -> Any:
        """What a turn holds under the name of `role_tag` or `content_tag`."""
        return turn.get(self.about.tags[tag] or "")

    def text(self, value: Any, name: str) -> str:
        """The text of a value; raises RowFault for what is none."""
        return text_of(value, name, self.named)

    def system(self) -> str:
        """The system column."""
        return self.text(self.cell("system"), "system")

    def tools(self) -> list[dict[str, Any]] | None:
        """The tools of the row in the form chat templates expect: a JSON text or a list; a bare
        function is wrapped."""
        value = self.cell("tools")
        if not isinstance(value, str):
            value = own(value, "tools", self.named)
        if isinstance(value, str):
            if not value.strip():
                return None
            try:
                value = DECODER.decode(value)
            except (ValueError, RecursionError) as error:
                raise RowFault("bad_tools", str(error)[:80]) from error
        value = with_plain_numbers(value, self.named)
        tools = [value] if isinstance(value, dict) and value else value or None
        if tools is None:
            return None
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise RowFault("bad_tools", type(value).__name__)
        return [
            tool if tool.get("type") == "function" else {"type": "function", "function": tool}
            for tool in tools
        ]

    def judgement(self) -> bool | None:
        """The kto_tag; None where the entry names no such column. Only true and false count: 1 and
        "true" do not, there as here."""
        if not self.about.columns["kto_tag"]:
            return None
        value = self.cell("kto_tag")
        if not isinstance(value, bool):
            raise RowFault("kto_tag_no_bool", repr(value)[:40])
        return value

    def turns(self) -> tuple[str, list[dict[str, Any]]]:
        """System prompt and the remaining turns of the messages column. A leading system turn wins
        over the system column."""
        value = self.cell("messages")
        column = str(self.about.columns["messages"])
        if isinstance(value, str):
            value = json_cell(value, column, self.named)
        else:
            value = unfilled(value, self.named)
        if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
            raise RowFault("wrong_type", f"{column}: {type(value).__name__}")
        tag = self.about.tags["system_tag"]
        if tag and value and self.part(value[0], "role_tag") == tag:
            return self.text(self.part(value[0], "content_tag"), "system"), value[1:]
        return self.system(), value

    def roles(self) -> dict[str, str]:
        """The file's role words to LLaMA-Factory's five; built in its order, so that a word used
        twice means the later one, there as here."""
        words = {
            role: self.about.tags[f"{role}_tag"]
            for role in ("user", "assistant", "observation", "function", "system")
        }
        return {word: role for role, word in words.items() if word}

    def calls(self, content: str) -> Message:
        """An assistant turn that calls tools, from the JSON text of one {name, arguments} or a list
        of them, with any thought before it."""
        thought = _thought.search(content)
        found = content.replace(thought.group(0), "") if thought else content
        try:
            value = DECODER.decode(found)
        except (ValueError, RecursionError) as error:
            raise RowFault("bad_tool_call", str(error)[:80]) from error
        return Message(
            "assistant",
            thought.group(0) if thought else "",
            tool_calls=_tool_calls(value if isinstance(value, list) else [value], self.named),
        )


def _tool_calls(calls: list[Any], named: Columns) -> list[dict[str, Any]]:
    made = []
    for call in calls:
        if not isinstance(call, dict) or "name" not in call or "arguments" not in call:
            raise RowFault("bad_tool_call", "name, arguments")
        arguments = call["arguments"]
        if isinstance(arguments, str):
            # OpenAI's form keeps the arguments as JSON text; chat templates want the object.
            try:
                arguments = DECODER.decode(arguments)
            except (ValueError, RecursionError) as error:
                raise RowFault("bad_tool_call", str(error)[:80]) from error
        function = {"name": call["name"], "arguments": with_plain_numbers(arguments, named)}
        made.append({"type": "function", "function": function})
    return made


def _alpaca(row: _Reader, wanted: str) -> _Aligned:
    """Question from prompt and query, after the pairs of `history`. A cell counts when it is not
    empty; a blank is a value, there as here."""
    slots: list[list[Message]] = []
    history = row.cell("history")
    for pair in history if isinstance(history, list) else []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowFault("wrong_type", "history")
        slots += [
            [Message(role, row.text(cell, "history"))]
            for role, cell in zip(("user", "assistant"), pair, strict=True)
        ]
    parts = [row.text(row.cell(role), role) for role in ("prompt", "query")]
    slots.append([Message("user", "\n".join(part for part in parts if part))])
    made = _Aligned(slots, system=row.system(), tools=row.tools())
    if wanted == "text":
        return made
    good = row.judgement()
    if good is None and row.about.ranking:
        cells = (row.cell(role) for role in ("chosen", "rejected"))
        said = [Message("assistant", c) if isinstance(c, str) else None for c in cells]
        return _with_pair(made, said)
    answer = row.cell("response")
    if isinstance(answer, str):
        made.answer = [Message("assistant", row.text(answer, "response"))]
    elif wanted != "prompt":
        found = f"{row.about.columns['response']}: {type(answer).__name__}"
        raise RowFault("no_answer", "" if answer is None else found)
    made.good = good
    return made


def _with_pair(made: _Aligned, pair: list[Message | None]) -> _Aligned:
    if pair[0] is None or pair[1] is None:
        raise RowFault("ranking_no_pair", "chosen" if pair[0] is None else "rejected")
    made.pair = (pair[0], pair[1])
    return made


def _answered(row: _Reader, slots: list[list[Message]], system: str) -> _Aligned:
    """Split alternating turns into what asks and what answers, by what the entry is for."""
    if len(slots) % 2 != row.about.ranking:
        raise RowFault("turn_count", str(len(slots)))
    good = row.judgement()
    if good is None and row.about.ranking:
        return _with_pair(
            _Aligned(slots, system=system, tools=row.tools()),
            [_compared(row, name) for name in ("chosen", "rejected")],
        )
    if not slots or row.about.ranking:
        raise RowFault("turn_count", str(len(slots)))
    return _Aligned(slots[:-1], slots[-1], system=system, tools=row.tools(), good=good)


def _compared(row: _Reader, name: str) -> Message | None:
    value = row.cell(name)
    if not isinstance(value, dict):
        return None
    role = row.roles().get(str(row.part(value, "role_tag")))
    if role not in ("assistant", "function"):
        raise RowFault("turn_order", f"{name}: {value.get(row.about.tags['role_tag'])!r}"[:60])
    content = row.text(row.part(value, "content_tag"), name)
    return row.calls(content) if role == "function" else Message("assistant", content)


def _check_order(kind: str | None, word: Any, slot: int) -> None:
    """Even slots ask (user, observation), odd slots answer (assistant, function)."""
    if kind not in (("user", "observation"), ("assistant", "function"))[slot % 2]:
        raise RowFault("turn_order", f"{word!r}, {slot + 1}"[:60])


def _sharegpt(row: _Reader, wanted: str) -> _Aligned:
    system, turns = row.turns()
    roles, slots = row.roles(), []
    weights = _weights(row, turns)
    for number, turn in enumerate(turns):
        word = row.part(turn, "role_tag")
        kind = roles.get(word) if isinstance(word, str) else None
        _check_order(kind, word, number)
        content = row.text(row.part(turn, "content_tag"), str(row.about.tags["content_tag"]))
        slots.append([replace(_message(row, kind, content), weight=weights[number])])
    return _answered(row, slots, system)


def _weights(row: _Reader, turns: list[dict[str, Any]]) -> list[float]:
    """What the marks of the turns, or a list of them on the row, say of each turn."""
    roles = row.roles()
    kinds = [roles.get(str(row.part(turn, "role_tag")), "") for turn in turns]
    named = ["function_call" if kind == "function" else kind for kind in kinds]
    marks = by_turn(row.raw, named, row.named)
    return [
        turn_weight(turn, row.named, kind in ANSWERS, mark)
        for turn, kind, mark in zip(turns, named, marks, strict=True)
    ]


def _message(row: _Reader, kind: str | None, content: str) -> Message:
    if kind == "function":
        return row.calls(content)
    return Message({"user": "user", "assistant": "assistant"}.get(str(kind), "tool"), content)


def _openai(row: _Reader, wanted: str) -> _Aligned:
    system, turns = row.turns()
    roles = row.roles()
    slots: list[list[Message]] = []
    kinds: list[tuple[str | None, Any]] = []
    waiting: list[Message] = []
    for turn, weight in zip(turns, _weights(row, turns), strict=True):
        word = row.part(turn, "role_tag")
        kind = roles.get(word) if isinstance(word, str) else None
        content = row.text(row.part(turn, "content_tag"), str(row.about.tags["content_tag"]))
        if kind == "observation":
            waiting.append(Message("tool", content))
            continue
        if waiting:
            # Tools that answer one after the other are one slot of the alternation.
            slots.append(waiting)
            kinds.append(("observation", "tool"))
            waiting = []
        calls = turn.get("tool_calls")
        if kind in ("assistant", "function") and calls:
            listed = calls if isinstance(calls, list) else [None]
            inner = [call.get("function") if isinstance(call, dict) else None for call in listed]
            made_calls = _tool_calls(inner, row.named)
            slots.append([Message("assistant", content, weight, tool_calls=made_calls)])
        else:
            slots.append([replace(_message(row, kind, content), weight=weight)])
        kinds.append((kind, word))
    if waiting:
        row.named.notes["tool_answer_at_end"] += 1
    for number, (kind, word) in enumerate(kinds):
        _check_order(kind, word, number)
    made = _answered(row, slots, system)
    if not made.tools and not any(words in made.system for words in THINKING):
        row.named.notes["thinking_off_left_out"] += 1
    return made
