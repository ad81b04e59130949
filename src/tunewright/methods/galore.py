"""GaLore: every weight trains, but the optimiser sees the gradients of matrices through a low-rank
window (Zhao et al. 2024, arXiv 2403.03507).

For a matrix W (m x n, m <= n) with gradient G at update t:

    P  = the first r left singular vectors of G                    every `refresh` updates; (m, r)
    R  = P^T G                                                     (r, n): what Adam sees
    M  = b1 M + (1 - b1) R,   V = b2 V + (1 - b2) R^2              Adam's moments, r rows in place
    of m
    W -= rate * scale * P (M / (1 - b1^t)) / (sqrt(V / (1 - b2^t)) + eps)

For m > n the window lies on the other side. The moments stay when P is renewed, as in the paper.
Weights that are no chosen matrices learn with AdamW. The library of the paper's authors cannot be
imported without bitsandbytes, so the rule is written here; the tests hold it against a slow
reference. The paper's further trick, an update inside the backward pass so that no two gradients
exist at once, is not done: gradients take their full room.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from tunewright.core.config import EngineConfig
from tunewright.core.errors import ModelError, problem, raise_all
from tunewright.core.registry import method, usual_rate
from tunewright.core.types import Attached, Model
from tunewright.methods.selecting import attach_whole
from tunewright.methods.targets import MethodSection, Names, low_rank_moments
from tunewright.models.anatomy import Anatomy
from tunewright.models.shape import ModelShape

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

BETAS, EPS = (0.9, 0.999), 1e-8


class GaLoreConfig(MethodSection):
    """Every weight trains; the optimiser's state of the chosen matrices is of low rank."""

    rank: int = Field(default=64, gt=0)
    """Width of the window through which the optimiser sees the gradient of a matrix. Its state
    shrinks by rank / smaller side."""
    refresh: int = Field(default=200, gt=0)
    """Updates after which a new window is chosen from the current gradient."""
    scale: float = Field(default=0.25, gt=0)
    """Factor on the updates of the chosen matrices, on top of the learning rate."""
    side: Literal["auto", "left", "right"] = "auto"
    """Side of the matrix on which the window lies; auto takes the shorter one, which saves most."""
    targets: Names = ["linear"]
    """Roles or module names of the matrices that are seen through a window. All other weights use
    AdamW."""

    trains_base: ClassVar[bool] = True

    def trainable_numbers(self, shape: ModelShape) -> int:
        return shape.parameters

    def moment_numbers(self, shape: ModelShape) -> int:
        """Numbers that the optimiser keeps besides weights and gradients."""
        return low_rank_moments(self, shape)


Group: TypeAlias = dict[str, Any]
"""A parameter group of torch's optimisers."""
OptimizerClass: TypeAlias = "Callable[[list[Group]], Optimizer]"


@cache
def galore_adamw() -> OptimizerClass:
    """The optimiser's class; torch is imported when it is first asked for."""
    import torch

    class GaLoreAdamW(torch.optim.Optimizer):
        """AdamW whose groups may have a `rank`: their matrices are updated through a window."""

        def __init__(self, groups: list[Group]):
            super().__init__(
                groups,
                {
                    "lr": 0.0,
                    "weight_decay": 0.0,
                    "rank": 0,
                    "refresh": 1,
                    "scale": 1.0,
                    "side": "auto",
                },
            )

        @torch.no_grad()
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            del closure
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        _update(p, self.state[p], group)

    return GaLoreAdamW


def _update(p: nn.Parameter, state: dict[str, Any], group: Group) -> None:
    """One update of one parameter."""

    assert p.grad is not None
    gradient, rank = p.grad.float(), group["rank"]
    left = group["side"] == "left" or (group["side"] == "auto" and p.shape[0] <= p.shape[-1])
    count = state.get("step", 0)
    if rank:
        if count % group["refresh"] == 0:
            state["window"] = window(gradient, rank, left)
        gradient = state["window"].t() @ gradient if left else gradient @ state["window"]
    move = adam_move(gradient, state)
    if rank:
        move = (state["window"] @ move if left else move @ state["window"].t()).mul_(group["scale"])
    p.mul_(1 - group["lr"] * group["weight_decay"])
    p.add_(move.to(p.dtype), alpha=-group["lr"])


def adam_move(seen: Tensor, state: dict[str, Any]) -> Tensor:
    """Adam's answer to what it sees, of the same shape; its moments and the count of updates stand
    in `state`."""
    import torch

    count = state.get("step", 0)
    if not count:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(seen), torch.zeros_like(seen)
    state["step"] = count + 1
    first, second = state["exp_avg"], state["exp_avg_sq"]
    first.lerp_(seen, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(seen, seen, value=1 - BETAS[1])
    size = (second / (1 - BETAS[1] ** (count + 1))).sqrt_().add_(EPS)
    return (first / (1 - BETAS[0] ** (count + 1))).div_(size)


def window(gradient: Tensor, rank: int, left: bool) -> Tensor:
    """The first `rank` singular vectors of `gradient` on one side, (side, rank).

    From the eigenvectors of G G^T, which is several times as fast as a whole decomposition of G and
    as exact for the large ones, which are wanted.
    """
    import torch

    square = gradient @ gradient.t() if left else gradient.t() @ gradient
    return torch.linalg.eigh(square).eigenvectors[:, -rank:].flip(1).contiguous()


@method(
    "galore",
    GaLoreConfig,
    source="arXiv 2403.03507",
    trains="every weight, with an optimiser state of low rank",
    own_optimizer=True,
    leaves="model",
    rate=4e-5,  # for long runs at scale 0.25: docs/methods/galore.md
)
def galore(config: GaLoreConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Train every weight; matrices in `targets` through a window. Raises ModelError (E-METHOD-09)
    for a rank that is no window."""
    chosen = chosen_matrices(config.rank, config.targets, model, anatomy)
    through = {
        "rank": config.rank,
        "refresh": config.refresh,
        "scale": config.scale,
        "side": config.side,
    }
    return attach_with_groups(model, chosen, through, galore_adamw, usual_rate("galore"))


def chosen_matrices(rank: int, targets: list[str], model: Model, anatomy: Anatomy) -> set[int]:
    """The ids of the weights that `targets` name and that are matrices. Raises ModelError
    (E-METHOD-09) for a rank above the smaller side of one."""
    weights = {
        f"{name}.weight": model.get_submodule(name).get_parameter("weight")
        for name in anatomy.select(targets)
    }
    large = [
        name for name, weight in weights.items() if weight.ndim == 2 and rank > min(weight.shape)
    ]
    raise_all(
        [
            problem(
                "E-METHOD-09",
                "method.rank",
                rank=rank,
                name=name,
                largest=min(weights[name].shape),
                count=len(large),
            )
            for name in large[:1]
        ],
        ModelError,
    )
    # The embedding is chosen by its own name only; a head tied to it goes by that name, too.
    return {id(weight) for weight in weights.values() if weight.ndim == 2}


def attach_with_groups(
    model: Model,
    chosen: set[int],
    through: Group,
    optimizer_class: Callable[[], OptimizerClass],
    rate: float,
) -> Attached:
    """A whole model that trains, with `through` as the options of the optimiser's group of chosen
    matrices."""
    attached = attach_whole(model, rate)

    def optimizer(engine: EngineConfig, named: list[tuple[str, nn.Parameter]]) -> Optimizer:
        seen = [p for _, p in named if id(p) in chosen]
        plain = [p for _, p in named if id(p) not in chosen and p.ndim > 1]
        vectors = [p for _, p in named if id(p) not in chosen and p.ndim <= 1]
        groups = [
            {"params": seen, "weight_decay": engine.weight_decay, **through},
            {"params": plain, "weight_decay": engine.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return optimizer_class()([group for group in groups if group["params"]])

    attached.optimizer = optimizer
    return attached
