"""Which samples of a step each rank takes."""

from __future__ import annotations

import random

import hypothesis
import pytest
from helpers import tiny
from hypothesis import strategies as st

from tunewright.core.types import Branch, Sample
from tunewright.engine.portions import portions
from tunewright.engine.tree import build_tree, cut_passes, padded_rows, rows_needed


def sample(tokens: list[int], index: int = 0) -> Sample:
    return Sample([Branch(tokens, [len(tokens) - 1], [1.0])], index)


lines = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=0, max_size=14)


@hypothesis.given(lines, st.integers(1, 5))
def test_every_sample_goes_to_one_rank_and_the_rows_are_those_of_its_tree(
    found: list[list[int]], world: int
) -> None:
    samples = [sample(tokens, i) for i, tokens in enumerate(found)]
    given = portions(samples, world)
    assert len(given.places) == len(given.rows) == world
    assert sorted(i for mine in given.places for i in mine) == list(range(len(samples)))
    for mine, rows in zip(given.places, given.rows, strict=True):
        own = [samples[i] for i in mine]
        assert rows == (build_tree(own).num_rows if own else 0)
    if samples:
        assert given.alone_rows == build_tree(samples).num_rows
        assert given.plain_rows == padded_rows(samples).num_rows
    assert given.kept_share <= 1.0


@hypothesis.given(lines)
def test_all_ranks_compute_the_same(found: list[list[int]]) -> None:
    one, other = ([sample(tokens, i) for i, tokens in enumerate(found)] for _ in range(2))
    assert portions(one, 3) == portions(other, 3)


def test_without_sharing_the_rows_are_even() -> None:
    draw = random.Random(0)
    samples = [sample([100 + i, *tiny.words(draw, draw.randrange(20, 60))], i) for i in range(64)]
    for padded in (False, True):
        given = portions(samples, 4, padded=padded)
        assert given.imbalance < 1.1
        assert given.kept_share == 1.0


def test_a_group_with_one_prompt_stays_on_one_rank() -> None:
    draw = random.Random(1)
    samples = []
    for _ in range(4):
        prompt = tiny.words(draw, 80)
        samples += [sample(prompt + tiny.words(draw, 10), len(samples)) for _ in range(4)]
    draw.shuffle(samples)
    given = portions(samples, 4)
    assert given.kept_share > 0.99
    prompts = [{tuple(samples[i].branches[0].tokens[:80]) for i in mine} for mine in given.places]
    assert [len(found) for found in prompts] == [1, 1, 1, 1]


def test_what_shares_a_long_beginning_is_cut_where_that_pays() -> None:
    draw = random.Random(2)
    system = tiny.words(draw, 40)
    samples = [sample(system + tiny.words(draw, 300), i) for i in range(16)]
    given = portions(samples, 4)
    assert min(given.rows) > 0
    assert given.imbalance < 1.05  # forty rows are no reason to leave ranks idle


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("batch", [2, 4, 8, 16, 24])
@pytest.mark.parametrize("system", [0, 24])
def test_sharing_survives_ranks_on_the_review_rows(batch: int, system: int, world: int) -> None:
    """Like `recipes/data/reviews.json`: two instructions, of 46 and 70 tokens, and short reviews,
    without and with a system prompt of the length of Qwen2.5's."""
    kept = saved = 0
    said = tiny.words(random.Random(7), system)
    for seed in range(20):
        draw = random.Random(seed)
        beginnings = [
            [*said, 1, *tiny.words(random.Random(9), 46)],
            [*said, 2, *tiny.words(random.Random(8), 70)],
        ]
        lengths = [18, 38]
        rows = [(i % 2, draw.randrange(-3, 4)) for i in range(24)]
        chosen = draw.sample(rows, batch)
        samples = [
            sample(beginnings[kind] + [50 + i, *tiny.words(draw, lengths[kind] + more)], i)
            for i, (kind, more) in enumerate(chosen)
        ]
        given = portions(samples, world)
        one = sum(build_tree(part).num_rows for part in cut_passes(samples, 1024))
        plain = sum(rows_needed(s.branches[0]) for s in samples)
        saved += plain - one
        kept += plain - sum(given.rows)
    assert kept >= 0.9 * saved
