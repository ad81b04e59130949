"""Attention over a token tree, registered through Transformers' attention interface.

The rows of a tree are cut into query blocks. A block sees a few contiguous key ranges (its
ancestors and itself), so its scores are one batched matrix product over the gathered keys; what the
block's rows must not see is masked. Query heads that share a key head are stacked into rows. All
blocks live in one autograd function: slicing q, k and v outside of it costs 8 % in zero fills and
11 % in copies. Measured against masked SDPA, the CPU flash kernel per part and SDPA per leaf:
docs/LOG.md. Block planning is pure integers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunewright.core.types import TokenTree
from tunewright.models.kernels import flex_attention

NAME = "tunewright_tree"
MAX_BLOCK = 128
"""Rows of the longest query block: a causal block computes twice the pairs it needs, so blocks stay
short."""
MERGE_PAIRS = 3000
"""Query-key pairs that cost as much as one more block (about 25 kernel calls forward and backward).
Only speed depends on it."""


@dataclass(frozen=True)
class Kept:
    """What attention saw of a layer while prompts were read: keys and values (K, n, D), and how the
    layer attends."""

    k: Tensor
    v: Tensor
    scale: float
    window: int | None
    softcap: float | None


@dataclass
class Block:
    """Query rows [start, stop) and the key ranges they see; `hidden` (queries, keys from
    `first_hidden` on) marks what is masked, None for nothing.

    Ancestors come first and are seen by all rows, so most of a long block's scores need no mask.
    Keys are counted in rows of the tree, queries in rows that have one: virtual rows at the root
    have only keys.
    """

    start: int
    stop: int
    ranges: list[tuple[int, int]]
    hidden: Tensor | None = None
    first_hidden: int = 0
    keys: Tensor | None = None
    """Row indices of all key ranges, None where one slice serves."""

    unseen: dict[torch.dtype, Tensor] = field(default_factory=dict)
    """What is added to the scores where `hidden` says so, by dtype."""

    @property
    def num_keys(self) -> int:
        return sum(b - a for a, b in self.ranges)

    def hidden_as(self, dtype: torch.dtype) -> Tensor:
        """`hidden` as numbers to add: 0, and minus infinity where it is True. A third of the time
        that filling by a mask takes."""
        assert self.hidden is not None
        if dtype not in self.unseen:
            self.unseen[dtype] = torch.zeros(
                self.hidden.shape, dtype=dtype, device=self.hidden.device
            ).masked_fill_(self.hidden, float("-inf"))
        return self.unseen[dtype]


@dataclass
class TreePlan:
    """What every attention layer of one pass needs: the model's keyword `tree_plan`."""

    tree: TokenTree
    device: torch.device
    keep_bytes: int
    """Probabilities are kept for the backward pass while all layers together stay under this; above
    it they are computed again."""
    num_layers: int
    num_virtual: int = 0
    """The first rows of the tree that are only keys and values (a learnt prefix): the model brings
    no queries for them."""
    read: Sequence[int] | None = None
    """Query rows that are read after the last block, ascending; None: all."""
    reading: frozenset[int] = frozenset()
    """Identities of the modules whose attention serves only the rows `read`."""
    blocks: dict[tuple[int | None, bool], list[Block]] = field(default_factory=dict)
    kept: dict[int, Kept] | None = None
    """Where the keys and values of every layer are put, if answers are to be written after the
    rows."""
    backend: str = "blocks"
    """What computes attention: `blocks` (here) or `flex` (`flex_attention`)."""
    masks: dict[tuple[int | None, bool], Any] = field(default_factory=dict)
    """What `flex` makes of `blocks_for`."""

    def blocks_for(self, window: int | None, module: Any = None) -> list[Block]:
        """The blocks for a sliding window of `window` (distance in depth), or for full attention,
        in the attention of `module`."""
        window, few = self._seen(window, module)
        if (window, few) not in self.blocks:
            planned = plan_blocks(self.tree, window, self.num_virtual)
            if few and self.read is not None:
                planned = _around(planned, self.read, self.num_virtual)
            self.blocks[window, few] = _with_masks(
                planned, self.tree, window, self.device, self.num_virtual
            )
        return self.blocks[window, few]

    def _seen(self, window: int | None, module: Any) -> tuple[int | None, bool]:
        """(the window where it hides anything, whether few rows are read of `module`)."""
        if window is not None and window >= max(self.tree.depth, default=0) + 1:
            window = None
        return window, self.read is not None and id(module) in self.reading

    def mask_for(self, window: int | None, module: Any = None) -> Any:
        """The same as `blocks_for` for FlexAttention: a `BlockMask`."""
        window, few = self._seen(window, module)
        if (window, few) not in self.masks:
            wanted = None
            if few and self.read is not None:
                wanted = np.zeros(self.tree.num_rows - self.num_virtual, dtype=bool)
                wanted[list(self.read)] = True
            self.masks[window, few] = flex_attention.mask_of(
                self.tree, window, self.device, self.num_virtual, wanted
            )
        return self.masks[window, few]

    def keeps(self, blocks: list[Block], heads: int, item_bytes: int) -> bool:
        """Whether the probabilities of all layers fit into `keep_bytes`."""
        pairs = sum((b.stop - b.start) * b.num_keys for b in blocks)
        return pairs * heads * item_bytes * self.num_layers <= self.keep_bytes


def _chains(tree: TokenTree) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Maximal runs of rows in which each row is the child of the one before: (start, stop, ranges
    of all ancestors of the first row)."""
    depth = tree.depth
    found: list[tuple[int, int, list[tuple[int, int]]]] = []
    on_path: list[tuple[int, int]] = []  # ranges of the current root-to-here path, by row
    start = 0
    total = len(depth)
    for i in range(1, total + 1):
        if i < total and depth[i] == depth[i - 1] + 1:
            continue
        head_depth = depth[start]
        kept: list[tuple[int, int]] = []
        left = head_depth
        for (
            a,
            b,
        ) in (
            on_path
        ):  # the path down to the parent of this chain's head holds exactly head_depth rows
            take = min(b - a, left)
            if take <= 0:
                break
            kept.append((a, a + take))
            left -= take
        found.append((start, i, _merge(kept)))
        on_path = [*kept, (start, i)]
        start = i
    return found


def _merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted union of ranges, touching ones joined."""
    merged: list[tuple[int, int]] = []
    for a, b in sorted(ranges):
        if merged and a <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(b, merged[-1][1]))
        elif b > a:
            merged.append((a, b))
    return merged


def plan_blocks(tree: TokenTree, window: int | None, num_virtual: int = 0) -> list[Block]:
    """Cut the rows into query blocks: long chains into pieces, small neighbours joined while a
    masked product is cheaper than another block.

    The first `num_virtual` rows get no query.
    """
    pieces: list[Block] = []
    for start, stop, ancestors in _chains(tree):
        for a in range(max(start, num_virtual), stop, MAX_BLOCK):
            b = min(stop, a + MAX_BLOCK)
            ranges = _merge([*ancestors, (start, b)])
            pieces.append(
                Block(a - num_virtual, b - num_virtual, _within_window(ranges, tree, a, window))
            )
    joined: list[Block] = []
    for piece in pieces:
        if joined and piece.stop - joined[-1].start <= MAX_BLOCK:
            last = joined[-1]
            both = Block(last.start, piece.stop, _merge([*last.ranges, *piece.ranges]))
            extra = _pairs(both) - _pairs(last) - _pairs(piece)
            if extra <= MERGE_PAIRS:
                joined[-1] = both
                continue
        joined.append(piece)
    return joined


def _around(blocks: list[Block], read: Sequence[int], num_virtual: int) -> list[Block]:
    """The blocks without the query rows before the first and after the last of `read` (ascending)
    in each; none where a block has none of them."""
    found = []
    for block in blocks:
        rows = read[bisect_left(read, block.start) : bisect_left(read, block.stop)]
        if rows:
            start, stop = rows[0], rows[-1] + 1
            seen = [
                (a, min(b, stop + num_virtual)) for a, b in block.ranges if a < stop + num_virtual
            ]
            found.append(Block(start, stop, seen))
    return found


def _pairs(block: Block) -> int:
    return (block.stop - block.start) * block.num_keys


def _within_window(
    ranges: list[tuple[int, int]], tree: TokenTree, first: int, window: int | None
) -> list[tuple[int, int]]:
    """Drop key rows that lie too far above the first query row of a chain piece for any of its rows
    to see."""
    if window is None:
        return ranges
    lowest = tree.depth[first] - window + 1
    kept = []
    for a, b in ranges:
        # Inside one range depth need not be monotone (ranges were joined), so cut only a leading
        # run of too shallow rows.
        while a < b and tree.depth[a] < lowest:
            a += 1
        if a < b:
            kept.append((a, b))
    return kept


def _with_masks(
    blocks: list[Block],
    tree: TokenTree,
    window: int | None,
    device: torch.device,
    num_virtual: int = 0,
) -> list[Block]:
    end = torch.tensor(tree.subtree_end, device=device)
    depth = torch.tensor(tree.depth, device=device)
    for block in blocks:
        rows = torch.arange(block.start, block.stop, device=device)[:, None] + num_virtual
        keys = torch.cat([torch.arange(a, b, device=device) for a, b in block.ranges])
        visible = (keys <= rows) & (rows < end[keys])
        if window is not None:
            visible &= depth[rows] - depth[keys] < window
        seen_by_all = visible.all(0)
        block.hidden, block.first_hidden = None, int(seen_by_all.cummin(0).values.sum())
        if block.first_hidden < len(keys):
            block.hidden = ~visible[:, block.first_hidden :]
        block.keys = keys if len(block.ranges) > 1 else None
    return blocks


def _take(x_HTD: Tensor, block: Block) -> Tensor:
    if block.keys is None:
        a, b = block.ranges[0]
        return x_HTD[:, a:b]
    return torch.cat([x_HTD[:, a:b] for a, b in block.ranges], 1)


def _probabilities(
    queries: Tensor, keys: Tensor, block: Block, group: int, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """(P, t) for one block: queries (K, group*n, D), keys (K, m, D). t is tanh(s / cap), whose
    square the backward pass of a softcap needs."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    t = None
    if softcap:
        t = scores.div_(softcap).tanh_()
        scores = t * softcap
    if block.hidden is not None:
        part = scores.view(scores.shape[0], group, block.stop - block.start, -1)[
            ..., block.first_hidden :
        ]
        part += block.hidden_as(scores.dtype)
    return torch.softmax(scores, -1), t


class _TreeAttention(torch.autograd.Function):
    """q (H, T, D), not yet scaled; k, v (K, M + T, D) with H a multiple of K and M virtual rows in
    front. Returns (T, H, D), zeros in rows of no block."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        softcap: float | None,
        blocks: list[Block],
        keep: bool,
    ) -> Tensor:
        (H, T, D), K = q.shape, k.shape[0]
        group = H // K
        # Products over key heads that lie apart are a sixth slower, and they are few.
        k, v = k.contiguous(), v.contiguous()
        qs = q * scale
        ctx.whole = sum(block.stop - block.start for block in blocks) == T
        out = (torch.empty if ctx.whole else torch.zeros)(
            T, H, v.shape[2], dtype=q.dtype, device=q.device
        )
        kept, asked = [], []
        for block in blocks:
            a, b = block.start, block.stop
            queries = qs[:, a:b].reshape(K, group * (b - a), D)
            p, t = _probabilities(queries, _take(k, block), block, group, softcap)
            out[a:b] = torch.bmm(p, _take(v, block)).view(H, b - a, -1).transpose(0, 1)
            if keep:
                kept.append((p, t))
                asked.append(queries)
        # The queries of kept blocks are kept in the form that the products take.
        saved = [*asked, *(x for pair in kept for x in pair if x is not None)] if keep else [qs]
        ctx.save_for_backward(k, v, *saved)
        ctx.keep, ctx.blocks, ctx.scale, ctx.softcap, ctx.shape = (
            keep,
            blocks,
            scale,
            softcap,
            q.shape,
        )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        k, v, *saved = ctx.saved_tensors
        many = len(ctx.blocks)
        if ctx.keep:
            asked, kept = saved[:many], saved[many:]
            softcap = bool(ctx.softcap)
            pairs = [
                (kept[i], kept[i + 1] if softcap else None)
                for i in range(0, len(kept), 1 + softcap)
            ]
        (H, T, D), K = ctx.shape, k.shape[0]
        group = H // K
        # Sums over many rows go to at least float32: a trunk row collects from every leaf.
        wide = torch.promote_types(k.dtype, torch.float32)
        dq = (torch.empty if ctx.whole else torch.zeros)(
            T, H, D, dtype=k.dtype, device=k.device
        ).transpose(0, 1)
        dk, dv = (
            torch.zeros(k.shape, dtype=wide, device=k.device),
            torch.zeros(v.shape, dtype=wide, device=v.device),
        )
        g_HTD = grads[0].transpose(0, 1)
        for i, block in enumerate(ctx.blocks):
            a, b = block.start, block.stop
            n = b - a
            keys, values = _take(k, block), _take(v, block)
            if ctx.keep:
                queries, (p, t) = asked[i], pairs[i]
            else:
                queries = saved[0][:, a:b].reshape(K, group * n, D)
                p, t = _probabilities(queries, keys, block, group, ctx.softcap)
            grad = g_HTD[:, a:b].reshape(K, group * n, -1)
            ds = torch._softmax_backward_data(
                torch.bmm(grad, values.transpose(1, 2)), p, -1, p.dtype
            )
            if t is not None:
                ds.mul_(1 - t * t)
            dq[:, a:b] = torch.bmm(ds, keys).view(H, n, D)
            _add(dv, torch.bmm(p.transpose(1, 2), grad), block)
            _add(dk, torch.bmm(ds.transpose(1, 2), queries), block)
        return dq.mul_(ctx.scale), dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


def _add(total: Tensor, part: Tensor, block: Block) -> None:
    offset = 0
    for a, b in block.ranges:
        # Not `+=`: on an index it would write the sum to its own place once more.
        total[:, a:b].add_(part[:, offset : offset + b - a])
        offset += b - a


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    tree_plan: TreePlan | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """The attention function as Transformers calls it: query (1, H, T, D), key and value (1, K, M +
    T, D) -> (1, T, H, D), M virtual rows in front.

    Raises AssertionError without a plan: a model set to this attention is only ever called through
    `engine/policy.py`.
    """
    assert tree_plan is not None, "tree attention was called without a tree"
    assert not dropout, "dropouts of a model's config are set to 0 at load"
    assert key.shape[2] == query.shape[2] + tree_plan.num_virtual == tree_plan.tree.num_rows, (
        "keys and rows of the tree differ in number"
    )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if tree_plan.kept is not None:
        tree_plan.kept[int(module.layer_idx)] = Kept(
            key[0], value[0], scale, sliding_window, softcap
        )
    if tree_plan.backend == "flex":
        mask = tree_plan.mask_for(sliding_window, module)
        return flex_attention.attend(query, key, value, mask, scale, softcap), None
    blocks = tree_plan.blocks_for(sliding_window, module)
    keep = tree_plan.keeps(blocks, query.shape[1], query.element_size() * (2 if softcap else 1))
    out = _TreeAttention.apply(query[0], key[0], value[0], scale, softcap, blocks, keep)
    return out[None], None


def register() -> None:
    """Make the name known to Transformers; calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
