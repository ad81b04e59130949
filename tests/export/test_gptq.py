"""Rounding a matrix: against a slow scalar GPTQ written from the paper, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tunewright.export import gptq
from tunewright.export.gptq import Grid, to_nearest

GRIDS = [Grid(4, 8), Grid(4, 8, symmetric=False), Grid(8, 8), Grid(2, 16, symmetric=False)]


def matrix(outputs: int = 6, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, width, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int = 200, width: int = 32) -> torch.Tensor:
    """Correlated, some columns far stronger than others."""
    draw = torch.Generator().manual_seed(3)
    mixing = torch.randn(width, width, generator=draw)
    strength = torch.logspace(-1, 1, width)
    return torch.randn(rows, width, generator=draw) @ mixing * strength


def slow(weight: torch.Tensor, products: torch.Tensor, grid: Grid, scales, zeros) -> np.ndarray:
    """Section 3.1-3.3 of the paper, one weight at a time: round it, correct all that are not yet
    rounded by equation 2, take it out of the inverse by equation 3."""
    w = weight.double().numpy().copy()
    h = products.double().numpy().copy()
    h += gptq.DAMPING * h.diagonal().mean() * np.eye(len(h))
    codes = np.zeros_like(w)
    order = np.argsort(-products.diagonal().numpy(), kind="stable")
    for row in range(len(w)):
        inverse = np.linalg.inv(h)
        left = set(range(len(h)))
        for at in order:
            scale = float(scales[row, at // grid.group])
            zero = float(zeros[row, at // grid.group])
            code = min(max(round(w[row, at] / scale + zero), grid.low), grid.high)
            codes[row, at] = code
            error = (w[row, at] - (code - zero) * scale) / inverse[at, at]
            left.remove(at)
            for other in left:
                w[row, other] -= error * inverse[at, other]
            inverse = inverse - np.outer(inverse[:, at], inverse[at]) / inverse[at, at]
    return codes


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("width", [32, 160])
def test_it_is_the_papers_column_by_column(grid: Grid, width: int) -> None:
    weight, x = matrix(3, width), inputs(400, width)
    products = x.T @ x
    found = gptq.gptq(weight, products, grid)
    wanted = slow(weight, products, grid, found.scales, found.zeros)
    same = (found.codes.numpy() == wanted).mean()
    assert same > 0.985, same  # float32 against float64: a weight may lie on an edge
    error = [float(((weight - w) @ x.T).square().sum()) for w in (found.weight, _of(found, wanted))]
    assert error[0] == pytest.approx(error[1], rel=0.02)


def _of(found: gptq.Rounded, codes: np.ndarray) -> torch.Tensor:
    return gptq.Rounded(
        found.grid, torch.tensor(codes).to(torch.int8), found.scales, found.zeros
    ).weight


@pytest.mark.parametrize("grid", GRIDS)
def test_outputs_on_real_inputs_change_less_than_with_the_nearest_step(grid: Grid) -> None:
    weight, x = matrix(), inputs()
    products = x.T @ x
    plain = to_nearest(weight, grid)
    calibrated = gptq.gptq(weight, products, grid)
    errors = [float(((weight - r.weight) @ x.T).square().sum()) for r in (plain, calibrated)]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("grid", GRIDS)
def test_codes_fit_their_bits_and_no_weight_is_far_from_its_step(grid: Grid) -> None:
    weight = matrix() * torch.logspace(-6, 3, 6)[:, None]
    found = to_nearest(weight, grid)
    assert grid.low <= int(found.codes.min()) and int(found.codes.max()) <= grid.high
    assert found.scales.shape == (6, 32 // grid.group)
    assert bool((found.scales == found.scales.bfloat16().float()).all())
    apart = (weight - found.weight).abs().view(6, -1, grid.group)
    reach = weight.abs().view(6, -1, grid.group).amax(-1, keepdim=True)
    # A range may be shrunk to 0.6: what lies outside is cut off.
    assert bool((apart <= (0.45 if grid.bits > 2 else 1.0) * reach).all())


def test_eight_bits_are_close_and_constant_rows_and_zeros_survive() -> None:
    weight = matrix()
    weight[0], weight[1] = 0.0, 0.25
    found = to_nearest(weight, Grid(8, 8))
    assert float((weight - found.weight).abs().max()) < 0.02
    assert bool((found.weight[0] == 0).all())
    assert float((found.weight[1] - 0.25).abs().max()) < 0.002


def test_inputs_that_never_came_and_too_few_rows_are_no_trouble() -> None:
    weight, x = matrix(), inputs(5)
    x[:, 7] = 0
    found = gptq.gptq(weight, x.T @ x, Grid(4, 8))
    assert bool(found.weight.isfinite().all())
    none = gptq.gptq(weight, torch.zeros(32, 32), Grid(4, 8))
    assert float((weight - none.weight).abs().max()) < 1.0


def test_bits_of_a_weight_count_scale_and_zero_point() -> None:
    assert Grid(4, 32).bits_per_weight == 4.5
    assert Grid(4, 32, symmetric=False).bits_per_weight == 4.625
    assert Grid(8, 64).bits_per_weight == 8.25
