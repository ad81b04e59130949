"""One token of a distribution: the likeliest, or one drawn with a number of its own luck."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 256
"""Tokens of the vocabulary whose chances are summed first."""
LIKELIEST = 512
"""Tokens among which the last that may be drawn is looked for first."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. At `temperature` 0 the likeliest token is taken; log-probabilities are
    always those of the whole vocabulary."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


def draw(z_RV: Tensor, luck_R: Tensor, how: Sampling) -> tuple[Tensor, Tensor]:
    """(tokens, their log-probabilities), (R,) each, from logits in float32 or wider, which are
    overwritten: the first token whose summed probability passes `luck`, a number in [0, 1); the
    likeliest at temperature 0."""
    if how.temperature <= 0:
        token = z_RV.argmax(-1)
        return token, z_RV.gather(1, token[:, None])[:, 0] - torch.logsumexp(z_RV, -1)
    if how.temperature != 1:
        z_RV = z_RV.div_(how.temperature)
    most = z_RV.amax(-1, keepdim=True)
    chance = z_RV.sub_(most).exp_()
    total = _chunks(chance).sum(-1)
    token = _place(_some(chance, how, total), luck_R)
    return token, (chance.gather(1, token[:, None])[:, 0] / total).log()


def pick(logprob_RV: Tensor, luck_R: Tensor, how: Sampling) -> Tensor:
    """(R,) token ids drawn as `draw` does, from log-probabilities."""
    return draw(logprob_RV.clone(), luck_R, how)[0]


def _some(chance_RV: Tensor, how: Sampling, total_R: Tensor) -> Tensor:
    """Probabilities (times `total`) of the tokens that may be drawn, 0 of the others. A token stays
    while what is likelier than it sums to less than top_p: the likeliest always stays. Of equally
    likely ones the first come first."""
    if not how.top_k and how.top_p >= 1:
        return chance_RV
    V = chance_RV.shape[1]
    count = min(how.top_k or V, V)
    goal_R = how.top_p * total_R
    # Sorting a whole vocabulary takes many times as long as finding its likeliest few, among which
    # the last that stays nearly always is.
    for looked_at in (min(LIKELIEST, V), V):
        top_RK = chance_RV.topk(looked_at, dim=-1).values
        before = top_RK.cumsum(-1) - top_RK
        place = torch.arange(looked_at, device=chance_RV.device)
        stays_R = ((before < goal_R[:, None]) & (place < count)).sum(-1)
        if looked_at == V or int(stays_R.max()) < looked_at:
            break
    least = top_RK.gather(1, (stays_R - 1)[:, None])
    kept, equal = chance_RV > least, chance_RV == least
    missing = stays_R[:, None] - kept.sum(-1, keepdim=True)
    if bool((equal.sum(-1, keepdim=True) > missing).any()):
        equal &= equal.cumsum(-1) <= missing
    return chance_RV * (kept | equal)


def _chunks(chance_RV: Tensor) -> Tensor:
    """(R, chunks): sums of `CHUNK` tokens side by side, which take a tenth of the time of running
    sums over a whole vocabulary."""
    whole = chance_RV.shape[1] // CHUNK * CHUNK
    sums = chance_RV[:, :whole].unflatten(1, (-1, CHUNK)).sum(-1) if whole else None
    if whole == chance_RV.shape[1] and sums is not None:
        return sums
    rest = chance_RV[:, whole:].sum(-1, keepdim=True)
    return rest if sums is None else torch.cat([sums, rest], 1)


def _place(chance_RV: Tensor, luck_R: Tensor) -> Tensor:
    """The first token whose summed chance passes `luck` times the whole: its chunk, then its place
    there."""
    sums = _chunks(chance_RV).cumsum(-1)
    goal = luck_R.to(sums.dtype)[:, None] * sums[:, -1:]
    chunk = torch.searchsorted(sums, goal, right=True).clamp_(max=sums.shape[1] - 1)
    before = torch.where(chunk > 0, sums.gather(1, (chunk - 1).clamp(min=0)), 0)
    V = chance_RV.shape[1]
    places = chunk * CHUNK + torch.arange(CHUNK, device=sums.device)
    own = chance_RV.gather(1, places.clamp(max=V - 1)).masked_fill(places >= V, 0)
    inner = torch.searchsorted(own.cumsum(-1), goal - before, right=True)
    token = (chunk * CHUNK + inner)[:, 0].clamp_(max=V - 1)
    # Rounding may carry the last place past the end, or to a token whose probability is 0.
    lost = chance_RV.gather(1, token[:, None])[:, 0] <= 0
    if bool(lost.any()):
        rest = chance_RV[lost]
        token[lost] = V - 1 - (rest.flip(1) > 0).to(torch.uint8).argmax(1)
    return token
