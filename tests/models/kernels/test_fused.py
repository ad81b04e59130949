"""The fused forms: the same function and the same gradient as the modules they stand in for, or
they step aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny
from torch import nn

from tunewright.bench.certificate import full_width
from tunewright.models.kernels import fused

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "phi3", "gemma2", "gemma3_text"]


def norms(model: Any) -> list[tuple[str, Any]]:
    return [(n, m) for n, m in model.named_modules() if type(m).__name__.endswith("RMSNorm")]


def outputs(module: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    (gradient,) = torch.autograd.grad(
        (y * torch.linspace(-1, 2, y.shape[-1], dtype=y.dtype)).sin().sum(), x
    )
    return y.detach(), gradient


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_a_norm_equals_its_own_forward_and_autograd(
    family: str, dtype: torch.dtype, most: float
) -> None:
    model = tiny.make_model(family, str(dtype).removeprefix("torch."))
    with full_width():
        own = {
            n: outputs(
                m,
                torch.randn(
                    2, 5, len(m.weight), dtype=dtype, generator=torch.Generator().manual_seed(1)
                )
                * 3,
            )
            for n, m in norms(model)
        }
        assert fused.accelerate(model) == len(own) > 0
        for name, module in norms(model):
            assert "forward" in vars(module)
            x = (
                torch.randn(
                    2,
                    5,
                    len(module.weight),
                    dtype=dtype,
                    generator=torch.Generator().manual_seed(1),
                )
                * 3
            )
            for ours, theirs in zip(outputs(module, x), own[name], strict=True):
                assert ours.dtype is theirs.dtype
                assert float((ours - theirs).norm() / theirs.norm()) <= most, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_norms_are_no_further_from_the_truth_than_their_own(
    family: str, dtype: torch.dtype
) -> None:
    model = tiny.make_model(family, str(dtype).removeprefix("torch."))
    truth = tiny.make_model(family, str(dtype).removeprefix("torch.")).double()
    exact = dict(norms(truth))
    own = {
        n: outputs(
            m, torch.randn(5, len(m.weight), generator=torch.Generator().manual_seed(1)).to(dtype)
        )
        for n, m in norms(model)
    }
    fused.accelerate(model)
    for name, module in norms(model):
        x = torch.randn(5, len(module.weight), generator=torch.Generator().manual_seed(1)).to(dtype)
        with full_width():
            wanted = outputs(exact[name], x.double())
        for ours, theirs, true in zip(outputs(module, x), own[name], wanted, strict=True):
            assert float((ours - true).norm()) <= 1.5 * float((theirs - true).norm()) + 1e-6, name


def test_the_form_of_a_norm_is_found_once_for_equal_weights_and_anew_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []
    real = fused._fitting_form

    def counted(module: Any, weight: Any, eps: float) -> Any:
        tried.append(1)
        return real(module, weight, eps)

    monkeypatch.setattr(fused, "_fitting_form", counted)
    monkeypatch.setattr(fused, "_FORMS", {})
    models = [tiny.make_model("llama") for _ in range(3)]
    for model in models:
        for i, (_, module) in enumerate(norms(model)):
            module.weight.data.fill_(1.0 + i)
    distinct = fused.accelerate(models[0])
    assert len(tried) == distinct
    assert fused.accelerate(models[1]) == distinct == len(tried)
    norms(models[2])[0][1].weight.data[0] += 1
    fused.accelerate(models[2])
    assert len(tried) == distinct + 1


def test_a_norm_whose_weight_trains_keeps_its_own_forward_and_gets_its_gradient() -> None:
    model = tiny.make_model("llama")
    fused.accelerate(model)
    _, module = norms(model)[0]
    module.weight.requires_grad_(True)
    module(torch.randn(3, len(module.weight))).sum().backward()
    assert module.weight.grad is not None
    assert float(module.weight.grad.norm()) > 0


def test_a_weight_changed_later_is_seen() -> None:
    model = tiny.make_model("gemma2")
    fused.accelerate(model)
    _, module = norms(model)[0]
    x = torch.randn(3, len(module.weight))
    with torch.no_grad():
        module.weight.mul_(3.0)
    ours = outputs(module, x)
    del module.forward
    for a, b in zip(ours, outputs(module, x), strict=True):
        torch.testing.assert_close(a, b)


def test_a_norm_of_another_arithmetic_is_left_alone() -> None:
    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = (
                nn.Parameter(torch.ones(8), requires_grad=False),
                1e-6,
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (
                1.01
                * self.weight
                * x
                * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            )

    module = OddRMSNorm()
    assert fused.accelerate(nn.Sequential(module, nn.LayerNorm(8), nn.Linear(8, 8))) == 0
    assert "forward" not in vars(module)


def test_without_gradient_the_own_forward_runs() -> None:
    model = tiny.make_model("llama")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(ids).logits
        fused.accelerate(model)
        assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_low_rank_linear_equals_pefts_forward_and_gradients(bias: bool, first: bool) -> None:
    import peft

    torch.manual_seed(0)
    linear = nn.Linear(12, 20, bias=bias).double()
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["0"], use_rslora=True)
    wrapped = peft.get_peft_model(nn.Sequential(linear), config)
    layer = wrapped.base_model.model[0].double()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.normal_()
    # The lowest adapter of a model sees inputs that need no gradient.
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=not first)
    learning = [a, b] if first else [x, a, b]
    theirs = layer(x)
    wanted = torch.autograd.grad(theirs.sin().sum(), learning)
    base = layer.get_base_layer()
    ours = fused.low_rank_linear(x, base.weight, base.bias, a, b, layer.scaling["default"])
    got = torch.autograd.grad(ours.sin().sum(), learning)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_adapters_stay_float32_over_a_bfloat16_base() -> None:
    x, weight = torch.randn(6, 8).bfloat16().requires_grad_(), torch.randn(5, 8).bfloat16()
    a, b = torch.randn(2, 8, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    y = fused.low_rank_linear(x, weight, None, a, b, 2.0)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, a.grad.dtype, b.grad.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    exact = (
        x.double() @ weight.double().T + 2.0 * x.double() @ a.double().T @ b.double().T
    ).detach()
    assert float((y.detach().double() - exact).norm() / exact.norm()) < 0.02
