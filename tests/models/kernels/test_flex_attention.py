"""FlexAttention over a tree: which blocks its mask names, and that a layer is the same few operators
however many forks there are."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tunewright.core.types import Branch, Sample, TokenTree
from tunewright.engine.tree import build_tree, under_root
from tunewright.models.kernels import flex_attention
from tunewright.models.kernels.tree_attention import TreePlan, tree_attention


def random_tree(seed: int) -> TokenTree:
    draw = random.Random(seed)
    samples = []
    for i in range(draw.randrange(1, 9)):
        tokens = [draw.randrange(2) for _ in range(draw.randrange(2, 25))]
        samples.append(Sample([Branch(tokens, [len(tokens) - 1], [1.0])], i))
    return build_tree(samples)


def visible(
    tree: TokenTree, window: int | None, virtual: int, read: np.ndarray | None
) -> np.ndarray:
    """(queries, keys), written pair by pair from the definition."""
    rows = range(virtual, tree.num_rows)
    seen = [
        [
            j <= i < tree.subtree_end[j]
            and (window is None or tree.depth[i] - tree.depth[j] < window)
            and (read is None or bool(read[i - virtual]) or i == j)
            for j in range(tree.num_rows)
        ]
        for i in rows
    ]
    return np.array(seen)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([None, 1, 3, 8]),
    st.sampled_from([0, 1, 5, 11]),
    st.sampled_from([1, 4, 16, 128]),
    st.booleans(),
)
def test_no_visible_pair_is_left_out_and_a_full_block_hides_none(
    seed: int, window: int | None, virtual: int, size: int, few: bool
) -> None:
    tree = under_root(random_tree(seed), virtual)
    num_queries = tree.num_rows - virtual
    read = np.arange(num_queries) % 7 == 3 if few else None
    some, full = flex_attention.map_blocks(tree, window, virtual, read, size)
    pairs = visible(tree, window, virtual, read)
    assert not (some & full).any()
    for a in range(some.shape[0]):
        for b in range(some.shape[1]):
            part = pairs[a * size : (a + 1) * size, b * size : (b + 1) * size]
            if not (some[a, b] or full[a, b]):
                assert not part.any()
            if full[a, b]:
                assert part.all() and part.shape == (size, size)


def test_what_forks_cannot_see_of_one_another_is_no_block() -> None:
    """Long branches behind a short trunk: the blocks of one are not named for another."""
    draw = random.Random(0)
    trunk = tiny.words(draw, 128)
    samples = [
        tiny.single(trunk + [50 + i, *tiny.words(draw, 255)], [(383, 384)], i) for i in range(8)
    ]
    tree = build_tree(samples)
    some, full = flex_attention.map_blocks(tree, None)
    named = int((some | full).sum())
    causal = some.shape[0] * (some.shape[0] + 1) // 2
    assert full.any()
    assert named < 0.5 * causal


def forks(count: int) -> TokenTree:
    """As many branches behind a trunk of 40 rows, 400 rows in all but for the last few."""
    draw = random.Random(count)
    trunk = tiny.words(draw, 40)
    length = 360 // count
    samples = []
    for i in range(count):
        tokens = [*trunk, 3 + i, *tiny.words(draw, length)]
        samples.append(tiny.single(tokens, [(len(tokens) - 1, len(tokens))], i))
    return build_tree(samples)


class Counted(TorchDispatchMode):
    """Counts the operators that reach a device: FlexAttention is one forward and one backward, as
    on CUDA."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators(backend: str, count: int, window: int | None, softcap: float | None) -> int:
    """Operators of one layer's attention, forward and backward, its mask among them."""
    tree = forks(count)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, n, tree.num_rows, 8, generator=generator, requires_grad=True)
        for n in (4, 2, 2)
    )
    plan = TreePlan(tree, torch.device("cpu"), 0, 1, backend=backend)
    with Counted() as counted:
        out, _ = tree_attention(
            None, q, k, v, None, sliding_window=window, softcap=softcap, tree_plan=plan
        )
        out.sum().backward()
    return counted.count


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_layer_is_as_many_operators_for_one_fork_as_for_64(
    window: int | None, softcap: float | None
) -> None:
    one, eight, many = (operators("flex", n, window, softcap) for n in (1, 8, 64))
    assert 0 < one == eight == many


def test_blocks_need_more_operators_for_more_forks() -> None:
    """That the count can differ."""
    assert operators("blocks", 8, None, None) > operators("blocks", 1, None, None)


def test_rows_that_nobody_reads_are_finite() -> None:
    """What is computed for them meets a gradient of zero, which times infinity is no number."""
    tree = forks(8)
    module = torch.nn.Identity()
    q, k, v = (torch.randn(1, 2, tree.num_rows, 8, requires_grad=True) for _ in range(3))
    plan = TreePlan(
        tree,
        torch.device("cpu"),
        0,
        1,
        read=[5, 300],
        reading=frozenset({id(module)}),
        backend="flex",
    )
    out, _ = tree_attention(module, q, k, v, None, tree_plan=plan)
    out[0, [5, 300]].sum().backward()
    assert out.isfinite().all() and all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.thorough
@pytest.mark.xfail(reason="the C++ that torch 2.13 writes for a CPU of this mask is not compiled")
@pytest.mark.parametrize("window", [None, 50])
def test_the_compiled_kernel_of_this_processor_gives_the_same(window: int | None) -> None:
    """Without gradients PyTorch compiles FlexAttention for a CPU too: the mask and its blocks go
    through the compiler that CUDA's kernels come from."""
    from torch.nn.attention.flex_attention import BlockMask

    tree = under_root(forks(3), 7)
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, tree.num_rows - 7), (2, tree.num_rows), (2, tree.num_rows))
    q, k, v = (torch.randn(1, n, rows, 16, generator=generator) for n, rows in shapes)
    mask = flex_attention.mask_of(tree, window, torch.device("cpu"), 7)
    assert isinstance(mask, BlockMask)
    with torch.no_grad():
        dense = flex_attention.attend(q, k, v, mask, 0.3, 2.0)
        score = flex_attention._capped(2.0)
        kernel = flex_attention._compiled()(
            q, k, v, score_mod=score, block_mask=mask, scale=0.3, enable_gqa=True
        ).transpose(1, 2)
    assert torch.allclose(dense, kernel, rtol=0, atol=1e-5)
