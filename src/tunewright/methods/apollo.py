"""APOLLO: every weight trains, and Adam only says how far each channel of a matrix should move (Zhu
et al. 2024, arXiv 2412.05270).

For a matrix W (m x n, m <= n) with gradient G at update t:

    P   = draws from N(0, 1/r), (r, m)                             drawn anew every `refresh`
    updates from a seed: never kept
    R   = P G                                                      (r, n): what Adam sees
    M   = b1 M + (1 - b1) R,   V = b2 V + (1 - b2) R^2             Adam's moments, r rows in place
    of m
    N   = (M / (1 - b1^t)) / (sqrt(V / (1 - b2^t)) + eps)
    s_j = |N_j| / |R_j| for every column j                         `scaling: channel`; one number
    |N| / |R| with `tensor` (APOLLO-Mini)
    U   = G diag(s);  where |U| > limit |U of the last update|, U is shortened to that
    W  -= rate * scale * U

For m > n rows and columns change places. No decomposition of the gradient is needed, and rank 1 is
enough for `tensor`, whose state is then almost that of SGD. Weights that are no chosen matrices
learn with AdamW. The tests hold the rule against a slow reference.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tunewright.core.registry import method, usual_rate
from tunewright.core.seeds import stream_seed
from tunewright.core.types import Attached, Model
from tunewright.methods.galore import (
    EPS,
    Group,
    OptimizerClass,
    adam_move,
    attach_with_groups,
    chosen_matrices,
)
from tunewright.methods.targets import MethodSection, Names, low_rank_moments
from tunewright.models.anatomy import Anatomy
from tunewright.models.shape import ModelShape

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class ApolloConfig(MethodSection):
    """Every weight trains; the optimiser's state of the chosen matrices is a random sketch of low
    rank."""

    rank: int = Field(default=64, gt=0)
    """Rows of the random projection through which Adam sees the gradient of a matrix. Its state
    shrinks by rank / smaller side."""
    refresh: int = Field(default=200, gt=0)
    """Updates after which a new projection is drawn."""
    scaling: Literal["channel", "tensor"] = "channel"
    """Scale the gradient column by column, or by one number for the whole matrix."""
    scale: float = Field(default=1.0, gt=0)
    """Factor on the updates of the chosen matrices, on top of the learning rate."""
    limit: float = Field(default=1.01, ge=1)
    """How much longer than the last an update of a matrix may be; the paper's guard against jumps
    at the start."""
    targets: Names = ["linear"]
    """Roles or module names of the matrices whose gradient is projected. All other weights use
    AdamW."""

    trains_base: ClassVar[bool] = True

    def trainable_numbers(self, shape: ModelShape) -> int:
        return shape.parameters

    def moment_numbers(self, shape: ModelShape) -> int:
        """Numbers that the optimiser keeps besides weights and gradients."""
        return low_rank_moments(self, shape)


class ApolloMiniConfig(ApolloConfig):
    """APOLLO with one row of a sketch and one factor for each matrix: an optimiser state hardly
    larger than SGD's."""

    rank: int = Field(default=1, gt=0)
    """As in `apollo`; the paper's is 1."""
    scaling: Literal["channel", "tensor"] = "tensor"
    """As in `apollo`; the paper's is one number for each matrix."""
    scale: float = Field(default=math.sqrt(128), gt=0)
    """As in `apollo`; makes up for the single row, the paper's value."""


@cache
def apollo_adamw() -> OptimizerClass:
    """The optimiser's class; torch is imported when it is first asked for."""
    import torch

    class ApolloAdamW(torch.optim.Optimizer):
        """AdamW whose groups may have a `rank`: their matrices are scaled by what Adam says of a
        sketch."""

        def __init__(self, groups: list[Group]):
            defaults = {
                "lr": 0.0,
                "weight_decay": 0.0,
                "rank": 0,
                "refresh": 1,
                "scale": 1.0,
                "scaling": "channel",
                "limit": math.inf,
                "seed": 0,
            }
            super().__init__(groups, defaults)

        @torch.no_grad()
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            del closure
            number = 0
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        _update(p, self.state[p], group, number)
                    number += 1

    return ApolloAdamW


def sketch(
    rank: int, side: int, seed: int, number: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """P for the matrix `number` after `count` refreshes, (rank, side): a function of the seed, so
    it need not be kept."""
    import torch

    generator = torch.Generator().manual_seed(stream_seed(seed, "sketch", number, count))
    return (torch.randn(rank, side, generator=generator) / math.sqrt(rank)).to(device)


def _update(p: nn.Parameter, state: dict[str, Any], group: Group, number: int) -> None:
    """One update of one parameter."""

    assert p.grad is not None
    gradient, rank = p.grad.float(), group["rank"]
    count = state.get("step", 0)
    wide = p.shape[0] <= p.shape[-1]
    seen = gradient
    if rank:
        P = sketch(
            rank, min(p.shape), group["seed"], number, count // group["refresh"], gradient.device
        )
        seen = P @ gradient if wide else gradient @ P.t()
    move = adam_move(seen, state)
    if rank:
        move = _scaled(gradient, seen, move, wide, group["scaling"])
        length = move.norm()
        if count and bool(length > group["limit"] * state["length"]):
            move *= group["limit"] * state["length"] / (length + EPS)
            length = move.norm()
        state["length"] = length
        move = move * group["scale"]
    p.mul_(1 - group["lr"] * group["weight_decay"])
    p.add_(move.to(p.dtype), alpha=-group["lr"])


def _scaled(gradient: Tensor, seen: Tensor, move: Tensor, wide: bool, scaling: str) -> Tensor:
    """The gradient with every channel (or the whole) as long as Adam's answer is beside what Adam
    saw."""
    if scaling == "tensor":
        return gradient * (move.norm() / (seen.norm() + EPS))
    along = 0 if wide else 1
    return gradient * (
        move.norm(dim=along, keepdim=True) / (seen.norm(dim=along, keepdim=True) + EPS)
    )


@method(
    "apollo",
    ApolloConfig,
    source="arXiv 2412.05270",
    trains="every weight, scaled by an optimiser that sees a random sketch",
    own_optimizer=True,
    leaves="model",
    # An update is about scale * sqrt(rank / smaller side) as long as AdamW's, so the rate may be
    # some times that of `full`. Measured: docs/LOG.md.
    rate=2e-4,
)
def apollo(config: ApolloConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Train every weight; matrices in `targets` through a sketch. Raises ModelError (E-METHOD-09)
    for a rank above a matrix's smaller side."""
    chosen = chosen_matrices(config.rank, config.targets, model, anatomy)
    through = {
        "rank": config.rank,
        "refresh": config.refresh,
        "scale": config.scale,
        "scaling": config.scaling,
        "limit": config.limit,
    }
    return attach_with_groups(model, chosen, through, apollo_adamw, usual_rate("apollo"))


@method(
    "apollo_mini",
    ApolloMiniConfig,
    source="arXiv 2412.05270",
    trains="every weight, with an optimiser state of almost nothing",
    own_optimizer=True,
    leaves="model",
    rate=4e-5,
)
def apollo_mini(
    config: ApolloMiniConfig, model: Model, anatomy: Anatomy, base_path: str
) -> Attached:
    """As `apollo`."""
    attached = apollo(config, model, anatomy, base_path)
    attached.learning_rate = usual_rate("apollo_mini")
    return attached
