"""Update rules that PyTorch does not have, each a few lines: Lion, schedule-free AdamW, Adam-mini.

Their authors' packages compute the same (tests/engine/test_update_rules.py compares every step).
They are not used, because they ask for names of parameters, print, or keep numbers outside of a
parameter's state, where no checkpoint would find them. What each rule remembers lies in the state
of the parameter it belongs to, so that a resumed run goes on with the same bits.

Sources: Lion, Chen et al. 2023 (arXiv 2302.06675, algorithm 2); schedule-free AdamW, Defazio et al.
2024 (2405.15682, with the weights of section 4.1: the square of the largest rate so far);
Adam-mini, Zhang et al. 2024 (2406.16793, version 1.1.1 of its code).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EACH, WHOLE = -1, 0
"""`rows` of a group of Adam-mini: one second moment for each number, and one for the tensor. From 1
on: one for that many rows of a matrix."""


class Rule(torch.optim.Optimizer):
    """An optimiser that goes through its parameters one by one. A closure is not taken."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        del closure
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, self.state[p], group)

    def update(self, p: Tensor, gradient: Tensor, state: dict[str, Any], group: Any) -> None:
        """Change `p` in place."""
        raise NotImplementedError


class Lion(Rule):
    """p <- (1 - rate * decay) p - rate * sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g."""

    def __init__(self, groups: Any, betas: tuple[float, float] = (0.9, 0.99)):
        super().__init__(groups, {"lr": 0.0, "betas": betas, "weight_decay": 0.0})

    def update(self, p: Tensor, gradient: Tensor, state: dict[str, Any], group: Any) -> None:
        """As above."""
        (first, second), rate = group["betas"], group["lr"]
        if not state:
            state["exp_avg"] = torch.zeros_like(p)
        momentum = state["exp_avg"]
        p.mul_(1 - rate * group["weight_decay"])
        p.add_(momentum.mul(first).add_(gradient, alpha=1 - first).sign_(), alpha=-rate)
        momentum.mul_(second).add_(gradient, alpha=1 - second)


class ScheduleFreeAdamW(Rule):
    """AdamW on a point z, gradients at a point y between z and the mean x of all z.

    x <- (1 - c) x + c z with c the share of this step in the sum of the squared largest rates; y =
    (1 - b1) z + b1 x. The parameters hold y while the model learns; `average_into` puts x there,
    which is what is measured and handed out.
    """

    def __init__(self, groups: Any, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def update(self, p: Tensor, gradient: Tensor, state: dict[str, Any], group: Any) -> None:
        """As above."""
        (first, second), rate = group["betas"], group["lr"]
        if not state:
            state["z"], state["exp_avg_sq"] = p.clone(), torch.zeros_like(p)
            # Three numbers of float64 in a tensor, so that a checkpoint keeps all of their bits.
            state["steps_largest_sum"] = torch.zeros(3, dtype=torch.float64)
        steps, largest, total = state["steps_largest_sum"].tolist()
        steps, largest = steps + 1, max(largest, rate)
        total += largest**2
        share = largest**2 / total if total else 0.0
        state["steps_largest_sum"].copy_(torch.tensor([steps, largest, total], dtype=torch.float64))
        z, squares = state["z"], state["exp_avg_sq"]
        squares.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = squares.div(1 - second**steps).sqrt_().add_(group["eps"])
        change = gradient.div(root)
        if group["weight_decay"]:
            change.add_(p, alpha=group["weight_decay"])
        p.lerp_(z, weight=share)
        p.add_(change, alpha=rate * (first * (1 - share) - 1))
        z.sub_(change, alpha=rate)

    @torch.no_grad()
    def average_into(self) -> None:
        """Put the mean x in the place of y: y + (1 - 1 / b1) (z - y)."""
        for group in self.param_groups:
            for p in group["params"]:
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], weight=1 - 1 / group["betas"][0])


class AdamMini(Rule):
    """AdamW with one second moment for a block of numbers: `rows` of a group says for which.

    v is the mean over the block of g^2, remembered as Adam remembers g^2.
    """

    def __init__(self, groups: Any, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        usual = {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0, "rows": WHOLE}
        super().__init__(groups, usual)

    def update(self, p: Tensor, gradient: Tensor, state: dict[str, Any], group: Any) -> None:
        """As above."""
        (first, second), rate = group["betas"], group["lr"]
        squares = _block_means(gradient, group["rows"])
        if not state:
            state["step"] = 0
            state["exp_avg"], state["block_sq"] = torch.zeros_like(p), torch.zeros_like(squares)
        state["step"] += 1
        p.mul_(1 - rate * group["weight_decay"])
        momentum, mean = state["exp_avg"], state["block_sq"]
        momentum.lerp_(gradient, 1 - first)
        mean.mul_(second).add_(squares, alpha=1 - second)
        root = mean.div(1 - second ** state["step"]).sqrt_().add_(group["eps"])
        shares = rate / (1 - first ** state["step"]) / root
        p.sub_(momentum * _spread(shares, p, group["rows"]))


def _block_means(gradient: Tensor, rows: int) -> Tensor:
    """The mean of g^2 over each block: as the gradient, a single number, or (blocks,)."""
    squares = gradient * gradient
    if rows == EACH:
        return squares
    if rows == WHOLE:
        return squares.mean()
    return squares.flatten(0, -2).mean(-1).view(-1, rows).mean(-1)


def _spread(values: Tensor, p: Tensor, rows: int) -> Tensor:
    """What every number of `p` gets of a value for each block."""
    if rows in (EACH, WHOLE):
        return values
    return values.repeat_interleave(rows).view(*p.shape[:-1], 1)
