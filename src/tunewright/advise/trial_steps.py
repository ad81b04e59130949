"""The first steps of a run, taken by a few blocks and timed part by part: learning, drawing,
updating, reading what is not learnt, answering questions.

Blocks of one model cost alike: the time of those between the first and the last of a few, and what
autograd keeps of them, stand for all; the rest of a step (embedding, first and last block, head,
loss) is measured as it is. What draws or answers does so without hooks, in the way of a run.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tunewright.advise.tried import Trial
from tunewright.advise.watching import Watch, counting
from tunewright.core.machine import live_bytes
from tunewright.core.types import Sample

if TYPE_CHECKING:
    from tunewright.engine.opening import Ready

SECONDS = 2.5
"""Most that the steps of a trial take, as far as that can be foreseen."""
QUESTIONS, ROW_TOKENS, MORE_TOKENS = 4, 16, 8
"""Questions that are answered, tokens of one whose row has no answer, and tokens that are written
more than at least."""


@dataclass
class _Step:
    """What one step took: seconds in all, of its update and of drawing answers; what it computed;
    seconds in each block, forward and backward; bytes that live in the heap at its end."""

    whole: float
    update: float
    draw: float
    rows: int
    labels: int
    passes: int
    forward: list[float]
    backward: list[float]
    live: int


def measured(opened: Ready, chosen: list[list[Sample]], watch: Watch, blocks: int) -> Trial:
    """What the blocks of a model that was opened take for the samples of its first steps.

    Leaves out what only who made the blocks knows: bytes of weights, moments and products.
    """
    drawn = _drawing(opened, watch)
    taken = _take(opened, chosen, watch, drawn)
    watch.reset()  # what follows is no part of the last step
    peak, pass_rows = _most_alive(opened, chosen[: len(taken)], taken)
    kept, first, later = watch.kept_at_most(), taken[0], taken[1:] or taken
    rows = _mean([step.rows for step in later])
    whole, update = _mean([s.whole for s in later]), _mean([s.update for s in later])
    draw = _mean([s.draw for s in later])
    learns = [n for n in _middle(blocks) if watch.learns[n]]
    block, still = _of_a_block(later, learns, watch, blocks, rows)
    gc.collect()
    before = live_bytes()
    start, start_first, start_block = _starting(opened, chosen, watch, blocks)
    read, read_first, read_block, read_draw = _reading(opened, chosen[-1], watch, blocks, drawn)
    watch.leave()
    ask, token = _answering(opened, chosen)
    gc.collect()  # packed weights lie in a cycle
    return Trial(
        blocks=blocks,
        rows=rows,
        labels=_mean([step.labels for step in later]),
        passes=_mean([step.passes for step in later]),
        seconds=whole - update - draw,
        block_seconds=block,
        learning_blocks=len(learns),
        still_blocks=watch.learns.count(False),
        still_seconds=still,
        first_seconds=max(0.0, first.whole - whole * first.rows / max(1.0, rows)),
        update_seconds=update,
        trainable=opened.trainable,
        read_seconds=read,
        read_first_seconds=read_first,
        read_samples=len(chosen[-1]),
        read_block_seconds=read_block,
        start_seconds=start,
        start_first_seconds=start_first,
        start_block_seconds=start_block,
        draw_seconds=draw,
        read_draw_seconds=read_draw,
        ask_seconds=ask,
        token_seconds=token,
        block_bytes=_mean([kept[n] for n in learns]),
        rest_bytes=sum(kept) - sum(kept[n] for n in learns),
        pass_rows=first.rows / max(1, first.passes),
        peak_bytes=peak,
        peak_rows=pass_rows,
        first_kernels=first.live,
        pass_kernels=_of_a_new_pass(taken),
        read_kernels=max(0.0, live_bytes() - before),
    )


class _Spent:
    """Seconds of one kind of work since they were last taken."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Inside, time counts."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - start

    def take(self) -> float:
        """What was counted; from here on it counts anew."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def _drawing(opened: Ready, watch: Watch) -> _Spent:
    """What the stepper will spend on drawing answers, which it does in the way of a run: without
    the hooks, with which a block draws in a slower way and compiles other products."""
    stepper, spent = opened.stepper, _Spent()
    # Rewarded answers, and answers of one's own that are learnt from.
    for name in ("draw_and_judge", "draw"):
        function = getattr(stepper, name, None)
        if function is not None:
            setattr(stepper, name, _within(function, spent.counting, watch.away))
            break
    return spent


def _take(opened: Ready, chosen: list[list[Sample]], watch: Watch, drawn: _Spent) -> list[_Step]:
    """Take the steps of `chosen`, three of them and as many more as there is time for."""
    stepper, learnt = opened.stepper, _Spent()
    stepper.gradients = _within(stepper.gradients, learnt.counting)  # type: ignore[method-assign]
    taken: list[_Step] = []
    begin = time.perf_counter()
    for number, samples in enumerate(chosen, 1):
        watch.reset()
        start = time.perf_counter()
        with watch.keeping() if number == 1 else contextlib.nullcontext():
            report = stepper.step(samples, number, 1e-6)
        whole, draw, learning = time.perf_counter() - start, drawn.take(), learnt.take()
        watch.forget()
        taken.append(
            _Step(
                whole,
                whole - learning - draw,
                draw,
                report.physical_rows,
                report.label_tokens,
                report.passes,
                watch.forward,
                watch.backward,
                live_bytes(),
            )
        )
        if number >= 3 and time.perf_counter() - begin > SECONDS * number / (number + 1):
            break
    return taken


def _most_alive(
    opened: Ready, chosen: Sequence[list[Sample]], taken: Sequence[_Step]
) -> tuple[int, float]:
    """(most bytes that live in a step besides what lives before it, rows of its pass), of the step
    with the largest passes, taken once more: its products are compiled."""
    number = max(range(len(taken)), key=lambda n: taken[n].rows / max(1, taken[n].passes))
    before = live_bytes()
    with counting() as most:
        report = opened.stepper.step(chosen[number], len(taken) + 1, 1e-6)
    rows = report.physical_rows / max(1, report.passes)
    return (max(0, most.live - before) if before else 0), rows


def _of_a_new_pass(taken: Sequence[_Step]) -> float:
    """Bytes of what a pass compiles whose number of rows is new: the median of the steps after the
    first."""
    grown = [(now.live - last.live, now) for last, now in pairwise(taken) if now.rows != last.rows]
    return max(0.0, _median([more / max(1, step.passes) for more, step in grown]))


def _of_a_block(
    steps: Sequence[_Step], learns: list[int], watch: Watch, blocks: int, rows: float
) -> tuple[float, float]:
    """Seconds of `rows` rows in a block that learns, and in one that is only passed forward. The
    median: what other programs do in a moment is no part of a block."""
    counted = [(step, rows / step.rows) for step in steps if step.rows]
    warm = [n for n in learns if n < blocks - 2] or learns
    still = [n for n in _middle(blocks) if not watch.learns[n]]
    return (
        _median([f * (s.forward[n] + s.backward[n]) for s, f in counted for n in warm]),
        _median([f * s.forward[n] for s, f in counted for n in still]),
    )


def _reading(
    opened: Ready, samples: list[Sample], watch: Watch, blocks: int, drawn: _Spent
) -> tuple[float, float, float, float]:
    """(seconds of reading samples without learning, what that takes longer the first time, seconds
    of it in one block, seconds of it in drawing answers)."""
    spent, draw = [], 0.0
    for _ in range(2):
        watch.reset()
        drawn.take()
        start = time.perf_counter()
        opened.stepper.held_out(samples, {})
        spent.append(time.perf_counter() - start)
        draw = drawn.take()
    block = _mean([watch.forward[n] for n in _middle(blocks)])
    return spent[1], max(0.0, spent[0] - spent[1]), block, draw


def _starting(
    opened: Ready, chosen: list[list[Sample]], watch: Watch, blocks: int
) -> tuple[float, float, float]:
    """The three `start_...` of a trial. These passes fuse what a learning pass may not, and measure
    nothing else."""
    stepper = opened.stepper
    store = stepper.policy.reference
    if store is None:
        return 0.0, 0.0, 0.0
    samples, spent = chosen[-1], []
    stepper.policy.reference = None
    for _ in range(2):
        watch.reset()
        begin = time.perf_counter()
        store.fill(stepper.policy, samples, stepper.rows_per_pass, again=True)
        spent.append(time.perf_counter() - begin)
    stepper.policy.reference = store
    block = _mean([watch.forward[n] for n in _middle(blocks)])
    return spent[1], max(0.0, spent[0] - spent[1]), block


def _answering(opened: Ready, chosen: list[list[Sample]]) -> tuple[float, float]:
    """(seconds to begin answering a few questions, seconds of one more token of each). Zeros where
    nothing can be answered."""
    from tunewright.engine.decoding.batch import Ask
    from tunewright.engine.decoding.writer import Writer
    from tunewright.engine.policy import Policy

    branches = [sample.branches[0] for sample in chosen[0][:QUESTIONS]]
    prompts = [b.tokens[: b.learnt[0]] if b.learnt else b.tokens[:ROW_TOKENS] for b in branches]
    prompts = [list(prompt) for prompt in prompts if len(prompt)]
    if not prompts or "score" in opened.stepper.policy.heads:
        return 0.0, 0.0
    layout = "any" if opened.attached is None else opened.attached.needs.layout
    opened.model.eval()
    # No stop tokens: made-up weights end an answer by accident.
    writer = Writer(Policy(opened.model, opened.causal, "tree"), frozenset(), needs_layout=layout)
    spent = []
    for tokens in (1, 2, 2 + MORE_TOKENS):
        start = time.perf_counter()
        writer.write([Ask(prompt, tokens) for prompt in prompts])
        spent.append(time.perf_counter() - start)
    writer.forget()
    return spent[0] + spent[1], max(0.0, spent[2] - spent[1]) / MORE_TOKENS


def _middle(blocks: int) -> list[int]:
    """Blocks that stand for all: neither the first, in which kernels are compiled and below which
    no gradient is asked for, nor the last, which leaves out rows that nobody reads. On the way back
    the kernels for all rows are compiled in the one before the last, whose seconds count for itself
    alone."""
    return list(range(1, blocks - 1))


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _within(function: Any, *around: Callable[[], contextlib.AbstractContextManager[None]]) -> Any:
    """The function, run inside of what each of `around` opens."""

    def wrapped(*given: Any, **named: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for one in around:
                stack.enter_context(one())
            return function(*given, **named)

    return wrapped
