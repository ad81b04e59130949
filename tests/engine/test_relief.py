"""Memory that runs out in a step: it is taken again with less at once, and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.engine.policy import Policy
from tunewright.engine.recompute import LEVELS


def made(rows: int = 1 << 30, level: str = "none", layout: str = "tree", **method: Any) -> Any:
    from tunewright.engine import recompute

    model = tiny.make_model("llama")
    torch.manual_seed(1)
    attached = tiny.attach_lora(model, rank=4, **method)
    tiny.randomise(attached)
    stepper = tiny.make_stepper(model, attached, layout, rows_per_pass=rows, clip=1.0)
    recompute.install(stepper.policy, level)
    return stepper


def short_of_memory(monkeypatch: pytest.MonkeyPatch, error: Exception, fits: Any) -> list[int]:
    """From now on a training pass that `fits` (rows, level) does not like fails after it was
    computed. Returns a list of the rows of the passes that failed."""
    real, failed = Policy.forward, list[int]()

    def forward(self: Policy, samples: Any, noise: Any = None) -> Any:
        out = real(self, samples, noise)
        if torch.is_grad_enabled() and not fits(out.num_rows, self.recompute):
            failed.append(out.num_rows)
            raise error
        return out

    monkeypatch.setattr(Policy, "forward", forward)
    return failed


def weights(stepper: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in stepper.trained()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.wide("0.0-tree-OutOfMemoryError", "0.3-padded-RuntimeError")
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_step_in_smaller_passes_is_the_step_of_a_run_that_began_with_them(
    error: Exception, layout: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = tiny.dialogues() + tiny.pairs() + tiny.nothing_shared()
    stepper = made(layout=layout, dropout=dropout)
    told: list[tuple[str, dict[str, Any]]] = []
    stepper.relief.told = lambda text, figures: told.append((text, figures))
    with monkeypatch.context() as patch:
        failed = short_of_memory(patch, error, lambda rows, level: rows <= 70)
        reports = [stepper.step(samples, n, 1e-2) for n in (1, 2)]
        assert failed
    assert stepper.rows_per_pass <= 70 and stepper.policy.recompute == "none"
    # Said for every change, and not again in the next step.
    assert len(told) == len(failed)
    assert all(figures["step"] == 1 for _, figures in told)
    assert type(error).__name__ in told[0][0]

    other = made(stepper.rows_per_pass, layout=layout, dropout=dropout)
    wanted = [other.step(samples, n, 1e-2) for n in (1, 2)]
    assert [r.loss for r in reports] == [r.loss for r in wanted]
    assert [r.figures for r in reports] == [r.figures for r in wanted]
    assert all(r.applied for r in reports)
    assert equal(weights(stepper), weights(other))


@pytest.mark.parametrize("enough", LEVELS[1:])
def test_where_no_pass_can_be_smaller_blocks_are_computed_again(
    enough: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = tiny.long_sample()[:1]
    stepper = made(dropout=0.2)
    with monkeypatch.context() as patch:
        short_of_memory(patch, MemoryError(), lambda rows, level: level == enough)
        stepper.step(samples, 1, 1e-2)
    assert stepper.policy.recompute == enough
    other = made(level=enough, dropout=0.2)
    other.step(samples, 1, 1e-2)
    assert equal(weights(stepper), weights(other))


def test_where_nothing_is_left_the_error_is_that_of_the_last_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stepper = made()
    before = weights(stepper)
    short_of_memory(monkeypatch, MemoryError(), lambda rows, level: False)
    with pytest.raises(MemoryError):
        stepper.step(tiny.dialogues(), 1, 1e-2)
    assert equal(before, weights(stepper))


def test_other_errors_are_nobody_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = made()
    failed = short_of_memory(monkeypatch, RuntimeError("shapes differ"), lambda rows, level: False)
    with pytest.raises(RuntimeError, match="shapes differ"):
        stepper.step(tiny.dialogues(), 1, 1e-2)
    assert len(failed) == 1 and stepper.relief.state() == {}


def test_what_helped_is_in_the_state_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = made()
    assert "relief" not in stepper.state()
    with monkeypatch.context() as patch:
        short_of_memory(patch, MemoryError(), lambda rows, level: level == "full")
        stepper.step(tiny.dialogues(), 1, 1e-2)
    state = stepper.state()
    resumed = made()
    resumed.load_state(state)
    assert resumed.rows_per_pass == stepper.rows_per_pass
    assert resumed.policy.recompute == "full"
    assert resumed.state() == state


def test_measuring_goes_on_in_smaller_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = tiny.dialogues() + tiny.pairs()
    stepper, real = made(), Policy.forward
    wanted, figures = stepper.held_out(samples, {})[0], {}

    def forward(self: Policy, chosen: Any, noise: Any = None) -> Any:
        out = real(self, chosen, noise)
        if out.num_rows > 70:
            raise MemoryError
        return out

    monkeypatch.setattr(Policy, "forward", forward)
    loss, _ = stepper.held_out(samples, figures)
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert stepper.policy.recompute == "none" and stepper.rows_per_pass < 1000
