"""Documents: every token of every one is learnt once, none is left out, none sees another."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tunewright.core.config import DataConfig
from tunewright.data import describe, inspect
from tunewright.data.store.documents import Packed

WORDS = "the capital of France is Paris a small model learns quickly".split()


def document(number: int, words: int) -> str:
    return " ".join(
        f"{WORDS[(number + i) % len(WORDS)]}{number if not i else ''}" for i in range(words)
    )


def texts(*lengths: int) -> list[dict[str, str]]:
    return [{"text": document(i, length)} for i, length in enumerate(lengths)]


def look(renderer, train, pack, **more):
    return inspect(DataConfig(train=train, **more), renderer, 2000, 0, pack=pack)


def branches(samples):
    return [branch for sample in samples for branch in sample.branches]


def test_a_long_document_becomes_windows_that_learn_every_token_once(renderer, write):
    rows = texts(300, 5, 40)
    data = look(renderer, write("a.jsonl", rows), 0, max_tokens=64, held_out=0)
    whole = [renderer.text(row["text"]) for row in rows]
    found = branches(data.train)
    assert (
        all(len(b.tokens) <= 64 for b in found) and data.report["length_percentiles"]["max"] == 64
    )
    for ids in whole:
        own = [found.pop(0)]
        while own[-1].tokens[-1] != renderer.stop_id:
            own.append(found.pop(0))
        # What is learnt, one window after the other, is the document without its first token, which
        # nothing predicts.
        assert [b.tokens[i] for b in own for i in b.learnt] == ids[1:]
        # Each token is predicted from the tokens before it in its window, and a window starts where
        # the one before ended.
        assert all(a.tokens[-1] == b.tokens[0] for a, b in pairwise(own))
    assert not found


def test_the_report_counts_documents_and_the_windows_of_long_ones(renderer, write):
    data = look(renderer, write("a.jsonl", texts(300, 5, 40, 200)), 0, max_tokens=64, held_out=0)
    report = data.report
    extra = len(data.train) - 4
    assert extra > 5 and report["notes"]["pieces"] == extra
    assert (
        report["rows_read"] == report["rows_kept"] == 4
        and report["rows_dropped"] == 0
        and report["train"] == len(data.train)
    )
    assert report["stop_learnt_share"] == 1 and report["answers"] == 4
    assert report["learnt_tokens"] == sum(
        len(renderer.text(row["text"])) - 1 for row in texts(300, 5, 40, 200)
    )
    assert str(extra) in describe(report)
    # The row of a window holds its part of the text.
    assert [row.text for row in data.train_rows if len(row.text) > 60] == [
        renderer.decode(b.tokens)
        for b, row in zip(branches(data.train), data.train_rows, strict=True)
        if len(row.text) > 60
    ]


def test_without_documents_a_long_text_is_dropped_as_before(renderer, write):
    data = look(
        renderer,
        write("a.jsonl", texts(300, 5, 6)),
        None,
        max_tokens=64,
        held_out=0,
        accept=["too_long"],
    )
    assert (
        data.report["reasons"]["too_long"]["count"] == 1
        and len(data.train) == 2
        and "packed" not in data.report
    )


@pytest.mark.parametrize("pack", [1, 60, 100, 10_000])
def test_short_documents_are_put_side_by_side_and_stay_what_they_are(renderer, write, pack):
    file = write("a.jsonl", texts(3, 9, 4, 30, 60, 2, 2, 2, 25, 7))
    alone, together = (
        look(renderer, file, size, max_tokens=50, held_out=0).train for size in (0, pack)
    )
    assert branches(together) == branches(alone)
    sizes = [[len(b.tokens) for b in sample.branches] for sample in together]
    assert all(sum(s) <= pack or len(s) == 1 for s in sizes)
    # As few as putting them together in order allows: the first of a sample did not fit into the
    # one before.
    assert all(sum(a) + b[0] > pack for a, b in pairwise(sizes))
    assert [s.index for s in together] == list(range(len(together))) and together[
        -1
    ].branches == list(together)[-1].branches
    assert together[0:1][0] == together[0] and together[-1].facts == {"documents": len(sizes[-1])}
    with pytest.raises(IndexError):
        together[len(together)]


def test_rows_that_are_held_out_are_packed_apart(renderer, write):
    data = look(renderer, write("a.jsonl", texts(*[5] * 40)), 50, held_out=10)
    assert (
        isinstance(data.held_out, Packed)
        and len(branches(data.held_out)) == 10
        and len(branches(data.train)) == 30
    )
    assert data.report["packed"] == {
        "train": len(data.train),
        "held_out": len(data.held_out),
        "tokens": 50,
    }
    assert len(data.train) < 30 and len(data.train_rows) == 30


def test_nothing_of_one_document_is_seen_from_another(renderer, write):
    """The engine's tree of a packed sample is the tree of its documents: no row of one lies above a
    row of another, unless they begin alike."""
    from tunewright.engine.tree import build_tree

    data = look(renderer, write("a.jsonl", texts(9, 7, 12)), 1000, held_out=0)
    (sample,) = data.train
    tree = build_tree([sample])
    for branch_number, branch in enumerate(sample.branches):
        places = [k for k, b in enumerate(tree.branch) if b == branch_number]
        row = tree.source[places[-1]]
        seen = [tree.token[j] for j in range(tree.num_rows) if j <= row < tree.subtree_end[j]]
        assert seen == branch.tokens[:-1]
