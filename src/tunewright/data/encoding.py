"""Rows to samples: the token ids of each row and the ones that are learnt.

One branch a row. All assistant turns are learnt, each with its message's weight times its row's weight (a turn of weight 0 is context); running
text is learnt from its second token on. Tokens after the last learnt one are left out: nothing is ever predicted from them.
A row longer than `max_tokens` is dropped, or the middle of its last answer is cut out and the stop token kept; both are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tunewright.core.types import Branch, PlainText, Row, Sample
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
    """Render every row. `max_tokens` None: no limit. A row is dropped as `too_long`, `cannot_render` or `nothing_learnt`."""
    out = Encoded([], [])
    for index, row in enumerate(rows):
        try:
            plain = isinstance(row, PlainText)
            rendered = renderer.render_text(row) if isinstance(row, PlainText) else renderer.render(row.messages, row.tools)
        except CannotRender as error:
            out.dropped.append(Dropped(row.origin, error.reason, error.detail))
            continue
        weights = [row.weight if isinstance(row, PlainText) else row.weight * row.messages[turn].weight for turn in rendered.turns]
        sample = _sample(rendered, weights, index, row)
        branch = sample.branches[0]
        if not branch.learnt:
            out.dropped.append(Dropped(row.origin, "nothing_learnt"))
            continue
        if max_tokens is not None and len(branch.tokens) > max_tokens:
            length = len(branch.tokens)
            if oversize == "drop" or not _cut(sample, max_tokens, sample.facts["last_span"]):
                out.dropped.append(Dropped(row.origin, "too_long", f"{length} > {max_tokens}"))
                continue
            out.notes["truncated"] += 1
        out.notes.update(rendered.notes)
        out.notes["neutralised"] += rendered.neutralised
        out.notes["plain_text" if plain else "conversation"] += 1
        out.samples.append(sample)
    return out


def _sample(rendered: Rendered, weights: list[float], index: int, row: Row) -> Sample:
    """One branch with its learnt tokens. `facts`: answers learnt, how many of them with their stop token, and the last learnt span."""
    learnt: list[int] = []
    scale: list[float] = []
    stops = []
    last = (0, 0)
    answers = 0
    for (first, after), stop, weight in zip(rendered.spans, rendered.stop_index, weights, strict=True):
        if weight <= 0:
            continue
        places = range(max(first, 1), after)  # the very first token is predicted from nothing
        learnt += places
        scale += [weight] * len(places)
        answers += 1
        last = (max(first, 1), after)
        if stop is not None and stop in places:
            stops.append(stop)
    tokens = rendered.ids[: learnt[-1] + 1] if learnt else []
    facts = {"answers": answers, "stops_learnt": len(stops), "last_span": last}
    # The row's weight stands in the branch already; sample.weight stays 1, so that nobody applies it twice.
    return Sample([Branch(tokens, learnt, scale)], index, row.origin, facts=facts)


def _cut(sample: Sample, max_tokens: int, span: tuple[int, int]) -> bool:
    """Take the middle out of the span until the sample fits. False where too little of the answer would stay; nothing is changed then."""
    branch = sample.branches[0]
    first, after = span
    excess = len(branch.tokens) - max_tokens
    keep = after - first - excess
    if keep < FEWEST_ANSWER_TOKENS:
        return False
    head = first + (keep + 1) // 2
    branch.tokens = branch.tokens[:head] + branch.tokens[head + excess :]
    kept = [(i if i < head else i - excess, w) for i, w in zip(branch.learnt, branch.weights, strict=True) if not head <= i < head + excess]
    branch.learnt, branch.weights = [i for i, _ in kept], [w for _, w in kept]
    sample.facts["last_span"] = (first, after - excess)
    sample.facts["truncated"] = True
    return True
