"""A few blocks in place of a model: what they hold is what the whole model holds, and what was found
is found again."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import story as helper

from tunewright.advise import fit, memory, speed, trial, watching
from tunewright.core.machine import live_bytes
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.engine.opening import to_train
from tunewright.run import decided
from tunewright.run.prepare import Plan, prepare

RATES = speed.Rates(1e11, 1e10, 1e-6, 1e-4)
LAYERS = 9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helper.model_folder(tmp_path_factory.mktemp("trial-model"), num_hidden_layers=LAYERS)


@pytest.fixture
def planned(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "MOST_BLOCKS", 5)
    rows = helper.rows_file(tmp_path / "rows.json", 24)

    def make(**more: Any) -> Plan:
        given = {
            "model": str(model), "data.train": str(rows), "engine.threads": 1, "engine.dtype": "float32", "engine.batch_size": 4,
            "probes": 2, **more,
        }  # fmt: skip
        parsed = parse_run(given, dict.fromkeys(given, "test"))
        return prepare(parsed, Quiet(), out_matters=False)

    return make


def tried(plan: Plan, *, measure: bool = True) -> trial.Trial | None:
    world = decided.place(plan)
    asked = trial.Asked(
        plan.config, plan.source.folder, world, plan.objective, plan.data.train, plan.renderer
    )
    return trial.find(asked, plan.shape, RATES, measure=measure)


def opened(plan: Plan) -> Any:
    """The whole model with the run's method, as `train` opens it."""
    config = plan.config.model_copy(
        update={"engine": plan.config.engine.model_copy(update={"activation_cache": "off"})}
    )
    return to_train(
        config, plan.source.folder, "base", decided.place(plan), plan.objective, plan.data.train, [], plan.renderer, Quiet()
    )  # fmt: skip


@pytest.mark.wide("lora", "full bfloat16", rest="slow")
@pytest.mark.parametrize(
    "settings",
    [
        {"method.kind": "lora"},
        {"method.kind": "full"},
        {"method.kind": "dora"},
        {"method.kind": "houlsby"},
        {"method.kind": "lora", "engine.dtype": "bfloat16"},
        {"method.kind": "full", "engine.dtype": "bfloat16"},
        {"method.kind": "lora", "base.bits": 4},
    ],
    ids=lambda s: " ".join(map(str, s.values())),
)
def test_weights_state_and_kept_bytes_are_those_of_the_whole_model(
    planned: Any, settings: dict[str, Any]
) -> None:
    import torch

    plan = planned(**settings)
    found = tried(plan)
    assert found is not None and 4 <= found.blocks < LAYERS
    more = LAYERS - found.blocks
    whole = opened(plan)
    # Tensor by tensor: few-bit weights are views of a mapped file, whose header is not theirs.
    weights = sum({t.data_ptr(): t.nbytes for t in watching.tensors_of(whole)}.values())
    assert found.rest_weights + LAYERS * found.block_weights == pytest.approx(weights, rel=0.01)

    batch = [plan.data.train[i] for i in whole.schedule.samples_of(1)]
    watch = watching.Watch(whole)
    with watch, watch.keeping():
        whole.stepper.policy.model.train()
        whole.stepper.policy(batch)
    kept = sum(watch.kept_at_most())
    counted = found.rest_bytes + (found.learning_blocks + more) * found.block_bytes
    assert counted == pytest.approx(kept, rel=0.02)

    whole.stepper.step(batch, 1, 1e-4)
    state = found.state_bytes * whole.trainable / found.trainable
    assert state == pytest.approx(sum(trial._state(whole)), rel=0.02)
    assert torch.get_num_threads() == 1


def test_what_stays_still_is_told_from_what_learns(planned: Any) -> None:
    found = tried(planned(**{"method.kind": "freeze", "method.blocks": 2}))
    assert found is not None and found.still_blocks >= 1 and found.learning_blocks >= 1
    assert found.still_seconds > 0 and found.block_seconds > 0

    class Watched:
        learns = [False, False, True, True, True]

    # Three rows of ten; in the middle one still block and one that learns count.
    step = trial._Step(9.0, 1.0, 0.0, 30, 9, 1, [5, 2, 3, 8, 8], [5, 0, 4, 9, 8], 0)
    seconds = trial._of_a_block([step], [2, 3], Watched(), 5, 10)
    assert seconds == (pytest.approx((3 + 4) / 3), pytest.approx(2 / 3))


@pytest.mark.parametrize("kind", ["dpo", "orpo", "reward"])
def test_objectives_of_pairs_are_tried(planned: Any, tmp_path: Path, kind: str) -> None:
    rows = [
        {"instruction": f"what is it {i}", "chosen": f"a small model {i}", "rejected": "no"}
        for i in range(12)
    ]
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(rows))
    found = tried(planned(**{"data.train": str(file), "objective.kind": kind}))
    assert found is not None and found.seconds > 0 and found.read_seconds > 0
    # What the model at step 0 says is asked by the objective that compares with it.
    assert (found.start_seconds > 0) is (found.start_block_seconds > 0) is (kind == "dpo")


def test_a_block_takes_no_longer_than_what_it_is_a_part_of(
    planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    of_a_block = trial._of_a_block
    monkeypatch.setattr(
        trial, "_of_a_block", lambda steps, *more: (seen.extend(steps), of_a_block(steps, *more))[1]
    )
    found = tried(planned(**{"method.kind": "ia3"}))
    assert found is not None and len(seen) >= 2
    for step in seen:
        assert 0 < sum(step.forward) + sum(step.backward) < step.whole
    assert 0 < (found.blocks - 2) * found.read_block_seconds < found.read_seconds


def test_questions_of_a_trial_are_answered_in_the_way_of_a_run(
    planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.models.dense import DenseStep

    made: list[Any] = []
    of = DenseStep.of
    monkeypatch.setattr(DenseStep, "of", lambda *given: (made.append(of(*given)), made[-1])[1])
    assert tried(planned(**{"method.kind": "lora"})) is not None
    assert made and None not in made


def test_what_was_found_is_found_again_and_another_run_is_another_trial(
    planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned()
    assert tried(plan, measure=False) is None
    first = tried(plan)
    monkeypatch.setattr(trial, "_tried", None)  # calling it would fail
    if first is not None and not first.busy:
        assert tried(plan, measure=False) == first
    for other in (
        {"method.kind": "full"},
        {"engine.batch_size": 8},
        {"engine.dtype": "bfloat16"},
        {"engine.optimizer": "adafactor"},
        {"objective.kind": "pretrain"},
    ):
        if "objective.kind" not in other:
            assert tried(planned(**other), measure=False) is None


def test_what_is_old_or_was_found_on_a_busy_machine_is_found_anew() -> None:
    now, day = time.time(), 24 * 3600
    assert not trial._stale({"at": now, "trial": {"busy": False}})
    assert not trial._stale({"at": now - day, "trial": {"busy": False}})
    assert trial._stale({"at": now - 2 * trial.MOST_DAYS * day, "trial": {"busy": False}})
    assert trial._stale({"at": now - 2 * trial.BUSY_SECONDS, "trial": {"busy": True}})
    assert trial._stale({"at": now + day, "trial": {"busy": False}})  # the clock was wrong
    assert trial._stale({"trial": {}}) and trial._stale({"at": "?", "trial": None})


def test_a_broken_finding_is_as_good_as_none(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"at": time.time(), "trial": {"blocks": 4, "no such field": 1}}
    monkeypatch.setattr(trial.findings, "read", lambda *_: broken)
    assert tried(planned(), measure=False) is None


def test_large_blocks_are_not_tried(planned: Any) -> None:
    shape = fit.ModelShape.from_config(
        {
            "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
            "intermediate_size": 28672, "vocab_size": 128256,
        }
    )  # fmt: skip
    assert trial.blocks_for(planned().config, shape, 1024, lambda blocks, rows: 0.0) is None


def test_a_failing_trial_says_nothing_and_the_estimate_counts(
    planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("tunewright.models.load.made_up", fails)
    plan = planned()
    assert tried(plan) is None
    found = plan.estimate(decided.place(plan), RATES, try_blocks=True)
    assert found.seconds is not None and found.question.trial is None


def test_made_up_weights_leave_no_trace_in_what_is_kept_of_the_model(planned: Any) -> None:
    """A layout that agreed on made-up weights says nothing of the model's own."""
    from tunewright.core.publish import cache_root

    assert tried(planned()) is not None
    assert not list((cache_root() / "found").glob("layout/*"))


def test_blocks_are_taken_for_cached_from_where_the_engine_caches_them() -> None:
    from tunewright.advise import timing
    from tunewright.engine import activation_cache

    assert timing.CACHED_FROM == activation_cache.WORTH_IT


@pytest.mark.skipif(not live_bytes(), reason="the system does not say what lives")
def test_the_most_that_lives_is_seen_forward_and_backward() -> None:
    import torch

    class Doubles(torch.autograd.Function):
        """Holds 40 MB on its way back."""

        @staticmethod
        def forward(context: Any, given: Any) -> Any:
            return given * 2

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            large = torch.ones(10_000_000)
            return gradient * 2 * large[0]

    number = torch.ones(4, requires_grad=True)
    before = live_bytes()
    with watching.counting() as most:
        Doubles.apply(number).sum().backward()
    assert 40e6 <= most.live - before < 44e6
    before = live_bytes()
    with watching.counting() as most:
        (torch.ones(5_000_000) + 1).sum()
    assert 40e6 <= most.live - before < 44e6


@pytest.mark.skipif(not live_bytes(), reason="the system does not say what lives")
def test_the_same_trial_again_foretells_the_same_memory(
    planned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that has grown meanwhile, and keeps what it freed."""
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / name))
        plan = planned(**{"engine.dtype": "bfloat16"})
        world = decided.place(plan)
        estimate = plan.estimate(world, RATES, try_blocks=True)
        assert estimate.question.trial is not None and estimate.question.trial.peak_bytes
        # What the process held before is no matter of the trial.
        found.append(estimate.peak_bytes - estimate.parts["process"])
        hole = [bytearray(2**20) for _ in range(40)]
        del hole[::2]
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_products_are_kept_up_to_what_both_caches_hold() -> None:
    tried = trial.Trial(*[0.0] * 25, kernel_bytes=6e5, pass_kernels=2e7, first_kernels=1e7)
    work = memory.Work(1, 64, 64, 64, "bfloat16", trial=tried)
    few, some, many, more = (
        memory._compiled(replace(work, all_passes=n), tried) for n in (1, 11, 1000, 2000)
    )
    assert (few, some) == (10_000_000, 210_000_000)
    assert many == more == int((1 + memory.PYTORCHS) * memory.KERNELS * 6e5)


def test_gradients_and_what_is_kept_live_together_only_in_steps_of_several_passes() -> None:
    assert memory._together(100.0, 30.0, several=False) == 100
    assert memory._together(100.0, 130.0, several=False) == 130
    assert memory._together(100.0, 30.0, several=True) == 130
