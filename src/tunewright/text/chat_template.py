"""A model's chat template, and what it is like, found by asking it: what it writes around a
question and an answer, which token ends one, and what it makes of system prompts and thoughts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from tunewright.core.errors import DataError, problem
from tunewright.core.types import Message
from tunewright.core.words import ASSETS
from tunewright.text import thinking as thoughts
from tunewright.text.rendered import MODELS_OWN, PLAIN, CannotRender, compact
from tunewright.text.spelling import ControlTokens, pattern_of
from tunewright.text.thinking import CLOSE, OPEN, SWITCHES, Form
from tunewright.text.thought_marks import FIELDS, ThoughtMarks
from tunewright.text.turns import PRIVATE_USE, Turns, prepare


@cache
def plain_template() -> str:
    """The template of models that bring none, from `assets/templates/plain.jinja`."""
    return (ASSETS / "templates" / "plain.jinja").read_text(encoding="utf-8")


RESERVED = frozenset(
    (
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("chat_template", "tokenize", "bos_token", "eos_token", "pad_token", "unk_token"),
        *("conversation", "tokenizer_kwargs", "return_dict", "return_tensors", "padding"),
        *("truncation", "max_length", "return_assistant_tokens_mask", "tools_in_user_message"),
        *SWITCHES,
    )
)
"""Names that `data.template_arguments` may not give: they are filled in here or by Transformers, or
belong to `data.thinking`."""


def require_read(given: Mapping[str, Any], source: str) -> None:
    """Raise DataError for arguments that a template does not read, or that are not a person's to
    give."""
    if not given:
        return
    where = "data.template_arguments"
    taken = sorted(map(str, RESERVED.intersection(given)))
    if taken:
        raise DataError(problem("E-THINK-01", where, names=", ".join(taken)))
    read = variables_of(source)
    unread = sorted(str(name) for name in given if name not in read)
    if unread:
        known = ", ".join(sorted(read - RESERVED)) or "-"
        raise DataError(problem("E-THINK-02", where, names=", ".join(unread), known=known))


@cache
def variables_of(source: str) -> frozenset[str]:
    """The variables that a template reads from outside."""
    from jinja2 import meta
    from jinja2.exceptions import TemplateError as Fault

    from tunewright.text.template import environment

    try:
        made = environment()
        found = meta.find_undeclared_variables(made.parse(source))
    except Fault:
        return frozenset()
    return frozenset(found) - made.globals.keys()


class ChatTemplate:
    """The template of a tokenizer; `ends` are ids that end an answer, its end token first. `given`
    are further arguments of the template (`data.template_arguments`).

    Raises DataError when it cannot render one question and one answer, or does not read what is
    given.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int], given: Mapping[str, Any] | None = None):
        self.tokenizer, self.given = tokenizer, dict(given or {})
        own = tokenizer.chat_template
        self.name = MODELS_OWN if own else PLAIN
        self.ends, self.end_id = tuple(ends), ends[0]
        self.end_text: str = tokenizer.convert_ids_to_tokens(self.end_id)
        if isinstance(own, dict):
            source = "\n".join(map(str, own.values()))
        else:
            source = own or plain_template()
        require_read(self.given, source if own else "")
        self.control = ControlTokens.of(tokenizer, source, ends)
        self._variables: dict[Form, dict[str, Any]] = {}
        self.refuses_system = False
        self.header = ""
        """What belongs to every question although the template writes it with the answer only."""
        self._gap = ""
        """White space that the model writes itself before an answer."""
        self._closing = ""
        """What the template writes between an answer and its stop token."""
        self._turn_end = ""
        """What it writes after an answer that is not the last one, where the model itself never
        ends one so."""
        self.marks: ThoughtMarks | None = None
        """What it writes around a thought, where it takes that in a field of its own."""
        self.stop_id = self._find_stop()
        self.refuses_system = self._finds_no_system()
        self.has_switch = self.thinks = self.opens = False
        self._by_answer = False
        """A question without thinking ends as the template begins an answer: there is no switch."""
        self._strips_thoughts = False
        self._tail = ""
        """White space behind an empty thought."""
        self._learn_thinking(source)

    # ---- asking it

    def prepare(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None = None,
        form: Form = "default",
    ) -> Turns:
        """The messages as this template takes them."""
        return prepare(
            messages,
            tools,
            form,
            control=self.control,
            merges_system=self.refuses_system,
            fields=self.marks is not None,
        )

    @property
    def special(self) -> set[str]:
        """Control tokens that a tokenizer leaves out of what it decodes."""
        added = self.tokenizer.added_tokens_decoder.values()
        return {str(token.content) for token in added if token.special}

    @property
    def in_thoughts(self) -> re.Pattern[str]:
        """Matches control tokens that are no part of an answer: all special ones but the usual
        marks of a thought."""
        return pattern_of(self.special - {OPEN, CLOSE})

    def arguments(self) -> dict[str, Any]:
        """What `apply_chat_template` is given besides the messages: our own template where the
        model has none."""
        if self.name == PLAIN:
            return {"chat_template": plain_template(), "eos_token": self.end_text}
        return {}

    def variables(self, form: Form) -> dict[str, Any]:
        """What `apply_chat_template` is given for a form: the person's own arguments as well."""
        return {**self.given, **self._variables.get(form, {})}

    def write(
        self,
        turns: Turns,
        upto: int | None = None,
        *,
        generation: bool = False,
        replace: int | None = None,
    ) -> str:
        """The text of the first `upto` messages, with the sentinel as content of message `replace`.
        Raises CannotRender with whatever the template raises."""
        messages = turns.messages[:upto]
        if replace is not None:
            messages[replace] = messages[replace] | {"content": turns.sentinel}
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=turns.tools,
                tokenize=False,
                add_generation_prompt=generation,
                **self.arguments(),
                **self.variables(turns.form),
            )
        # A template is somebody's program: whatever it raises is its reason to refuse this row.
        except Exception as error:
            raise CannotRender("cannot_render", f"{error}" or type(error).__name__) from error
        return str(text)

    def ask(self, turns: Turns, upto: int) -> str:
        """The text of the question that the first `upto` messages are."""
        # Behind the mark of an answer no tool can be called.
        calls = self.marks is not None and (turns.tools or turns.calls)
        if turns.form != "answer" or not self._by_answer or calls:
            return self.write(turns, upto, generation=True) + self.header
        answer = {"role": "assistant", "content": turns.sentinel}
        begun = replace(turns, messages=[*turns.messages[:upto], answer])
        return self.without_gap(self.write(begun).partition(turns.sentinel)[0])

    def behind(self, form: Form) -> tuple[str, str]:
        """How `ask` ends in place of the template's own prompt for an answer: (what goes from its
        end, what comes). Both are empty where that differs from question to question."""
        found = set()
        for question in ("x", "y z?"):
            try:
                turns = self.prepare([Message("user", question)], None, form)
                own = self.write(turns, generation=True)
                asked = self.ask(turns, len(turns.messages))
            except CannotRender:
                return "", ""
            same = next(
                (i for i, (a, b) in enumerate(zip(own, asked, strict=False)) if a != b),
                min(len(own), len(asked)),
            )
            found.add((own[same:], asked[same:]))
        return found.pop() if len(found) == 1 else ("", "")

    def with_last_thought(self, turns: Turns, text: str) -> str:
        """The text with the thought of the last answer, where the template leaves out even that:
        behind the question, as the model is to write it."""
        last = len(turns.messages) - 1
        content = turns.messages[last]["content"]
        if (
            not self._strips_thoughts
            or not thoughts.has_thought(content)
            or turns.messages[last].get("tool_calls")
        ):
            return text
        question = self.ask(turns, last)
        after = self.write(turns, replace=last).partition(turns.sentinel)[2]
        turns.notes.append("thought_restored")
        written = thoughts.after_opening(content) if thoughts.ends_open(question) else content
        return question + written + after

    # ---- what it writes around an answer

    def without_gap(self, question: str) -> str:
        """A question without the white space that the model writes itself before an answer."""
        return question.removesuffix(self._gap)

    def stop_after(self, text: str, end: int) -> re.Match[str] | None:
        """The stop token that the template wrote directly after an answer's end, if it did."""
        found = self.control.in_answers.search(text, end)
        if found is None or not self._ends_answer(found.group()):
            return None
        return found if text[end : found.start()].strip() in ("", self._closing) else None

    def opens_next(self, token: str, role: str) -> bool:
        """Whether the token behind an answer is not the model's to write: the header of a next turn
        (of `role`) that nobody but the writer of the row begins, or the end of a turn that the
        template writes in place of the model's own."""
        ends = (self.stop_id, *self.ends)
        return (
            role in ("assistant", "system") or token == self._turn_end
        ) and self.tokenizer.convert_tokens_to_ids(token) not in ends

    def behind_empty_thought(self, text: str, start: int) -> int:
        """Where an answer begins that seems to begin at `start`: behind an empty thought, and
        behind the mark of an answer that has none."""
        if self.marks is not None and self.marks.final and text.startswith(self.marks.final, start):
            return start + len(self.marks.final)
        return thoughts.empty_start(text, start, self._tail) if self.thinks else start

    # ---- what it is like, found once

    def _find_stop(self) -> int:
        """The stop token, and what stands before it, learnt from one question and answer."""
        try:
            turns = self.prepare([Message("user", "x"), Message("assistant", "y")])
            before, _, after = self.write(turns, replace=1).partition(turns.sentinel)
            asked, silent = self.write(turns, 1, generation=True), self.write(turns, 1)
        except CannotRender as error:
            raise DataError(problem("E-DATA-18", cause=error.detail)) from error
        found = self.control.find_stop(after)
        gap = before[len(asked) :] if before.startswith(asked) else ""
        if asked == silent and self.control.in_answers.search(gap):
            # The template knows no generation prompt: the assistant's header belongs to the
            # question all the same.
            self.header = gap
        elif not gap.strip():
            self._gap = gap
        if not found or not self._ends_answer(found.group()):
            return self.end_id
        self._closing = after[: found.start()].strip()
        stop = int(self.tokenizer.convert_tokens_to_ids(found.group()))
        self._turn_end = self._find_turn_end(found.group())
        return stop

    def _find_turn_end(self, stop: str) -> str:
        """The control token behind an answer that others follow, where another one than `stop`
        stands there."""
        try:
            turns = self.prepare([Message("user", "x"), Message("assistant", "y")])
            turns.messages.append({"role": "user", "content": "z"})
            after = self.write(turns, replace=1).partition(turns.sentinel)[2]
        except CannotRender:
            return ""
        found = self.control.in_answers.search(after)
        return found.group() if found is not None and found.group() != stop else ""

    def _ends_answer(self, token: str) -> bool:
        return token != self.tokenizer.bos_token or token == self.end_text

    def _finds_no_system(self) -> bool:
        try:
            turns = self.prepare([Message("system", "s"), Message("user", "x")])
            return turns.sentinel not in self.write(turns, replace=0)
        except CannotRender:
            return True

    def _learn_thinking(self, source: str) -> None:
        """How the template is asked with thinking and without, and what it makes of thoughts."""
        question, answer = Message("user", "x"), Message("assistant", "y")
        try:
            turns = self.prepare([question])
            self._find_switch(turns, source)
            self.marks = self._find_marks()
            asked = self.write(replace(turns, form="thinking"), generation=True)
            self.opens = thoughts.ends_open(asked + self.header)
            answered = self.prepare([question, answer], form="answer")
            begins = self.write(answered, replace=1).partition(answered.sentinel)[0]
            empty = thoughts.empty_end(begins)
            marked = self.marks is not None and bool(self.marks.final)
            self._by_answer = not self.has_switch and (self.opens or empty is not None or marked)
            self.thinks = self.has_switch or self._by_answer
            tail = thoughts.empty_end(self.ask(answered, 1))
            self._tail = tail if tail is not None else empty or ""
            if self.thinks:
                thought = PRIVATE_USE[-1] * 3
                answer = Message("assistant", f"{OPEN}\n{thought}\n{CLOSE}\n\ny")
                written = self.write(self.prepare([question, answer], form="thinking"))
                self._strips_thoughts = thought not in written
        except CannotRender:
            self._variables = {}

    def _find_marks(self) -> ThoughtMarks | None:
        """What the template writes around a thought that it is given in a field; None where it
        takes no field, or writes the same of a thought in the content."""
        thought, answer = PRIVATE_USE[-1] * 3, PRIVATE_USE[-2] * 3
        asked = self.prepare([Message("user", "x")], form="thinking")

        def written(**message: str) -> str:
            turns = [*asked.messages, {"role": "assistant", **message}]
            return self.write(replace(asked, messages=turns))

        try:
            question = self.write(asked, generation=True)
            by_field = written(content=answer, **dict.fromkeys(FIELDS, thought))
            bare = written(content=answer)
            by_content = written(content=f"{OPEN}\n{thought}\n{CLOSE}\n\n{answer}")
        except CannotRender:
            by_content = ""
        if by_field.count(thought) != 1 or not by_field.startswith(question):
            return None
        if compact(by_field) == compact(by_content):
            return None
        opening, _, rest = by_field[len(question) :].partition(thought)
        between, found, _ = rest.partition(answer)
        if not found:
            return None
        final = bare[len(question) :].partition(answer)[0] if bare.startswith(question) else ""
        return ThoughtMarks(opening, between, final if final.strip() else "")

    def _find_switch(self, turns: Turns, source: str) -> None:
        """The variable by which the template switches thinking, if it has one."""
        plain = self.write(turns, generation=True)
        for name in (n for n in SWITCHES if re.search(rf"\b{n}\b", source)):
            self._variables = {"thinking": {name: True}, "answer": {name: False}}
            with_it = self.write(replace(turns, form="thinking"), generation=True)
            without = self.write(replace(turns, form="answer"), generation=True)
            self._variables = {}
            if with_it != without:
                self._variables = {
                    "thinking": {} if plain == with_it else {name: True},
                    "answer": {name: False},
                }
                self.has_switch = True
                return
