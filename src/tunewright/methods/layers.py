"""Modules that methods put on a model: a bottleneck adapter, a depth router, a matrix beside its
start.

Apart from their methods because these classes need torch when they are defined, and the list of
methods must load without it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Any] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}


class Bottleneck(nn.Module):
    """A(x) times the scale: (..., D) -> (..., D), in the dtype of x with weights kept in
    float32 (or wider)."""

    def __init__(
        self,
        width: int,
        rank: int,
        activation: str,
        scale: float,
        device: torch.device,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width, device=device, dtype=dtype))
        self.down_bias = nn.Parameter(torch.zeros(rank, device=device, dtype=dtype))
        self.up = nn.Parameter(torch.zeros(width, rank, device=device, dtype=dtype))
        self.up_bias = nn.Parameter(torch.zeros(width, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.activation, self.scale = activation, scale

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        narrow = ACTIVATIONS[self.activation](
            F.linear(x, self.down.to(kind), self.down_bias.to(kind))
        )
        out = F.linear(narrow, self.up.to(kind), self.up_bias.to(kind))
        return out * self.scale if self.scale != 1.0 else out


class Router(nn.Module):
    """w, and the predictor beside it. Computes in float32 or wider."""

    def __init__(
        self, width: int, inner: int, ramp: bool, device: torch.device, dtype: torch.dtype
    ):
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        # With a ramp all rows are picked at first, at weight 1; without one the first pick is
        # by chance.
        self.w = nn.Parameter(
            torch.zeros(width, **made) if ramp else torch.randn(width, **made) * 0.02
        )
        self.inner = nn.Parameter(torch.randn(inner, width, **made) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(inner, **made))
        self.out = nn.Parameter(torch.randn(inner, **made) * 0.002)
        self.slope = nn.Parameter(torch.ones(1, **made))
        self.offset = nn.Parameter(torch.zeros(1, **made))
        # At first every row (with a ramp), or each whose weight is above 1, about half.
        self.edge = -1.0 if ramp else 1.0

    def normal(self, x: Tensor) -> Tensor:
        wide = x.to(self.w.dtype)
        return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)

    def weights(self, n: Tensor) -> Tensor:
        """r, (B, T)."""
        return 1 + n @ self.w

    def predicted(self, n: Tensor, r: Tensor) -> Tensor:
        """The logit of p, (B, T)."""
        hidden = F.relu(F.linear(n.detach(), self.inner, self.bias))
        return hidden @ self.out + self.slope * (r.detach() - self.edge) + self.offset


class WithStart(nn.Module):
    """A trained matrix and, beside it along `axis`, `sign` times what it was at the start.
    Stands where PEFT has an nn.Linear."""

    bias = None
    start: Tensor

    def __init__(self, weight: Tensor, axis: int, sign: float):
        super().__init__()
        self.trained = nn.Parameter(weight.detach().float().contiguous())
        self.register_buffer("start", sign * self.trained.detach().clone())
        self.axis = axis

    @property
    def weight(self) -> Tensor:
        return torch.cat([self.trained, self.start], self.axis)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)
