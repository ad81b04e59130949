"""Held-out rows: exact counts, repeated questions on one side, an order that other rows cannot
change."""

from __future__ import annotations

import pytest
from helpers.rows import split
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError
from tunewright.core.types import Conversation, Message, Origin, PlainText
from tunewright.data.store.splitting import joined, keys_of, question_key, wanted_rows

few = settings(max_examples=60, deadline=None)


def row(question, answer="a", number=1):
    return Conversation(
        [Message("user", question), Message("assistant", answer)], Origin("f", number, number)
    )


def rows_of(questions):
    return [row(f"q{q}", f"a{i}", i) for i, q in enumerate(questions)]


@given(count=st.integers(1, 80), seed=st.integers(0, 5), share=st.floats(0.01, 0.99))
@few
def test_different_questions_give_the_exact_count(count, seed, share):
    rows = rows_of(range(count))
    train, held = split(rows, share, seed)
    assert len(held) == min(max(1, round(share * count)), count - 1) and train
    assert sorted(train + held, key=lambda r: r.origin.row) == rows


@given(
    questions=st.lists(st.integers(0, 12), min_size=2, max_size=60),
    seed=st.integers(0, 5),
    share=st.floats(0.05, 0.9),
)
@few
def test_the_same_question_is_never_on_both_sides(questions, seed, share):
    train, held = split(rows_of(questions), share, seed)
    assert train and not {question_key(r) for r in train} & {question_key(r) for r in held}
    largest = max(questions.count(q) for q in questions)
    assert (
        wanted_rows(share, len(questions)) - largest
        < len(held)
        <= wanted_rows(share, len(questions))
    )


@given(count=st.integers(20, 60), more=st.integers(1, 40))
@few
def test_more_rows_with_the_same_count_only_take_places_by_hash(count, more):
    small = {question_key(r) for r in split(rows_of(range(count)), 5, 0)[1]}
    large = {question_key(r) for r in split(rows_of(range(count + more)), 5, 0)[1]}
    assert {q for q in large if int(q.split("q")[-1]) < count} <= small


def test_order_of_rows_does_not_matter_and_the_seed_does():
    rows = rows_of(range(50))
    held = {question_key(r) for r in split(rows, 10, 0)[1]}
    assert {question_key(r) for r in split(rows[::-1], 10, 0)[1]} == held
    assert {question_key(r) for r in split(rows, 10, 1)[1]} != held


@pytest.mark.parametrize(("rows", "held"), [(1, 0), (19, 0), (20, 2), (100, 10), (91, 9)])
def test_default_is_a_tenth_and_nothing_under_twenty_rows(rows, held):
    assert len(split(rows_of(range(rows)), None, 0)[1]) == held


@pytest.mark.parametrize("value", [-1, 10, 11, 1.5, 1.0, -0.1])
def test_impossible_amounts_are_refused(value):
    with pytest.raises(DataError, match="E-DATA-15"):
        split(rows_of(range(10)), value, 0)


def test_all_rows_asking_the_same_leaves_them_all_for_training():
    train, held = split(rows_of([1] * 30), 0.1, 0)
    assert len(train) == 30 and not held


def test_system_prompt_and_earlier_turns_are_part_of_the_question():
    one = Conversation(
        [Message("system", "s"), Message("user", "q"), Message("assistant", "a")], Origin("f", 1, 1)
    )
    assert question_key(one) != question_key(row("q")) and question_key(
        row("q", "a")
    ) == question_key(row("q", "b"))
    assert question_key(PlainText("t", Origin("f", 1, 1))) == "t"


def dialogue_of(*questions, answer="a", **more):
    turns = [m for q in questions for m in (Message("user", q), Message("assistant", answer))]
    return Conversation(turns, Origin("f", 1, 1), **more)


@given(firsts=st.lists(st.integers(0, 9), min_size=20, max_size=60), seed=st.integers(0, 3))
@few
def test_growing_copies_of_a_dialogue_and_other_spellings_of_a_question_stay_together(firsts, seed):
    spellings = ["question {}", "Question  {}", " QUESTION\n{} "]
    rows = [
        dialogue_of(
            spellings[i % 3].format(f), *[f"more {k}" for k in range(i % 4)], answer=f"a{i}"
        )
        for i, f in enumerate(firsts)
    ]
    train, held = split(rows, 0.3, seed)
    first = lambda row: row.messages[0].content.split()[-1]  # noqa: E731
    assert train and not {first(r) for r in train} & {first(r) for r in held}


@given(data=st.data())
@few
def test_rows_of_one_conversation_stay_together_through_chains(data):
    import numpy as np

    count = data.draw(st.integers(5, 40))
    groups = np.array(
        data.draw(st.lists(st.integers(0, 15), min_size=count, max_size=count)), "<u8"
    )
    ids = np.array(data.draw(st.lists(st.integers(0, 12), min_size=count, max_size=count)), "<u8")
    found = joined(groups, ids)
    # An oracle: colours spread over shared groups and shared conversations until nothing changes.
    colour = list(range(count))
    for _ in range(count):
        for i in range(count):
            for j in range(count):
                if groups[i] == groups[j] or (ids[i] and ids[i] == ids[j]):
                    colour[i] = colour[j] = min(colour[i], colour[j])
    assert all(
        (found[i] == found[j]) == (colour[i] == colour[j])
        for i in range(count)
        for j in range(count)
    )


def test_keys_hold_question_group_whole_and_conversation():
    import numpy as np

    rows = [
        dialogue_of("A b"),
        dialogue_of("a  B", answer="x"),
        dialogue_of("A b", "c"),
        dialogue_of("A b"),
    ]
    raw = [{"conversation_id": 7}, {"conversation_id": "7"}, {}, None]
    table = np.frombuffer(keys_of(rows, raw), "<u8").reshape(4, 4)
    question, group, whole, conversation = table.T.tolist()
    assert question[0] == question[1] == question[3] != question[2] and len(set(group)) == 1
    assert whole[0] == whole[3] and len(set(whole)) == 3
    assert conversation[0] != conversation[1] and conversation[2] == conversation[3] == 0


def test_a_conversation_id_in_the_file_holds_its_rows_together(write):
    from tunewright.core.config import DataConfig
    from tunewright.data import inspect

    rows = [
        {"instruction": f"q{i}?", "output": f"a long answer {i}", "conversation_id": i // 5}
        for i in range(100)
    ]
    data = inspect(DataConfig(train=write("c.jsonl", rows), held_out=0.2), None)
    sides = [
        {(r.origin.row - 1) // 5 for r in side} for side in (data.train_rows, data.held_out_rows)
    ]
    assert len(sides[1]) == 4 and not sides[0] & sides[1]
