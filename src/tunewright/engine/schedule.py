"""Which samples a step sees and how fast it learns: pure functions of the step number, so a resumed
run needs no stored cursor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tunewright.core.config import EngineConfig
from tunewright.core.seeds import permutation

END_SHARE = 0.1
"""All held-out rows are measured at the end where that costs at most this share of the training."""
LEARNING_COST = 3
"""What learning from a row costs, in passes that only measure it: forward, and twice as much
backward."""


@lru_cache(maxsize=2)
def _order(seed: int, num_samples: int, epoch: int) -> list[int]:
    # Kept, because a shuffle of a million rows at every step would take longer than the step.
    return permutation(seed, "order", num_samples, epoch)


@dataclass(frozen=True)
class Schedule:
    """The plan of a run: `total_steps` steps over `num_samples` samples."""

    num_samples: int
    batch_size: int
    total_steps: int
    peak: float
    shape: str
    warmup_steps: int
    seed: int
    least: float = 0.0
    """Share of `peak` that is left at the end."""
    cycles: int = 1
    decay_steps: int = 0
    """Steps over which `wsd` falls."""
    power: float = 1.0

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in which every sample is seen once; the last one may be smaller."""
        return math.ceil(self.num_samples / self.batch_size)

    @property
    def epochs(self) -> float:
        """Times every sample is seen."""
        return self.total_steps / self.steps_per_epoch

    def samples_of(self, step: int) -> list[int]:
        """Indices of the samples of step 1, 2, ...; every epoch has an order of its own."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        order = _order(self.seed, self.num_samples, epoch)
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def rate(self, step: int) -> float:
        """Learning rate of step 1, 2, ...: a linear warm-up to `peak`, then the chosen fall; the
        last step still learns."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        if self.shape == "constant":
            return self.peak
        if self.shape == "inverse_sqrt":
            # As Transformers has it: without a warm-up the time scale is 10,000 steps.
            scale = self.warmup_steps or 10_000
            return self.peak * math.sqrt(scale / (scale + step - 1 - self.warmup_steps))
        falling = self.total_steps - self.warmup_steps
        if self.shape == "wsd":
            falling = min(falling, self.decay_steps)
        left = min(1.0, (self.total_steps - step + 1) / max(1, falling))
        if self.shape == "linear":
            share = left**self.power
        else:
            if self.cycles > 1:
                left = 1 - self.cycles * (1 - left) % 1.0
            share = 0.5 * (1 - math.cos(math.pi * left))
        return self.peak * (self.least + (1 - self.least) * share)


def batch_size_for(engine: EngineConfig, num_samples: int) -> int:
    """`engine.batch_size`, or an eighth of the samples between 1 and 16: three rows in steps of 16
    would be learnt in one step an epoch, which is too few."""
    return min(16, max(1, num_samples // 8)) if engine.batch_size == "auto" else engine.batch_size


def total_steps(engine: EngineConfig, num_samples: int) -> int:
    """Steps of the whole run: `engine.steps`, else epochs times steps per epoch, rounded up."""
    if engine.steps:
        return engine.steps
    per_epoch = math.ceil(num_samples / batch_size_for(engine, num_samples))
    return max(1, math.ceil(engine.epochs * per_epoch - 1e-9))


def make_schedule(engine: EngineConfig, num_samples: int, peak: float) -> Schedule:
    """The schedule of a run with `peak` as its resolved learning rate."""
    steps = total_steps(engine, num_samples)
    warmup, decay = (
        round(part * steps) if part < 1 else int(part) for part in (engine.warmup, engine.decay)
    )
    return Schedule(
        num_samples,
        batch_size_for(engine, num_samples),
        steps,
        peak,
        engine.schedule,
        min(warmup, steps),
        engine.seed,
        least=engine.least_rate,
        cycles=engine.cycles,
        decay_steps=max(1, decay),
        power=engine.power,
    )


def learning_rate_for(method_rate: float, steps: int, parameters: int = 0) -> float:
    """The rate that suits a method whose usual rate is `method_rate` in a run of `steps` steps on a
    model of `parameters` parameters.

    A short run at the usual rate barely moves the weights: AdamW moves a weight by about rate *
    steps. So short runs get a higher rate; models above 2 billion parameters, whose wide layers add
    up more of these moves, get at most 2.5 times the usual one.
    """
    factor = 5.0 if steps <= 200 else 2.5 if steps <= 1000 else 1.0
    return method_rate * (min(factor, 2.5) if parameters > 2e9 else factor)


def steps_between(setting: int | str | None, schedule: Schedule) -> int:
    """`save_every` or `evaluate_every` in steps; 0 for never before the end."""
    if setting == "epoch":
        return schedule.steps_per_epoch
    if setting == "auto":
        return min(200, max(10, schedule.total_steps // 10))
    return int(setting or 0)


@dataclass(frozen=True)
class Measuring:
    """Which held-out rows are measured. `rows` while the run learns, `times` in all; `all_at_end`:
    every held-out row once more at the end."""

    rows: Sequence[int]
    times: int
    all_at_end: bool
    passes: int
    """Rows that are read without being learnt, over the whole run: what measuring costs."""


def measuring_of(
    engine: EngineConfig,
    schedule: Schedule,
    num_held_out: int,
    *,
    reference: bool = False,
    rollouts: Any = None,
) -> Measuring:
    """The plan of measurements, a function of numbers that are known before the first step, so that
    a resumed run keeps to it.

    With `reference` every row that is measured is also read once by the model of step 0. `rollouts`
    says how many answers a row is learnt from.
    """
    most = num_held_out if engine.evaluate_rows is None else min(engine.evaluate_rows, num_held_out)
    rows: Sequence[int] = range(num_held_out)
    if most < num_held_out:
        rows = sorted(permutation(engine.seed, "measured", num_held_out)[:most])
    every = steps_between(engine.evaluate_every, schedule)
    times = (1 + math.ceil(schedule.total_steps / every) if every else 2) if most else 0
    once = 1 + reference
    answers = rollouts.num_answers if rollouts is not None else 1
    training = LEARNING_COST * answers * schedule.batch_size * schedule.total_steps
    rest = most < num_held_out and once * num_held_out <= END_SHARE * training
    return Measuring(
        rows,
        times,
        rest,
        most * times + reference * (num_held_out if rest else most) + (num_held_out if rest else 0),
    )
