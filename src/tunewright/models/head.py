"""Log-probabilities of the labels, through the output head, on labelled rows only and a few hundred rows at a time.

Nothing of size rows x vocabulary outlives a chunk. With a frozen head the gradient towards the hidden rows is made in the same visit:
for a row with probabilities p, d logprob / d hidden = (onehot(target) - p) @ W, and p @ W is shared by all labels of the row, so a fork costs one product.
With a trainable head the chunk is computed again in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK = 512


@dataclass
class Head:
    """The output head of a model: logits = softcap(scale * (hidden @ weight.T + bias))."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    module: Any = None
    """A head that is more than its weight (it carries an adapter): called in place of the product."""

    def logits(self, hidden_LD: Tensor, scratch: Tensor | None = None) -> Tensor:
        """(rows, vocabulary), in the dtype of the hidden rows. `scratch` (at least as many rows) receives the product; only without autograd."""
        if self.module is not None:
            z = self.module(hidden_LD)
        elif scratch is None:
            z = hidden_LD @ self.weight.t()
        else:
            z = torch.mm(hidden_LD, self.weight.t(), out=scratch[: len(hidden_LD)])
        if self.bias is not None and self.module is None:
            z = z + self.bias
        if self.scale != 1.0:
            z = z * self.scale
        if self.softcap:
            z = torch.tanh(z / self.softcap) * self.softcap
        return z

    @property
    def is_plain(self) -> bool:
        return self.bias is None and self.scale == 1.0 and not self.softcap


def _row_sums(e: Tensor, wide: torch.dtype) -> Tensor:
    """Sum over the vocabulary, (rows,). Asking PyTorch for a float32 sum of bfloat16 copies the whole chunk first (11 % of a head's time); sums of
    256 words are accumulated in float32 inside the kernel and rounded once, far below the rounding of the logits themselves."""
    if e.dtype == wide or e.shape[1] % 256:
        return e.sum(-1, dtype=wide)
    return e.view(len(e), -1, 256).sum(-1).sum(-1, dtype=wide)


class _FrozenHead(torch.autograd.Function):
    """hidden_UD, one row per distinct source; row_L and target_L say which row predicts which token. Returns logprob_L in float32 or wider."""

    @staticmethod
    def forward(ctx: Any, hidden_UD: Tensor, row_L: Tensor, target_L: Tensor, head: Head) -> Tensor:
        wide = torch.promote_types(hidden_UD.dtype, torch.float32)
        logprob_L = torch.empty(len(target_L), dtype=wide, device=hidden_UD.device)
        needed = ctx.needs_input_grad[0]
        mean_UD = torch.empty_like(hidden_UD) if needed else None
        # One buffer for all chunks: fresh memory of this size costs more in page faults than its exponentials.
        scratch = torch.empty(min(CHUNK, len(hidden_UD)), head.weight.shape[0], dtype=hidden_UD.dtype, device=hidden_UD.device) if needed else None
        slope_L = torch.ones(len(target_L), dtype=wide, device=hidden_UD.device) if head.softcap else None
        # Labels are sorted by row, so the labels of a chunk of rows are a slice.
        bounds = torch.searchsorted(row_L, torch.arange(0, len(hidden_UD) + CHUNK, CHUNK, device=row_L.device)).tolist()
        for c, start in enumerate(range(0, len(hidden_UD), CHUNK)):
            rows = slice(start, start + CHUNK)
            labels = slice(bounds[c], bounds[c + 1])
            row, target = row_L[labels] - start, target_L[labels]
            z = head.logits(hidden_UD[rows], scratch)
            gold = z[row, target]
            bend = 1 - (z / head.softcap) ** 2 if head.softcap and needed else None
            if bend is not None and slope_L is not None:
                slope_L[labels] = bend[row, target].to(wide)
            top = z.amax(-1, keepdim=True)
            e = z.sub_(top).exp_()
            total = _row_sums(e, wide)
            logprob_L[labels] = (gold - top[row, 0]).to(wide) - total.log()[row]
            if mean_UD is not None:
                e.mul_((1 / total)[:, None].to(e.dtype))
                if bend is not None:
                    e.mul_(bend)
                mean_UD[rows] = e @ head.weight
        if mean_UD is not None:
            ctx.save_for_backward(mean_UD, row_L, target_L, slope_L)
            ctx.head = head
        return logprob_L

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mean_UD, row_L, target_L, slope_L = ctx.saved_tensors
        head: Head = ctx.head
        g_L = grads[0]
        per_row = torch.zeros(len(mean_UD), dtype=g_L.dtype, device=g_L.device).index_add_(0, row_L, g_L)
        towards = g_L if slope_L is None else g_L * slope_L
        wide = torch.promote_types(mean_UD.dtype, torch.float32)
        dh = mean_UD.to(wide) * -per_row[:, None]
        dh.index_add_(0, row_L, head.weight[target_L].to(wide) * towards[:, None])
        if head.scale != 1.0:
            dh *= head.scale
        return dh.to(mean_UD.dtype), None, None, None


def _trainable_chunk(hidden: Tensor, row: Tensor, target: Tensor, head: Head) -> Tensor:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    z = head.logits(hidden).to(wide)
    return z[row, target] - torch.logsumexp(z, -1)[row]


def label_logprobs(hidden_TD: Tensor, source_L: Tensor, target_L: Tensor, head: Head) -> Tensor:
    """log p(target[l] | row source[l]) in nats, shape (L,), float32 or wider. `hidden_TD` are all rows of the pass, after the final norm."""
    rows, inverse = torch.unique(source_L, return_inverse=True)
    order = torch.argsort(inverse, stable=True)
    hidden_UD, row, target = hidden_TD[rows], inverse[order], target_L[order]
    if head.module is not None or head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad):
        sorted_L = _through_trainable(hidden_UD, row, target, head)
    else:
        sorted_L = _FrozenHead.apply(hidden_UD, row, target, head)
    return torch.empty_like(sorted_L).index_copy(0, order, sorted_L)


def _through_trainable(hidden_UD: Tensor, row_L: Tensor, target_L: Tensor, head: Head) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    parts = []
    for start in range(0, len(hidden_UD), CHUNK):
        inside = (row_L >= start) & (row_L < start + CHUNK)
        parts.append(
            checkpoint(_trainable_chunk, hidden_UD[start : start + CHUNK], row_L[inside] - start, target_L[inside], head, use_reentrant=False)
        )
    return torch.cat(parts)
