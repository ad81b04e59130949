"""Samples and rows come back from the store as they went in, one at a time, and a damaged store is
noticed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.types import (
    ROW_KINDS,
    Branch,
    Conversation,
    Judged,
    Message,
    Origin,
    PlainText,
    Preference,
    Prompt,
    Sample,
    Stepwise,
)
from tunewright.data.labels import EncodedBranch, EncodedRow
from tunewright.data.store.columns import (
    COLUMNS,
    Damaged,
    Rows,
    Samples,
    Store,
    Writer,
    asking_places,
    pack,
    row_bytes,
    row_of,
)

AT = Origin("f.json", 3, 2)
text = st.text(max_size=12) | st.sampled_from(["\ud800", "\x00", "é🙂", "\u2028"])
weight = st.sampled_from([0.0, 0.1, 1.0, 1 / 3])
tools = st.none() | st.just([{"type": "function", "function": {"name": "f", "x": [1, None, 0.1]}}])
message = st.builds(
    Message,
    st.sampled_from(["user", "assistant", "tool"]),
    text,
    weight,
    tools,
    st.none() | text,
    st.none() | text,
)
messages = st.lists(message, min_size=1, max_size=3)
rows = st.one_of(
    st.builds(PlainText, text, st.just(AT), weight),
    st.builds(Conversation, messages, st.just(AT), tools, weight),
    st.builds(
        Preference,
        messages,
        messages,
        messages,
        st.just(AT),
        tools,
        weight,
        st.none() | st.floats(0, 1),
    ),
    st.builds(Judged, messages, st.booleans(), st.just(AT), tools, weight),
    st.builds(
        Stepwise,
        messages,
        st.booleans(),
        st.just(AT),
        tools,
        weight,
        st.lists(st.tuples(text, st.booleans()), max_size=3).map(tuple),
    ),
    st.builds(
        Prompt,
        messages,
        st.just(AT),
        tools,
        weight,
        st.dictionaries(text, st.integers() | text, max_size=2),
    ),
)


@given(row=rows)
@settings(max_examples=150, deadline=None)
def test_every_kind_of_row_survives(row):
    assert row_of(ROW_KINDS[type(row)], row_bytes(row), AT) == row


def encoded(draw_lengths, role="answer"):
    branches = []
    for length in draw_lengths:
        spans = (
            [(1, max(2, length // 2), 0.5), (max(2, length // 2) + 1, length, 1.0)]
            if length > 4
            else [(1, length, 1.0)]
        )
        branches.append(EncodedBranch(list(range(length)), spans, role))
    return EncodedRow(
        branches,
        {"answers": 2, "stops_learnt": 1, "last_span": (1, draw_lengths[0]), "margin": 0.5},
        [],
    )


def built(folder, lengths, chunk=2):
    made = [
        Conversation(
            [Message("user", f"q{i}"), Message("assistant", "a")],
            Origin("x.json", i + 1, i + 1),
            weight=0.5,
        )
        for i in range(len(lengths))
    ]
    tokens = [encoded(one) for one in lengths]
    with Writer(folder) as writer:
        for at in range(0, len(made), chunk):
            writer.add(pack(made[at : at + chunk], tokens[at : at + chunk], 0, 0))
        order = list(range(len(made)))
        import numpy as np

        writer.put("train", np.array(order[::-1], "<i8").tobytes())
        writer.put("held_out", np.array(order[:1], "<i8").tobytes())
        return writer.finish({"files": ["x.json"], "facts": {}}), made, tokens


@given(
    lengths=st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=3), min_size=1, max_size=7),
    chunk=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_samples_and_rows_come_back_from_memory_and_from_disk(tmp_path_factory, lengths, chunk):
    folder = tmp_path_factory.mktemp("store")
    for store, made, tokens in (built(None, lengths, chunk), built(folder, lengths, chunk)):
        samples, found = Samples(store, store.columns["train"]), Rows(store, store.columns["train"])
        assert list(found) == made[::-1] and len(samples) == len(made)
        for place, one in enumerate(tokens[::-1]):
            row = len(made) - 1 - place
            expected = one.sample(place, Origin("x.json", row + 1, row + 1))
            assert samples[place] == expected and samples[place - len(made)] == expected
            assert (
                isinstance(samples[place].branches[0].tokens, list)
                and samples[place].branches[0].learnt == expected.branches[0].learnt
            )
    again = Store.open(folder)
    assert list(Samples(again, again.columns["train"])) == list(samples)


def test_a_view_is_a_sequence():
    store, made, _ = built(None, [[5], [6], [7]])
    view = Rows(store, store.columns["train"])
    assert (
        view[0:2] == made[:0:-1]
        and view[-1] == made[0]
        and view == made[::-1]
        and view != made
        and bool(view)
    )
    with pytest.raises(IndexError):
        view[3]
    assert (
        asking_places(view) == [0, 1, 2] == asking_places(list(view))
        and asking_places([PlainText("t", AT)]) == []
    )
    assert Samples(store, store.columns["train"][:0]) == []


@pytest.mark.parametrize("name", sorted(COLUMNS))
@pytest.mark.parametrize("harm", ["cut", "changed", "missing"])
def test_a_harmed_column_is_noticed(tmp_path, name, harm):
    built(tmp_path, [[5, 4], [6]])
    path = tmp_path / f"{name}.bin"
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if harm == "cut" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(Damaged):
        Store.open(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"columns": {"../x": [0, 0]}}'])
def test_a_harmed_description_is_noticed(tmp_path, content):
    built(tmp_path, [[5]])
    (tmp_path / "store.json").write_text(content)
    if content == "{}":
        with pytest.raises((Damaged, KeyError)):
            Store.open(tmp_path)
    else:
        with pytest.raises(Damaged):
            Store.open(tmp_path)


def test_a_branch_lists_every_learnt_token_with_its_weight():
    assert EncodedBranch([5, 6, 7, 8], [(1, 3, 0.5), (3, 4, 2.0)], "good").branch() == Branch(
        [5, 6, 7, 8], [1, 2, 3], [0.5, 0.5, 2.0], role="good"
    )
    assert encoded([5]).sample(7, AT) == Sample(
        [encoded([5]).branches[0].branch()], 7, AT, facts=encoded([5]).facts
    )
