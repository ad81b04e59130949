"""A few blocks of the run's own model, with made-up weights, take the run's first steps: what a
step costs on this machine, measured before any weight is read.

Counting operations and dividing by the rate of a large matrix product says what a step would take
on a machine that does nothing else than multiply. A small model's step is also norms, copies,
hundreds of short products, kernels that are compiled for every new number of rows, and whatever
the method adds. So the engine itself is asked (`trial_steps.py`); what it says is a `Trial`
(`tried.py`).

Takes about `SECONDS`; what was found is kept under everything that decides it.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.advise.speed import BUSY_SECONDS, Rates
from tunewright.advise.trial_steps import SECONDS, measured
from tunewright.advise.tried import Trial
from tunewright.advise.watching import Watch, bytes_of, tensors_of
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

LEAST_BLOCKS, FEW_BLOCKS = 5, 6
"""Blocks of a trial: at least, and up to which number a model is tried whole."""
MOST_BLOCKS, MOST_STEPS = 12, 8
LEAST_ROWS = 64
"""Rows of a pass that says anything."""
KERNELS_TRIED = 16
MOST_DAYS = 30
"""How long a trial counts; one that was made while other programs held the processors counts for
`BUSY_SECONDS` only."""
MOST_WEIGHTS = 4e8
"""Weights that are made up at most."""


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
        found = measured(opened, chosen, watched, blocks)
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


__all__ = ["Asked", "Trial", "blocks_for", "find"]
