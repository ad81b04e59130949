"""Which samples a step sees and how fast it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.config import EngineConfig
from tunewright.engine.schedule import (
    Schedule,
    batch_size_for,
    learning_rate_for,
    make_schedule,
    measuring_of,
    total_steps,
)


def schedule(num_samples: int = 10, **engine: object) -> Schedule:
    return make_schedule(EngineConfig(**{"batch_size": 4, "epochs": 2, **engine}), num_samples, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.integers(0, 5))
def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own(
    num: int, batch: int, epochs: int, seed: int
) -> None:
    plan = schedule(num, batch_size=batch, epochs=epochs, seed=seed)
    assert plan.total_steps == epochs * math.ceil(num / batch)
    steps = [plan.samples_of(k) for k in range(1, plan.total_steps + 1)]
    orders = []
    for e in range(epochs):
        seen = [
            i
            for step in steps[e * plan.steps_per_epoch : (e + 1) * plan.steps_per_epoch]
            for i in step
        ]
        assert sorted(seen) == list(range(num))
        orders.append(tuple(seen))
    assert all(0 < len(step) <= batch for step in steps)
    if num >= 12 and epochs > 1:
        assert len(set(orders)) > 1


def test_a_step_can_be_asked_for_alone_so_a_resumed_run_sees_the_same_rows() -> None:
    forward = schedule()
    steps = [forward.samples_of(k) for k in range(1, 7)]
    backward = schedule()
    assert [backward.samples_of(k) for k in range(6, 0, -1)] == steps[::-1]
    assert schedule(seed=1).samples_of(1) != steps[0]


def test_the_caller_cannot_spoil_the_order_of_later_steps() -> None:
    plan = schedule()
    first = plan.samples_of(1)
    first.reverse()
    assert plan.samples_of(1) == first[::-1]


@pytest.mark.parametrize(
    ("engine", "steps"),
    [({"epochs": 1}, 3), ({"epochs": 0.1}, 1), ({"epochs": 1.5}, 5), ({"epochs": 2 / 3}, 2), ({"epochs": 3, "steps": 7}, 7), ({"batch_size": 100}, 2)],
)  # fmt: skip
def test_steps_are_whole_and_never_none(engine: dict[str, float], steps: int) -> None:
    assert schedule(**engine).total_steps == steps
    assert total_steps(EngineConfig(**{"batch_size": 4, "epochs": 2, **engine}), 10) == steps


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        # Half a cosine from 1 towards 0 over four steps, the first at the peak: (1 + cos(pi k / 4))
        # / 2.
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_rates_by_hand(shape: str, expected: list[float]) -> None:
    plan = schedule(schedule=shape, warmup=2)
    assert [plan.rate(k) for k in range(1, 7)] == pytest.approx(expected, rel=1e-5)


def theirs(steps: int, warmup: int, name: str, **arguments: float) -> list[float]:
    """What Transformers' schedule gives to each step after the warm-up. In the warm-up its first
    step has a rate of 0 and learns nothing; ours has one part of the way."""
    from transformers.optimization import get_scheduler

    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    plan = get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=arguments)
    found = []
    for _ in range(steps):
        found.append(plan.get_last_lr()[0])
        optimizer.step()
        plan.step()
    return found[warmup:]


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize(
    ("ours", "name", "arguments"),
    [
        ({"schedule": "cosine"}, "cosine", {}),
        ({"schedule": "linear"}, "linear", {}),
        ({"schedule": "inverse_sqrt"}, "inverse_sqrt", {}),
        ({"cycles": 3}, "cosine_with_restarts", {"num_cycles": 3}),
        ({"schedule": "linear", "power": 2.0, "least_rate": 0.1}, "polynomial", {"power": 2.0, "lr_end": 0.1}),
        ({"schedule": "wsd", "decay": 9}, "warmup_stable_decay", {"num_decay_steps": 9}),
        ({"schedule": "wsd", "decay": 0.25, "least_rate": 0.2}, "warmup_stable_decay", {"num_decay_steps": 10, "min_lr_ratio": 0.2}),
        ({"schedule": "wsd", "decay": 100}, "warmup_stable_decay", {"num_decay_steps": None}),
    ],
)  # fmt: skip
def test_rates_are_those_of_transformers(
    ours: dict[str, Any], name: str, arguments: dict[str, Any], warmup: int
) -> None:
    if "num_decay_steps" in arguments and arguments["num_decay_steps"] is None:
        arguments = {"num_decay_steps": 40 - warmup}  # a fall that is longer than the run
    plan = schedule(steps=40, warmup=warmup, **ours)
    found = [plan.rate(step) for step in range(warmup + 1, 41)]
    assert found == pytest.approx(theirs(40, warmup, name, **arguments), rel=1e-6)


def test_cosine_falls_to_the_least_rate() -> None:
    from transformers.optimization import get_cosine_schedule_with_warmup

    plan = schedule(steps=40, warmup=0, least_rate=0.1)
    shape = get_cosine_schedule_with_warmup(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 0, 40
    ).lr_lambdas[0]
    assert [plan.rate(k) for k in range(1, 41)] == pytest.approx(
        [0.1 + 0.9 * shape(k) for k in range(40)]
    )


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 200),
    st.floats(0, 300),
    st.sampled_from(["cosine", "linear", "constant", "inverse_sqrt", "wsd"]),
)
def test_a_rate_is_never_zero_never_above_the_peak_and_falls_after_the_warm_up(
    steps: int, warmup: float, shape: str
) -> None:
    plan = schedule(steps=steps, warmup=warmup, schedule=shape)
    rates = [plan.rate(k) for k in range(1, steps + 1)]
    assert all(0 < r <= 1.0 for r in rates)
    rising, falling = rates[: plan.warmup_steps], rates[plan.warmup_steps :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert max(rates) == 1.0


@pytest.mark.parametrize(
    ("warmup", "steps"), [(0, 0), (0.05, 5), (0.004, 0), (1, 1), (7, 7), (500, 100)]
)
def test_warm_up_is_a_share_below_one_and_a_count_from_one_on(warmup: float, steps: int) -> None:
    assert schedule(steps=100, warmup=warmup).warmup_steps == steps


def test_short_runs_learn_faster() -> None:
    assert [learning_rate_for(1.0, steps) for steps in (10, 200, 201, 1000, 1001)] == [
        5.0,
        5.0,
        2.5,
        2.5,
        1.0,
    ]
    assert [learning_rate_for(1.0, steps, 7_000_000_000) for steps in (10, 1000, 1001)] == [
        2.5,
        2.5,
        1.0,
    ]


def test_few_samples_make_small_steps_unless_a_size_is_given() -> None:
    assert [batch_size_for(EngineConfig(), n) for n in (1, 3, 24, 127, 128, 50_000)] == [
        1,
        1,
        3,
        15,
        16,
        16,
    ]
    assert batch_size_for(EngineConfig(batch_size=8), 3) == 8


def test_measuring_costs_little_beside_training_however_many_rows_are_held_out() -> None:
    """500,000 rows with a tenth held out, 16 a step, one epoch: measured in full every 200 steps it
    would be read 140 times, eight times the training."""
    engine = EngineConfig(batch_size=16, epochs=1)
    plan = make_schedule(engine, 450_000, 1.0)
    found = measuring_of(engine, plan, 50_000)
    assert (
        len(found.rows) == 512
        and found.all_at_end
        and found.times == 1 + math.ceil(plan.total_steps / 200)
    )
    assert found.passes == 512 * found.times + 50_000 < 0.1 * 3 * 450_000
    assert (
        measuring_of(engine, plan, 50_000).rows == found.rows
        and measuring_of(EngineConfig(seed=1), plan, 50_000).rows != found.rows
    )
    assert (
        measuring_of(engine, plan, 300).rows == range(300)
        and not measuring_of(engine, plan, 300).all_at_end
    )
    everything = measuring_of(EngineConfig(evaluate_rows=None), plan, 50_000)
    assert (
        len(everything.rows) == 50_000
        and not everything.all_at_end
        and everything.passes == 50_000 * found.times
    )


def test_all_rows_are_measured_at_the_end_only_where_that_takes_under_a_tenth_of_the_training() -> (
    None
):
    """One step of 16 rows costs 48 passes, so 100 steps allow 480 rows to be read; a reference
    reads each of them a second time."""
    engine = EngineConfig(batch_size=16, steps=100, evaluate_rows=8)
    plan = make_schedule(engine, 10_000, 1.0)
    assert (
        measuring_of(engine, plan, 480).all_at_end
        and not measuring_of(engine, plan, 481).all_at_end
    )
    assert (
        measuring_of(engine, plan, 240, reference=True).all_at_end
        and not measuring_of(engine, plan, 241, reference=True).all_at_end
    )
    assert measuring_of(engine, plan, 0).times == 0
