"""Turn dialogues into token ids, and say exactly which of them the model itself must write.

The template is asked (`chat_template`), the answers are found in what it wrote (`spans`), and the
text is tokenised so that a question has the same ids in training as when it is asked (`spelling`).
Every span is then proven: its tokens spell the answer and its stop token up to white space; a row
that cannot be proven raises `CannotRender`. Control tokens that somebody typed ("<|im_end|>" in a
question) stay text. Source: the rules of `apply_chat_template` in Transformers
(add_special_tokens=False for templated text).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tunewright.core.errors import DataError, problem
from tunewright.core.types import Conversation, Judged, Message, PlainText, Preference, Prompt
from tunewright.text import thinking as thoughts
from tunewright.text.chat_template import ChatTemplate
from tunewright.text.left_out import LeftOut
from tunewright.text.rendered import PLAIN, CannotRender, Rendered, same
from tunewright.text.spans import AnswerFinder, Place
from tunewright.text.spelling import Speller, Tokens, Written, mark, unmark
from tunewright.text.thinking import CLOSE, OPEN, Form, Thinking
from tunewright.text.thought_marks import ThoughtMarks
from tunewright.text.turns import Turns, unused

Tools = list[dict[str, Any]] | None
TAIL = 24
"""Tokens at the end of a question in which an opened thought would stand."""


def said(messages: Iterable[Message]) -> list[str]:
    """The answers of a dialogue."""
    return [m.content for m in messages if m.role == "assistant"]


@dataclass
class _Draft:
    """A dialogue as the template writes it, and where its answers stand."""

    turns: Turns
    text: str
    places: list[Place]
    answers: list[int]
    """The message of each place."""

    def written(self) -> Written:
        """What is tokenised."""
        cuts = {cut for place in self.places for cut in place.cuts()}
        return Written(self.text, sorted(cuts), self.turns.marks)


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
        ends = [i for i in (tokenizer.eos_token_id, *extra_stop_ids) if i is not None]
        if not ends:
            raise DataError(problem("E-DATA-17"))
        self.template = template = ChatTemplate(tokenizer, ends, self.thinking.arguments)
        self.stop_id = template.stop_id
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([self.stop_id, *ends]))
        self.template_name, self.end_text = template.name, template.end_text
        self.thinks, self.has_switch = template.thinks, template.has_switch
        self._left_out = LeftOut(template)
        self._speller = Speller(tokenizer, template.control)

    # ---- dialogues

    def render(
        self, messages: Sequence[Message], tools: Tools = None, form: Form | None = None
    ) -> Rendered:
        """Ids of a whole dialogue with the span of every assistant turn, in the form that its
        answers ask for. Raises CannotRender where a span cannot be proven."""
        (made,) = self.render_many([(messages, tools)], [form or self.form_of(said(messages))])
        if isinstance(made, CannotRender):
            raise made
        return made

    def render_many(
        self,
        dialogues: Sequence[tuple[Sequence[Message], Tools]],
        forms: Sequence[Form] | None = None,
    ) -> list[Rendered | CannotRender]:
        """`render` for many dialogues (messages, tools), which are tokenised together. What cannot
        be rendered comes back as its error."""
        forms = forms or [self.form_of(said(messages)) for messages, _ in dialogues]
        drafts: list[_Draft | CannotRender] = []
        for (messages, tools), form in zip(dialogues, forms, strict=True):
            try:
                drafts.append(self._draft(messages, tools, form))
            except CannotRender as error:
                drafts.append(error)
        written = [draft.written() for draft in drafts if isinstance(draft, _Draft)]
        tokens = iter(self._speller.many(written))
        made: list[Rendered | CannotRender] = []
        for draft in drafts:
            if isinstance(draft, CannotRender):
                made.append(draft)
                continue
            try:
                made.append(self._proven(draft, next(tokens)))
            except CannotRender as error:
                made.append(error)
        return made

    def _draft(self, messages: Sequence[Message], tools: Tools, form: Form) -> _Draft:
        shaped, notes = self.shaped(messages)
        if (
            self.thinking.leaves_out
            and shaped
            and shaped[-1].role == "assistant"
            and not (shaped[-1].content.strip() or shaped[-1].tool_calls)
        ):
            raise CannotRender("only_thoughts")
        turns = self.template.prepare(shaped, tools, form)
        turns.notes += notes
        text = self.template.write(turns)
        self._left_out.require_turns(turns)
        finder = AnswerFinder(self.template, self._left_out, turns, self.thinking.hides)
        answers = [k for k, m in enumerate(turns.messages) if m["role"] == "assistant"]
        places = []
        for k in answers:
            last = k == len(turns.messages) - 1
            # What stands before the last answer stays as it is, so the earlier turns are where they
            # were found.
            text = self.template.with_last_thought(turns, text) if last else text
            place, text = finder.locate(text, k, last=last)
            places.append(place)
        return _Draft(turns, text, places, answers)

    def _proven(self, draft: _Draft, tokens: Tokens | ValueError) -> Rendered:
        """The spans of a draft in its tokens. Raises CannotRender where those of a span do not
        spell its text."""
        if isinstance(tokens, ValueError):
            raise CannotRender("cannot_render", str(tokens)) from tokens
        lead = self.lead
        ids, edges = [*lead, *tokens.ids], tokens.edges
        spans, stops = [], []
        for place in draft.places:
            first = edges[place.start] + len(lead)
            if place.sure:
                after = _behind(ids, self.tokenizer.convert_tokens_to_ids(place.stop), first)
            else:
                after = edges[place.end] + len(lead)
            expected = unmark(draft.text[place.start : place.end], draft.turns.marks)
            if self.tokenizer.unk_token_id not in ids[first : after - 1] and not same(
                self.decode(ids[first:after]), expected
            ):
                raise CannotRender("cannot_render", "the tokens do not spell the answer")
            spans.append((first, after))
            stops.append(after - 1 if place.stop else None)
        turns = draft.turns
        return Rendered(
            unmark(draft.text, turns.marks),
            ids,
            spans,
            stops,
            [turns.origin[k] for k in draft.answers],
            turns.neutralised,
            turns.notes,
        )

    def require_written(self, messages: Sequence[Message], tools: Tools = None) -> None:
        """Raises CannotRender where the template leaves out a turn or a tool call of a question;
        `render` looks for itself."""
        turns = self.template.prepare(messages, tools)
        self._left_out.require_turns(turns)
        for k, message in enumerate(turns.messages):
            if message.get("tool_calls"):
                self._left_out.require_calls(turns, k)

    def writes_tools(self, messages: Sequence[Message], tools: list[dict[str, Any]]) -> bool:
        """Whether the template writes these tools beside turns of these roles."""
        return self._left_out.writes_tools(messages, tools)

    # ---- questions

    def prompt(
        self, messages: Sequence[Message], tools: Tools = None, form: Form | None = None
    ) -> list[int]:
        """Ids of a question, ready for generation: what chat and evaluation ask with."""
        form = form or self.form_of(None)
        turns = self.template.prepare(self.shaped(messages)[0], tools, form)
        text = self.template.ask(turns, len(turns.messages))
        finder = AnswerFinder(self.template, self._left_out, turns, self.thinking.hides)
        places = []
        for k, message in enumerate(turns.messages):
            if message["role"] == "assistant":
                try:
                    places.append(finder.locate(text, k, asked=True)[0])
                except CannotRender:
                    continue
        (tokens,) = self._speller.many([_Draft(turns, text, places, []).written()])
        if isinstance(tokens, ValueError):
            raise CannotRender("cannot_render", str(tokens)) from tokens
        return [*self.lead, *tokens.ids]

    def question(self, row: Conversation | Preference | Judged | Prompt) -> list[int]:
        """Ids of a row's question in the form in which its answer is learnt."""
        return self.prompt(row.question(), row.tools, self.form_of_row(row))

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

    def form_of_row(self, row: Conversation | Preference | Judged | Prompt) -> Form:
        """The form of a row: one for both answers of a pair."""
        if isinstance(row, Prompt):
            return self.form_of(None)
        if isinstance(row, Preference):
            return self.form_of(said([*row.prompt, *row.chosen, *row.rejected]))
        return self.form_of(said(row.messages))

    # ---- running text

    def render_text(self, plain: str | PlainText) -> Rendered:
        """Running text with the tokenizer's usual start and the end token; all of it is learnt.
        Raises CannotRender."""
        text = plain if isinstance(plain, str) else plain.text
        marks, _ = unused([text])
        marked, count = mark(text, self.template.control.anywhere, marks)
        lead = self._speller.lead
        try:
            ids = [*lead, *self._speller.ids(marked, marks), self.template.end_id]
        except ValueError as error:
            raise CannotRender("cannot_render", str(error)) from error
        return Rendered(
            text + self.end_text, ids, [(len(lead), len(ids))], [len(ids) - 1], [0], count
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

    # ---- what a model wrote

    def read(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids, without control tokens, its thought between <think> and
        </think> whatever the template writes around it."""
        ids = list(ids)
        if not self.reads_marks:
            return str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return self.read_marks(self.decode(ids))

    @cached_property
    def reads_marks(self) -> bool:
        """Whether the marks of thoughts are control tokens, which `decode` would leave out."""
        marks = self.template.marks
        usual = marks is None or marks.are_usual
        return not usual or (self.thinks and not {OPEN, CLOSE}.isdisjoint(self.template.special))

    def read_marks(self, text: str, *, whole: bool = True) -> str:
        """As `read`, of a text in which control tokens are shown. Not `whole`: only what cannot
        change any more."""
        marks, control = self.template.marks, self.template.in_thoughts
        if marks is None or marks.are_usual:
            marks = ThoughtMarks("", "", "")
        return marks.read(text, control, whole=whole)

    def parts(
        self, prompt: Sequence[int], ids: Sequence[int], finished: bool = True
    ) -> tuple[str, str]:
        """(thought, answer) of what was written after a prompt; no answer where it was cut off (not
        `finished`) inside its thought."""
        return thoughts.parted(self.read(ids), opened=self.opens(prompt), finished=finished)

    def opens(self, prompt: Sequence[int]) -> bool:
        """Whether a question ends inside a thought."""
        return self.template.opens and thoughts.ends_open(self.decode(prompt[-TAIL:]))

    # ---- thoughts

    def has_thought(self, content: str) -> bool:
        """Whether an answer has a thought that is not empty; where questions end with its opening,
        the answer may leave that out."""
        return CLOSE in content and thoughts.has_thought(
            thoughts.opened(content) if self.template.opens else content
        )

    def without_thoughts(self, content: str) -> str:
        """What is left of an answer without its thoughts: the text that is compared."""
        return thoughts.without_thoughts(content, self.template.opens)

    def thought_tokens(self, rendered: Rendered, k: int) -> int:
        """How many tokens of the k-th answer's span are its thought."""
        first, after = rendered.spans[k]
        marks = self.template.marks
        closing = CLOSE if marks is None else marks.between
        one = self.tokenizer.convert_tokens_to_ids(CLOSE)
        if closing == CLOSE and one in rendered.ids[first:after]:
            return rendered.ids.index(one, first) + 1 - first
        low, high = 0, after - first
        if closing not in self.decode(rendered.ids[first:after]):
            return 0
        while low < high:  # the fewest tokens that hold the closing
            middle = (low + high) // 2
            if closing in self.decode(rendered.ids[first : first + middle]):
                high = middle
            else:
                low = middle + 1
        return low

    def shaped(self, messages: Sequence[Message]) -> tuple[Sequence[Message], list[str]]:
        """The messages as the template is given them, with their thoughts as `thinking` wants them,
        and notes. An empty thought is the template's to write."""
        if not any(m.role == "assistant" and CLOSE in m.content for m in messages):
            return messages, []
        out, notes = [], []
        for m in messages:
            if m.role == "assistant" and CLOSE in m.content:
                content = thoughts.opened(m.content) if self.template.opens else m.content
                bare = thoughts.without_empty_thought(content)
                notes += ["empty_thought"] if bare != content and not self.thinks else []
                if self.thinking.leaves_out and (rest := thoughts.without_thoughts(bare)) != bare:
                    notes.append("thoughts_left_out")
                    bare = rest
                m = m if bare == m.content else replace(m, content=bare)
            out.append(m)
        return out, notes

    # ---- what others ask

    @property
    def control(self) -> set[str]:
        """Control tokens: typed by somebody, they stay text."""
        return self.template.control.all()

    @property
    def lead(self) -> list[int]:
        """Ids before every dialogue: the tokenizer's own, where the template is ours."""
        return self._speller.lead if self.template_name == PLAIN else []


def _behind(ids: list[int], stop_id: int, first: int) -> int:
    """The place behind the first `stop_id` at or after `first`. Raises CannotRender."""
    try:
        return ids.index(stop_id, first) + 1
    except ValueError:
        raise CannotRender("cannot_render", "the stop token is not a token of its own") from None
