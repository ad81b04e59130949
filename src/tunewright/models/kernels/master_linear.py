"""A linear layer whose weights are held in float32 and computed with in half precision, without
keeping the narrow copy of them for the backward pass.

Autograd would keep the copy of every layer from its forward to its backward pass: two bytes for
each number that trains, and in shares (`engine/sharding.py`) the whole model on every process,
since only the float32 weights are let go between blocks. Here the backward pass makes the copy
again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _MasterLinear(torch.autograd.Function):
    """y = x W^T + b with W (O, I) wide, rounded to `dtype` for the product. x (..., I), b (O,) in
    `dtype` or None."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.dtype = bias is not None, dtype
        return torch.nn.functional.linear(x, weight.to(dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grads[0].reshape(-1, weight.shape[0])
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = (rows @ weight.to(ctx.dtype)).view(x.shape)
        if ctx.needs_input_grad[1]:
            dw = (rows.t() @ x.reshape(-1, weight.shape[1])).to(weight.dtype)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            db = rows.sum(0)
        return dx, dw, db, None


def master_linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`torch.nn.functional.linear` with `weight` rounded to `dtype`, the dtype of x and bias."""
    y: Tensor = _MasterLinear.apply(x, weight, bias, dtype)
    return y
