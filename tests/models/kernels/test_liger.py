"""Liger's kernels are put on a model only where they give what its own modules give. The package
needs CUDA: what stands for it here is its interface over plain PyTorch."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.bench.certificate import certify
from tunewright.models.kernels import fused, liger


class Norm(torch.autograd.Function):
    """As `LigerRMSNormFunction` is called."""

    error: float = 0.0

    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, eps: float, offset: float, casting: str, in_place: bool
    ) -> Any:
        assert casting in ("llama", "gemma", "none") and in_place is False
        with torch.enable_grad():
            ctx.x, ctx.w = x.detach().requires_grad_(), weight.detach().requires_grad_()
            wide = torch.promote_types(x.dtype, torch.float32) if casting != "none" else x.dtype
            h = ctx.x.to(wide)
            h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
            scale = ctx.w.to(wide) + offset if casting == "gemma" else ctx.w + offset
            ctx.y = ((h * scale).to(x.dtype) if casting == "gemma" else scale * h.to(x.dtype)) * (
                1 + Norm.error
            )
        return ctx.y.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        dx, dw = torch.autograd.grad(ctx.y, (ctx.x, ctx.w), grads[0])
        return dx, dw, None, None, None, None


class Gate(torch.autograd.Function):
    """As `LigerSiLUMulFunction` is called."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        Gate.calls += 1
        ctx.save_for_backward(a, b)
        return torch.nn.functional.silu(a) * b

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        a, b = ctx.saved_tensors
        s = torch.sigmoid(a)
        return grads[0] * b * (s + a * s * (1 - s)), grads[0] * a * s


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, found in (
        ("liger_kernel", {}),
        ("liger_kernel.ops", {}),
        ("liger_kernel.ops.rms_norm", {"LigerRMSNormFunction": Norm}),
        ("liger_kernel.ops.swiglu", {"LigerSiLUMulFunction": Gate}),
    ):
        module = types.ModuleType(name)
        vars(module).update(found)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Norm, "error", 0.0)


def test_without_the_package_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    model = tiny.make_model("llama")
    assert liger.accelerate(model) == 0
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("family", "norms", "gates"),
    [("llama", 5, 2), ("qwen3", 9, 2), ("gemma2", 9, 0), ("gpt2", 0, 0)],
)
def test_norms_and_gated_mlps_of_a_family(
    family: str, norms: int, gates: int, package: None
) -> None:
    """Gemma's gate is a GELU, which is not Liger's SiLU and steps aside."""
    assert liger.accelerate(tiny.make_model(family)) == norms + gates


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_gradient_is_that_of_stock_transformers(
    family: str, package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "accelerate", liger.accelerate)
    Gate.calls = 0
    found = certify(
        lambda dtype: tiny.make_model(family, dtype),
        tiny.attach_lora,
        tiny.dialogues(),
        rows_per_pass=(1 << 30,),
    )
    assert found.passed, "\n".join(found.lines())
    # Gemma's gate is tried and steps aside; Llama's computes every pass.
    assert Gate.calls > 2 if family == "llama" else Gate.calls <= 2


def test_what_gives_other_numbers_steps_aside(
    package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Norm, "error", 1e-3)
    assert liger.accelerate(tiny.make_model("llama")) == 2


def test_answers_are_written_by_the_models_own_forward(package: None) -> None:
    model = tiny.make_model("llama")
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        before = model(ids).logits
    liger.accelerate(model)
    Gate.calls = 0
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before) and Gate.calls == 0
    model(ids)
    assert Gate.calls == 2
