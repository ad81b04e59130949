"""Hidden states below the lowest block that trains: computed once for each branch, kept, and laid
into every later pass.

Where only upper blocks train, what enters the first of them never changes: the weights below are
frozen and their dropout is 0. For the last 2 of 30 blocks that is nine tenths of the forward pass,
and autograd needs nothing of it.

A branch's rows are always computed from that branch alone, in the layout of the run, and kept under
a hash of its tokens and positions. So the numbers do not depend on how steps are cut into passes,
on what else a pass held, or on whether the rows were kept or are computed again: a resumed run,
whose store starts empty, sees the same bits. A row that branches share in a tree is taken from the
last branch that has it; the copies differ by rounding only.

Models are not patched. In a pass with rows at hand the blocks below hand on what they are given,
and a hook gives the first trained block its rows.
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from tunewright.core.config import EngineConfig
from tunewright.core.files import readable_size
from tunewright.core.machine import free_bytes
from tunewright.core.telling import Tell
from tunewright.core.types import Branch, Sample, TokenTree
from tunewright.core.words import say
from tunewright.engine import ranks
from tunewright.engine.layout import probe_samples
from tunewright.engine.tree import build_tree, padded_rows, rows_needed, rows_of_branches
from tunewright.models import anatomy

AUTO_SHARE = 0.25
"""Share of the memory that is free at the start which `auto` may use."""
WORTH_IT = 0.25
"""Least share of the blocks that must lie below, for `auto`: under that the time saved is not worth
the memory."""
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.06, "float16": 0.01}
"""Largest difference of the hidden states after the last block, as a share of the largest one, in
the check before the first step."""


class ActivationCache:
    """The store of one run, for a `Policy`. `block` is the number of the first that trains."""

    def __init__(self, policy: Any, block: int, limit_bytes: int, *, in_tuple: bool = False):
        self.policy, self.block, self.limit_bytes, self.in_tuple = (
            policy,
            block,
            limit_bytes,
            in_tuple,
        )
        self.blocks = blocks_of(policy.causal[0])
        self.kept: dict[bytes, Tensor] = {}
        self.kept_bytes = self.hits = self.misses = 0
        self._frozen = [p for b in self.blocks[:block] for p in b.parameters()]

    def holds(self) -> bool:
        """Whether everything below is still frozen. A method that thaws a block later makes the
        store wrong from then on."""
        return not any(p.requires_grad for p in self._frozen)

    def rows(self, tree: TokenTree, shared: bool) -> Tensor:
        """(T, D): what enters the first trained block in the rows of `tree`; without gradient."""
        branches = [branch for sample in tree.samples for branch in sample.branches]
        parts = [self._of(branch) for branch in branches]
        if not shared:
            return torch.cat(parts)
        rows_TD = parts[0].new_zeros(tree.num_rows, parts[0].shape[1])
        for part, rows in zip(parts, rows_of_branches(tree, shared), strict=True):
            rows_TD[torch.tensor(rows, device=part.device)] = part
        return rows_TD

    def row_of(self, sample: Sample) -> Tensor:
        """(rows, D) of a sample's first branch."""
        return self._of(sample.branches[0])

    def _of(self, branch: Branch) -> Tensor:
        key = key_of(branch)
        if key in self.kept:
            self.hits += 1
            return self.kept[key]
        self.misses += 1
        part = self._compute(branch)
        size = part.numel() * part.element_size()
        if self.kept_bytes + size <= self.limit_bytes:
            self.kept[key] = part
            self.kept_bytes += size
        return part

    @torch.no_grad()
    def _compute(self, branch: Branch) -> Tensor:
        """(rows, D) of one branch, through the blocks below only."""
        caught: list[Tensor] = []

        def catch(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            caught.append(given[0] if given else named["hidden_states"])

        one = [Sample([branch], 0)]
        tree = build_tree(one) if self.policy.layout == "tree" else padded_rows(one)
        hook = self.blocks[self.block].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            with self._idle(self.blocks[self.block :]):
                self.policy.hidden(tree)
        finally:
            hook.remove()
        return caught[0].reshape(-1, caught[0].shape[-1]).clone()

    @contextlib.contextmanager
    def replaying(self, tree: TokenTree) -> Iterator[None]:
        """Inside, a forward pass over `tree` starts at the first trained block."""
        rows_TD = self.rows(tree, self.policy.layout == "tree")

        def give(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            place = given[0] if given else named["hidden_states"]
            rows = spread(rows_TD, place, tree)
            return (
                ((rows, *given[1:]), named) if given else (given, {**named, "hidden_states": rows})
            )

        hook = self.blocks[self.block].register_forward_pre_hook(give, with_kwargs=True)
        try:
            with self._idle(self.blocks[: self.block]):
                yield
        finally:
            hook.remove()

    @contextlib.contextmanager
    def _idle(self, blocks: list[Any]) -> Iterator[None]:
        """Inside, `blocks` return what they are given."""

        def hand_on(*given: Any, **named: Any) -> Any:
            x = given[0] if given else named["hidden_states"]
            return (x,) if self.in_tuple else x

        before = [vars(block).get("forward") for block in blocks]
        for block in blocks:
            block.forward = hand_on
        try:
            yield
        finally:
            for block, own in zip(blocks, before, strict=True):
                if own is None:
                    del block.forward
                else:
                    block.forward = own


def spread(rows_TD: Tensor, place: Tensor, tree: TokenTree) -> Tensor:
    """The rows of a pass in the shape that the model has them in: (1, T, D), or (B, longest, D)
    with zeros as padding."""
    if place.shape[:2] == (1, tree.num_rows):
        return rows_TD[None].to(place.dtype)
    depth = torch.tensor(tree.depth, device=place.device)
    branch = torch.cumsum(depth == 0, 0) - 1
    out = torch.zeros(*place.shape[:2], rows_TD.shape[-1], dtype=place.dtype, device=place.device)
    out[branch, depth] = rows_TD.to(place.dtype)
    return out


def key_of(branch: Branch) -> bytes:
    """A hash of what decides a branch's hidden states: its tokens and their positions."""
    needed = rows_needed(branch)
    digest = hashlib.blake2b(array("q", branch.tokens[:needed]).tobytes(), digest_size=16)
    if branch.positions is not None:
        digest.update(b"at" + array("q", branch.positions[:needed]).tobytes())
    return digest.digest()


def blocks_of(causal: Any) -> list[Any]:
    """The model's blocks, in order."""
    by_name = dict(causal.named_modules())
    return [by_name[name] for name in anatomy.of(causal).blocks]


def lowest_trained(policy: Any) -> tuple[int, bool] | None:
    """(number of the first block whose input needs no gradient while all before it do not either,
    whether blocks return tuples), asked of autograd.

    Whatever a method puts into the model, a block's input carries a gradient exactly when something
    below it trains. None where a block returns more than its hidden states.
    """
    blocks = blocks_of(policy.causal[0])
    needs: dict[int, bool] = {}
    outputs: list[Any] = []

    def look(number: int) -> Any:
        def hook(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            needs[number] = bool((given[0] if given else named["hidden_states"]).requires_grad)

        return hook

    hooks = [
        block.register_forward_pre_hook(look(i), with_kwargs=True) for i, block in enumerate(blocks)
    ]
    hooks.append(
        blocks[0].register_forward_hook(lambda module, given, output: outputs.append(output))
    )
    try:
        with torch.enable_grad():
            probe = probe_samples(policy.causal[0].config.get_text_config().vocab_size)[:1]
            policy.hidden(build_tree(probe) if policy.layout == "tree" else padded_rows(probe))
    finally:
        for hook in hooks:
            hook.remove()
    in_tuple = isinstance(outputs[0], tuple)
    if len(needs) < len(blocks) or (in_tuple and len(outputs[0]) > 1):
        return None
    return max((i for i, found in needs.items() if not found), default=0), in_tuple


def install(
    policy: Any,
    engine: EngineConfig,
    sets: list[Sequence[Sample]],
    epochs: float,
    device: str,
    tell: Tell,
) -> tuple[int | str, str]:
    """Give `policy` a store where it saves time. `sets` are the samples that are learnt and those
    that are measured.

    Returns what `engine.activation_cache` becomes (bytes or `off`) and why.
    """
    asked = engine.activation_cache
    if asked == "off":
        return "off", say("cache.asked_off")
    if engine.neftune:
        return "off", say("cache.noise")
    if ranks.current().sharded:
        return "off", say("cache.shares")
    if asked == "auto" and epochs <= 1:
        return "off", say("cache.once")
    policy.model.eval()  # a method's dropout is no difference between the two ways
    found = lowest_trained(policy)
    total = len(blocks_of(policy.causal[0]))
    if found is None or found[0] == 0 or (asked == "auto" and found[0] < WORTH_IT * total):
        return "off", say("cache.nothing")
    block, in_tuple = found
    share = AUTO_SHARE / ranks.current().here
    limit = int(share * free_bytes(device)) if asked == "auto" else int(asked)
    cache = ActivationCache(policy, block, limit, in_tuple=in_tuple)
    first = sets[0][0]
    row = cache.row_of(first)
    needed = bytes_needed(chain.from_iterable(sets), row.shape[1] * row.element_size(), limit)
    if needed is None:
        return "off", say("cache.once")
    if needed > limit:
        reason = say("cache.too_big", limit=readable_size(limit))
        tell.line(reason)
        return "off", reason
    gap = disagreement(cache, first)
    if not gap <= TOLERANCE[str(row.dtype).removeprefix("torch.")]:
        reason = say("cache.differs", gap=f"{gap:.1e}")
        tell.line(reason)
        return "off", reason
    cache.hits = cache.misses = 0
    policy.cache = cache
    reason = say("cache.on", block=block, total=total, needed=readable_size(needed))
    tell.line(reason)
    return limit, reason


def bytes_needed(samples: Iterable[Sample], row_bytes: int, limit: int) -> int | None:
    """Bytes of the rows of all samples, each distinct branch once; counting ends above `limit`.
    None where a branch learns nothing by itself: such a branch is a prompt, and what is learnt is
    made anew in each step."""
    seen: set[bytes] = set()
    total = 0
    for branch in (branch for sample in samples for branch in sample.branches):
        if not branch.learnt:
            return None
        key = key_of(branch)
        if key not in seen:
            seen.add(key)
            total += rows_needed(branch) * row_bytes
        if total > limit:
            break
    return total


@torch.no_grad()
def disagreement(cache: ActivationCache, sample: Sample) -> float:
    """Largest difference between the last hidden states of `sample` with and without the store, as
    a share of the largest one."""
    policy = cache.policy
    tree = build_tree([sample]) if policy.layout == "tree" else padded_rows([sample])
    plain = policy.hidden(tree).float()
    with cache.replaying(tree):
        replayed = policy.hidden(tree).float()
    return float((plain - replayed).abs().max() / plain.abs().max())
