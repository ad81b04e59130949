"""How far two distributions over the vocabulary are from each other, row by row, in nats.

Legend: R rows of a chunk, V vocabulary, K kept tokens. `log_t` is the teacher's, `log_s` the
student's logarithm of probabilities. Sources: see `objectives/distill.py`. Everything stays in
logarithms, so that a probability of e^-10000 is no infinity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOOR = -1e4
"""Logarithm of a probability that is as good as zero: what is left when all others are kept."""


def divergence(log_t: Tensor, log_s: Tensor, kind: str, beta: float = 0.5) -> Tensor:
    """(R,) of two (R, V). `forward` is KL(t || s), `reverse` KL(s || t), `jensen_shannon` beta *
    KL(t || m) + (1 - beta) * KL(s || m), m = beta t + (1 - beta) s."""
    if kind == "forward":
        return _kl(log_t, log_s)
    if kind == "reverse":
        return _kl(log_s, log_t)
    log_m = torch.logaddexp(log_t + math.log(beta), log_s + math.log1p(-beta))
    return beta * _kl(log_t, log_m) + (1 - beta) * _kl(log_s, log_m)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def kept(logits_RV: Tensor, temperature: float, k: int) -> tuple[Tensor, Tensor]:
    """(R, K) the k likeliest tokens and (R, K + 1) their log-probabilities, the last column being
    all other tokens together."""
    log_p = torch.log_softmax(logits_RV / temperature, -1)
    top, token = log_p.topk(min(k, log_p.shape[1]), -1)
    return token, torch.cat([top, _rest(log_p, token)], -1)


def bucketed(logits_RV: Tensor, temperature: float, token_RK: Tensor) -> Tensor:
    """(R, K + 1): the log-probabilities of the given tokens, and of all others together."""
    log_p = torch.log_softmax(logits_RV / temperature, -1)
    return torch.cat([log_p.gather(-1, token_RK), _rest(log_p, token_RK)], -1)


def _rest(log_p: Tensor, token: Tensor) -> Tensor:
    """(R, 1). Summed over the others, not taken as 1 minus the kept ones: near 1 that difference
    has no digits left."""
    if token.shape[1] >= log_p.shape[1]:
        return torch.full_like(log_p[:, :1], FLOOR)
    return log_p.scatter(-1, token, -math.inf).logsumexp(-1, keepdim=True).clamp(min=FLOOR)
