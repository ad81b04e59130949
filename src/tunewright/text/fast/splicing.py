"""The fast way to render many dialogues: one rendering a shape, contents spliced in, and every text
tokenised once, many at a time.

A shape is the sequence of roles, in one of the template's forms (`thinking`). Its template is run
once with contents that watch what is done to them (`watching`), which gives the text around the
contents and conditions on the rows that may use it; a template that cannot be followed makes the
shape `None`, and its rows are rendered one at a time. So where a plan exists, the template would
have written exactly the spliced text.

Tokens: the library cuts a text at control tokens before anything else, so ids between two of them
depend on that piece alone. Pieces are encoded between their neighbours, and a cut (where an answer
begins) needs only the ids of the piece's beginning. What the slow way checks of a row is checked
here, too: the question's ids begin the whole's, the stop token is found, the tokens spell the
answer. A row that fails takes the slow way, which gives the same result or the reason; tests
compare the two on every template family.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunewright.core.types import Message
from tunewright.text.fast.watching import Condition, Piece, Trace, Tracer, pieces_of, stripped
from tunewright.text.fast.words import Spellings, Words
from tunewright.text.rendered import same
from tunewright.text.thinking import CLOSE, Form
from tunewright.text.tokenizer import Light

if TYPE_CHECKING:
    from tunewright.text.renderer import Renderer

_private_use = re.compile("[\uf8a0-\uf8ff\U0010fff0\U0010fff1]")
MOST_SHAPES = 2000

# ---- plans

_Key = tuple[str, str, str]
"""Control token before, text, control token after."""


@dataclass
class _Part:
    """The text between two control tokens: its pieces, and the tokens around it ("" at an end of
    the text)."""

    pieces: list[Piece]
    before: str
    after: str
    ids: list[int] | None = None
    """Of a part without contents."""
    proven: bool = False
    """Whether those ids are known to spell its text."""

    def is_fixed(self) -> bool:
        """Whether it is the same in every row."""
        return all(isinstance(piece, str) for piece in self.pieces)

    def key(self, contents: Sequence[str]) -> _Key:
        """The text with its neighbours, as it is encoded."""
        return self.before, _spelt(self.pieces, contents), self.after


def _spelt(pieces: Sequence[Piece], contents: Sequence[str]) -> str:
    parts: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(piece)
        else:
            number, marks = piece
            parts.append(stripped(contents[number], marks) if marks else contents[number])
    return "".join(parts)


@dataclass
class _Answer:
    """Where an answer lies: part `part`, behind `question` (the same part up to the cut); what is
    learnt besides the content."""

    turn: int
    part: int
    question: _Part
    glue: str
    tail: str
    """Up to the stop token and with it."""
    stop: str
    stop_id: int


@dataclass
class Plan:
    """How all rows of one shape are rendered. `controls[i]` is the id of the control token after
    part i, None after the last."""

    parts: list[_Part]
    controls: list[int | None]
    answers: list[_Answer]
    conditions: list[Condition]
    pieces: list[Piece]
    empty_thoughts: int = 0
    """Empty thoughts that stand before answers."""


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    out: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        elif piece != "":
            out.append(piece)
    return out


def _rest_after(whole: list[Piece], begin: list[Piece]) -> list[Piece] | None:
    """What follows in `whole` after `begin`, or None where it does not begin so."""
    if not begin:
        return whole
    *head, last = begin
    if whole[: len(head)] != head or len(whole) <= len(head):
        return None
    there = whole[len(head)]
    if isinstance(last, str) and isinstance(there, str) and there.startswith(last):
        return _merged([there[len(last) :], *whole[len(head) + 1 :]])
    return whole[len(head) + 1 :] if there == last else None


@dataclass
class Spliced:
    """One dialogue by the fast way. Characters and tokens as in `rendering.Rendered`."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    turns: list[int]
    merged_system: bool
    empty_thoughts: int
    ends: set[int]
    """Token offsets behind the parts in which an answer lies and whose control token is its stop
    token."""


class Splicer:
    """Plans by shape, for one renderer. `splice` gives None for every dialogue that must be
    rendered one at a time."""

    def __init__(self, renderer: Renderer, light: Light):
        self.renderer, self.light = renderer, light
        self.backend = light.backend_tokenizer
        self._plans: dict[tuple[Form, tuple[str, ...]], Plan | None] = {}
        described = json.loads(self.backend.to_str())
        self._spellings = Spellings.of(self.backend, described)
        self._words = Words.of(self.backend, self._spellings, described)
        self._greedy = {
            str(t.content) for t in light.added_tokens_decoder.values() if t.lstrip or t.rstrip
        }
        self._splits = self._safe_controls()
        self._split_re = re.compile(
            "|".join(re.escape(s) for s in sorted(self._splits, key=lambda s: (-len(s), s)))
            or r"(?!)"
        )
        self._tracer: Tracer | None = None
        source, self._variables = renderer.template_source(light)
        model = getattr(self.backend, "model", None)
        if source is not None and not getattr(model, "dropout", None):
            try:
                self._tracer = Tracer(source)
            except Exception:  # a template this cannot follow (or jinja cannot read) is rendered the slow way, which says what is wrong
                self._tracer = None

    def _safe_controls(self) -> dict[str, int]:
        """Added tokens at which a text is cut whatever stands around them: no other added token
        overlaps one from the left or holds it."""
        added = {str(t.content): (i, t) for i, t in self.light.added_tokens_decoder.items()}
        firsts: dict[str, list[str]] = {}
        for other in added:
            for at in range(len(other)):
                firsts.setdefault(other[at], []).append(other[at:])
        found = {}
        for text, (number, token) in added.items():
            if token.normalized or token.single_word or len(text) < 2 or text.isspace():
                continue
            endings = firsts.get(text[0], [])
            # Every ending of every added token that begins like this one: only the token itself,
            # once, may be among them.
            clash = sum(
                1 for ending in endings if text.startswith(ending) or ending.startswith(text)
            )
            if clash == 1:
                found[text] = number
        return found

    def splice(
        self, dialogues: Sequence[Sequence[Message] | None], forms: Sequence[Form] | None = None
    ) -> list[Spliced | None]:
        """Many dialogues at once, each in its form; None where the slow way is needed. A dialogue
        given as None stays None."""
        forms = forms or [
            self.renderer.form_of([m.content for m in messages or () if m.role == "assistant"])
            for messages in dialogues
        ]
        made: list[
            tuple[int, Plan, list[str], list[int], bool, list[_Key | None], list[_Key | None]]
        ] = []
        wanted: dict[_Key, None] = {}
        for number, (messages, form) in enumerate(zip(dialogues, forms, strict=True)):
            ready = self._ready(messages, form) if messages is not None else None
            if ready is None:
                continue
            plan, contents, turns, merged = ready
            parts = [None if p.ids is not None else p.key(contents) for p in plan.parts]
            questions = [
                None if a.question.ids is not None else a.question.key(contents)
                for a in plan.answers
            ]
            wanted.update(dict.fromkeys(key for key in (*parts, *questions) if key is not None))
            made.append((number, plan, contents, turns, merged, parts, questions))
        encoded, proven = self._encode(list(wanted))
        out: list[Spliced | None] = [None] * len(dialogues)
        proofs: list[tuple[int, int, str]] = []
        spoken: list[list[int]] = []
        unknown = self.light.unk_token_id
        for number, plan, contents, turns, merged, parts, questions in made:
            one = self._assembled(plan, contents, turns, merged, parts, questions, encoded)
            if one is None:
                continue
            out[number] = one
            for answer, key, (first, after) in zip(plan.answers, questions, one.spans, strict=True):
                expected = answer.glue + contents[answer.turn] + answer.tail
                if after in one.ends and self._is_proven(
                    answer, parts[answer.part], key, expected, proven
                ):
                    continue
                ids = one.ids[first:after]
                if unknown is None or unknown not in ids[:-1]:
                    if self._spellings is not None and self._spellings.spell(ids, expected):
                        continue
                    spoken.append(ids)
                    proofs.append((number, answer.turn, expected))
        for (number, _, expected), text in zip(
            proofs, self.backend.decode_batch(spoken, skip_special_tokens=False), strict=True
        ):
            if text != expected and not same(text, expected):
                out[number] = None
        return out

    @staticmethod
    def _is_proven(
        answer: _Answer, part: _Key | None, question: _Key | None, expected: str, proven: set[_Key]
    ) -> bool:
        """Whether the ids of an answer that ends where its part does spell `expected`, because
        those of the part and of the question before it do.

        The question's ids begin the part's (`_assembled` compared them), so what is left of the ids
        spells what is left of the text.
        """
        if part not in proven or part is None:
            return False
        if question is None:
            return (
                answer.question.proven
                and part[1] + answer.stop == _spelt(answer.question.pieces, ()) + expected
            )
        return question in proven and part[1] + answer.stop == question[1] + expected

    # ---- one dialogue

    def _ready(
        self, messages: Sequence[Message], form: Form
    ) -> tuple[Plan, list[str], list[int], bool] | None:
        """The plan of a dialogue and its contents, or None."""
        if self._tracer is None or any(m.tool_calls or m.name or m.tool_call_id for m in messages):
            return None
        r = self.renderer
        roles, contents, turns = (
            [m.role for m in messages],
            [m.content for m in messages],
            list(range(len(messages))),
        )
        merged = r.system_merged and bool(roles) and roles[0] == "system"
        if merged:
            if not contents[0].strip():
                roles, contents, turns, merged = roles[1:], contents[1:], turns[1:], False
            elif len(roles) > 1 and roles[1] == "user":
                contents = [f"{contents[0]}\n\n{contents[1]}", *contents[2:]]
                roles, turns = roles[1:], turns[1:]
            else:
                roles = ["user", *roles[1:]]
        for role, content in zip(roles, contents, strict=True):
            if (
                r.typed_control(role, content)
                or _private_use.search(content)
                or (role == "assistant" and not content)
            ):
                return None
            if r.thinking.hides and role == "assistant" and CLOSE in content:
                return None
        shape = form, tuple(roles)
        if shape not in self._plans:
            self._plans[shape] = (
                self._plan(tuple(roles), form) if len(self._plans) < MOST_SHAPES else None
            )
        plan = self._plans[shape]
        if plan is None or not all(c.holds(contents) for c in plan.conditions):
            return None
        return plan, contents, turns, merged

    def _assembled(
        self,
        plan: Plan,
        contents: list[str],
        turns: list[int],
        merged: bool,
        parts: list[_Key | None],
        questions: list[_Key | None],
        encoded: dict[_Key, list[int]],
    ) -> Spliced | None:
        ids = list(self.renderer.lead)
        begins, ends = [], []
        for part, key, control in zip(plan.parts, parts, plan.controls, strict=True):
            begins.append(len(ids))
            ids += encoded[key] if key is not None else part.ids or ()
            if control is not None:
                ids.append(control)
            ends.append(len(ids))
        spans = []
        for answer, key in zip(plan.answers, questions, strict=True):
            asked = encoded[key] if key is not None else answer.question.ids or []
            first = begins[answer.part] + len(asked)
            if ids[begins[answer.part] : first] != asked:
                return None
            try:
                spans.append((first, ids.index(answer.stop_id, first) + 1))
            except ValueError:
                return None
        closed = {ends[a.part] for a in plan.answers if plan.controls[a.part] == a.stop_id}
        return Spliced(
            _spelt(plan.pieces, contents),
            ids,
            spans,
            [turns[a.turn] for a in plan.answers],
            merged,
            plan.empty_thoughts,
            closed,
        )

    def _encode(self, keys: list[_Key]) -> tuple[dict[_Key, list[int]], set[_Key]]:
        """Ids of pieces of text, each between its neighbouring control tokens, whose own ids are
        taken off; and which of them are known to spell theirs."""
        found: dict[_Key, list[int]] = {}
        left = []
        for key in keys:
            # A control token that takes white space from its neighbours changes the text between
            # them.
            ids = (
                self._words.ids(key[1])
                if self._words and key[0] not in self._greedy and key[2] not in self._greedy
                else None
            )
            if ids is None:
                left.append(key)
            else:
                found[key] = ids
        proven = set(found) if self._words and self._words.proves else set()
        many = getattr(self.backend, "encode_batch_fast", self.backend.encode_batch)
        for key, one in zip(
            left, many(["".join(key) for key in left], add_special_tokens=False), strict=True
        ):
            ids = one.ids
            found[key] = ids[1 if key[0] else 0 : len(ids) - 1 if key[2] else len(ids)]
        return found, proven

    # ---- one shape

    def _plan(self, roles: tuple[str, ...], form: Form) -> Plan | None:
        assert self._tracer is not None
        trace = Trace()
        try:
            variables = {**self._variables, **self.renderer.variables(form)}
            whole = _merged(
                pieces_of(self._tracer.run(roles, len(roles), trace, False, variables), trace)
            )
            asked = {
                k: self._asked(roles, k, trace, form, variables)
                for k, role in enumerate(roles)
                if role == "assistant"
            }
            plan = self._planned(roles, whole, asked)
        except (
            Exception
        ):  # whatever a template raises: its rows take the slow way, which reports it
            return None
        if plan is not None and {
            piece[0] for piece in plan.pieces if not isinstance(piece, str)
        } != set(range(len(roles))):
            return None  # a turn is left out: the slow way says so
        if plan is not None:
            # A stripped answer is the content only in rows that have nothing to strip.
            answers = [
                piece for piece in plan.pieces if not isinstance(piece, str) and piece[0] in asked
            ]
            plan.conditions = [
                *trace.conditions,
                *(Condition(*piece, "unchanged", None, True) for piece in answers if piece[1]),
            ]
            # Behind white space of the template an answer must begin with something else, or its
            # beginning could be told in two ways.
            spaced = [a.turn for a in plan.answers if a.glue and not a.glue.strip()]
            plan.conditions += [Condition(turn, (), "spaced", None, False) for turn in spaced]
        return plan

    def _asked(
        self, roles: tuple[str, ...], k: int, trace: Trace, form: Form, variables: dict[str, Any]
    ) -> list[Piece]:
        """The question before turn k."""
        assert self._tracer is not None
        if not self.renderer.asks_by_answer(form):
            text = self._tracer.run(roles, k, trace, True, variables)
            return _merged([*pieces_of(text, trace), self.renderer.header])
        begun = _merged(pieces_of(self._tracer.run(roles, k + 1, trace, False, variables), trace))
        before = begun[
            : next(
                i for i, piece in enumerate(begun) if not isinstance(piece, str) and piece[0] == k
            )
        ]
        if before and isinstance(before[-1], str):
            before[-1] = before[-1].removesuffix(self.renderer.gap)
        return _merged(before)

    def _planned(
        self, roles: tuple[str, ...], whole: list[Piece], asked: dict[int, list[Piece]]
    ) -> Plan | None:
        r = self.renderer
        found: list[tuple[int, list[Piece], str, str, str]] = []
        answers = list(asked)
        for k in answers:
            rest = _rest_after(whole, asked[k])
            if (
                rest is None
                and r.thinks
                and k != answers[-1]
                and isinstance(last := asked[k][-1], str)
            ):
                # An earlier turn, before which the template writes no thought.
                asked[k] = _merged([*asked[k][:-1], r.bare(last)])
                rest = _rest_after(whole, asked[k])
            if rest is None:
                return None
            glue = rest.pop(0) if rest and isinstance(rest[0], str) else ""
            if isinstance(glue, str) and (empty := r.skipped(glue)):
                if k == answers[-1]:
                    return None
                asked[k], glue = _merged([*asked[k], glue[:empty]]), glue[empty:]
            content = rest.pop(0) if rest else ""
            if (
                isinstance(content, str)
                or content[0] != k
                or sum(not isinstance(p, str) and p[0] == k for p in whole) != 1
            ):
                return None
            if not isinstance(glue, str) or r.special_in(glue):
                return None
            after = rest[0] if rest and isinstance(rest[0], str) else ""
            stop = r.stop_in(after)
            if stop is not None and r.opens_next(
                stop[1], roles[k + 1] if k + 1 < len(roles) else ""
            ):
                return None
            if stop is None:
                if (
                    k != len(roles) - 1
                    or k != answers[-1]
                    or rest not in ([], [after])
                    or after.strip()
                ):
                    return None
                # The template writes no stop token after the last answer: the end token stands
                # directly after it.
                whole = _merged([*whole[: whole.index(content) + 1], r.end_text])
                stop = (len(r.end_text), r.end_text)
                after = r.end_text
            found.append((k, asked[k], glue, after[: stop[0]], stop[1]))
        return self._cut_up(whole, found)

    def _cut_up(
        self, whole: list[Piece], found: list[tuple[int, list[Piece], str, str, str]]
    ) -> Plan | None:
        parts, controls = self._split(whole)
        answers = []
        for k, question, glue, tail, stop in found:
            before, _ = self._split(question)
            if stop not in self._splits or len(before) > len(parts):
                return None
            answers.append(
                _Answer(k, len(before) - 1, before[-1], glue, tail, stop, self._splits[stop])
            )
        fixed = [part for part in (*parts, *(a.question for a in answers)) if part.is_fixed()]
        known, proven = self._encode(list(dict.fromkeys(part.key(()) for part in fixed)))
        for part in fixed:
            part.ids, part.proven = known[part.key(())], part.key(()) in proven
        empty = sum(
            bool(question)
            and isinstance(question[-1], str)
            and self.renderer.empty_end(question[-1])
            for _, question, *_ in found
        )
        return Plan(parts, [*controls, None], answers, [], whole, empty)

    def _split(self, pieces: list[Piece]) -> tuple[list[_Part], list[int]]:
        """The text between control tokens, and their ids."""
        parts, controls = [_Part([], "", "")], []
        for piece in pieces:
            if not isinstance(piece, str):
                parts[-1].pieces.append(piece)
                continue
            at = 0
            for control in self._split_re.finditer(piece):
                if control.start() > at:
                    parts[-1].pieces.append(piece[at : control.start()])
                parts[-1].after = control.group()
                controls.append(self._splits[control.group()])
                parts.append(_Part([], control.group(), ""))
                at = control.end()
            if at < len(piece):
                parts[-1].pieces.append(piece[at:])
        return parts, controls
