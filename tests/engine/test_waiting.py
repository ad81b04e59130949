"""The host does not wait for the device within a step, but at its end.

The device is PyTorch's `meta`, on which nothing can be read: every number that the host asks for has
to come from here, where it is counted.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from helpers import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from tunewright.core import moves
from tunewright.core.registry import objectives
from tunewright.core.types import Sample
from tunewright.engine import policy, step  # noqa: F401  # what the fixture looks through
from tunewright.engine.oracles import teacher  # noqa: F401
from tunewright.objectives import kto, preference  # noqa: F401

READS = ("aten._local_scalar_dense.default",)
DEPENDING = ("nonzero", "unique", "masked_select", "equal", "is_nonzero")


class Waits(TorchDispatchMode):
    """Counts what a GPU would have to be waited for: reads, results whose size is known only there,
    and copies to it that are not made through `moves.to_device`."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.allowed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        on_device = any(isinstance(x, torch.Tensor) and x.is_meta for x in args)
        if on_device and name in READS:
            self.found.append(name)
            return 1.0
        if on_device and any(word in name for word in DEPENDING):
            self.found.append(name)
        target = kwargs.get("device")
        if target is not None and name.startswith("aten._to_copy"):
            source = args[0].device.type
            if source == "meta" and torch.device(target).type == "cpu":
                self.found.append(name)
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if source == "cpu" and torch.device(target).type == "meta" and not self.allowed:
                self.found.append(f"copy of {tuple(args[0].shape)}")
        return func(*args, **kwargs)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    counted, real = Waits(), moves.to_device

    def to_device(*args: Any, **kwargs: Any) -> Any:
        counted.allowed = True
        try:
            return real(*args, **kwargs)
        finally:
            counted.allowed = False

    for name, module in list(sys.modules.items()):
        if name.startswith("tunewright.") and getattr(module, "to_device", None) is real:
            monkeypatch.setattr(module, "to_device", to_device)
    return counted


def made(family: str, objective: str, layout: str = "tree", rows: int = 1 << 30) -> Any:
    model = tiny.make_model(family)
    attached = tiny.attach_lora(model, dropout=0.0)
    # Before the optimiser is made: the parameters become others.
    attached.model.to("meta")
    stepper = tiny.make_stepper(model, attached, layout, rows_per_pass=rows, clip=1.0)
    entry = objectives.get(objective)
    assert entry is not None
    stepper.objective = entry.function(entry.config())
    stepper.policy.attention = "flex"
    return stepper


def of_second_step(waits: Waits, stepper: Any, samples: list[Sample]) -> tuple[list[str], int]:
    """(waits of a step that is not the first, passes of it)."""
    with waits:
        stepper.step(samples, 1, 1e-3)
        waits.found.clear()
        report = stepper.step(samples, 2, 1e-3)
    return list(waits.found), report.passes


@pytest.mark.wide("llama-tree", "gemma2-padded")
@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_step_of_many_passes_waits_as_often_as_one_of_one(
    family: str, layout: str, waits: Waits
) -> None:
    samples = tiny.dialogues() + tiny.nothing_shared()
    one, passes = of_second_step(waits, made(family, "sft", layout), samples)
    many, more = of_second_step(waits, made(family, "sft", layout, 40), samples)
    assert more >= passes + 3
    # The losses together, and the norm of the gradient. Transformers asks of a padded batch whether
    # it is full.
    own = 0 if layout == "tree" else 1
    assert 2 <= len(one) <= 2 + own * passes, one
    assert 2 <= len(many) <= 2 + own * more, many


@pytest.mark.parametrize("objective", ["simpo", "orpo"])
def test_figures_are_read_once_for_a_step(objective: str, waits: Waits) -> None:
    found, passes = of_second_step(waits, made("llama", objective, rows=40), tiny.pairs())
    assert passes >= 2
    assert len(found) == 3, found


def test_a_read_in_a_pass_would_be_seen(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = made("llama", "sft", rows=40)
    real = stepper.policy.forward

    def forward(samples: Any, noise: Any = None) -> Any:
        out = real(samples, noise)
        float(out.logprob.detach().sum())
        torch.tensor([1.0, 2.0]).to("meta")
        return out

    monkeypatch.setattr(stepper.policy, "forward", forward)
    found, passes = of_second_step(waits, stepper, tiny.dialogues())
    assert len(found) == 2 + 2 * passes
