"""Which tokens may be drawn: the same as by sorting the whole vocabulary, ties included."""

from __future__ import annotations

import pytest
import torch

from tunewright.engine.decoding import drawing
from tunewright.engine.decoding.drawing import Sampling


def by_sorting(chance_RV: torch.Tensor, how: Sampling, total_R: torch.Tensor) -> torch.Tensor:
    """Straight from the definition."""
    count = how.top_k or chance_RV.shape[1]
    found = torch.zeros_like(chance_RV)
    for row, total, out in zip(chance_RV, total_R, found, strict=True):
        order = row.sort(descending=True, stable=True).indices
        before = row[order].cumsum(0) - row[order]
        for place, token in enumerate(order.tolist()):
            if place < count and before[place] < how.top_p * total:
                out[token] = row[token]
    return found


@pytest.mark.parametrize("vocabulary", [7, 900])
@pytest.mark.parametrize("spread", [0.1, 3.0, 9.0])
def test_the_likeliest_are_found_without_sorting_all(vocabulary: int, spread: float) -> None:
    torch.manual_seed(int(spread * 10))
    for rounded in (False, True):
        z = torch.randn(3, vocabulary) * spread
        z = z.to(torch.bfloat16).float() if rounded else z  # many are equally likely
        chance = (z - z.amax(-1, keepdim=True)).exp()
        total = drawing._chunks(chance).sum(-1)
        for top_p in (1e-6, 0.3, 0.9, 0.999, 1.0):
            for top_k in (0, 1, 6, 600):
                how = Sampling(1.0, top_p, top_k)
                expected = by_sorting(chance, how, total)
                if not top_k and top_p >= 1:
                    expected = chance
                assert torch.equal(drawing._some(chance, how, total), expected), how
