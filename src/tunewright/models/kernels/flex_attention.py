"""Attention over a token tree through PyTorch's FlexAttention (Dong et al. 2024, arXiv 2412.05496):
the same few kernels for a layer, however many forks the tree has.

The mask is a function of two row numbers, `j <= i < subtree_end[j]`, with a window by depth and
virtual rows in front. Which pairs of 128-row blocks hold nothing, something or everything of it
follows from the smallest and largest number of each block: integers on the host, no product of rows
by rows, nothing that waits for the device. On CUDA PyTorch compiles one kernel forward and one
backward for it. Elsewhere the same functions run through PyTorch's own dense arithmetic, which
holds all scores at once: for proofs, not for speed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunewright.core.moves import to_device
from tunewright.core.types import TokenTree

BLOCK = 128
"""Rows of a block of the mask: what PyTorch's kernels take by default."""
VARIANTS = 64
"""Compiled forms that may be kept: one for each window, softcap, kind of rows and way of asking for
gradients. PyTorch's own limit of 8 would end a run half-way."""

Blocks = np.ndarray[Any, np.dtype[np.bool_]]


def map_blocks(
    tree: TokenTree,
    window: int | None,
    num_virtual: int = 0,
    read: np.ndarray[Any, Any] | None = None,
    size: int = BLOCK,
) -> tuple[Blocks, Blocks]:
    """(some, all) of shape (query blocks, key blocks): where a pair of rows may be visible, and
    where every pair is; never both, and neither where nothing is.

    Queries are the rows of `tree` behind the first `num_virtual`, of which `read` (bool, a query
    each) are wanted; keys are all rows. A block that ends before `size` rows is never taken for
    full.
    """
    end, depth = np.asarray(tree.subtree_end), np.asarray(tree.depth)
    rows = np.arange(len(end))
    key_starts = np.arange(0, len(end), size)
    query_starts = np.arange(num_virtual, len(end), size)

    def each(values: Any, starts: Any, least: bool) -> Any:
        found = (np.minimum if least else np.maximum).reduceat(values, starts)
        return found

    first, last = query_starts[:, None], np.minimum(query_starts + size, len(end))[:, None] - 1
    key_first, key_last = key_starts[None], each(rows, key_starts, False)[None]
    some = (key_first <= last) & (each(end, key_starts, False)[None] > first)
    full = (key_last <= first) & (each(end, key_starts, True)[None] > last)
    if window is not None:
        nearest = each(depth, query_starts, True)[:, None] - each(depth, key_starts, False)[None]
        farthest = each(depth, query_starts, False)[:, None] - each(depth, key_starts, True)[None]
        some &= nearest < window
        full &= farthest < window
    if read is not None:
        starts = query_starts - num_virtual
        own = (key_first <= last) & (key_last >= first)
        some &= each(read, starts, False)[:, None] | own
        full &= each(read, starts, True)[:, None]
    whole = (last - first + 1 == size) & (key_last - key_first + 1 == size)
    full &= some & whole
    return some & ~full, full


def _listed(blocks: Blocks) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """How many blocks of each row are set, (1, 1, rows), and their numbers in front of all others,
    (1, 1, rows, columns)."""
    order = np.argsort(~blocks, axis=1, kind="stable")
    return blocks.sum(1)[None, None], order[None, None]


def mask_of(
    tree: TokenTree,
    window: int | None,
    device: torch.device,
    num_virtual: int = 0,
    read: np.ndarray[Any, Any] | None = None,
) -> Any:
    """The `BlockMask` of a tree on `device`; arguments as of `map_blocks`. A query that is not read
    sees only itself."""
    from torch.nn.attention.flex_attention import BlockMask

    parts: dict[str, Tensor] = {}
    for name, blocks in zip(
        ("", "full_"), map_blocks(tree, window, num_virtual, read), strict=True
    ):
        for side, found in (("kv", _listed(blocks)), ("q", _listed(blocks.T))):
            for what, numbers in zip(("num_blocks", "indices"), found, strict=True):
                parts[f"{name}{side}_{what}"] = to_device(numbers, device, torch.int32)
    return BlockMask(
        seq_lengths=(tree.num_rows - num_virtual, tree.num_rows),
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=_sees(
            to_device(tree.subtree_end, device, torch.int32),
            None if window is None else to_device(tree.depth, device, torch.int32),
            window,
            num_virtual,
            None if read is None else to_device(read, device, torch.bool),
        ),
        **parts,  # type: ignore[arg-type]  # tensors, all of them
    )


def _sees(
    end: Tensor, depth: Tensor | None, window: int | None, num_virtual: int, read: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query row sees a key row, of all batches and heads."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = query + num_virtual
        seen = (key <= row) & (row < end[key])
        if depth is not None and window is not None:
            seen = seen & (depth[row] - depth[key] < window)
        if read is not None:
            seen = seen & (read[query] | (key == row))
        return seen

    return sees


@functools.cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    """Scores that bend towards `softcap` (Gemma 2). Kept, so that one function is compiled once."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


def _as_it_is(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return score


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """FlexAttention with kernels for any number of rows. With `fullgraph`, what cannot be compiled
    is an error and not a slow answer."""
    from torch.nn.attention.flex_attention import flex_attention

    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(VARIANTS, dynamo.recompile_limit)
    # Scale and softcap belong to the model. As numbers of a graph that may change, FlexAttention
    # cannot take them.
    dynamo.specialize_float = True
    made: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    return made


def _dense(
    query: Tensor, key: Tensor, value: Tensor, score: Callable[..., Tensor], mask: Any, scale: float
) -> Tensor:
    """What the kernels compute, in dense arithmetic with gradients on any device. The public
    function refuses gradients on a CPU; the operator behind it has them."""
    from torch._higher_order_ops.flex_attention import flex_attention as operator

    options = {
        "PRESCALE_QK": False,
        "ROWS_GUARANTEED_SAFE": False,
        "BLOCKS_ARE_CONTIGUOUS": False,
        "WRITE_DQ": True,
        "OUTPUT_LOGSUMEXP": True,
        "OUTPUT_MAX": False,
    }
    return operator(query, key, value, score, mask.as_tuple(), scale, options)[0]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: float, softcap: float | None
) -> Tensor:
    """query (1, H, T, D), key and value (1, K, M + T, D) with H a multiple of K, `mask` as of
    `mask_of` -> (1, T, H, D)."""
    score = _capped(softcap) if softcap else None
    if query.device.type == "cuda":
        out = _compiled()(
            query,
            key,
            value,
            score_mod=score,
            block_mask=mask,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    else:
        out = _dense(query, key, value, score or _as_it_is, mask, scale)
    return out.transpose(1, 2)
