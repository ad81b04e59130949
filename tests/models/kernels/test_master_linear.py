"""A linear layer of float32 weights in half precision: the numbers of autograd, and no copy of the
weights between forward and backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tunewright.methods.base_weights import BaseWeights
from tunewright.models.kernels.master_linear import master_linear


@pytest.mark.parametrize("shape", [(5, 16), (2, 7, 16)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_output_and_gradients_are_those_of_a_copy_to_the_bit(
    shape: tuple[int, ...], has_bias: bool
) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(shape).bfloat16().requires_grad_(), torch.randn(24, 16).requires_grad_()
    b = torch.randn(24).requires_grad_() if has_bias else None

    def gradients(y: Tensor) -> list[Tensor]:
        given = [x, w, *([] if b is None else [b])]
        return [y, *torch.autograd.grad(y.float().square().sum(), given)]

    narrow = None if b is None else b.bfloat16()
    ours = gradients(master_linear(x, w, narrow, torch.bfloat16))
    plain = gradients(nn.functional.linear(x, w.bfloat16(), narrow))
    assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))
    assert ours[2].dtype == torch.float32


def test_no_copy_of_trained_weights_waits_for_the_backward_pass() -> None:
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16, bias=False)).bfloat16()
    BaseWeights(model, [name for name, _ in model.named_parameters()], keep=False)  # type: ignore[arg-type]
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randn(3, 16).bfloat16())
    own = {p.data_ptr() for p in model.parameters()}
    matrices = [one for one in kept if tuple(one.shape) in {(24, 16), (16, 24)}]
    assert len(matrices) == 2
    assert all(one.data_ptr() in own for one in matrices)
