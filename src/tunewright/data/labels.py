"""Rows to samples: the token ids of each row and the ones that are learnt.

A dialogue is one branch: all assistant turns are learnt, each with its message's weight times its
row's weight (a turn of weight 0 is context); running text is learnt from its second token on. A
preference is two branches (`chosen`, `rejected`) in which only the turns after the shared prompt
count; a judged answer is one branch (`good` or `bad`) in which only the last answer counts; a
prompt is one branch without a learnt token, and so is every row where the model is to write the
answers itself. Tokens after the last learnt one are left out: nothing
is ever predicted from them. A row longer than `max_tokens` is dropped, or the middle of its last
answer is cut out and the stop token kept; both are counted. A mark stands where the middle was: it
is not learnt, nor is the first token after it, so that no false word is taught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from tunewright.core.types import (
    Branch,
    Conversation,
    Judged,
    Message,
    Origin,
    PlainText,
    Preference,
    Prompt,
    Row,
    Sample,
    Stepwise,
    asks,
)
from tunewright.data.formats.shaping import Dropped
from tunewright.text.rendered import CannotRender, Rendered
from tunewright.text.renderer import Renderer

CUT_MARK = " [...] "
FEWEST_ANSWER_TOKENS = 2  # one token of the answer and its stop token: less teaches nothing
QUESTION = "prompt"
"""Role of a branch that only asks."""
Span = tuple[int, int, float]
"""Learnt tokens [first, after) and their weight."""


@dataclass
class EncodedBranch:
    """A branch whose learnt tokens are spans: a few numbers instead of two lists as long as the
    answer."""

    tokens: list[int]
    spans: list[Span]
    role: str

    def branch(self) -> Branch:
        """The same with every learnt token listed."""
        learnt: list[int] = []
        weights: list[float] = []
        for first, after, weight in self.spans:
            learnt += range(first, after)
            weights += [weight] * (after - first)
        return Branch(self.tokens, learnt, weights, role=self.role)


@dataclass
class EncodedRow:
    """What a row became. `facts` are those of its sample; `notes` what happened on the way."""

    branches: list[EncodedBranch]
    facts: dict[str, Any]
    notes: list[str]
    thought_tokens: int = 0
    """Learnt tokens of thoughts."""

    def sample(self, index: int, origin: Origin) -> Sample:
        """The sample. The row's weight stands in the branches already; sample.weight stays 1, so
        that nobody applies it twice."""
        return Sample([one.branch() for one in self.branches], index, origin, facts=self.facts)


def encode_rows(
    rows: Sequence[Row],
    renderer: Renderer,
    *,
    max_tokens: int | None,
    oversize: Literal["drop", "truncate"] = "drop",
    documents: bool = False,
    questions_only: bool = False,
) -> list[EncodedRow | Dropped]:
    """For each row its tokens, or why there are none. Rows are rendered together, because a
    tokenizer is faster with many texts at once.

    `documents`: running text may have any length, because `documents.windows` cuts it.
    `questions_only`: nothing else of a row, because the model will write the answers.
    """
    wanted, forms = [], []
    for row in rows:
        if questions_only or isinstance(row, (PlainText, Prompt)):
            continue
        form = renderer.form_of_row(row)
        for messages in _dialogues(row):
            wanted.append((messages, row.tools))
            forms.append(form)
    rendered = iter(renderer.render_many(wanted, forms))
    out: list[EncodedRow | Dropped] = []
    for row in rows:
        try:
            made = _asked(row, renderer) if questions_only else _tokens_of(row, rendered, renderer)
            most = None if documents and isinstance(row, PlainText) else max_tokens
            out.append(_judged(row, made, most, oversize, renderer))
        except CannotRender as error:
            out.append(Dropped(row.origin, error.reason, error.detail))
    return out


def _tokens_of(
    row: Row, rendered: Iterator[Rendered | CannotRender], renderer: Renderer
) -> EncodedRow:
    """A row with its tokens, whatever their number. Takes the dialogues of the row from `rendered`.
    Raises CannotRender."""
    if isinstance(row, Prompt):
        return _asked(row, renderer)
    if isinstance(row, PlainText):
        return _encoded(row, [renderer.render_text(row)], renderer)
    found = [next(rendered) for _ in _dialogues(row)]
    for one in found:
        if isinstance(one, CannotRender):
            raise one
    made = _encoded(row, cast("list[Rendered]", found), renderer)
    if isinstance(row, Stepwise) and made.branches[0].spans:
        made.facts["steps"] = _steps(row, made.branches[0], renderer)
    _note_tools(row, _dialogues(row)[0], renderer, made)
    return made


def _asked(row: Row, renderer: Renderer) -> EncodedRow:
    """The question of a row, of which nothing is learnt. Raises CannotRender."""
    if not asks(row):
        raise CannotRender("empty_question")
    messages = row.question()
    renderer.require_written(messages, row.tools)
    branch = EncodedBranch(renderer.prompt(messages, row.tools), [], QUESTION)
    known = row.facts if isinstance(row, Prompt) else {}
    facts = {**known, "answers": 0, "stops_learnt": 0, "last_span": (0, 0)}
    made = EncodedRow([branch], facts, [])
    _note_tools(row, messages, renderer, made)
    return made


def _note_tools(
    row: Conversation | Preference | Judged | Prompt,
    messages: list[Message],
    renderer: Renderer,
    made: EncodedRow,
) -> None:
    """Note a row whose tools the template leaves out."""
    if row.tools and not renderer.writes_tools(messages, row.tools):
        made.notes.append("tools_unwritten")


def _dialogues(row: Conversation | Preference | Judged) -> list[list[Message]]:
    return (
        [[*row.prompt, *row.chosen], [*row.prompt, *row.rejected]]
        if isinstance(row, Preference)
        else [row.messages]
    )


def _judged(
    row: Row, made: EncodedRow, max_tokens: int | None, oversize: str, renderer: Renderer
) -> EncodedRow | Dropped:
    """The row, cut where it is too long and may be, or why it is dropped."""
    is_question = made.branches[0].role == QUESTION
    if not is_question and not all(branch.spans for branch in made.branches):
        return Dropped(row.origin, "nothing_learnt")
    if len(made.branches) == 2 and made.branches[0].tokens == made.branches[1].tokens:
        return Dropped(row.origin, "same_answers")
    for branch in made.branches:
        length = len(branch.tokens)
        if max_tokens is None or length <= max_tokens:
            continue
        if is_question or isinstance(row, Stepwise) or oversize == "drop":
            return Dropped(row.origin, "too_long", f"{length} > {max_tokens}")
        first = branch.spans[-1][0]
        if not _cut(branch, max_tokens, renderer.piece(CUT_MARK)):
            return Dropped(row.origin, "too_long", f"{length} > {max_tokens}")
        made.facts["truncated"] = True
        if branch is made.branches[0]:
            made.facts["last_span"] = (first, branch.spans[-1][1])
        made.notes.append("truncated")
    return made


def _steps(row: Stepwise, branch: EncodedBranch, renderer: Renderer) -> list[list[int]]:
    """[tokens of the branch up to the end of a step, 1 for a right step] of every step. Raises
    CannotRender where the answer's tokens do not spell the steps."""
    first, after, _ = branch.spans[-1]
    ends = step_ends(branch.tokens[first:after], [text for text, _ in row.steps], renderer.decode)
    if ends is None:
        raise CannotRender("cannot_render", "steps")
    return [[first + end, int(good)] for end, (_, good) in zip(ends, row.steps, strict=True)]


def step_ends(
    tokens: Sequence[int], steps: Sequence[str], decode: Callable[[Sequence[int]], str]
) -> list[int] | None:
    """For each step how many tokens of the answer write it and all before it, white space apart;
    None where the tokens write something else."""
    ends: list[int] = []
    written, whole = "", "".join(decode(tokens).split())
    for step in steps:
        written += "".join(step.split())
        low, high = ends[-1] if ends else 0, len(tokens)
        if not whole.startswith(written):
            return None
        while low < high:  # the fewest tokens whose text begins with what was to be written
            middle = (low + high) // 2
            if "".join(decode(tokens[:middle]).split()).startswith(written):
                high = middle
            else:
                low = middle + 1
        ends.append(low)
    return ends


def _encoded(
    row: Conversation | PlainText | Preference | Judged,
    rendered: list[Rendered],
    renderer: Renderer,
) -> EncodedRow:
    """The branches of a row, with what is learnt of each and at which weight."""
    facts: dict[str, Any] = {"answers": 0, "stops_learnt": 0}
    if isinstance(row, PlainText):
        plans = [([row.weight], "answer")]
    elif isinstance(row, Conversation):
        plans = [(_weights(row, rendered[0], row.messages, 0), "answer")]
    elif isinstance(row, Preference):
        plans = []
        for one, turns, role in zip(
            rendered, (row.chosen, row.rejected), ("chosen", "rejected"), strict=True
        ):
            plans.append((_weights(row, one, [*row.prompt, *turns], len(row.prompt)), role))
        facts |= {"margin": row.margin} if row.margin is not None else {}
    else:
        weights = _weights(row, rendered[0], row.messages, len(row.messages) - 1)
        plans = [(weights, "good" if row.good else "bad")]
    made = EncodedRow([], facts, [])
    for one, (weights, role) in zip(rendered, plans, strict=True):
        made.branches.append(_branch(one, weights, role, facts))
        made.notes += [*one.notes, *["neutralised"] * one.neutralised]
    if not isinstance(row, PlainText) and renderer.thinking.by_rows:
        _note_thoughts(row, rendered, [weights for weights, _ in plans], renderer, made)
    return made


def _weights(
    row: Conversation | Preference | Judged, one: Rendered, turns: list[Message], first: int
) -> list[float]:
    """The weight of each answer that was rendered; none before the turn `first` is learnt."""
    return [row.weight * turns[t].weight if t >= first else 0.0 for t in one.turns]


def _note_thoughts(
    row: Conversation | Preference | Judged,
    rendered: list[Rendered],
    weights: list[list[float]],
    renderer: Renderer,
    made: EncodedRow,
) -> None:
    """Count a row with thoughts and their learnt tokens, or, where the template knows thinking, one
    without."""
    thinks = False
    for messages, one, factors in zip(_dialogues(row), rendered, weights, strict=True):
        for k, (turn, weight) in enumerate(zip(one.turns, factors, strict=True)):
            if weight <= 0 or not renderer.has_thought(messages[turn].content):
                continue
            thinks = True
            if not renderer.thinking.leaves_out and not renderer.thinking.hides:
                made.thought_tokens += renderer.thought_tokens(one, k)
    if thinks or renderer.thinks:
        made.notes.append("rows_thinking" if thinks else "rows_not_thinking")


def _branch(
    rendered: Rendered, weights: list[float], role: str, facts: dict[str, Any]
) -> EncodedBranch:
    """One branch. Adds to `facts` the answers learnt, how many of them with their stop token, and
    the first branch's last learnt span."""
    spans: list[Span] = []
    last = (0, 0)
    for (first, after), stop, weight in zip(
        rendered.spans, rendered.stop_index, weights, strict=True
    ):
        if weight <= 0:
            continue
        last = (max(first, 1), after)  # the very first token is predicted from nothing
        if last[0] < after:
            spans.append((*last, weight))
        facts["answers"] += 1
        facts["stops_learnt"] += stop is not None and last[0] <= stop < after
    facts.setdefault("last_span", last)
    return EncodedBranch(rendered.ids[: spans[-1][1]] if spans else [], spans, role)


def _cut(branch: EncodedBranch, max_tokens: int, joint: list[int]) -> bool:
    """Put `joint` in the place of the middle of the last span until the branch fits. False where
    too little would stay; nothing is changed then."""
    first, after, weight = branch.spans[-1]
    excess = len(branch.tokens) - max_tokens + len(joint)
    keep = after - first - excess
    if keep < FEWEST_ANSWER_TOKENS:
        return False
    head = first + (keep + 1) // 2
    branch.tokens = [*branch.tokens[:head], *joint, *branch.tokens[head + excess :]]
    end, goes_on = len(branch.tokens), head + len(joint)
    # What follows the mark begins anywhere, perhaps inside a word; the stop token is learnt also
    # where it is all that is left.
    branch.spans[-1:] = [(first, head, weight), (min(goes_on + 1, end - 1), end, weight)]
    return True
