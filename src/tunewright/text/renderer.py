"""Turn a dialogue into token ids, and say exactly which of them the model itself must write.

The learnt span of an answer is found from what the template renders, never by looking for marker
strings. It starts where the question rendered with a generation prompt ends, and ends after the
first special token that the template writes after the answer. Where a template is not prefix-stable
(it strips thinking from earlier turns, trims, moves the system prompt), the turn is rendered once
more with a private-use sentinel in place of its content: what stands around the sentinel stands
around the answer. Every span is then proven: its text, and its decoded tokens, are the answer and
its stop token up to whitespace; a row that cannot be proven raises `CannotRender`.

A question has the same token ids in training as when it is asked: a text is tokenised as a whole as
long as the whole starts with the ids of the question, and piece by piece otherwise. Control tokens
that somebody typed ("<|im_end|>" in a question) stay text. Source: the rules of
`apply_chat_template` in Transformers (add_special_tokens=False for templated text).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from tunewright.core.errors import DataError, problem
from tunewright.core.types import Conversation, Judged, Message, PlainText, Preference, Prompt
from tunewright.core.words import ASSETS
from tunewright.text import thinking as thoughts
from tunewright.text.fast.splicing import Splicer
from tunewright.text.rendered import MODELS_OWN, PLAIN, CannotRender, Rendered, compact, same
from tunewright.text.spelling import Marks, Speller, mark, pattern_of, unmark
from tunewright.text.thinking import CLOSE, SWITCHES, Form, Thinking
from tunewright.text.tokenizer import Light

PRIVATE_USE = [chr(code) for code in range(0xF8A0, 0xF8FF)]
MOST_SHAPES = 20_000
"""Sequences of roles of which it is remembered what the template leaves out."""


@dataclass
class _Turns:
    """Messages ready for the template: control tokens that were typed are wrapped in two
    private-use marks."""

    messages: list[dict[str, Any]]
    origin: list[int]
    tools: list[dict[str, Any]] | None
    marks: Marks
    sentinel: str
    form: Form
    neutralised: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class _Place:
    """Characters of one assistant turn: the span is [start, end); the stop token, if any, is its
    last token."""

    start: int
    end: int
    stop: str | None
    sure: bool
    """The stop token is the first of its kind after `start`, so no cut is needed at `end`."""
    asked: int | None = None
    """Where the question ends, if the span begins later: an empty thought, or one that is not to be
    learnt, stands between."""


@cache
def plain_template() -> str:
    """The template of models that bring none, from `assets/templates/plain.jinja`."""
    return (ASSETS / "templates" / "plain.jinja").read_text(encoding="utf-8")


def said(messages: Iterable[Message]) -> list[str]:
    """The answers of a dialogue."""
    return [m.content for m in messages if m.role == "assistant"]


def _names(calls: list[dict[str, Any]]) -> list[str]:
    return [str(call.get("function", call).get("name", "")) for call in calls]


def _shape(turns: _Turns) -> tuple[Any, ...]:
    """What decides, besides the words, which parts of a dialogue a template writes."""
    return (
        bool(turns.tools),
        *((m["role"], bool(m["content"].strip()), *m.keys()) for m in turns.messages),
    )


class Renderer:
    """Renders dialogues and running text with one tokenizer, the same for training, chat and
    evaluation.

    `extra_stop_ids` are further ids that end an answer (the eos list of the model's generation
    config). `thinking` says what is done with thoughts. Raises DataError when the tokenizer has no
    end token, or its template cannot render one question and one answer.
    """

    def __init__(
        self, tokenizer: Any, extra_stop_ids: Sequence[int] = (), thinking: Thinking | None = None
    ):
        self.tokenizer = tokenizer
        self.thinking = thinking or Thinking()
        self.extra_stop_ids = list(extra_stop_ids)
        own = tokenizer.chat_template
        self.template_name = MODELS_OWN if own else PLAIN
        ends = [i for i in (tokenizer.eos_token_id, *extra_stop_ids) if i is not None]
        if not ends:
            raise DataError(problem("E-DATA-17"))
        self._end_id: int = ends[0]
        self._end_text: str = tokenizer.convert_ids_to_tokens(self._end_id)
        source = (
            own
            if isinstance(own, str)
            else "\n".join(map(str, own.values()))
            if own
            else plain_template()
        )
        added = {
            str(token.content): bool(token.special)
            for token in tokenizer.added_tokens_decoder.values()
        }
        stops = {str(tokenizer.convert_ids_to_tokens(i)) for i in ends}
        self._special = {s for s, special in added.items() if special} | (stops & added.keys())
        self._written = {s for s in added if s in source}
        self._speller = Speller(tokenizer)
        self._compile()
        self.system_merged = False
        self._splicer: Splicer | Literal[False] | None = None
        self._lost: dict[Any, str] = {}
        self._with_tools: dict[Any, bool] = {}
        self._header = ""
        self._gap = ""
        self._closing = ""
        self._variables: dict[Form, dict[str, Any]] = {}
        self.thinks = self.has_switch = self.opens = self._by_answer = self._strips_thoughts = False
        self._tail = ""
        self.stop_id = self._probe()
        self._probe_thinking(source)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([self.stop_id, *ends]))

    # ---- what others call

    def render_many(
        self,
        dialogues: Sequence[tuple[Sequence[Message], list[dict[str, Any]] | None]],
        forms: Sequence[Form] | None = None,
    ) -> list[Rendered | CannotRender]:
        """`render` for many dialogues (messages, tools), with the same results, faster: see
        `splicing`. What cannot be rendered comes back as its error."""
        if self._splicer is None:
            light = Light.of(self.tokenizer)
            self._splicer = Splicer(self, light) if light is not None else False
        forms = forms or [self.form_of(said(messages)) for messages, _ in dialogues]
        shaped = [
            self._shaped(messages, form)
            for (messages, _), form in zip(dialogues, forms, strict=True)
        ]
        wanted = [
            None if tools else messages
            for (_, tools), (messages, _) in zip(dialogues, shaped, strict=True)
        ]
        spliced = self._splicer.splice(wanted, forms) if self._splicer else [None] * len(dialogues)
        out: list[Rendered | CannotRender] = []
        for (_, tools), (messages, notes), form, fast in zip(
            dialogues, shaped, forms, spliced, strict=True
        ):
            if fast is not None:
                notes = [
                    *notes,
                    *(["system_merged"] if fast.merged_system else []),
                    *["empty_thought"] * fast.empty_thoughts,
                ]
                out.append(
                    Rendered(
                        fast.text,
                        fast.ids,
                        fast.spans,
                        [after - 1 for _, after in fast.spans],
                        fast.turns,
                        0,
                        notes,
                    )
                )
                continue
            try:
                out.append(self._render(messages, tools, form, notes))
            except CannotRender as error:
                out.append(error)
        return out

    def render(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None = None,
        form: Form | None = None,
    ) -> Rendered:
        """Ids of a whole dialogue with the span of every assistant turn, in the form that its
        answers ask for. Raises CannotRender where a span cannot be proven."""
        form = form or self.form_of(said(messages))
        shaped, notes = self._shaped(messages, form)
        return self._render(shaped, tools, form, notes)

    def _render(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None,
        form: Form,
        notes: list[str],
    ) -> Rendered:
        if (
            self.thinking.leaves_out
            and messages
            and messages[-1].role == "assistant"
            and not (messages[-1].content.strip() or messages[-1].tool_calls)
        ):
            raise CannotRender("only_thoughts")
        turns = self._prepare(messages, tools, form)
        turns.notes += notes
        text = self._write(turns)
        self._require_turns(turns)
        answers = [k for k, m in enumerate(turns.messages) if m["role"] == "assistant"]
        places = []
        for k in answers:
            last = k == answers[-1] and k == len(turns.messages) - 1
            # What stands before the last answer stays as it is, so the earlier turns are where they
            # were found.
            text = self._with_last_thought(turns, text) if last else text
            place, text = self._locate(turns, text, k, last=last)
            places.append(place)
        ids, edges = self._tokenise(text, self._cuts(places), turns.marks)
        spans, stops = [], []
        for place in places:
            span, stop = self._span(ids, edges, place, text, turns.marks)
            spans.append(span)
            stops.append(stop)
        return Rendered(
            unmark(text, turns.marks),
            ids,
            spans,
            stops,
            [turns.origin[k] for k in answers],
            turns.neutralised,
            turns.notes,
        )

    def require_written(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None
    ) -> None:
        """Raises CannotRender where the template leaves out a turn or a tool call of a question;
        `render` looks for itself."""
        turns = self._prepare(messages, tools)
        self._require_turns(turns)
        for k, message in enumerate(turns.messages):
            if message.get("tool_calls"):
                self._require_calls(turns, k)

    def writes_tools(self, messages: Sequence[Message], tools: list[dict[str, Any]]) -> bool:
        """Whether the template writes these tools beside turns of these roles; found once for each."""
        names = tuple(
            str(tool.get("function", tool).get("name", ""))
            if isinstance(tool.get("function", tool), dict)
            else ""
            for tool in tools
        )
        key = (tuple((m.role, bool(m.tool_calls)) for m in messages), names)
        if key not in self._with_tools:
            try:
                turns = self._prepare(messages, tools)
                text = self._write(turns)
                self._with_tools[key] = all(name in text for name in names) and text != self._write(
                    replace(turns, tools=None)
                )
            except CannotRender:
                return True  # the row is dropped with the template's own reason
        return self._with_tools[key]

    def form_of(self, answers: Iterable[str] | None) -> Form:
        """The form of a row with these answers; None: of a question that has none. The one place
        where `data.thinking` and `--think` are decided."""
        asked, t = None, self.thinking
        if t.asked is not None:
            asked = t.asked
        elif t.mode == "off":
            asked = False
        elif answers is not None and t.by_rows:
            asked = any(self.has_thought(answer) for answer in answers)
        else:
            asked = t.habit if t.mode == "auto" else True
        if asked is None or not self.thinks:
            return "default"
        return "thinking" if asked else "answer"

    def has_thought(self, content: str) -> bool:
        """Whether an answer has a thought that is not empty; where questions end with its opening,
        the answer may leave that out."""
        return CLOSE in content and thoughts.has_thought(
            thoughts.opened(content) if self.opens else content
        )

    def without_thoughts(self, content: str) -> str:
        """What is left of an answer without its thoughts: the text that is compared."""
        return thoughts.without_thoughts(content, self.opens)

    def question(self, row: Conversation | Preference | Judged | Prompt) -> list[int]:
        """Ids of a row's question in the form in which its answer is learnt."""
        return self.prompt(row.question(), row.tools, self.form_of_row(row))

    def form_of_row(self, row: Conversation | Preference | Judged | Prompt) -> Form:
        """The form of a row: one for both answers of a pair."""
        if isinstance(row, Prompt):
            return self.form_of(None)
        return self.form_of(
            said(
                [*row.prompt, *row.chosen, *row.rejected]
                if isinstance(row, Preference)
                else row.messages
            )
        )

    def prompt(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None = None,
        form: Form | None = None,
    ) -> list[int]:
        """Ids of a question, ready for generation: what chat and evaluation ask with."""
        form = form or self.form_of(None)
        turns = self._prepare(self._shaped(messages, form)[0], tools, form)
        text = self._ask(turns, len(turns.messages))
        places = []
        for k, message in enumerate(turns.messages):
            if message["role"] == "assistant":
                try:
                    places.append(self._locate(turns, text, k, asked=True)[0])
                except CannotRender:
                    continue
        return self._tokenise(text, self._cuts(places), turns.marks)[0]

    def render_text(self, plain: str | PlainText) -> Rendered:
        """Running text with the tokenizer's usual start and the end token; all of it is learnt.
        Raises CannotRender."""
        text = plain if isinstance(plain, str) else plain.text
        marks, _ = self._unused([text])
        marked, count = mark(text, self._typed_by_anyone, marks)
        try:
            ids = [*self._speller.lead, *self._speller.ids(marked, marks), self._end_id]
        except ValueError as error:
            raise CannotRender("cannot_render", str(error)) from error
        return Rendered(
            text + self._end_text,
            ids,
            [(len(self._speller.lead), len(ids))],
            [len(ids) - 1],
            [0],
            count,
        )

    def text(self, plain: str | PlainText) -> list[int]:
        """Ids of running text, end token included."""
        return self.render_text(plain).ids

    def piece(self, text: str) -> list[int]:
        """Ids of a piece of text from the middle of a longer one."""
        return self._speller.ids(text, ("\uf8a0", "\uf8a1"), inside=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens shown."""
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def thought_tokens(self, rendered: Rendered, k: int) -> int:
        """How many tokens of the k-th answer's span are its thought."""
        first, after = rendered.spans[k]
        one = self.tokenizer.convert_tokens_to_ids(CLOSE)
        if one in rendered.ids[first:after]:
            return rendered.ids.index(one, first) + 1 - first
        low, high = 0, after - first
        if CLOSE not in self.decode(rendered.ids[first:after]):
            return 0
        while low < high:  # the fewest tokens that hold the closing
            middle = (low + high) // 2
            if CLOSE in self.decode(rendered.ids[first : first + middle]):
                high = middle
            else:
                low = middle + 1
        return low

    # ---- what splicing and the proof ask

    def shaped(self, messages: Sequence[Message], form: Form) -> Sequence[Message]:
        """The messages as the template is given them: without the thoughts that are to be left out."""
        return self._shaped(messages, form)[0]

    def variables(self, form: Form) -> dict[str, Any]:
        """What `apply_chat_template` is given for a form."""
        return self._variables.get(form, {})

    def asks_by_answer(self, form: Form) -> bool:
        """Whether a question in this form ends as the template begins an answer: it has no switch
        to ask for it."""
        return form == "answer" and self._by_answer

    @property
    def control(self) -> set[str]:
        """Control tokens: typed by somebody, they stay text."""
        return self._special | self._written

    @property
    def gap(self) -> str:
        """White space that the model writes itself before an answer."""
        return self._gap

    def skipped(self, text: str, start: int = 0) -> int:
        """Where an answer begins that seems to begin at `start`: behind an empty thought."""
        return thoughts.empty_start(text, start, self._tail) if self.thinks else start

    @staticmethod
    def empty_end(question: str) -> bool:
        """Whether a question ends with an empty thought."""
        return thoughts.empty_end(question) is not None

    bare = staticmethod(thoughts.bare)

    @property
    def lead(self) -> list[int]:
        """Ids before every dialogue: the tokenizer's own, where the template is ours."""
        return self._speller.lead if self.template_name == PLAIN else []

    @property
    def header(self) -> str:
        """What belongs to every question although the template writes it with the answer only."""
        return self._header

    @property
    def end_text(self) -> str:
        """The end token."""
        return self._end_text

    def template_arguments(self) -> dict[str, Any]:
        """What `apply_chat_template` is given besides the messages: our own template where the
        model has none."""
        return (
            {"chat_template": plain_template(), "eos_token": self._end_text}
            if self.template_name == PLAIN
            else {}
        )

    def template_source(self, light: Light) -> tuple[str | None, dict[str, Any]]:
        """The template of dialogues without tools, and the variables it is given besides the
        messages."""
        if self.template_name == PLAIN:
            return plain_template(), {**light.special_tokens_map, "eos_token": self._end_text}
        try:
            return light.get_chat_template(), dict(light.special_tokens_map)
        except ValueError:
            return None, {}

    def typed_control(self, role: str, content: str) -> bool:
        """Whether a control token stands in a content as text."""
        return bool(
            (self._special_re if role == "assistant" else self._typed_by_anyone).search(content)
        )

    def special_in(self, text: str) -> bool:
        """Whether a special token stands in a text of the template."""
        return bool(self._special_re.search(text))

    def stop_in(self, after: str) -> tuple[int, str] | None:
        """Where the stop token that directly follows an answer ends in the text after it, and the
        token."""
        found = self._stop_after(after, 0)
        return (found.end(), found.group()) if found else None

    def opens_next(self, token: str, role: str) -> bool:
        """Whether the token behind an answer is the header of a next turn that nobody but the
        writer of the row begins: no answer ends with it."""
        return (
            role in ("assistant", "system")
            and self.tokenizer.convert_tokens_to_ids(token) not in self.stop_ids
        )

    # ---- what the template is like, found once

    def _compile(self) -> None:
        self._special_re = pattern_of(self._special)
        self._typed_by_anyone = pattern_of(self._special | self._written)
        self._speller.control = self._special | self._written

    def _probe(self) -> int:
        """Learn from one question and answer: the stop token, what stands before it, whether a
        system prompt is accepted."""
        question, answer = Message("user", "x"), Message("assistant", "y")
        try:
            turns = self._prepare([question, answer], None)
            before, _, after = self._write(turns, replace=1).partition(turns.sentinel)
            asked, silent = self._write(turns, 1, generation=True), self._write(turns, 1)
        except CannotRender as error:
            raise DataError(problem("E-DATA-18", cause=error.detail)) from error
        found = self._special_re.search(after)
        if not found and (found := pattern_of(self._written).search(after)):
            # A ChatML token that was added without the special flag still ends answers.
            self._special.add(found.group())
            self._compile()
        gap = before[len(asked) :] if before.startswith(asked) else ""
        if asked == silent and self._special_re.search(gap):
            # The template knows no generation prompt: the assistant's header belongs to the
            # question all the same.
            self._header = gap
        elif not gap.strip():
            self._gap = gap
        self.system_merged = self._refuses_system()
        if not found or not self._ends_answer(found.group()):
            return self._end_id
        self._closing = after[: found.start()].strip()
        return int(self.tokenizer.convert_tokens_to_ids(found.group()))

    def _probe_thinking(self, source: str) -> None:
        """Learn how the template is asked with and without thinking, and what it makes of thoughts."""
        question, mark_of = Message("user", "x"), PRIVATE_USE[-1] * 3
        try:
            turns = self._prepare([question], None, "default")
            plain = self._write(turns, generation=True)
            for name in (n for n in SWITCHES if re.search(rf"\b{n}\b", source)):
                self._variables = {"thinking": {name: True}, "answer": {name: False}}
                with_it, without = (
                    self._write(replace(turns, form=form), generation=True)
                    for form in ("thinking", "answer")
                )
                self._variables = {}
                if with_it != without:
                    self._variables = {
                        "thinking": {} if plain == with_it else {name: True},
                        "answer": {name: False},
                    }
                    self.has_switch = True
                    break
            turns.form = "thinking"
            self.opens = thoughts.ends_open(self._write(turns, generation=True) + self._header)
            answered = self._prepare([question, Message("assistant", "y")], None, "answer")
            begins = self._write(answered, replace=1).partition(answered.sentinel)[0]
            empty = thoughts.empty_end(begins)
            self._by_answer = not self.has_switch and (self.opens or empty is not None)
            self.thinks = self.has_switch or self._by_answer
            asked = thoughts.empty_end(self._ask(answered, 1))
            self._tail = asked if asked is not None else empty or ""
            if self.thinks:
                thought = self._prepare(
                    [question, Message("assistant", f"{thoughts.OPEN}\n{mark_of}\n{CLOSE}\n\ny")],
                    None,
                    "thinking",
                )
                self._strips_thoughts = mark_of not in self._write(thought)
        except CannotRender:
            self._variables = {}

    def _refuses_system(self) -> bool:
        try:
            turns = self._prepare([Message("system", "s"), Message("user", "x")], None)
            return turns.sentinel not in self._write(turns, replace=0)
        except CannotRender:
            return True

    def _ends_answer(self, token: str) -> bool:
        return token != self.tokenizer.bos_token or token == self._end_text

    # ---- messages to text

    def _shaped(
        self, messages: Sequence[Message], form: Form
    ) -> tuple[Sequence[Message], list[str]]:
        """The messages with their thoughts as `thinking` wants them, and notes. An empty thought is
        the template's to write."""
        if not any(m.role == "assistant" and CLOSE in m.content for m in messages):
            return messages, []
        out, notes = [], []
        for m in messages:
            if m.role == "assistant" and CLOSE in m.content:
                content = thoughts.opened(m.content) if self.opens else m.content
                bare = thoughts.without_empty_thought(content)
                notes += ["empty_thought"] if bare != content and not self.thinks else []
                if self.thinking.leaves_out and (rest := thoughts.without_thoughts(bare)) != bare:
                    notes.append("thoughts_left_out")
                    bare = rest
                m = m if bare == m.content else replace(m, content=bare)
            out.append(m)
        return out, notes

    def _prepare(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None,
        form: Form = "default",
    ) -> _Turns:
        """Merge a refused system prompt, and mark the control tokens that stand in the data."""
        kept = [(i, m.role, m) for i, m in enumerate(messages)]
        contents = {i: m.content for i, m in enumerate(messages)}
        notes = []
        if self.system_merged and kept and kept[0][1] == "system":
            first, _, system = kept.pop(0)
            if not system.content.strip():
                pass  # a template without system prompts has nothing to write of an empty one
            elif kept and kept[0][1] == "user":
                notes.append("system_merged")
                contents[kept[0][0]] = f"{system.content}\n\n{kept[0][2].content}"
            else:
                notes.append("system_merged")
                kept.insert(0, (first, "user", system))
        strings = [
            *contents.values(),
            *(str(m.tool_calls or "") + str(m.name or "") for m in messages),
            str(tools or ""),
        ]
        marks, sentinel = self._unused(strings)
        ready, count = [], 0
        for i, role, message in kept:
            # An answer may hold tokens that the template also writes without being control tokens,
            # such as <think>.
            pattern = self._special_re if role == "assistant" else self._typed_by_anyone
            entry: dict[str, Any] = {"role": role, "content": contents[i]}
            entry |= {"tool_calls": message.tool_calls} if message.tool_calls else {}
            entry |= {"name": message.name} if message.name else {}
            entry |= {"tool_call_id": message.tool_call_id} if message.tool_call_id else {}
            marked, found = mark({k: v for k, v in entry.items() if k != "role"}, pattern, marks)
            ready.append({"role": role, **marked})
            count += found
        marked_tools, found = mark(tools, self._typed_by_anyone, marks)
        return _Turns(
            ready,
            [i for i, _, _ in kept],
            marked_tools,
            marks,
            sentinel,
            form,
            count + found,
            notes,
        )

    @staticmethod
    def _unused(strings: Iterable[str]) -> tuple[tuple[str, str], str]:
        """Two marks and a sentinel made of private-use characters that occur nowhere in this row."""
        taken = set().union(*strings)
        free = [c for c in PRIVATE_USE if c not in taken]
        if len(free) < 4:
            raise CannotRender("cannot_render", "private-use characters U+F8A0 to U+F8FE")
        return (free[0], free[1]), free[2] + free[3] + free[2]

    def _write(
        self,
        turns: _Turns,
        upto: int | None = None,
        *,
        generation: bool = False,
        replace: int | None = None,
    ) -> str:
        """The template's text of the first `upto` messages, with the sentinel as content of message
        `replace`."""
        messages = [dict(m) for m in turns.messages[:upto]]
        if replace is not None:
            messages[replace]["content"] = turns.sentinel
        extra = self.template_arguments() | self.variables(turns.form)
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=turns.tools,
                    tokenize=False,
                    add_generation_prompt=generation,
                    **extra,
                )
            )
        except Exception as error:  # a template is somebody's program: whatever it raises is its reason to refuse this row
            raise CannotRender("cannot_render", f"{error}" or type(error).__name__) from error

    def _ask(self, turns: _Turns, upto: int) -> str:
        if not self.asks_by_answer(turns.form):
            return self._write(turns, upto, generation=True) + self._header
        begun = replace(
            turns,
            messages=[*turns.messages[:upto], {"role": "assistant", "content": turns.sentinel}],
        )
        return self._write(begun).partition(turns.sentinel)[0].removesuffix(self._gap)

    def _with_last_thought(self, turns: _Turns, text: str) -> str:
        """The text with the thought of the last answer, where the template leaves out even that:
        behind the question, as the model is to write it."""
        content = turns.messages[-1]["content"]
        if (
            not self._strips_thoughts
            or not thoughts.has_thought(content)
            or turns.messages[-1].get("tool_calls")
        ):
            return text
        question = self._ask(turns, len(turns.messages) - 1)
        after = self._write(turns, replace=len(turns.messages) - 1).partition(turns.sentinel)[2]
        turns.notes.append("thought_restored")
        return (
            question
            + (thoughts.after_opening(content) if thoughts.ends_open(question) else content)
            + after
        )

    # ---- text to spans

    def _locate(
        self, turns: _Turns, text: str, k: int, *, last: bool = False, asked: bool = False
    ) -> tuple[_Place, str]:
        """Where turn k stands in `text`, and the text (with an end token appended where the
        template writes none after the last turn)."""
        content = turns.messages[k]["content"]
        # Before the first turn there is nothing that a template could write as a question.
        question = self._ask(turns, k) if k else None
        asked_so = len(question) if question is not None else None
        if (
            question is not None
            and self.thinks
            and not text.startswith(question)
            and text.startswith(self.bare(question))
        ):
            question = self.bare(
                question
            )  # an earlier turn, before which the template writes no thought
        start = len(question) if question is not None and text.startswith(question) else None
        if turns.messages[k].get("tool_calls"):
            return self._locate_calls(
                turns, text, k, None if start is None else self.skipped(text, start)
            ), text
        end = self._after(text, start, content) if start is not None else None
        stop = self._stop_after(text, end) if end is not None else None
        if stop is None or start is None or end is None:
            # Also when no stop token follows: "<" is found in a "<think>" that the template wrote
            # before an answer "<".
            start, end = self._around_sentinel(
                turns, text, k, question if start is not None else None, asked
            )
            stop = self._stop_after(text, end)
        following = turns.messages[k + 1]["role"] if k + 1 < len(turns.messages) else ""
        if stop and self.opens_next(stop.group(), following):
            stop = None
        first = self._learnt_from(turns, text, start, end, content)
        if (
            last
            and question is not None
            and (first if first != start and not self.thinking.hides else start) != asked_so
        ):
            turns.notes.append("prompt_differs")
        begins = start if first != start else None
        if stop:
            return _Place(first, stop.end(), stop.group(), True, begins), text
        if not last:
            return _Place(first, end, None, False, begins), text
        # The template writes no stop token: the end token stands directly after the answer.
        text = (text[:end] if not text[end:].strip() else text.rstrip()) + self._end_text
        return _Place(first, len(text), self._end_text, True, begins), text

    def _learnt_from(self, turns: _Turns, text: str, start: int, end: int, content: str) -> int:
        """Where the learnt part of an answer begins: behind an empty thought, and behind one that
        is shown only."""
        first = self.skipped(text, start)
        if self.thinks and self.empty_end(text[max(0, first - 40) : first]):
            turns.notes.append("empty_thought")
        if (
            self.thinking.hides
            and thoughts.has_thought(content)
            and (closed := text.find(CLOSE, first, end)) >= 0
        ):
            first = closed + len(CLOSE)
            first += len(text[first:end]) - len(text[first:end].lstrip())
        return first

    def _stop_after(self, text: str, end: int) -> re.Match[str] | None:
        """The stop token that the template wrote directly after an answer's end, if it did."""
        found = self._special_re.search(text, end)
        between = text[end : found.start()].strip() if found else ""
        return (
            found
            if found and between in ("", self._closing) and self._ends_answer(found.group())
            else None
        )

    @staticmethod
    def _after(text: str, start: int, content: str) -> int | None:
        """End of `content` where the text continues with it at `start`, as it is or trimmed; None
        where it does not."""
        if text.startswith(content, start):
            return start + len(content)
        while start < len(text) and text[start].isspace():
            start += 1
        return start + len(content.strip()) if text.startswith(content.strip(), start) else None

    def _around_sentinel(
        self, turns: _Turns, text: str, k: int, question: str | None, asked: bool
    ) -> tuple[int, int]:
        """Start and end of what the template wrote in place of turn k's content, proven against
        that content."""
        shown = self._write(turns, generation=asked, replace=k) + (self._header if asked else "")
        if shown.count(turns.sentinel) != 1:
            raise CannotRender("cannot_render", "the template does not write this answer")
        before, _, after = shown.partition(turns.sentinel)
        glue = ""
        if question is None:
            if not text.startswith(before):
                raise CannotRender(
                    "cannot_render", "the template changes the question with the answer"
                )
            # White space that the model writes itself before an answer is not part of the question.
            start = len(before.removesuffix(self._gap))
        else:
            start, glue = (
                len(question),
                before[len(question) :] if before.startswith(question) else "",
            )
        end = len(text) - len(after)
        if end < start or not text.endswith(after):
            raise CannotRender("cannot_render", "the template changes later turns with the answer")
        opened = question is not None and thoughts.ends_open(question)
        self._prove(turns, text[start:end], turns.messages[k]["content"], glue, opened)
        return start, end

    @staticmethod
    def _prove(turns: _Turns, text: str, content: str, glue: str, opened: bool) -> None:
        """The span is the content, or what is left of it without its thinking, perhaps after an
        opening that the template wrote."""
        bare = text[len(glue) :] if glue and text.startswith(glue) else text
        if any(compact(t) == compact(content) for t in (text, bare)):
            return
        if opened and compact(text) == compact(thoughts.after_opening(content)):
            return
        _, thought, rest = content.rpartition("</think>")
        if thought and any(compact(t) == compact(rest) for t in (text, bare)):
            turns.notes.append("thinking_stripped")
            return
        raise CannotRender("cannot_render", "the template rewrites the answer")

    def _locate_calls(self, turns: _Turns, text: str, k: int, start: int | None) -> _Place:
        """A turn with tool calls: from the question's end to the last special token of the turn."""
        upto = self._write(turns, k + 1)
        if start is not None and not text.startswith(upto):
            upto = (
                upto[:start] + upto[self.skipped(upto, start) :]
            )  # before a last turn the template writes an empty thought
        turn = (
            text[start : len(upto)].rstrip() if start is not None and text.startswith(upto) else ""
        )
        found = next(
            (s for s in sorted(self._special, key=len, reverse=True) if turn.endswith(s)), None
        )
        said, names = turns.messages[k]["content"].strip(), _names(turns.messages[k]["tool_calls"])
        self._require_calls(turns, k)
        # The words before a call may name the tool as well.
        beside = turn.replace(said, "", 1)
        if (
            start is None
            or not found
            or said not in turn
            or not all(name in beside for name in names)
        ):
            raise CannotRender(
                "cannot_render", "the tool calls of this turn cannot be told from the rest"
            )
        return _Place(start, start + len(turn), found, False)

    # ---- what a template leaves out

    def _require_turns(self, turns: _Turns) -> None:
        """Raises CannotRender where the template does not write a question, a system prompt or a
        tool's result; looked at once for each shape."""
        key = _shape(turns)
        if len(self._lost) > MOST_SHAPES:
            self._lost.clear()
        if key not in self._lost:
            spoken = [
                k for k, m in enumerate(turns.messages) if m["role"] != "assistant" and m["content"]
            ]
            lost = [
                turns.messages[k]["role"]
                for k in spoken
                if turns.sentinel not in self._write(turns, replace=k)
            ]
            self._lost[key] = ", ".join(lost)
        if self._lost[key]:
            raise CannotRender("turn_unwritten", self._lost[key])

    def _require_calls(self, turns: _Turns, k: int) -> None:
        """Raises CannotRender where the template does not write the name and the arguments of every
        call of turn k; looked at once for each shape."""
        key = (_shape(turns), k, len(turns.messages[k]["tool_calls"]))
        if key not in self._lost:
            self._lost[key] = (
                ""
                if all(
                    self._writes_call(turns, k, i)
                    for i in range(len(turns.messages[k]["tool_calls"]))
                )
                else "lost"
            )
        if self._lost[key]:
            raise CannotRender(
                "calls_unwritten", ", ".join(_names(turns.messages[k]["tool_calls"]))
            )

    def _writes_call(self, turns: _Turns, k: int, i: int) -> bool:
        """Whether another name, and other arguments, of a call stand in the text."""
        for changed in ({"name": turns.sentinel}, {"arguments": {"x": turns.sentinel}}):
            calls = list(turns.messages[k]["tool_calls"])
            inner = calls[i].get("function")
            calls[i] = calls[i] | (
                {"function": inner | changed} if isinstance(inner, dict) else changed
            )
            messages = [*turns.messages]
            messages[k] = messages[k] | {"tool_calls": calls}
            try:
                if turns.sentinel not in self._write(replace(turns, messages=messages)):
                    return False
            except CannotRender:
                return False
        return True

    # ---- text to ids

    @staticmethod
    def _cuts(places: list[_Place]) -> list[int]:
        found = {c for p in places for c in ([p.start] if p.sure else [p.start, p.end])}
        return sorted(found | {p.asked for p in places if p.asked is not None})

    def _tokenise(
        self, text: str, cuts: list[int], marks: Marks
    ) -> tuple[list[int], dict[int, int]]:
        """Ids of `text` and, for each cut (a character), the number of ids before it.

        By induction the ids up to a cut are the ids of the text up to that cut taken alone: the
        question's ids never depend on the answer.
        """
        known: list[int] = []
        begin, edges = 0, {}
        for cut in [*cuts, len(text)]:
            try:
                ids = self._speller.ids(text[:cut], marks)
                if ids[: len(known)] != known:
                    ids = known + self._speller.ids(text[begin:cut], marks, inside=True)
            except ValueError as error:
                raise CannotRender("cannot_render", str(error)) from error
            known, begin = ids, cut
            edges[cut] = len(known)
        if self.template_name == PLAIN:
            return self._speller.lead + known, {
                cut: edge + len(self._speller.lead) for cut, edge in edges.items()
            }
        return known, edges

    def _span(
        self, ids: list[int], edges: dict[int, int], place: _Place, text: str, marks: Marks
    ) -> tuple[tuple[int, int], int | None]:
        """Token range and stop index of a place, proven by decoding it."""
        first = edges[place.start]
        if place.sure:
            stop_id = self.tokenizer.convert_tokens_to_ids(place.stop)
            after = next((i + 1 for i in range(first, len(ids)) if ids[i] == stop_id), None)
            if after is None:
                raise CannotRender("cannot_render", "the stop token is not a token of its own")
        else:
            after = edges[place.end]
        expected = unmark(text[place.start : place.end], marks)
        if self.tokenizer.unk_token_id not in ids[first : after - 1] and not same(
            self.decode(ids[first:after]), expected
        ):
            raise CannotRender("cannot_render", "the tokens do not spell the answer")
        return (first, after), (after - 1 if place.stop else None)
