"""Rows to samples: the token ids of each row and the ones that are learnt.

A dialogue is one branch: all assistant turns are learnt, each with its message's weight times its row's weight (a turn of weight 0 is context); running
text is learnt from its second token on. A preference is two branches (`chosen`, `rejected`) in which only the turns after the shared prompt count; a
judged answer is one branch (`good` or `bad`) in which only the last answer counts; a prompt is one branch without a learnt token.
Tokens after the last learnt one are left out: nothing is ever predicted from them.
A row longer than `max_tokens` is dropped, or the middle of its last answer is cut out and the stop token kept; both are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tunewright.core.types import ROW_KINDS, Branch, Conversation, PlainText, Preference, Prompt, Row, Sample
from tunewright.data.shaping import Dropped
from tunewright.models.rendering import CannotRender

if TYPE_CHECKING:
    from tunewright.models.rendering import Rendered, Renderer

FEWEST_ANSWER_TOKENS = 2  # one token of the answer and its stop token: less teaches nothing


@dataclass
class Encoded:
    """Samples in the order of their rows (`sample.index` is the row's index), what was dropped, and what happened on the way, counted."""

    samples: list[Sample]
    dropped: list[Dropped]
    notes: Counter[str] = field(default_factory=Counter)


def encode(rows: Sequence[Row], renderer: Renderer, *, max_tokens: int | None, oversize: Literal["drop", "truncate"] = "drop") -> Encoded:
    """Render every row. `max_tokens` None: no limit. A row is dropped as `too_long`, `cannot_render`, `nothing_learnt` or `same_answers`."""
    out = Encoded([], [])
    for index, row in enumerate(rows):
        made = encode_row(row, renderer, index, max_tokens=max_tokens, oversize=oversize)
        if isinstance(made, Dropped):
            out.dropped.append(made)
        else:
            sample, notes = made
            out.samples.append(sample)
            out.notes.update(notes)
    return out


def encode_row(
    row: Row, renderer: Renderer, index: int, *, max_tokens: int | None, oversize: Literal["drop", "truncate"] = "drop"
) -> tuple[Sample, Counter[str]] | Dropped:
    """The sample of one row with what happened on the way, counted, or why there is none."""
    notes: Counter[str] = Counter()
    try:
        branches, facts, spans = _branches(row, renderer, notes)
    except CannotRender as error:
        return Dropped(row.origin, error.reason, error.detail)
    asks = isinstance(row, Prompt)
    if not asks and not all(branch.learnt for branch in branches):
        return Dropped(row.origin, "nothing_learnt")
    if isinstance(row, Preference) and branches[0].tokens == branches[1].tokens:
        return Dropped(row.origin, "same_answers")
    facts["last_span"] = spans[0]
    for branch, span in zip(branches, spans, strict=True):
        length = len(branch.tokens)
        if max_tokens is None or length <= max_tokens:
            continue
        kept = None if asks or oversize == "drop" else _cut(branch, max_tokens, span)
        if kept is None:
            return Dropped(row.origin, "too_long", f"{length} > {max_tokens}")
        facts["truncated"] = True
        if branch is branches[0]:
            facts["last_span"] = kept
        notes["truncated"] += 1
    notes[ROW_KINDS[type(row)]] += 1
    # The row's weight stands in the branches already; sample.weight stays 1, so that nobody applies it twice.
    return Sample(branches, index, row.origin, facts=facts), notes


def _branches(row: Row, renderer: Renderer, notes: Counter[str]) -> tuple[list[Branch], dict[str, Any], list[tuple[int, int]]]:
    """Branches of a row, the facts of its sample, and each branch's last learnt span."""
    facts: dict[str, Any] = {"answers": 0, "stops_learnt": 0}
    if isinstance(row, Prompt):
        return [Branch(renderer.prompt(row.messages, row.tools), [], [], role="prompt")], facts | dict(row.facts), [(0, 0)]
    if isinstance(row, PlainText):
        made = [(renderer.render_text(row), [row.weight], "answer")]
    elif isinstance(row, Conversation):
        rendered = renderer.render(row.messages, row.tools)
        made = [(rendered, [row.weight * row.messages[turn].weight for turn in rendered.turns], "answer")]
    elif isinstance(row, Preference):
        made = []
        for role, turns in (("chosen", row.chosen), ("rejected", row.rejected)):
            rendered = renderer.render([*row.prompt, *turns], row.tools)
            weights = [row.weight * turns[t - len(row.prompt)].weight if t >= len(row.prompt) else 0.0 for t in rendered.turns]
            made.append((rendered, weights, role))
        facts |= {"margin": row.margin} if row.margin is not None else {}
    else:
        rendered = renderer.render(row.messages, row.tools)
        last = len(row.messages) - 1
        made = [(rendered, [row.weight if turn == last else 0.0 for turn in rendered.turns], "good" if row.good else "bad")]
    branches, spans = [], []
    for rendered, weights, role in made:
        branch, span = _branch(rendered, weights, role, facts)
        branches.append(branch)
        spans.append(span)
        notes.update(rendered.notes)
        notes["neutralised"] += rendered.neutralised
    return branches, facts, spans


def _branch(rendered: Rendered, weights: list[float], role: str, facts: dict[str, Any]) -> tuple[Branch, tuple[int, int]]:
    """One branch with its learnt tokens and its last learnt span. Adds to `facts` the answers learnt and how many of them with their stop token."""
    learnt: list[int] = []
    scale: list[float] = []
    last = (0, 0)
    for (first, after), stop, weight in zip(rendered.spans, rendered.stop_index, weights, strict=True):
        if weight <= 0:
            continue
        places = range(max(first, 1), after)  # the very first token is predicted from nothing
        learnt += places
        scale += [weight] * len(places)
        last = (max(first, 1), after)
        facts["answers"] += 1
        facts["stops_learnt"] += stop is not None and stop in places
    return Branch(rendered.ids[: learnt[-1] + 1] if learnt else [], learnt, scale, role=role), last


def _cut(branch: Branch, max_tokens: int, span: tuple[int, int]) -> tuple[int, int] | None:
    """Take the middle out of the span until the branch fits, and return the new span. None where too little would stay; nothing is changed then."""
    first, after = span
    excess = len(branch.tokens) - max_tokens
    keep = after - first - excess
    if keep < FEWEST_ANSWER_TOKENS:
        return None
    head = first + (keep + 1) // 2
    branch.tokens = branch.tokens[:head] + branch.tokens[head + excess :]
    kept = [(i if i < head else i - excess, w) for i, w in zip(branch.learnt, branch.weights, strict=True) if not head <= i < head + excess]
    branch.learnt, branch.weights = [i for i, _ in kept], [w for _, w in kept]
    return first, after - excess
