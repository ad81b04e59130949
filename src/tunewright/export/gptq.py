"""Round a matrix to few bits: each weight to the nearest step, or so that what the matrix computes
on real inputs changes least (GPTQ, Frantar et al. 2022, arXiv 2210.17323).

Pure tensors in, pure tensors out. A grid has one scale for each row of a group of columns, and with
`symmetric=False` a whole-numbered zero point. Scales are searched: the range of a group is shrunk
while that lowers the squared error, each column weighted with how strong its input is. They are
kept in bfloat16, as the files keep them, before a single code is chosen. Columns are rounded in the
order of their inputs' strength; the groups stay those of the matrix as it lies, so that nothing has
to be permuted when the file is read.

Letters: O outputs, I inputs, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DAMPING = 0.01
"""Share of the mean diagonal that is added to it (the paper's 1 %)."""
COLUMNS = 128
"""Columns whose errors are gathered before they reach the rest of the matrix."""
RANGES = 17
"""Ranges that are tried for a group, between these shares of the whole."""
WIDEST, NARROWEST = 1.07, 0.6
TINY = 1e-10


@dataclass(frozen=True)
class Grid:
    """Which numbers a rounded weight can be."""

    bits: int
    group: int
    """Columns that share a scale; divides the width of the matrix."""
    symmetric: bool = True

    @property
    def low(self) -> int:
        """The smallest code."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1

    @property
    def bits_per_weight(self) -> float:
        """With its share of scale (bfloat16) and zero point."""
        return self.bits + (16 + (0 if self.symmetric else self.bits)) / self.group


@dataclass
class Rounded:
    """A matrix on a grid: codes (O, I) int8, scales (O, G) in bfloat16's numbers as float32, zero
    points (O, G) int8."""

    grid: Grid
    codes: Tensor
    scales: Tensor
    zeros: Tensor

    @property
    def weight(self) -> Tensor:
        """The numbers that the codes stand for, (O, I) float32."""
        scales, zeros = (t.repeat_interleave(self.grid.group, 1) for t in (self.scales, self.zeros))
        return (self.codes.float() - zeros.float()) * scales


def to_nearest(weight_OI: Tensor, grid: Grid, strength_I: Tensor | None = None) -> Rounded:
    """Each weight at its nearest step. `strength_I` is the mean square of each input, which the
    search for scales weights columns with; None counts all alike."""
    weight_OI = weight_OI.float()
    scales, zeros = _scales(weight_OI, grid, strength_I)
    wide = scales.repeat_interleave(grid.group, 1)
    shift = zeros.repeat_interleave(grid.group, 1)
    codes = (weight_OI / wide + shift).round().clamp(grid.low, grid.high)
    return _packed(grid, codes, scales, zeros)


def gptq(weight_OI: Tensor, products_II: Tensor, grid: Grid) -> Rounded:
    """The matrix rounded column by column, each error passed on to the columns not yet rounded so
    that the outputs change least.

    `products_II` is the sum of x xT over the inputs of real rows. A column that was never other
    than zero is rounded to the nearest.
    """
    import torch

    weight = weight_OI.float().clone()
    products = products_II.double().clone()
    diagonal = products.diagonal()
    dead = diagonal <= 0
    diagonal[dead] = 1.0
    strength = diagonal.clone().float()
    strength[dead] = 0.0
    scales, zeros = _scales(weight, grid, strength)
    order = torch.argsort(strength, descending=True, stable=True)
    upper = _inverse_factor(products[order][:, order]).float()
    weight = weight[:, order]
    group_of = order // grid.group
    codes = torch.empty_like(weight)
    width = weight.shape[1]
    for first in range(0, width, COLUMNS):
        last = min(first + COLUMNS, width)
        errors = torch.empty_like(weight[:, first:last])
        for at in range(first, last):
            scale, zero = scales[:, group_of[at]], zeros[:, group_of[at]]
            column = weight[:, at]
            code = (column / scale + zero).round_().clamp_(grid.low, grid.high)
            codes[:, at] = code
            error = (column - (code - zero) * scale) / upper[at, at]
            weight[:, at:last].addr_(error, upper[at, at:last], alpha=-1)
            errors[:, at - first] = error
        weight[:, last:].addmm_(errors, upper[first:last, last:], alpha=-1)
    back = torch.argsort(order)
    return _packed(grid, codes[:, back], scales, zeros)


def _inverse_factor(products_II: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped products."""
    import torch

    damping = DAMPING * products_II.diagonal().mean()
    for _ in range(6):  # few rows and a wide matrix: the products have no full rank
        damped = products_II + damping * torch.eye(len(products_II), dtype=products_II.dtype)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not int(failed):
                return upper
        damping = damping * 10
    return torch.eye(len(products_II), dtype=products_II.dtype)  # then it is the nearest step


def _scales(weight_OI: Tensor, grid: Grid, strength_I: Tensor | None) -> tuple[Tensor, Tensor]:
    """(scales, zero points), both (O, G) float32, with the least weighted squared error of the
    nearest steps."""
    import torch

    grouped = weight_OI.view(weight_OI.shape[0], -1, grid.group)
    counts = torch.ones(weight_OI.shape[1]) if strength_I is None else strength_I
    # Inputs that are never there must not decide, and none may be left out altogether.
    counts = (counts + 1e-3 * counts.mean() + TINY).view(1, -1, grid.group)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    best = torch.full_like(low, torch.inf)
    scales, zeros = torch.ones_like(low), torch.zeros_like(low)
    for share in torch.linspace(WIDEST, NARROWEST, RANGES).tolist():
        scale, zero = _step(low * share, high * share, grid)
        steps = (grouped / scale[..., None] + zero[..., None]).round_().clamp_(grid.low, grid.high)
        wrong = steps.sub_(zero[..., None]).mul_(scale[..., None]).sub_(grouped).square_()
        error = wrong.mul_(counts).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        scales, zeros = torch.where(better, scale, scales), torch.where(better, zero, zeros)
    return scales, zeros


def _step(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The scale, as bfloat16 holds it, and the zero point of a range."""
    import torch

    if grid.symmetric:
        # The code -8 has no partner: half a step of the longer side is given up for finer steps.
        reach = torch.maximum(-low, high) / (grid.high + 0.5)
        scale = reach.clamp(min=TINY).bfloat16().float()
        return scale, torch.zeros_like(scale)
    scale = ((high - low) / (grid.high - grid.low)).clamp(min=TINY).bfloat16().float()
    return scale, (grid.low - low / scale).round().clamp(grid.low, grid.high)


def _packed(grid: Grid, codes: Tensor, scales: Tensor, zeros: Tensor) -> Rounded:
    import torch

    return Rounded(grid, codes.to(torch.int8), scales, zeros.to(torch.int8))
