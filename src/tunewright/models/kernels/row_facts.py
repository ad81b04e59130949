"""What a distribution over the vocabulary is like, one number a label, without gradient: what some
losses weigh their tokens by.

A few hundred rows at a time, so that nothing of size rows x vocabulary stays; rows that several
labels share are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tunewright.core.moves import to_device
from tunewright.models.kernels.label_head import VALUE_CHUNK, Head

LIKELIEST = 20
"""Tokens over which `top_entropy` is taken."""


def top_entropy(z: Tensor) -> Tensor:
    """Entropy, in nats, of the distribution over the 20 likeliest tokens alone, (rows,). Logits
    (rows, V) in float32 or wider. Source: EAFT as LLaMA-Factory has it (0.9.6)."""
    top = z.topk(min(LIKELIEST, z.shape[-1]), -1).values
    log_p = top - top.logsumexp(-1, keepdim=True)
    return -(log_p.exp() * log_p).sum(-1)


def log_sum_of_squares(z: Tensor) -> Tensor:
    """log of the sum over the vocabulary of p^2, (rows,): what a token drawn from the model has as
    its own probability on average. Source: WPO, Zhou et al. 2024 (arXiv 2406.11827, equation 2)."""
    return (2 * z).logsumexp(-1) - 2 * z.logsumexp(-1)


FACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "top_entropy": top_entropy,
    "log_sum_of_squares": log_sum_of_squares,
}
"""Name -> function of the logits."""


@torch.no_grad()
def row_facts(
    hidden_TD: Tensor, source_L: Tensor, head: Head, names: Sequence[str]
) -> dict[str, Tensor]:
    """(L,) of each name of `FACTS`, in float32 or wider. Label l is predicted from the row
    `source_L[l]` of `hidden_TD`, which are rows after the final norm."""
    # On the host, as in `label_head`.
    rows, inverse = torch.unique(source_L.cpu(), return_inverse=True)
    rows, inverse = (to_device(x, hidden_TD.device) for x in (rows, inverse))
    wide = torch.promote_types(hidden_TD.dtype, torch.float32)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for some in rows.split(VALUE_CHUNK):
        z = head.logits(hidden_TD[some]).to(wide)
        for name, found in parts.items():
            found.append(FACTS[name](z))
    return {name: torch.cat(found)[inverse] for name, found in parts.items()}
