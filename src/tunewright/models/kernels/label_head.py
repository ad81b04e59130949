"""Log-probabilities of the labels, through the output head, on labelled rows only and a few hundred
rows at a time.

Nothing of size rows x vocabulary outlives a chunk. With a frozen head the gradient towards the
hidden rows is made in the same visit: for a row with probabilities p, d logprob / d hidden =
(onehot(target) - p) @ W, and p @ W is shared by all labels of the row, so a fork costs one product.
With a trainable head the chunk is computed again in the backward pass.

Three things can be asked of a row: the log-probabilities of its labels (`label_logprobs`), also how
its distribution is spread (`label_scores`), and any function of all its logits (`row_values`;
distillation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunewright.core.moves import to_device
from tunewright.models.limits import HEAD_ROWS

CHUNK = HEAD_ROWS
VALUE_CHUNK = 128
"""Rows at once in `row_values`, whose functions keep several tensors of rows x vocabulary."""


@dataclass
class Head:
    """The output head of a model: logits = softcap(scale * (hidden @ weight.T + bias))."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    module: Any = None
    """A head that is more than its weight (it carries an adapter): called in place of the product.
    """

    def logits(self, hidden_LD: Tensor, scratch: Tensor | None = None) -> Tensor:
        """(rows, vocabulary), in the dtype of the hidden rows. `scratch` (at least as many rows)
        receives the product; only without autograd."""
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


def _row_sums(e: Tensor, wide: torch.dtype) -> Tensor:
    """Sum over the vocabulary, (rows,). Asking PyTorch for a float32 sum of bfloat16 copies the
    whole chunk first (11 % of a head's time); sums of 256 words are accumulated in float32 inside
    the kernel and rounded once, far below the rounding of the logits themselves."""
    if e.dtype == wide or e.shape[1] % 256:
        return e.sum(-1, dtype=wide)
    return e.view(len(e), -1, 256).sum(-1).sum(-1, dtype=wide)


class _FrozenHead(torch.autograd.Function):
    """hidden_UD, one row per distinct source; row_L and target_L say which row predicts which
    token. Returns logprob_L in float32 or wider, and with `spread` for each row the logarithm of
    its sum of exponentials and its mean logit, (U,) each."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_UD: Tensor,
        row_L: Tensor,
        target_L: Tensor,
        bounds: list[int],
        head: Head,
        spread: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(hidden_UD.dtype, torch.float32)
        logprob_L = torch.empty(len(target_L), dtype=wide, device=hidden_UD.device)
        needed = ctx.needs_input_grad[0]
        mean_UD = torch.empty_like(hidden_UD) if needed else None
        # One buffer for all chunks: fresh memory of this size costs more in page faults than its
        # exponentials.
        scratch = (
            torch.empty(
                min(CHUNK, len(hidden_UD)),
                head.weight.shape[0],
                dtype=hidden_UD.dtype,
                device=hidden_UD.device,
            )
            if needed
            else None
        )
        slope_L = (
            torch.ones(len(target_L), dtype=wide, device=hidden_UD.device) if head.softcap else None
        )
        log_z_U = torch.zeros(len(hidden_UD) if spread else 0, dtype=wide, device=hidden_UD.device)
        mean_z_U = torch.zeros_like(log_z_U)
        # Of the mean logit: the mean row of the head, for all rows the same; each row its own where
        # a softcap bends it.
        level_UD = torch.empty_like(hidden_UD) if spread and needed and head.softcap else None
        # Labels are sorted by row, so the labels of a chunk of rows are a slice.
        for c, start in enumerate(range(0, len(hidden_UD), CHUNK)):
            rows = slice(start, start + CHUNK)
            labels = slice(bounds[c], bounds[c + 1])
            row, target = row_L[labels] - start, target_L[labels]
            z = head.logits(hidden_UD[rows], scratch)
            gold = z[row, target]
            bend = 1 - (z / head.softcap) ** 2 if head.softcap and needed else None
            if bend is not None and slope_L is not None:
                slope_L[labels] = bend[row, target].to(wide)
            if level_UD is not None and bend is not None:
                level_UD[rows] = bend @ head.weight / bend.shape[1]
            if spread:
                mean_z_U[rows] = z.sum(-1, dtype=wide) / z.shape[1]
            top = z.amax(-1, keepdim=True)
            e = z.sub_(top).exp_()
            total = _row_sums(e, wide)
            if spread:
                log_z_U[rows] = top[:, 0].to(wide) + total.log()
            logprob_L[labels] = (gold - top[row, 0]).to(wide) - total.log()[row]
            if mean_UD is not None:
                e.mul_((1 / total)[:, None].to(e.dtype))
                if bend is not None:
                    e.mul_(bend)
                mean_UD[rows] = e @ head.weight
        if mean_UD is not None:
            if spread and level_UD is None:
                level_UD = (head.weight.sum(0, dtype=wide) / len(head.weight))[None].to(
                    hidden_UD.dtype
                )
            ctx.save_for_backward(mean_UD, row_L, target_L, slope_L, level_UD)
            ctx.head = head
        return logprob_L, log_z_U, mean_z_U

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mean_UD, row_L, target_L, slope_L, level_UD = ctx.saved_tensors
        head: Head = ctx.head
        g_L, log_z_g_U, mean_z_g_U = grads
        per_row = torch.zeros(len(mean_UD), dtype=g_L.dtype, device=g_L.device).index_add_(
            0, row_L, g_L
        )
        towards = g_L if slope_L is None else g_L * slope_L
        wide = torch.promote_types(mean_UD.dtype, torch.float32)
        dh = mean_UD.to(wide) * ((log_z_g_U if level_UD is not None else 0.0) - per_row)[:, None]
        if level_UD is not None:
            dh += level_UD.to(wide) * mean_z_g_U[:, None]
        dh.index_add_(0, row_L, head.weight[target_L].to(wide) * towards[:, None])
        if head.scale != 1.0:
            dh *= head.scale
        return dh.to(mean_UD.dtype), None, None, None, None, None


def _trainable_chunk(
    hidden: Tensor, row: Tensor, target: Tensor, head: Head, spread: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    z = head.logits(hidden).to(wide)
    log_z = torch.logsumexp(z, -1)
    return (
        z[row, target] - log_z[row],
        log_z if spread else log_z[:0],
        z.mean(-1) if spread else log_z[:0],
    )


def label_logprobs(hidden_TD: Tensor, source_L: Tensor, target_L: Tensor, head: Head) -> Tensor:
    """log p(target[l] | row source[l]) in nats, shape (L,), float32 or wider. `hidden_TD` are all
    rows of the pass, after the final norm; `source_L` is best left on the host."""
    return _scored(hidden_TD, source_L, target_L, head, False)[0]


def label_scores(
    hidden_TD: Tensor, source_L: Tensor, target_L: Tensor, head: Head
) -> tuple[Tensor, Tensor, Tensor]:
    """`label_logprobs`, and for each label log Z (the logarithm of the sum of exponentials of its
    row's logits) and the mean log-probability over the whole vocabulary; (L,) each. What label
    smoothing and the z-loss are made of."""
    return _scored(hidden_TD, source_L, target_L, head, True)


def _trains(head: Head) -> bool:
    return (
        head.module is not None
        or head.weight.requires_grad
        or (head.bias is not None and head.bias.requires_grad)
    )


def _scored(
    hidden_TD: Tensor, source_L: Tensor, target_L: Tensor, head: Head, spread: bool
) -> tuple[Tensor, Tensor, Tensor]:
    # How many rows there are, and where each chunk's labels are, is found out on the host: asked of
    # a GPU, it would have to wait for the answer.
    rows, inverse = torch.unique(source_L.cpu(), return_inverse=True)
    order = torch.argsort(inverse, stable=True)
    row = inverse[order]
    bounds = torch.searchsorted(row, torch.arange(0, len(rows) + CHUNK, CHUNK)).tolist()
    rows, inverse, order, row = (
        to_device(x, hidden_TD.device) for x in (rows, inverse, order, row)
    )
    through = _through_trainable if _trains(head) else _FrozenHead.apply
    sorted_L, log_z_U, mean_z_U = through(
        hidden_TD[rows], row, target_L[order], bounds, head, spread
    )
    logprob_L = torch.empty_like(sorted_L).index_copy(0, order, sorted_L)
    return (
        (logprob_L, log_z_U[inverse], (mean_z_U - log_z_U)[inverse])
        if spread
        else (logprob_L, log_z_U, mean_z_U)
    )


def _through_trainable(
    hidden_UD: Tensor, row_L: Tensor, target_L: Tensor, bounds: list[int], head: Head, spread: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from torch.utils.checkpoint import checkpoint

    parts = []
    for c, start in enumerate(range(0, len(hidden_UD), CHUNK)):
        inside = slice(bounds[c], bounds[c + 1])
        given = (
            hidden_UD[start : start + CHUNK],
            row_L[inside] - start,
            target_L[inside],
            head,
            spread,
        )
        parts.append(checkpoint(_trainable_chunk, *given, use_reentrant=False))
    first, second, third = (torch.cat(part) for part in zip(*parts, strict=True))
    return first, second, third


RowFunction = Callable[[Tensor, slice], Tensor]
"""(logits of some rows in float32 or wider, which rows they are) -> one value a row."""


def row_values(hidden_UD: Tensor, head: Head, function: RowFunction) -> Tensor:
    """`function` of the logits of every row, (U,), a chunk of rows at a time, with gradient towards
    the hidden rows and a trainable head.

    With a frozen head `function` is called once a chunk and its gradient is taken at once; with a
    trainable one it is called again in the backward pass, so it must give the same both times.
    """
    if not len(hidden_UD):
        return (
            hidden_UD.new_zeros(0, dtype=torch.promote_types(hidden_UD.dtype, torch.float32))
            + 0 * hidden_UD.sum()
        )
    if not _trains(head):
        return _FrozenRows.apply(hidden_UD, head, function)
    from torch.utils.checkpoint import checkpoint

    parts = []
    for start in range(0, len(hidden_UD), VALUE_CHUNK):
        rows = slice(start, min(start + VALUE_CHUNK, len(hidden_UD)))
        parts.append(
            checkpoint(_row_chunk, hidden_UD[rows], head, function, rows, use_reentrant=False)
        )
    return torch.cat(parts)


def _row_chunk(hidden: Tensor, head: Head, function: RowFunction, rows: slice) -> Tensor:
    return function(head.logits(hidden).to(torch.promote_types(hidden.dtype, torch.float32)), rows)


class _FrozenRows(torch.autograd.Function):
    """One value a row and its slope towards the hidden row, made together."""

    @staticmethod
    def forward(ctx: Any, hidden_UD: Tensor, head: Head, function: RowFunction) -> Tensor:
        needed = ctx.needs_input_grad[0]
        values, slopes = [], []
        for start in range(0, len(hidden_UD), VALUE_CHUNK):
            rows = slice(start, min(start + VALUE_CHUNK, len(hidden_UD)))
            with torch.set_grad_enabled(needed):
                hidden = hidden_UD[rows].detach().requires_grad_(needed)
                value = _row_chunk(hidden, head, function, rows)
                if needed:
                    slopes.append(torch.autograd.grad(value.sum(), hidden)[0])
            values.append(value.detach())
        if needed:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope_UD,) = ctx.saved_tensors
        return (grads[0][:, None] * slope_UD).to(slope_UD.dtype), None, None
