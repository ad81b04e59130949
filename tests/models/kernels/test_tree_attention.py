"""Tree attention against a dense masked softmax in float64, forward and gradient, and the planning
of its blocks."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.types import Branch, Sample, TokenTree
from tunewright.engine.tree import build_tree
from tunewright.models.kernels import tree_attention
from tunewright.models.kernels.tree_attention import Block, TreePlan, plan_blocks

HEADS, KEYS, WIDTH = 4, 2, 8
BACKENDS = ("blocks", "flex")


def tree_of(name: str) -> TokenTree:
    return build_tree(tiny.SETS[name]())


def sees(tree: TokenTree, i: int, j: int, window: int | None) -> bool:
    """Whether j lies on the path from the root to i, found by walking up; not by the engine's
    comparison."""
    row = i
    while True:
        if row == j:
            return window is None or tree.depth[i] - tree.depth[j] < window
        parents = [r for r in range(row) if tree.depth[r] == tree.depth[row] - 1]
        if tree.depth[row] == 0 or not parents:
            return False
        row = parents[-1]  # depth first: the parent is the nearest shallower row before


def mask_of(tree: TokenTree, window: int | None) -> torch.Tensor:
    paths: list[list[int]] = []
    for i in range(tree.num_rows):
        paths.append([*(paths[i - 1][: tree.depth[i]] if tree.depth[i] else []), i])
    mask = torch.zeros(tree.num_rows, tree.num_rows, dtype=torch.bool)
    for i, path in enumerate(paths):
        for j in path:
            mask[i, j] = window is None or tree.depth[i] - tree.depth[j] < window
    return mask


def naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Softmax attention as the papers write it: q (H, T, D), k and v (K, T, D) -> (T, H, D)."""
    group = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    scores = q @ k.transpose(1, 2) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v).transpose(0, 1)


def inputs(
    rows: int,
    heads: int = HEADS,
    keys: int = KEYS,
    dtype: torch.dtype = torch.float64,
    values: int = WIDTH,
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, rows, WIDTH), (keys, rows, WIDTH), (keys, rows, values)]
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for s in shapes
    ]


def compare(
    tree: TokenTree,
    window: int | None,
    softcap: float | None,
    *,
    keep_bytes: int = 1 << 30,
    backend: str = "blocks",
    **shape: Any,
) -> float:
    """Largest relative difference of output and gradients between the tree and the naive form."""
    q, k, v = inputs(tree.num_rows, **shape)
    plan = TreePlan(tree, torch.device("cpu"), keep_bytes, 1, backend=backend)
    ours = tree_attention.tree_attention(
        None, q[None], k[None], v[None], None, scaling=0.7, sliding_window=window, softcap=softcap, tree_plan=plan
    )[0][0]  # fmt: skip
    theirs = naive(q, k, v, mask_of(tree, window), 0.7, softcap)
    towards = torch.randn(
        ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).to(ours.dtype)
    gaps = [(ours - theirs).norm() / theirs.norm()]
    got = torch.autograd.grad(ours, (q, k, v), towards)
    wanted = torch.autograd.grad(theirs, (q, k, v), towards)
    # With a window of 1 a row sees itself only: the gradient towards queries and keys is exactly
    # zero.
    size = torch.stack([w.norm() for w in wanted]).max()
    gaps += [
        (a - b).norm() / (b.norm() if window != 1 else size)
        for a, b in zip(got, wanted, strict=True)
    ]
    return float(torch.stack(gaps).detach().max())


@pytest.mark.parametrize("name", tiny.SETS)
@pytest.mark.parametrize("window", [None, 1, 2, 7, 10**6])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_gradients_equal_a_dense_masked_softmax(
    name: str, window: int | None, softcap: float | None, backend: str
) -> None:
    assert compare(tree_of(name), window, softcap, backend=backend) <= 1e-12


def test_the_reference_mask_agrees_with_walking_up_the_tree() -> None:
    tree = tree_of("dialogues")
    for window in (None, 5):
        mask = mask_of(tree, window)
        assert all(
            bool(mask[i, j]) == (j <= i and sees(tree, i, j, window))
            for i in range(tree.num_rows)
            for j in range(tree.num_rows)
        )


@pytest.mark.parametrize(("heads", "keys", "values"), [(1, 1, 8), (6, 2, 8), (4, 4, 8), (4, 1, 5)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_grouping_of_heads_and_width_of_values(
    heads: int, keys: int, values: int, backend: str
) -> None:
    shape = {"heads": heads, "keys": keys, "values": values}
    assert compare(tree_of("dialogues"), 9, None, backend=backend, **shape) <= 1e-12


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_probabilities_computed_again_give_the_same_bits(softcap: float | None) -> None:
    tree = tree_of("long")
    results = []
    for keep_bytes in (1 << 30, 0):
        q, k, v = inputs(tree.num_rows)
        plan = TreePlan(tree, torch.device("cpu"), keep_bytes, 1)
        assert plan.keeps(plan.blocks_for(None), HEADS, 8) is bool(keep_bytes)
        out = tree_attention.tree_attention(
            None, q[None], k[None], v[None], None, softcap=softcap, tree_plan=plan
        )[0]
        results.append((out, *torch.autograd.grad(out.sin().sum(), (q, k, v))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_lower_precisions_come_close(dtype: torch.dtype, most: float, backend: str) -> None:
    assert compare(tree_of("long"), None, None, dtype=dtype, backend=backend) <= most


@pytest.mark.parametrize("name", tiny.SETS)
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("few", [True, False])
def test_where_few_rows_are_read_those_and_their_gradients_are_the_same(
    name: str, window: int | None, few: bool
) -> None:
    tree, module = tree_of(name), torch.nn.Identity()
    read = [tree.num_rows - 1] if few else sorted({tree.num_rows - 1, *range(0, tree.num_rows, 5)})
    results = []
    for rows in (None, read):
        q, k, v = inputs(tree.num_rows)
        plan = TreePlan(
            tree, torch.device("cpu"), 1 << 30, 1, read=rows, reading=frozenset({id(module)})
        )
        out = tree_attention.tree_attention(
            module, q[None], k[None], v[None], None, sliding_window=window, tree_plan=plan
        )[0][0]
        results.append((out[read], *torch.autograd.grad(out[read].sin().sum(), (q, k, v))))
        queries = sum(block.stop - block.start for block in plan.blocks_for(window, module))
        assert queries == tree.num_rows if rows is None else len(read) <= queries <= tree.num_rows
        assert rows is None or not few or queries == 1
        assert plan.blocks_for(window, None) is not plan.blocks_for(window, module) or rows is None
    assert all((a - b).abs().max() <= 1e-12 for a, b in zip(*results, strict=True))


def test_the_inputs_are_left_as_they_were() -> None:
    tree = tree_of("dialogues")
    q, k, v = inputs(tree.num_rows)
    before = [x.detach().clone() for x in (q, k, v)]
    plan = TreePlan(tree, torch.device("cpu"), 1 << 30, 1)
    out = tree_attention.tree_attention(
        None, q[None], k[None], v[None], None, softcap=2.0, tree_plan=plan
    )[0]
    out.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True))


def test_without_a_tree_or_with_a_dropout_it_refuses() -> None:
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(AssertionError, match="without a tree"):
        tree_attention.tree_attention(None, x, x, x, None)
    with pytest.raises(AssertionError, match="dropout"):
        tree_attention.tree_attention(
            None,
            x,
            x,
            x,
            None,
            dropout=0.1,
            tree_plan=TreePlan(tree_of("pairs"), torch.device("cpu"), 0, 1),
        )


# Block planning: pure integers.


def random_tree(seed: int) -> TokenTree:
    draw = random.Random(seed)
    samples = []
    for i in range(draw.randrange(1, 9)):
        tokens = [draw.randrange(2) for _ in range(draw.randrange(2, 30))]
        samples.append(Sample([Branch(tokens, [len(tokens) - 1], [1.0])], i))
    return build_tree(samples)


def check_blocks(blocks: list[Block], tree: TokenTree, window: int | None, longest: int) -> None:
    assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(tree.num_rows))
    mask = mask_of(tree, window)
    for block in blocks:
        assert block.stop - block.start <= longest
        assert all(a < b for a, b in block.ranges)
        assert all(x[1] < y[0] for x, y in zip(block.ranges, block.ranges[1:], strict=False))
        given_keys = {j for a, b in block.ranges for j in range(a, b)}
        for i in range(block.start, block.stop):
            assert {j for j in range(tree.num_rows) if mask[i, j]} <= given_keys


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([None, 1, 3, 8]),
    st.sampled_from([1, 4, 128]),
    st.sampled_from([0, 30, 10**9]),
)
def test_blocks_cover_every_row_once_and_hold_every_key_it_sees(
    seed: int, window: int | None, longest: int, merge: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_attention, "MAX_BLOCK", longest)
        patch.setattr(tree_attention, "MERGE_PAIRS", merge)
        tree = random_tree(seed)
        check_blocks(plan_blocks(tree, window), tree, window, longest)


def test_siblings_do_not_see_one_another_and_their_trunk_is_not_copied() -> None:
    draw = random.Random(0)
    trunk = tiny.words(draw, 300)
    samples = [
        tiny.single(trunk + [50 + i, *tiny.words(draw, 120)], [(310, 421)], i) for i in range(3)
    ]
    tree = build_tree(samples)
    blocks = plan_blocks(tree, None)
    leaf = [b for b in blocks if b.start >= 300]
    assert all(b.ranges[0] == (0, 300) or b.ranges[0][1] > 300 for b in leaf)
    # Pairs computed: no more than twice what is visible, plus what joining small blocks may cost.
    visible = int(mask_of(tree, None).sum())
    computed = sum((b.stop - b.start) * b.num_keys for b in blocks)
    assert computed <= 2 * visible + len(blocks) * tree_attention.MERGE_PAIRS


def test_a_window_drops_keys_that_no_row_of_a_block_can_see() -> None:
    tree = tree_of("long")
    wide, narrow = plan_blocks(tree, None), plan_blocks(tree, 7)
    assert sum(b.num_keys for b in narrow) < sum(b.num_keys for b in wide)


def test_a_window_as_long_as_the_tree_is_deep_is_no_window() -> None:
    tree = tree_of("dialogues")
    plan = TreePlan(tree, torch.device("cpu"), 0, 1)
    assert plan.blocks_for(max(tree.depth) + 1) is plan.blocks_for(None)
    assert plan.blocks_for(max(tree.depth)) is not plan.blocks_for(None)
