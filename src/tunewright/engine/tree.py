"""Merge the branches of one pass into a token tree, and cut the samples of a step into passes.

Pure integers in, pure integers out: no tensors, no files, so every rule here is property-tested.
Two branches share a row exactly when they agree on every (token, position) up to it; forks may lie
at any depth. Rows that no label needs are never laid out. Source: radix tree (Morrison 1968), laid
out depth first so that "is an ancestor of" is one comparison (`TokenTree`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

from tunewright.core.types import Branch, Sample, TokenTree

Key = list[tuple[int, int]] | list[int]


def rows_needed(branch: Branch) -> int:
    """Rows a branch must compute: up to the one that predicts its last learnt token; all of them if
    it has no label but is read by a head, or is wanted whole."""
    return max(branch.learnt) if branch.learnt and not branch.whole else len(branch.tokens)


def _row_keys(branch: Branch) -> Key:
    needed = rows_needed(branch)
    if branch.positions is None:
        return branch.tokens[:needed]
    # A list of tuples never equals a list of integers, so a branch with positions of its own shares
    # rows only with its like.
    return list(zip(branch.tokens[:needed], branch.positions[:needed], strict=True))


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """Length of the common beginning. Bisects over slices, which compare at C speed."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high - 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def build_tree(samples: list[Sample]) -> TokenTree:
    """The token tree of all branches of `samples`. Branch b of the tree counts through the samples
    in the given order."""
    branches = [(branch, s) for s, sample in enumerate(samples) for branch in sample.branches]
    keys = [_row_keys(branch) for branch, _ in branches]
    # Branches with positions of their own sort apart from those without; inside each group the
    # order is by tokens.
    order = sorted(
        range(len(branches)), key=lambda b: (branches[b][0].positions is not None, keys[b])
    )
    tree = TokenTree([], [], [], [], [], [], [], [], [s for _, s in branches], samples)
    labels: dict[int, tuple[list[int], Branch]] = {}
    ends = [0] * len(branches)
    path: list[int] = []
    previous: Key = []
    for b in order:
        branch, _ = branches[b]
        key = keys[b]
        shared = common_prefix(previous, key) if previous else 0
        for row in path[shared:]:
            tree.subtree_end[row] = len(tree.token)
        del path[shared:]
        for i in range(shared, len(key)):
            path.append(len(tree.token))
            tree.token.append(branch.tokens[i])
            tree.position.append(i if branch.positions is None else branch.positions[i])
            tree.depth.append(i)
            tree.subtree_end.append(0)
        labels[b] = ([path[i - 1] for i in branch.learnt], branch)
        ends[b] = path[-1]
        previous = key
    for row in path:
        tree.subtree_end[row] = len(tree.token)
    for b in range(len(branches)):
        sources, branch = labels[b]
        tree.source.extend(sources)
        tree.target.extend(branch.tokens[i] for i in branch.learnt)
        tree.weight.extend(branch.weights)
        tree.branch.extend([b] * len(sources))
    tree.last = ends
    return tree


def read_whole(samples: list[Sample]) -> list[Sample]:
    """The same samples with every token computed and none predicted: what a head reads that judges
    whole answers."""
    return [
        replace(s, branches=[replace(b, learnt=[], weights=[]) for b in s.branches])
        for s in samples
    ]


def _sort_key(key: Key) -> tuple[bool, Key]:
    """Keys with positions of their own sort apart from those without: a tuple cannot be compared
    with an integer."""
    return bool(key) and isinstance(key[0], tuple), key


def _sample_rows(sample: Sample) -> tuple[Key, int]:
    """The first branch's row keys (what neighbours can share) and the rows of the sample's own
    tree."""
    keys = sorted((_row_keys(b) for b in sample.branches), key=_sort_key)
    rows = len(keys[0])
    for before, after in pairwise(keys):
        rows += len(after) - common_prefix(before, after)
    return keys[0], rows


def in_order(samples: Sequence[Sample]) -> tuple[list[int], list[int], list[int]]:
    """Places of the samples such that those which begin alike lie side by side; in this order the
    rows of each, and how many of them it shares with the one before."""
    measured = [(*_sample_rows(sample), place) for place, sample in enumerate(samples)]
    measured.sort(key=lambda item: _sort_key(item[0]))
    shared = [0] + [common_prefix(a[0], b[0]) for a, b in pairwise(measured)]
    return [item[2] for item in measured], [item[1] for item in measured], shared


def largest_sample(samples: Sequence[Sample], report: Mapping[str, Any], enough: int) -> int:
    """Rows of the largest sample of a run, counted up to `enough`. `report` is the data's report
    with tokens; samples of several branches are measured."""
    if report.get("packed"):
        return min(enough, int(report["packed"]["tokens"]))
    if not samples or len(samples[0].branches) == 1:
        return min(enough, int(report["length_percentiles"]["max"]))
    largest = 0
    for sample in samples:
        # All branches one after the other are never fewer rows than their tree.
        if sum(len(branch.tokens) for branch in sample.branches) > largest:
            largest = max(largest, _sample_rows(sample)[1])
            if largest >= enough:
                return enough
    return largest


def _cut_padded(samples: list[Sample], rows_per_pass: int) -> list[list[Sample]]:
    """Passes of the padded layout, in which a pass computes branches x longest rows: samples of
    like length lie together."""
    passes: list[list[Sample]] = []
    branches = longest = 0
    for sample in sorted(samples, key=lambda s: -max(map(rows_needed, s.branches))):
        if passes and (branches + len(sample.branches)) * longest <= rows_per_pass:
            passes[-1].append(sample)
            branches += len(sample.branches)
        else:
            passes.append([sample])
            branches, longest = len(sample.branches), max(map(rows_needed, sample.branches))
    return passes


def cut_passes(
    samples: list[Sample], rows_per_pass: int, padded: bool = False
) -> list[list[Sample]]:
    """Cut the samples of a step into passes of at most `rows_per_pass` rows; the branches of one
    sample stay together.

    Samples that begin alike lie side by side, so sharing survives the cut. As few passes as
    possible, and of even size: the cost of a row falls with the rows of its pass. A sample that
    alone is larger than a pass gets a pass of its own.
    """
    if padded or not samples:
        return _cut_padded(samples, rows_per_pass)
    order, own, shared = in_order(samples)

    def starts(limit: int) -> list[int]:
        begins, used = [0], own[0]
        for i in range(1, len(own)):
            extra = own[i] - shared[i]
            if used + extra > limit:
                begins.append(i)
                used = own[i]
            else:
                used += extra
        return begins

    best = starts(rows_per_pass)
    low, high = 1, rows_per_pass
    while low < high:  # the smallest limit that needs no more passes: even sizes
        middle = (low + high) // 2
        if len(starts(middle)) > len(best):
            low = middle + 1
        else:
            high = middle
    best = starts(high)
    return [
        [samples[place] for place in order[a:b]]
        for a, b in zip(best, [*best[1:], len(order)], strict=True)
    ]


def padded_rows(samples: list[Sample]) -> TokenTree:
    """The same batch without sharing: every branch is a tree of its own, one after the other. What
    the padded layout computes, minus the padding."""
    tree = TokenTree([], [], [], [], [], [], [], [], [], samples)
    b = 0
    for s, sample in enumerate(samples):
        for branch in sample.branches:
            start, needed = len(tree.token), rows_needed(branch)
            tree.token += branch.tokens[:needed]
            tree.position += (
                list(range(needed)) if branch.positions is None else branch.positions[:needed]
            )
            tree.depth += range(needed)
            tree.subtree_end += [start + needed] * needed
            tree.source += [start + i - 1 for i in branch.learnt]
            tree.target += [branch.tokens[i] for i in branch.learnt]
            tree.weight += branch.weights
            tree.branch += [b] * len(branch.learnt)
            tree.branch_sample.append(s)
            tree.last.append(len(tree.token) - 1)
            b += 1
    return tree


def under_root(tree: TokenTree, count: int) -> TokenTree:
    """The same rows below a chain of `count` virtual ones, which every row sees: what a learnt
    prompt needs. Token id 0 stands for a virtual row."""
    if not count:
        return tree
    total = count + tree.num_rows
    first = list(range(count))
    return replace(
        tree,
        token=[0] * count + tree.token,
        position=first + [count + n for n in tree.position],
        depth=first + [count + n for n in tree.depth],
        subtree_end=[total] * count + [count + n for n in tree.subtree_end],
        source=[count + n for n in tree.source],
        last=[count + n for n in tree.last],
    )


def rows_of_branches(tree: TokenTree, shared: bool) -> list[list[int]]:
    """For each branch the rows of its tokens in `tree`, in order. `shared`: made by `build_tree`;
    else by `padded_rows`."""
    branches = [branch for sample in tree.samples for branch in sample.branches]
    if not shared:
        starts = accumulate((rows_needed(branch) for branch in branches), initial=0)
        return [
            list(range(start, start + rows_needed(branch)))
            for start, branch in zip(starts, branches, strict=False)
        ]
    path: list[int] = []
    child: dict[tuple[int, int, int], int] = {}
    for row, depth in enumerate(tree.depth):
        del path[depth:]
        child[path[-1] if path else -1, tree.token[row], tree.position[row]] = row
        path.append(row)
    found = []
    for branch in branches:
        rows, at = [], -1
        for i in range(rows_needed(branch)):
            at = child[at, branch.tokens[i], i if branch.positions is None else branch.positions[i]]
            rows.append(at)
        found.append(rows)
    return found
