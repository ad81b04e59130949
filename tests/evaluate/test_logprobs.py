"""Rows that are left out change nothing: the shared beginning kept as keys and values, and the last
MLP on labelled rows only."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.types import Branch, Sample
from tunewright.engine.loaded import computing_in
from tunewright.engine.tree import build_tree
from tunewright.evaluate.logprobs import RowReader, shared_beginning, without_beginning
from tunewright.models.kernels.last_block import LastBlock

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "phi3", "gemma2", "gemma3_text"]
tokens = st.lists(st.integers(0, 3), min_size=2, max_size=12)


def samples_with(beginning: int, count: int = 6) -> list[Sample]:
    """Questions of several lengths behind one beginning, two answers each."""
    draw = torch.Generator().manual_seed(4)
    first = torch.randint(3, 60, (beginning,), generator=draw).tolist()
    made = []
    for i in range(count):
        asked = [*first, *torch.randint(3, 60, (5 + 3 * i,), generator=draw).tolist()]
        made.append(
            Sample(
                [
                    Branch([*asked, option, 2], [len(asked), len(asked) + 1], [1.0, 1.0])
                    for option in (7, 9)
                ],
                i,
            )
        )
    return made


def slow(model: torch.nn.Module, samples: list[Sample]) -> list[float]:
    """The oracle: one branch a forward pass through the model's own attention and head."""
    found = []
    for branch in (b for s in samples for b in s.branches):
        logprobs = torch.log_softmax(
            model(input_ids=torch.tensor([branch.tokens])).logits[0].double(), -1
        )
        found += [float(logprobs[i - 1, branch.tokens[i]]) for i in branch.learnt]
    return found


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_with_kept_beginning_and_fewer_rows_the_scores_are_transformers_own(family: str) -> None:
    model = tiny.make_model(family)
    samples = samples_with(12)
    wanted = slow(model, samples)
    with computing_in(model, "tree"):
        reader = RowReader(model, model, "tree")
        beginning = shared_beginning(samples)
        assert len(beginning) >= 12 and reader.keep(beginning)
        out = reader(without_beginning(samples, len(beginning)))
        assert reader.last is not None and reader.last.modules and reader.last.mlp is not None
    assert out.logprob.tolist() == pytest.approx(wanted, abs=2e-4)
    assert out.num_rows == build_tree(samples).num_rows - len(beginning)


@torch.no_grad()
def test_the_last_mlp_sees_only_rows_with_a_label_and_is_itself_again_afterwards() -> None:
    model = tiny.make_model("llama")
    samples, seen = samples_with(12), []
    with computing_in(model, "tree"):
        reader = RowReader(model, model, "tree")
        reader.last = LastBlock(model)
        reader.last.mlp.gate_proj.register_forward_hook(
            lambda module, given, out: seen.append(given[0].shape[-2])
        )
        tree = build_tree(samples)
        reader.hidden(tree, tree.source)
        assert seen == [len(set(tree.source))] and seen[0] < tree.num_rows
        assert "forward" not in vars(reader.last.mlp)


def test_a_short_beginning_or_the_padded_layout_keeps_nothing() -> None:
    model = tiny.make_model("llama")
    assert not RowReader(model, model, "tree").keep([3] * 7)
    padded = RowReader(model, model, "padded")
    assert not padded.keep([3] * 20)


@given(first=tokens, others=st.lists(tokens, min_size=1, max_size=4), data=st.data())
@settings(deadline=None, max_examples=60)
def test_what_is_taken_off_is_shared_and_every_label_keeps_its_row(
    first: list[int], others: list[list[int]], data: st.DataObject
) -> None:
    branches = []
    for words in [first, *others]:
        learnt = sorted(data.draw(st.sets(st.integers(1, len(words) - 1), min_size=1)))
        branches.append(Branch(words, learnt, [1.0] * len(learnt)))
    samples = [Sample([branch], i) for i, branch in enumerate(branches)]
    beginning = shared_beginning(samples)
    assert all(b.tokens[: len(beginning)] == beginning for b in branches)
    for before, after in zip(branches, without_beginning(samples, len(beginning)), strict=True):
        (shorter,) = after.branches
        assert [shorter.tokens[i] for i in shorter.learnt] == [
            before.tokens[i] for i in before.learnt
        ]
        assert shorter.learnt[0] >= 1 and [*beginning, *shorter.tokens] == before.tokens
