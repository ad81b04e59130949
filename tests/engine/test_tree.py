"""The token tree: everything that went in can be read back, nothing is computed twice, and the cut
of a step loses nothing."""

from __future__ import annotations

import random

import pytest
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.types import Branch, Sample, TokenTree
from tunewright.engine.tree import build_tree, common_prefix, cut_passes, padded_rows

FAST = settings(max_examples=120, deadline=None)


@st.composite
def branches(draw: st.DrawFn, positions: bool = False) -> Branch:
    # Three words and short paths: prefixes collide all the time.
    tokens = draw(st.lists(st.integers(0, 2), min_size=2, max_size=9))
    learnt = sorted(draw(st.sets(st.integers(1, len(tokens) - 1), min_size=1)))
    weights = [draw(st.sampled_from([0.25, 1.0, 2.0])) for _ in learnt]
    own = (
        [i + draw(st.sampled_from([0, 5])) for i in range(len(tokens))]
        if positions and draw(st.booleans())
        else None
    )
    return Branch(tokens, learnt, weights, own)


def sample_lists(positions: bool = False, most: int = 3) -> st.SearchStrategy[list[Sample]]:
    one = st.lists(branches(positions), min_size=1, max_size=most)
    return st.lists(one, min_size=1, max_size=8).map(
        lambda groups: [Sample(group, i) for i, group in enumerate(groups)]
    )


def ancestors(tree: TokenTree, row: int) -> list[int]:
    """The rows that `row` may see, by the one comparison of the design."""
    return [j for j in range(tree.num_rows) if j <= row < tree.subtree_end[j]]


def all_branches(samples: list[Sample]) -> list[Branch]:
    return [b for s in samples for b in s.branches]


def position_of(branch: Branch, i: int) -> int:
    return i if branch.positions is None else branch.positions[i]


def check_tree(tree: TokenTree, samples: list[Sample]) -> None:
    """Every label's source sees exactly its own branch, in order, and nothing else."""
    wanted = all_branches(samples)
    labels: dict[int, list[tuple[int, int, float]]] = {b: [] for b in range(len(wanted))}
    for source, target, weight, b in zip(
        tree.source, tree.target, tree.weight, tree.branch, strict=True
    ):
        labels[b].append((source, target, weight))
    for b, branch in enumerate(wanted):
        assert [(t, w) for _, t, w in labels[b]] == [
            (branch.tokens[i], w) for i, w in zip(branch.learnt, branch.weights, strict=True)
        ]
        for (source, _, _), i in zip(labels[b], branch.learnt, strict=True):
            path = ancestors(tree, source)
            assert [tree.token[j] for j in path] == branch.tokens[:i]
            assert [tree.position[j] for j in path] == [position_of(branch, k) for k in range(i)]
            assert [tree.depth[j] for j in path] == list(range(i))
    owner = [s for s, sample in enumerate(samples) for _ in sample.branches]
    assert tree.branch_sample == owner


@FAST
@given(sample_lists(positions=True))
def test_every_branch_can_be_read_back_from_the_tree(samples: list[Sample]) -> None:
    check_tree(build_tree(samples), samples)


@FAST
@given(sample_lists(positions=True))
def test_the_padded_rows_say_the_same_without_sharing(samples: list[Sample]) -> None:
    tree = padded_rows(samples)
    check_tree(tree, samples)
    assert tree.num_rows == sum(max(b.learnt) for b in all_branches(samples))


@FAST
@given(sample_lists())
def test_rows_are_the_distinct_prefixes_that_a_label_needs(samples: list[Sample]) -> None:
    assert build_tree(samples).num_rows == tiny.trie_rows(samples)


@FAST
@given(sample_lists())
def test_the_tree_does_not_depend_on_the_order_of_the_samples(samples: list[Sample]) -> None:
    one, other = build_tree(samples), build_tree(samples[::-1])
    assert (one.token, one.depth, one.subtree_end) == (other.token, other.depth, other.subtree_end)


def test_the_same_tokens_at_other_positions_share_nothing() -> None:
    plain, shifted = (
        Branch([1, 2, 3], [1, 2], [1.0, 1.0]),
        Branch([1, 2, 3], [1, 2], [1.0, 1.0], [4, 5, 6]),
    )
    tree = build_tree([Sample([plain], 0), Sample([shifted], 1)])
    assert tree.num_rows == 4
    assert sorted(tree.position) == [0, 1, 4, 5]


@pytest.mark.parametrize("name", tiny.SETS)
def test_a_layout_that_shares_only_one_common_prefix_computes_too_many_rows(name: str) -> None:
    """The measure of the tree: distinct prefixes, counted by a set of tuples. Sharing one prefix of
    all samples is not enough."""
    samples = tiny.SETS[name]()
    paths = [b.tokens[: max(b.learnt)] for b in all_branches(samples)]
    prefix = 0
    while len({tuple(p[: prefix + 1]) for p in paths}) == 1 and prefix < min(map(len, paths)):
        prefix += 1
    one_prefix_only = prefix + sum(len(p) - prefix for p in paths)
    rows = build_tree(samples).num_rows
    assert rows == tiny.trie_rows(samples)
    assert rows < one_prefix_only or name in ("nothing", "system")
    assert rows < sum(map(len, paths)) or name == "nothing"


@FAST
@given(sample_lists(positions=True), st.integers(1, 40))
def test_passes_hold_every_sample_once_and_respect_the_limit(
    samples: list[Sample], limit: int
) -> None:
    passes = cut_passes(samples, limit)
    assert sorted(s.index for group in passes for s in group) == list(range(len(samples)))
    for group in passes:
        assert len(group) == 1 or build_tree(group).num_rows <= limit


@FAST
@given(sample_lists(most=1), st.integers(9, 40))
def test_passes_are_as_even_as_their_number_allows(samples: list[Sample], limit: int) -> None:
    passes = cut_passes(samples, limit)
    largest = max(build_tree(group).num_rows for group in passes)
    # With one row less allowed, a further pass is needed, or some sample alone is as large.
    tighter = cut_passes(samples, max(1, largest - 1))
    assert (
        len(tighter) > len(passes)
        or max(build_tree(group).num_rows for group in tighter) >= largest
    )


@FAST
@given(sample_lists(positions=True), st.integers(1, 60))
def test_padded_passes_count_the_padding(samples: list[Sample], limit: int) -> None:
    passes = cut_passes(samples, limit, padded=True)
    assert sorted(s.index for group in passes for s in group) == list(range(len(samples)))
    for group in passes:
        inside = all_branches(group)
        assert len(group) == 1 or len(inside) * max(max(b.learnt) for b in inside) <= limit


def test_neighbours_that_begin_alike_stay_together_through_the_cut() -> None:
    draw = random.Random(0)
    systems = [tiny.words(draw, 30) for _ in range(4)]
    samples = [tiny.single(systems[i % 4] + tiny.words(draw, 8), [(30, 38)], i) for i in range(16)]
    draw.shuffle(samples)
    passes = cut_passes(samples, 70)
    assert sum(build_tree(group).num_rows for group in passes) == tiny.trie_rows(samples)


def test_no_samples_make_no_pass() -> None:
    assert cut_passes([], 10) == []
    assert cut_passes([], 10, padded=True) == []


@FAST
@given(st.lists(st.integers(0, 1), max_size=12), st.lists(st.integers(0, 1), max_size=12))
def test_common_prefix_is_what_a_loop_finds(a: list[int], b: list[int]) -> None:
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    assert common_prefix(a, b) == count
