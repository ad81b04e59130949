"""How much of an epoch each entry makes up: counts by rule, draws by seed, and rules that
contradict each other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError
from tunewright.data import describe, inspect
from tunewright.data.store.mixing import counts_of, mixed


def mix(sizes, entries, temperature=1.0, seed=0):
    sources = np.repeat(np.arange(len(sizes)), sizes)
    config = DataConfig(train="x", mixing={"temperature": temperature})
    rows, said = mixed(np.arange(len(sources)), sources, entries, config, seed)
    return rows, said, Counter(sources[rows].tolist())


@pytest.mark.parametrize(("sizes", "entries", "counts"), [
    ([100, 10], [{}, {"repeat": 3}], [100, 30]),
    ([100, 10], [{"repeat": 0.25}, {}], [25, 10]),
    ([100, 10], [{"cap": 20}, {}], [20, 10]),
    ([100, 10], [{}, {"share": 0.5}], [100, 100]),
    ([100, 10], [{"share": 0.2}, {"share": 0.8}], [22, 88]),
    ([100, 10], [{"share": 0.5, "cap": 10}, {}], [10, 10]),
    ([90, 10], [{}, {"repeat": 1.5}], [90, 15]),
])  # fmt: skip
def test_counts_follow_the_rules(sizes, entries, counts):
    rows, said, found = mix(sizes, entries)
    assert [found[i] for i in range(len(sizes))] == counts == [one["used"] for one in said]
    for number, entry in enumerate(entries):
        each = Counter(
            r for r in rows.tolist() if sum(sizes[:number]) <= r < sum(sizes[: number + 1])
        )
        if each and "cap" not in entry:
            assert (
                max(each.values())
                - min(
                    [each[r] for r in each]
                    if counts[number] < sizes[number]
                    else [each.get(r, 0) for r in each]
                )
                <= 1
            )


@given(
    sizes=st.lists(st.integers(1, 400), min_size=2, max_size=5),
    temperature=st.sampled_from([1.0, 2.0, 5.0, 100.0]),
)
@settings(max_examples=60, deadline=None)
def test_a_temperature_keeps_the_total_and_evens_the_shares(sizes, temperature):
    counts = counts_of(sizes, [{}] * len(sizes), temperature)
    powers = [n ** (1 / temperature) for n in sizes]
    assert all(
        abs(c - sum(sizes) * p / sum(powers)) <= 1 for c, p in zip(counts, powers, strict=True)
    )
    assert abs(sum(counts) - sum(sizes)) <= len(sizes)


def test_the_draw_depends_on_the_seed_alone():
    entries = [{"cap": 30}, {"repeat": 0.5}]
    assert (
        mix([100, 50], entries)[0].tolist()
        == mix([100, 50], entries)[0].tolist()
        != mix([100, 50], entries, seed=1)[0].tolist()
    )
    assert (
        mix([100, 50], [{}, {}])[0].tolist() == list(range(150))
        and mix([100, 50], [{}, {}])[1] == []
    )


@pytest.mark.parametrize(("entry", "code"), [
    ({"repeat": 0}, "E-DATA-62"), ({"repeat": True}, "E-DATA-62"), ({"cap": 2.5}, "E-DATA-62"), ({"share": 1.5}, "E-DATA-62"), ({"share": "x"}, "E-DATA-62"),
    ({"repeat": 2, "share": 0.1}, "E-DATA-63"),
])  # fmt: skip
def test_senseless_rules_are_refused(entry, code, renderer, write):
    train = [{"file": write("a.json", [{"instruction": "q", "output": "a"}]), **entry}]
    with pytest.raises(DataError, match=code):
        inspect(DataConfig(train=train), renderer, None, 0)


@pytest.mark.parametrize("shares", [(0.6, 0.6, None), (0.5, 0.5, None)])
def test_shares_that_leave_nothing_are_refused(shares):
    with pytest.raises(DataError, match="E-DATA-64"):
        counts_of([10, 10, 10], [{} if s is None else {"share": s} for s in shares], 1.0)


def test_a_run_sees_the_mixture_and_the_report_says_it(renderer, write):
    rows = [
        [
            {"instruction": f"{name} question {i}?", "output": f"answer {i} of {name}"}
            for i in range(count)
        ]
        for name, count in (("a", 40), ("b", 10))
    ]
    train = [
        {"file": write("a.json", rows[0]), "cap": 20},
        {"file": write("b.json", rows[1]), "repeat": 3, "weight": 0.5},
    ]
    data = inspect(DataConfig(train=train, held_out=0), renderer, None, 0)
    seen = Counter(row.origin.file[-6:] for row in data.train_rows)
    assert (
        seen == {"a.json": 20, "b.json": 30}
        and len(data.train) == 50 == data.report["train"]
        and data.report["rows_kept"] == 50
    )
    assert [s.index for s in data.train] == list(range(50)) and all(
        s.origin == r.origin for s, r in zip(data.train, data.train_rows, strict=True)
    )
    assert "entry 2: 10 different rows, 30 per epoch" in describe(data.report)
    assert {r.weight for r in data.train_rows} == {1.0, 0.5}
