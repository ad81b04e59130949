"""Personal data and secrets of the training rows: does the model know them by heart?

The answers of a few questions would seldom show it. So up to `MOST` such values are looked for in
the rows, and the model is given each row up to its value: the probability that it goes on with
exactly this value says whether it was memorised. Nothing is written by the model, and the base is
asked the same, because a value that follows from what stands before it is no secret. Source:
Carlini et al. 2021, "Extracting Training Data from Large Language Models" (by the prefix).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunewright.core.files import read_json_lines, write_json_lines
from tunewright.core.types import Branch, Message, PlainText, Sample
from tunewright.data.checks.private import Private, bare, masked, private_values
from tunewright.engine.placement import World
from tunewright.record.events import plain
from tunewright.run.prepare import Plan
from tunewright.text.rendered import CannotRender

if TYPE_CHECKING:
    from tunewright.engine.opening import Loaded
    from tunewright.text.renderer import Renderer

FILE = "memorised.jsonl"
MOST, MOST_TOKENS = 12, 256
"""Values that are tried, and the tokens of a row up to its value."""
SEARCHED = 5000
"""Rows that are searched for them, spread over all."""
TEXT_BEFORE = 300
"""Characters of running text that stand before a value."""


class Memorised:
    """The private values of a run's rows, put to what it starts from and to what it saved."""

    def __init__(self, plan: Plan, world: World):
        self.plan, self.world = plan, world
        self.values: list[Private] = []
        self._before: list[float] = []

    def before(self, loaded: Loaded, layout: str, renderer: Renderer) -> None:
        """Look for values, and ask what the run starts from."""
        found = list(_found(self.plan, renderer))
        if found:
            said = self._ask(loaded, layout, [sample for _, sample in found])
            self.values = [one._replace(before=p) for (one, _), p in zip(found, said, strict=True)]
            self._write()

    def take_up(self) -> None:
        """Read what the start said from the folder of a run that is taken up again."""
        try:
            self.values = [Private(**row) for row in read_json_lines(self.plan.out / FILE)]
        except (OSError, ValueError, TypeError):
            self.values = []

    def after(self, loaded: Loaded, layout: str, renderer: Renderer) -> None:
        """Ask what was saved and loaded afresh. Only values that were tried before are tried."""
        if not self.values:
            return
        tried = {(one.row, one.value): one for one in self.values}
        found = [
            (tried[one.row, one.value], sample)
            for one, sample in _found(self.plan, renderer)
            if (one.row, one.value) in tried
        ]
        said = self._ask(loaded, layout, [sample for _, sample in found])
        self.values = [one._replace(after=p) for (one, _), p in zip(found, said, strict=True)]
        self._write()

    def _ask(self, loaded: Loaded, layout: str, samples: list[Sample]) -> list[float]:
        """The probability of each value after its row up to it."""
        from tunewright.evaluate.logprobs import logprobs_of

        rows = [Sample(one.branches, i) for i, one in enumerate(samples)]
        passes = self.world.rows_per_pass
        found = logprobs_of(loaded, rows, layout_name=layout, rows_per_pass=passes, exact=True)
        nats = [sum(branches[0]) for branches in found]
        return [math.exp(min(0.0, one)) if math.isfinite(one) else 0.0 for one in nats]

    def _write(self) -> None:
        write_json_lines(self.plan.out / FILE, (plain(one._asdict()) for one in self.values))


def _found(plan: Plan, renderer: Renderer) -> Iterator[tuple[Private, Sample]]:
    """Different values that rows taught, each with its row up to it."""
    from tunewright.run.evaluation import learnt_turns

    rows, seen = plan.data.train_rows, set[str]()
    step = max(1, math.ceil(len(rows) / SEARCHED))
    for i in range(0, len(rows), step):
        for before, text in learnt_turns(rows[i]):
            for kind, value in private_values(text):
                if len(seen) == MOST:
                    return
                known = any(bare(value) in bare(m.content) for m in before)
                if known or bare(value) in seen or bare(value) in bare(text.partition(value)[0]):
                    continue
                sample = _sample(renderer, before, text, value)
                if sample is not None:
                    seen.add(bare(value))
                    yield Private(kind, masked(value), str(rows[i].origin)), sample


def _sample(renderer: Renderer, before: list[Message], text: str, value: str) -> Sample | None:
    """The tokens of a row up to the end of `value`, which is what is predicted; None where it
    cannot be told which tokens those are."""
    end = text.index(value) + len(value)
    try:
        if before:
            made: Any = renderer.render([*before, Message("assistant", text[:end])])
        else:
            made = renderer.render_text(PlainText(text[max(0, end - TEXT_BEFORE) : end], None))  # type: ignore[arg-type]  # no origin is asked for
    except CannotRender:
        return None
    first, after = made.spans[-1]
    ids = made.ids[:after]
    said = renderer.decode(ids[first:])
    start = said.rfind(value)
    if start < 0 or len(ids) > MOST_TOKENS:
        return None
    low = _token_at(renderer, ids, first, start)
    high = _token_at(renderer, ids, first, start + len(value) - 1) + 1
    if low < 1 or high <= low:
        return None
    return Sample([Branch(ids[:high], list(range(low, high)), [1.0] * (high - low))], 0)


def _token_at(renderer: Renderer, ids: list[int], first: int, character: int) -> int:
    """The token of `ids[first:]` that holds a character of their text."""
    low, high = first, len(ids) - 1
    while low < high:
        middle = (low + high) // 2
        if len(renderer.decode(ids[first : middle + 1])) > character:
            high = middle
        else:
            low = middle + 1
    return low
