"""Routed blocks of a mixture of depths: which rows a block computes, and how it computes only them.

The rule, its two phases and its source stand in `mixture_of_depths.py`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunewright.core.types import Model
from tunewright.models.cache_notes import noted

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunewright.methods.layers import Router


@dataclass
class Routing:
    """What all routed blocks of a model have in common."""

    on: bool = True
    settled: bool = False
    """Whether training already routes by the predictor."""
    settle_step: int | None = None
    ramps: bool = True
    """False for routers that were trained before: they are at their capacity."""
    ramp_steps: int = 0
    updates: int = 0
    capacity: float = 1.0
    """Share of the rows that the largest are taken from, now."""
    edges: dict[str, tuple[float, int]] = field(default_factory=dict)
    """For each routed block, the sum over this step's samples of the smallest weight that was
    picked, and their number."""
    mask: Tensor | None = None
    """The (B, seen) attention mask that the model was called with; None: no padding."""
    pending: list[tuple[Tensor, int]] = field(default_factory=list)
    """(sum of the predictor's cross-entropy, rows) of each routed block and pass of this step."""
    right: list[tuple[int, int]] = field(default_factory=list)
    """(rows on which predictor and router agree, rows) of the blocks and passes of this step."""
    agreement: list[float] = field(default_factory=list)
    """The same as a share, of the last steps."""
    record: list[Tensor] | None = None
    """Where the picked rows of each block are put, when somebody looks."""


def largest(r_BT: Tensor, there_BT: Tensor, capacity: float) -> Tensor:
    """(B, T) bool: for each sample ceil(capacity x its rows) of the rows that are there: the first,
    and the others with the largest weight."""
    import torch

    # A sliver is taken off first: 0.1 x 30 is a little more than 3 in binary.
    quota_B1 = torch.ceil(capacity * there_BT.sum(-1, keepdim=True) - 1e-6).to(torch.int64)
    r_BT = r_BT.masked_fill(~there_BT, -math.inf).masked_fill(first_row(there_BT), math.inf)
    order = torch.argsort(r_BT, dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(r_BT.shape[1], device=r_BT.device).expand_as(order)
    )
    return (rank < quota_B1) & there_BT


def first_row(there_BT: Tensor) -> Tensor:
    """(B, T) bool: of each sample the first row that is there."""
    return there_BT & (there_BT.cumsum(-1) == 1)


def routed_forward(
    block: nn.Module, router: Router, routing: Routing, name: str
) -> Callable[..., Tensor]:
    """The forward of a block that computes picked rows only."""
    import torch
    from torch.nn import functional as F

    own_forward = block.forward
    signature = inspect.signature(own_forward)

    def forward(*args: Any, **named: Any) -> Tensor:
        if not routing.on:
            return own_forward(*args, **named)
        bound = signature.bind(*args, **named)
        given = {
            **{k: v for k, v in bound.arguments.items() if k != "kwargs"},
            **bound.arguments.get("kwargs", {}),
        }
        x = given.pop("hidden_states")
        B, T, _ = x.shape
        there = (
            torch.ones(B, T, dtype=torch.bool, device=x.device)
            if routing.mask is None
            else routing.mask[:, -T:].bool()
        )
        n = router.normal(x)
        r = router.weights(n)
        learning = block.training and torch.is_grad_enabled()
        guess = router.predicted(n, r)
        # The first row of a text stands in the first call only.
        always = (
            first_row(there)
            if name not in noted(given.get("past_key_values"))
            else torch.zeros_like(there)
        )
        if learning:
            heavy = largest(r.detach(), there, routing.capacity)
            open_to = there & ~always
            loss = F.binary_cross_entropy_with_logits(
                guess[open_to], heavy[open_to].to(guess.dtype), reduction="sum"
            )
            routing.pending.append((loss, int(open_to.sum())))
            routing.right.append((int(((guess > 0) == heavy)[open_to].sum()), int(open_to.sum())))
            edge = r.detach().masked_fill(~(heavy & open_to), math.inf).amin(-1)
            edge = edge[edge < math.inf]
            total, count = routing.edges.get(name, (0.0, 0))
            routing.edges[name] = (total + float(edge.double().sum()), count + len(edge))
        picked = heavy if learning and not routing.settled else ((guess > 0) & there) | always
        if routing.record is not None:
            routing.record.append(picked.clone())
        K = int(picked.sum(-1).max())
        if K == 0:
            return x
        # Picked rows first, in their order; what fills up a shorter sample is hidden from the
        # others and thrown away.
        at = torch.argsort(~picked, dim=-1, stable=True)[:, :K]
        real = torch.gather(picked, 1, at)
        chosen = torch.gather(x, 1, at[..., None].expand(-1, -1, x.shape[-1]))
        _gather_positions(given, at)
        given["attention_mask"] = _mask(block, given, name, real, chosen)
        out = own_forward(hidden_states=chosen, **given)
        out = out[0] if isinstance(out, tuple) else out
        weight = torch.gather(r, 1, at)[..., None].to(x.dtype)
        change = torch.where(
            real[..., None],
            (out - chosen) * weight,
            torch.zeros((), dtype=x.dtype, device=x.device),
        )
        return x.scatter_add(1, at[..., None].expand(-1, -1, x.shape[-1]), change)

    return forward


def _gather_positions(given: dict[str, Any], at: Tensor) -> None:
    """Positions and their sines and cosines of the picked rows, in place."""
    import torch

    def rows(t: Tensor) -> Tensor:
        t = t.expand(len(at), *t.shape[1:]) if t.shape[0] == 1 else t
        index = at if t.dim() == 2 else at[..., None].expand(-1, -1, t.shape[-1])
        return torch.gather(t, 1, index)

    if given.get("position_ids") is not None:
        given["position_ids"] = rows(given["position_ids"])
    if given.get("position_embeddings") is not None:
        given["position_embeddings"] = tuple(rows(part) for part in given["position_embeddings"])


def _mask(
    block: nn.Module, given: dict[str, Any], name: str, real: Tensor, chosen: Tensor
) -> Tensor:
    """(B, 1, K, seen + K): picked rows see picked rows before them and themselves. With a cache,
    which of its rows are real is noted on it."""
    import torch

    B, K = real.shape
    cache = given.get("past_key_values")
    seen = real.new_zeros(B, 0)
    if cache is not None:
        notes = noted(cache)
        seen = notes.get(name, seen)
        notes[name] = torch.cat([seen, real], 1)
    before = seen[:, None, :].expand(-1, K, -1)
    among = torch.ones(K, K, dtype=torch.bool, device=real.device).tril()[None] & real[:, None, :]
    # A row that fills up sees itself, or its softmax would be empty.
    among = among | torch.eye(K, dtype=torch.bool, device=real.device)
    allowed = torch.cat([before, among], 2)[:, None]
    if getattr(block_config(block), "_attn_implementation", "sdpa") == "sdpa":
        return allowed
    return torch.zeros(allowed.shape, dtype=chosen.dtype, device=chosen.device).masked_fill_(
        ~allowed, torch.finfo(chosen.dtype).min
    )


def block_config(block: nn.Module) -> object:
    """The configuration that the attention of a block reads."""
    return next((m.config for m in block.modules() if hasattr(m, "config")), None)


def watch_mask(model: Model, routing: Routing) -> None:
    """Note the attention mask with which the body of `model` is called: blocks see only what was
    made of it."""
    body = getattr(model, model.base_model_prefix)

    def note(module: nn.Module, args: tuple[object, ...], named: dict[str, Tensor]) -> None:
        mask = named.get("attention_mask")
        routing.mask = mask if mask is not None and mask.dim() == 2 else None

    body.register_forward_pre_hook(note, with_kwargs=True)


def routing_of(model: Model) -> Routing:
    """The routing that `mixture_of_depths` left on a model."""
    routing: Routing = vars(model)["depth_routing"]
    return routing


def agreement(model: Model, ids_BT: Tensor, mask_BT: Tensor | None = None) -> float:
    """Share of (routed block, token) decisions that come out the same when the model learns and
    when it writes, on the given texts.

    Two forward passes, each routed its own way from the first block on, so differences of lower
    blocks count with their consequences.
    """
    import torch

    routing = routing_of(model)
    was_training, found = model.training, []
    for learning in (True, False):
        model.train(learning)
        routing.record = []
        with torch.set_grad_enabled(learning):
            model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        found.append(torch.stack(routing.record))
        routing.record = None
    routing.pending, routing.right = [], []
    model.train(was_training)
    same = found[0] == found[1]
    return float(
        same[:, mask_BT.bool()].float().mean() if mask_BT is not None else same.float().mean()
    )
