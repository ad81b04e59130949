"""A few blocks of the run's own model, with made-up weights, take the run's first steps: what a
step costs on this machine, measured before any weight is read.

Counting operations and dividing by the rate of a large matrix product says what a step would take
on a machine that does nothing else than multiply. A small model's step is also norms, copies,
hundreds of short products, kernels that are compiled for every new number of rows, and whatever
the method adds. So the engine itself is asked. Blocks of one model cost alike: the time of those
between the first and the last of a few, and what autograd keeps of them, stand for all; the rest of
a step (embedding, first and last block, head, loss) is measured as it is.

Takes about `SECONDS`; what was found is kept under everything that decides it.
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.advise.speed import BUSY_SECONDS, Rates
from tunewright.advise.watching import Watch, bytes_of, counting, tensors_of
from tunewright.core import faults, findings
from tunewright.core.config import RunConfig
from tunewright.core.errors import TunewrightError
from tunewright.core.machine import fingerprint, live_bytes, resident_bytes
from tunewright.core.stopwatch import Laps
from tunewright.core.telling import Quiet
from tunewright.core.types import Objective, Sample
from tunewright.engine.schedule import make_schedule
from tunewright.models.shape import ModelShape
from tunewright.sources import headers
from tunewright.sources.fingerprint import judged_by

if TYPE_CHECKING:
    from tunewright.engine.opening import Ready
    from tunewright.engine.placement import World

SECONDS = 2.5
"""Most that the steps of a trial take, as far as that can be foreseen."""
LEAST_BLOCKS, FEW_BLOCKS = 5, 6
"""Blocks of a trial: at least, and up to which number a model is tried whole."""
MOST_BLOCKS, MOST_STEPS = 12, 8
LEAST_ROWS = 64
"""Rows of a pass that says anything."""
KERNELS_TRIED = 16
QUESTIONS, ROW_TOKENS, MORE_TOKENS = 4, 16, 8
"""Questions that are answered, tokens of one whose row has no answer, and tokens that are written
more than at least."""
MOST_DAYS = 30
"""How long a trial counts; one that was made while other programs held the processors counts for
`BUSY_SECONDS` only."""
MOST_WEIGHTS = 4e8
"""Weights that are made up at most."""


@dataclass(frozen=True)
class Trial:
    """What a few blocks took. Rows are token rows of a step as it was tried."""

    blocks: int
    rows: float
    """Mean of the steps after the first."""
    labels: float
    passes: float
    seconds: float
    """Of a step without its update, all tried blocks; mean of the steps after the first."""
    block_seconds: float
    """Of it, in one block that learns or lets a gradient through."""
    learning_blocks: int
    """Blocks among the tried ones that `block_seconds` and `block_bytes` are the mean of."""
    still_blocks: int
    """Blocks of the tried ones that are only passed forward."""
    still_seconds: float
    """In one of these."""
    first_seconds: float
    """What the first step took longer."""
    update_seconds: float
    trainable: int
    read_seconds: float
    """Of reading `read_samples` samples without learning, all tried blocks."""
    read_first_seconds: float
    """What that took longer the first time."""
    read_samples: float
    read_block_seconds: float
    start_seconds: float
    """Of reading `read_samples` samples for what the model at step 0 says of them, all tried
    blocks; 0 where the objective does not ask."""
    start_first_seconds: float
    """What that took longer the first time."""
    start_block_seconds: float
    draw_seconds: float
    """Of drawing answers in a step, where the objective does."""
    ask_seconds: float
    """Of beginning to answer a few questions: reading them, and laying out the weights."""
    token_seconds: float
    """Of one more token of all their answers."""
    block_bytes: float
    """What autograd keeps of one block in the largest pass of the first step."""
    rest_bytes: float
    """What it keeps outside of the blocks that stand for all."""
    pass_rows: float
    """Rows of that pass."""
    peak_rows: float = 0.0
    """Rows of the pass of `peak_bytes`."""
    process_bytes: int = 0
    """Resident set of this process before the blocks were made; 0 where the system does not say."""
    peak_bytes: int = 0
    """Most bytes that live in a pass of `peak_rows` rows beside weights, moments and compiled
    products: activations, gradients, temporaries of head and loss. 0 where the system does not say.
    """
    first_kernels: float = 0.0
    """Bytes of the products that are compiled in the first pass."""
    pass_kernels: float = 0.0
    """Of those that a later pass compiles, for its new number of rows."""
    read_kernels: float = 0.0
    """Of those that passes which learn nothing, and answers, compile besides."""
    kernel_bytes: float = 0.0
    """Bytes of one compiled product."""
    gradient_bytes: float = 0.0
    """Of the gradients, for all tried blocks; a part of `state_bytes`."""
    block_weights: float = 0.0
    """Bytes of one block, with what the method puts into it."""
    rest_weights: float = 0.0
    """Bytes of everything outside of the blocks."""
    state_bytes: float = 0.0
    """Of gradients, moments and wide copies of what trains, for all tried blocks."""
    layout: str = "tree"
    busy: bool = False
    """Other programs held the processors meanwhile."""


@dataclass(frozen=True)
class Asked:
    """The run whose steps are tried: what `engine.opening.to_train` needs, but for weights."""

    config: RunConfig
    folder: Path
    world: World
    objective: Objective
    samples: Sequence[Sample]
    renderer: Any


def find(asked: Asked, shape: ModelShape, rates: Rates, *, measure: bool) -> Trial | None:
    """What a few blocks of the run's model took here: as it was kept, or with `measure` found out
    now.

    None where it is not known, would say nothing, cannot be made, or would take much longer than
    `SECONDS`: on a GPU, with a teacher or a judge of its own, with an adapter to go on with, for a
    model whose blocks alone are large.
    """
    config, world = asked.config, asked.world
    if world.device != "cpu" or config.adapter or asked.objective.teacher is not None:
        return None
    if shape.stored_bits and not config.base.dequantise:
        return None  # blocks are made up from plain weights

    def pass_seconds(blocks: int, rows: int) -> float:
        each = shape.active_weights / max(1, shape.layers)
        head = 0.5 * shape.head_weights
        return 4.0 * rows * (blocks * each + head) / (0.5 * rates.flops)

    key = _key(asked)
    kept = findings.read("trial", key)
    if isinstance(kept, dict) and not _stale(kept):
        with contextlib.suppress(TypeError):
            return Trial(**kept["trial"])
    blocks = blocks_for(config, shape, world.rows_per_pass, pass_seconds) if measure else None
    if blocks is None:
        return None
    try:
        found = _tried(asked, shape, blocks, pass_seconds)
    except (TunewrightError, *faults.UNFORESEEN):
        return None  # the run itself will say what is wrong with it
    findings.keep("trial", key, {"at": time.time(), "trial": asdict(found)})
    return found


def _stale(kept: Any) -> bool:
    """Whether what was found must be found again: after `MOST_DAYS`, and soon where other programs
    held the machine."""
    try:
        age, busy = time.time() - float(kept["at"]), bool(kept["trial"].get("busy"))
    except (KeyError, TypeError, ValueError, AttributeError):
        return True
    return not 0 <= age < (BUSY_SECONDS if busy else MOST_DAYS * 24 * 3600)


def _key(asked: Asked) -> dict[str, Any]:
    """Everything that decides what is found: the machine, what computes, the model's sizes, the
    run, and how long its rows are, in steps of a fifth."""
    config, world, samples = asked.config, asked.world, asked.samples
    sizes, _ = headers.read_config(asked.folder / "config.json")
    engine = config.engine
    schedule = make_schedule(engine, len(samples), 0.0)
    first = [samples[i] for number in (1, 2) for i in schedule.samples_of(number)]
    rows = [len(branch.tokens) for sample in first for branch in sample.branches]
    return {
        "machine": fingerprint(),
        "by": judged_by(),
        "threads": world.threads,
        "dtype": world.dtype,
        "model": {k: v for k, v in sizes.items() if not k.startswith("_")},
        "method": config.method.model_dump(mode="json"),
        "objective": config.objective.model_dump(mode="json"),
        "base": config.base.model_dump(mode="json"),
        "engine": [
            schedule.batch_size,
            world.rows_per_pass,
            engine.optimizer,
            engine.layout,
            bool(engine.neftune),
            bool(engine.clip),
        ],
        "rows": [
            len(rows),
            *(round(math.log(max(1, n), 1.2)) for n in (sum(rows), max(rows, default=1))),
        ],
    }


def blocks_for(
    config: RunConfig, shape: ModelShape, rows: int, pass_seconds: Callable[[int, int], float]
) -> int | None:
    """How many blocks are tried; None where even the least would be too many."""
    wanted = getattr(config.method, "blocks", None)
    least = min(shape.layers, max(LEAST_BLOCKS, 2 + (wanted if isinstance(wanted, int) else 0)))
    each = shape.block_weights // max(1, shape.layers)
    outside = shape.head_weights * (1 if shape.tied else 2)
    if outside + least * each > MOST_WEIGHTS or pass_seconds(least, LEAST_ROWS) > SECONDS / 2:
        return None
    if shape.layers <= FEW_BLOCKS:
        return shape.layers
    most = least
    while (
        most < min(shape.layers, MOST_BLOCKS)
        and outside + (most + 1) * each <= MOST_WEIGHTS
        and 3 * pass_seconds(most + 1, rows) < SECONDS / 2
    ):
        most += 1
    return most


def _tried(
    asked: Asked, shape: ModelShape, blocks: int, pass_seconds: Callable[[int, int], float]
) -> Trial:
    from tunewright.engine.opening import to_train
    from tunewright.models import load

    world = replace(asked.world, reasons={}, recompute="none", offload="none")
    engine = asked.config.engine.model_copy(update={"activation_cache": "off"})
    config = asked.config.model_copy(update={"engine": engine})
    kernel = _kernel_bytes(world)
    gc.collect()
    process, began, laps = resident_bytes(), live_bytes(), Laps()
    causal = load.made_up(asked.folder, blocks, dtype=world.torch_dtype(), base=config.base)
    opened = to_train(
        config,
        asked.folder,
        str(asked.folder),
        world,
        asked.objective,
        asked.samples,
        [],
        asked.renderer,
        Quiet(),
        causal=causal,
    )
    chosen = _steps_of(config, asked.samples, opened, world, blocks, pass_seconds)
    _know_the_start(opened, chosen)
    with Watch(opened) as watched:
        found = _measured(opened, chosen, watched, blocks)
    weights, (gradients, held) = _weights(opened, watched.blocks), _state(opened)
    # What lived after the first step besides weights and moments.
    first = found.first_kernels - began - bytes_of(tensors_of(opened)) - held
    return replace(
        found,
        process_bytes=process,
        first_kernels=max(0.0, first),
        kernel_bytes=kernel,
        block_weights=weights[0],
        rest_weights=weights[1],
        state_bytes=gradients + held,
        gradient_bytes=gradients,
        layout=opened.layout,
        busy=laps.lap().disturbed(world.threads),
    )


def _kernel_bytes(world: World) -> float:
    """Bytes that a matrix product of a new size leaves. Takes about 50 ms."""
    import torch

    b = torch.ones(576, 320, dtype=world.torch_dtype())
    # Sizes that no program uses, so that none was compiled before.
    rows = [torch.ones(403 + 2 * n, 576, dtype=b.dtype) for n in range(KERNELS_TRIED + 1)]
    torch.mm(rows[0], b)
    before = live_bytes()
    for a in rows[1:]:
        torch.mm(a, b)
    return max(0.0, (live_bytes() - before) / KERNELS_TRIED)


def _weights(opened: Ready, blocks: Sequence[Any]) -> tuple[float, float]:
    """(bytes of a block, bytes of everything else), as they are held while training."""
    inside = [[*block.parameters(), *block.buffers()] for block in blocks]
    whole = bytes_of(tensors_of(opened))
    each = bytes_of([t for own in inside for t in own]) / max(1, len(blocks))
    return each, whole - each * len(blocks)


def _state(opened: Ready) -> tuple[float, float]:
    """(bytes of gradients, of what the optimiser holds besides the model's own weights)."""
    optimizer = opened.stepper.optimizer
    own = {t.untyped_storage().data_ptr() for t in tensors_of(opened)}
    learns = [p for group in optimizer.param_groups for p in group["params"]]
    held = [
        t
        for state in optimizer.state.values()
        for t in state.values()
        if hasattr(t, "untyped_storage")
    ]
    apart = [t for t in (*learns, *held) if t.untyped_storage().data_ptr() not in own]
    return float(bytes_of(learns)), float(bytes_of(apart))


def _steps_of(
    config: RunConfig,
    samples: Sequence[Sample],
    opened: Ready,
    world: World,
    blocks: int,
    pass_seconds: Callable[[int, int], float],
) -> list[list[Sample]]:
    """The samples of the first steps, each as many as are tried in time."""
    schedule = make_schedule(config.engine, len(samples), 0.0)
    most = min(MOST_STEPS, max(3, schedule.total_steps))
    budget = SECONDS / 3
    found = []
    for number in range(1, most + 1):
        chosen = [samples[i] for i in schedule.samples_of(number)]
        groups = opened.stepper.policy.cut(chosen, world.rows_per_pass)
        some: list[Sample] = []
        spent = 0.0
        for group in groups:
            rows = sum(len(b.tokens) for s in group for b in s.branches)
            spent += pass_seconds(blocks, min(rows, world.rows_per_pass))
            if some and spent > budget:
                break
            some += group
        found.append(some)
    return found


def _know_the_start(opened: Ready, chosen: list[list[Sample]]) -> None:
    """What the model at step 0 says of the samples, for objectives that measure from there."""
    from tunewright.engine.oracles.reference import ReferenceStore

    stepper = opened.stepper
    if stepper.objective.reference:
        more = stepper.objective.companions
        samples = [sample for step in chosen for sample in step]
        store = ReferenceStore({})
        everything = [*samples, *(more(samples, None) if more else [])]
        store.fill(stepper.policy, everything, stepper.rows_per_pass)
        stepper.policy.reference = store


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


def _measured(opened: Ready, chosen: list[list[Sample]], watch: Watch, blocks: int) -> Trial:
    taken = _take(opened, chosen, watch)
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
    read, read_first, read_block = _reading(opened, chosen[-1], watch, blocks)
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


def _take(opened: Ready, chosen: list[list[Sample]], watch: Watch) -> list[_Step]:
    """Take the steps of `chosen`, three of them and as many more as there is time for."""
    stepper = opened.stepper
    parts = {"gradients": 0.0, "draw": 0.0}
    stepper.gradients = _timed(stepper.gradients, parts, "gradients")  # type: ignore[method-assign]
    if hasattr(stepper, "draw_and_judge"):
        stepper.draw_and_judge = _timed(stepper.draw_and_judge, parts, "draw")
    taken: list[_Step] = []
    begin = time.perf_counter()
    for number, samples in enumerate(chosen, 1):
        watch.reset()
        parts |= dict.fromkeys(parts, 0.0)
        start = time.perf_counter()
        with watch.keeping() if number == 1 else contextlib.nullcontext():
            report = stepper.step(samples, number, 1e-6)
        whole = time.perf_counter() - start
        watch.forget()
        taken.append(
            _Step(
                whole,
                whole - parts["gradients"] - parts["draw"],
                parts["draw"],
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
    opened: Ready, samples: list[Sample], watch: Watch, blocks: int
) -> tuple[float, float, float]:
    """(seconds of reading samples without learning, what that takes longer the first time, seconds
    of it in one block)."""
    spent = []
    for _ in range(2):
        watch.reset()
        start = time.perf_counter()
        opened.stepper.held_out(samples, {})
        spent.append(time.perf_counter() - start)
    block = _mean([watch.forward[n] for n in _middle(blocks)])
    return spent[1], max(0.0, spent[0] - spent[1]), block


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


def _timed(function: Any, into: dict[str, float], name: str) -> Any:
    def timed(*given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            into[name] += time.perf_counter() - start

    return timed
