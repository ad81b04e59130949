"""Samples: which tokens are learnt and with what weight, and what happens to rows that are too
long."""

from __future__ import annotations

import pytest
from helpers.rows import encode
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.types import Conversation, Message, Origin, PlainText

HERE = Origin("f", 1, 1)


def dialogue(*weights, weight=1.0, answer="the answer"):
    turns = [
        m for w in weights for m in (Message("user", "a question"), Message("assistant", answer, w))
    ]
    return Conversation(turns, HERE, weight=weight)


def only(rows, renderer, **options):
    made = encode(rows, renderer, max_tokens=options.pop("max_tokens", None), **options)
    assert len(made.samples) == 1, made.dropped
    return made.samples[0]


@given(
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=5),
    row_weight=st.sampled_from([0.5, 1.0, 3.0]),
)
@settings(max_examples=30, deadline=None)
def test_each_answer_is_learnt_with_its_weight_times_the_rows(renderer, weights, row_weight):
    row = dialogue(*weights, weight=row_weight)
    made = encode([row], renderer, max_tokens=None)
    if not any(weights):
        assert [d.reason for d in made.dropped] == ["nothing_learnt"]
        return
    branch, rendered = made.samples[0].branches[0], renderer.render(row.messages)
    expected = {
        i: w * row_weight
        for (a, b), w in zip(rendered.spans, weights, strict=True)
        if w
        for i in range(a, b)
    }
    assert dict(zip(branch.learnt, branch.weights, strict=True)) == expected
    assert branch.tokens == rendered.ids[: max(expected) + 1]
    assert (
        made.samples[0].facts["answers"]
        == made.samples[0].facts["stops_learnt"]
        == sum(w > 0 for w in weights)
    )
    assert made.samples[0].weight == 1.0


def test_text_is_learnt_from_its_second_token_to_its_end_token(renderer):
    branch = only([PlainText("hello world again", HERE, 0.5)], renderer).branches[0]
    assert branch.learnt == list(range(1, len(branch.tokens))) and set(branch.weights) == {0.5}
    assert branch.tokens[-1] == renderer.stop_id


def test_rows_at_the_limit_stay_and_longer_ones_are_dropped_with_their_length(renderer):
    length = len(only([dialogue(1.0)], renderer).branches[0].tokens)
    assert only([dialogue(1.0)], renderer, max_tokens=length)
    made = encode([dialogue(1.0)], renderer, max_tokens=length - 1)
    assert [(d.reason, d.detail) for d in made.dropped] == [
        ("too_long", f"{length} > {length - 1}")
    ]


@given(cut=st.integers(1, 60), turns=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_truncation_keeps_the_question_the_ends_of_the_answer_and_the_stop_token(
    renderer, cut, turns
):
    row = dialogue(*[1.0] * turns, answer="one two three four five six seven eight nine ten")
    whole = only([row], renderer)
    limit = len(whole.branches[0].tokens) - cut
    made = encode([row], renderer, max_tokens=limit, oversize="truncate")
    first, after = whole.facts["last_span"]
    joint = renderer.tokenizer.encode(" [...] ", add_special_tokens=False)
    if after - first - cut - len(joint) < 2:
        assert [d.reason for d in made.dropped] == ["too_long"]
        return
    branch = made.samples[0].branches[0]
    assert len(branch.tokens) == limit and made.notes["truncated"] == 1
    assert branch.tokens[: first + 1] == whole.branches[0].tokens[: first + 1]
    assert branch.tokens[-1] == renderer.stop_id and branch.learnt[-1] == limit - 1
    head, goes_on = next(
        (i, i + len(joint))
        for i in range(first, limit)
        if branch.tokens[i : i + len(joint)] == joint
    )
    # Neither the mark nor the token after it, which may begin inside a word, is learnt; the stop
    # token always is.
    unlearnt = {*range(head, goes_on), goes_on} - {limit - 1}
    assert branch.learnt == [
        i for i in range(limit) if i in whole.branches[0].learnt or i >= first if i not in unlearnt
    ]
    assert len(branch.weights) == len(branch.learnt) and made.samples[0].facts["last_span"] == (
        first,
        limit,
    )
    assert branch.learnt == sorted(set(branch.learnt)) and branch.learnt[0] >= 1


def test_a_cut_answer_shows_a_mark_where_its_middle_was(renderer):
    row = dialogue(
        1.0, answer="a light tower stands on the cliff and the keeper lives in a house by the sea"
    )
    length = len(only([row], renderer).branches[0].tokens)
    branch = (
        encode([row], renderer, max_tokens=length - 20, oversize="truncate").samples[0].branches[0]
    )
    text = renderer.decode(branch.tokens)
    assert text.count(" [...] ") == 1
    head, tail = text.split("assistant\n")[-1].removesuffix("<|im_end|>").split(" [...] ")
    answer = row.messages[-1].content
    assert answer.startswith(head) and answer.endswith(tail) and head and tail


def test_questions_that_alone_are_too_long_are_dropped_even_when_truncating(renderer):
    made = encode([dialogue(1.0)], renderer, max_tokens=5, oversize="truncate")
    assert [d.reason for d in made.dropped] == ["too_long"]


def test_a_row_that_cannot_be_rendered_is_dropped_with_the_templates_reason(renderer):
    rows = [
        Conversation(
            [
                Message("user", "q"),
                Message("assistant", "", tool_calls=[{"function": {"name": "f"}}]),
            ],
            HERE,
        ),
        dialogue(1.0),
    ]
    made = encode(rows, renderer, max_tokens=None)
    assert [d.reason for d in made.dropped] == ["calls_unwritten"] and made.samples[0].index == 1


@pytest.mark.parametrize(
    "text", ["\x00", "\u202e\ufeff", "🙂" * 50, "\r\n\r\n", "<|im_end|><|im_start|>"]
)
def test_odd_characters_are_encoded(renderer, text):
    row = Conversation([Message("user", text), Message("assistant", text + "x")], HERE)
    assert only([row], renderer).branches[0].tokens.count(renderer.stop_id) == 3
