"""What belongs to question and answer and stands in columns of its own is read; expected rows are
written by hand."""

from __future__ import annotations

import json

import pytest

from tunewright.core.errors import DataError
from tunewright.core.types import Judged, Origin, Preference, Stepwise
from tunewright.data.files.source import RawRow
from tunewright.data.formats.beside import choice_columns
from tunewright.data.formats.shaping import shape


def shaped(*values, **more):
    return shape(
        [RawRow(value, Origin("f.json", i, i)) for i, value in enumerate(values, 1)], **more
    )


def only(value, **more):
    found = shaped(value, **more)
    assert not found.dropped, found.dropped
    return found.rows[0]


def said(value, **more):
    return [(m.role, m.content) for m in only(value, **more).messages]


PAIRS = [
    ("query", "response"), ("prompt", "response"), ("prompt", "completion"), ("question", "answer"), ("instruction", "output"),
    ("problem", "solution"), ("input", "output"), ("user", "assistant"), ("Question", "Response"),
]  # fmt: skip
EARLIER = [("user", "a?"), ("assistant", "b."), ("user", "c?"), ("assistant", "d.")]
TURNS = [{"role": role, "content": text} for role, text in EARLIER]
HISTORIES = [
    [["a?", "b."], ["c?", "d."]],
    TURNS,
    [{"from": "human" if role == "user" else "gpt", "value": text} for role, text in EARLIER],
    [{"human": "a?", "assistant": "b."}, {"human": "c?", "assistant": "d."}],
    ["a?", "b.", "c?", "d."],
]


@pytest.mark.parametrize(("ask", "answer"), PAIRS)
@pytest.mark.parametrize("history", [*HISTORIES, json.dumps(HISTORIES[0]), json.dumps(TURNS)])
def test_a_history_goes_before_every_kind_of_question(ask, answer, history):
    row = {ask: "And then?", answer: "Then nothing.", "history": history}
    assert said(row) == [*EARLIER, ("user", "And then?"), ("assistant", "Then nothing.")]
    # The same rule as beside an instruction: the earlier answers are learnt too.
    assert [m.weight for m in only(row).messages] == [1.0] * 6


@pytest.mark.parametrize("history", [None, "", [], "[]"])
def test_no_history_is_no_turn(history):
    assert said({"query": "q", "response": "a", "history": history}) == [
        ("user", "q"),
        ("assistant", "a"),
    ]


@pytest.mark.parametrize("history", ["some text", [["a"]], ["a", "b", "c"], [1], {"a": 1}])
def test_a_history_that_is_none_drops_the_row_with_a_reason(history):
    assert shaped({"query": "q", "response": "a", "history": history}).dropped[0].reason in (
        "wrong_type",
        "unknown_role",
    )


def test_judged_compared_and_stepwise_rows_have_their_history():
    judged = only({"prompt": "q", "completion": "a", "label": True, "history": [["b", "c"]]})
    pair = only(
        {"prompt": "q", "chosen": "a", "rejected": "x", "history": [["b", "c"]], "context": "k"}
    )
    steps = only({"prompt": "q", "completions": ["a"], "labels": [True], "history": [["b", "c"]]})
    assert (
        isinstance(judged, Judged) and isinstance(pair, Preference) and isinstance(steps, Stepwise)
    )
    for messages in (judged.messages[:2], pair.prompt[:2], steps.messages[:2]):
        assert [(m.role, m.content) for m in messages] == [("user", "b"), ("assistant", "c")]
    assert pair.prompt[2].content == "k\n\nq"


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"prompt": "Translate.", "input": "Haus", "completion": "house"}, "Translate.\nHaus"),
        ({"prompt": "Translate.", "input": "", "completion": "house"}, "Translate."),
        ({"question": "Which?", "input": "x, y", "answer": "x"}, "Which?\nx, y"),
        (
            {"prompt": "Where?", "context": "In the hall.", "completion": "There."},
            "In the hall.\n\nWhere?",
        ),
        (
            {"query": "Where?", "passage": "In the hall.", "response": "There."},
            "In the hall.\n\nWhere?",
        ),
        (
            {"question": "Where?", "context": "In the hall.", "answer": "There."},
            "In the hall.\n\nWhere?",
        ),
        (
            {"instruction": "Answer briefly.", "question": "Where?", "answer": "There."},
            "Answer briefly.\nWhere?",
        ),
        (
            {
                "instruction": "Answer.",
                "input": "Where?",
                "context": "In the hall.",
                "output": "There.",
            },
            "Answer.\nWhere?\nIn the hall.",
        ),
        ({"instruction": "Answer.", "input": "Where?", "answer": "There."}, "Answer.\nWhere?"),
        ({"prompt": "Shorten.", "input": "Long text.", "output": "Text."}, "Shorten.\nLong text."),
    ],
)
def test_input_and_context_belong_to_the_question(row, question):
    assert said(row)[0] == ("user", question)


def test_a_wording_may_name_any_column():
    row = {"text": "Cold soup, fast waiter.", "aspect": "service", "label": "good"}
    assert (
        said(row, wording="{text}\n\nHow is the {aspect}?")[0][1]
        == "Cold soup, fast waiter.\n\nHow is the service?"
    )
    assert [one["name"] for one in shaped(row).ledger.unused()] == ["aspect"]
    assert not shaped(row, wording="{text} {aspect}").ledger.unused()


THOUGHT = "<think>\nI count.\n</think>\n\nFour."


@pytest.mark.parametrize(
    "name",
    [
        "reasoning",
        "reasoning_content",
        "thinking",
        "thought",
        "cot",
        "chain_of_thought",
        "Complex_CoT",
        "rationale",
        "Chain-of-Thought",
    ],
)
@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "Four."},
        {"instruction": "q", "output": "Four."},
        {"prompt": "q", "completion": "Four.", "label": True},
        {"question": "q", "context": "c", "answer": "Four."},
        {"text": "q", "label": "Four."},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Four."}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "Four."}]},
        {
            "prompt": [{"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "Four."}],
        },
    ],
)
def test_a_reasoning_in_a_column_goes_before_the_answer(row, name):
    found = shaped(row | {name: "I count."})
    assert (
        found.rows[0].messages[-1].content == THOUGHT
        and found.notes["reasoning_kept"] == 1
        and not found.ledger.unused()
    )


def test_a_reasoning_may_be_named_by_the_run_or_be_steps_or_stand_in_the_answer_already():
    row = {"Question": "q", "Gedanken": "I count.", "Response": "Four."}
    assert said(row, columns={"reasoning": "Gedanken"})[-1][1] == THOUGHT
    assert (
        said({"question": "q", "answer": "Four.", "cot": ["I", "count."]})[-1][1]
        == "<think>\nI\ncount.\n</think>\n\nFour."
    )
    own = shaped({"question": "q", "answer": THOUGHT, "reasoning": "other"})
    assert own.rows[0].answer() == THOUGHT and [one["name"] for one in own.ledger.unused()] == [
        "reasoning"
    ]


def test_a_solution_beside_an_answer_is_how_one_comes_to_it():
    for ask in ("question", "problem", "query"):
        assert said({ask: "q", "solution": "I count.", "answer": "Four."})[-1][1] == THOUGHT
    assert said({"problem": "q", "solution": "I count."})[-1][1] == "I count."


def test_a_reasoning_of_several_answers_is_named_and_not_guessed():
    turns = [*TURNS, {"role": "user", "content": "e?"}, {"role": "assistant", "content": "f."}]
    found = shaped({"messages": turns, "reasoning": "why"})
    assert "<think>" not in str(found.rows) and [one["name"] for one in found.ledger.unused()] == [
        "reasoning"
    ]
    # After a history the last answer is the row's own.
    assert (
        said({"query": "q", "response": "Four.", "history": [["a", "b"]], "reasoning": "I count."})[
            -1
        ][1]
        == THOUGHT
    )


def test_functions_are_tools_as_they_were_once_called():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    function = {"name": "f", "parameters": {}}
    for functions in ([function], json.dumps([function])):
        assert only({"messages": messages, "functions": functions}).tools == [
            {"type": "function", "function": function}
        ]


ASKED = "Which is red?\n\nA. sky\nB. rose"


@pytest.mark.parametrize(
    "choices",
    [
        {"A": "sky", "B": "rose"},
        {"choice_a": "sky", "choice_b": "rose"},
        {"option_A": "sky", "option_B": "rose"},
        {"choices": ["sky", "rose"]},
        {"options": {"A": "sky", "B": "rose"}},
        {"choices": {"text": ["sky", "rose"], "label": ["A", "B"]}},
        {"options": [{"key": "A", "value": "sky"}, {"key": "B", "value": "rose"}]},
        {"choices": json.dumps(["sky", "rose"])},
    ],
)
@pytest.mark.parametrize(
    "answer", [{"answer": "B"}, {"answer": 1}, {"answer": "1"}, {"answerKey": "B"}, {"label": 1}]
)
def test_choices_stand_under_the_question_and_the_answer_is_a_letter(choices, answer):
    found = shaped({"question": "Which is red?"} | choices | answer)
    assert [(m.role, m.content) for m in found.rows[0].messages] == [
        ("user", ASKED),
        ("assistant", "B"),
    ]
    assert found.notes["choices_read"] == 1 and not found.ledger.unused()


def test_other_answers_to_choices_stay_as_they_are():
    assert said({"question": "Which is red?", "choices": ["sky", "rose"], "answer": "rose"}) == [
        ("user", ASKED),
        ("assistant", "rose"),
    ]
    numbered = said({"question": "Which?", "option1": "sky", "option2": "rose", "answer": "2"})
    assert numbered == [("user", "Which?\n\n1. sky\n2. rose"), ("assistant", "2")]
    # In a table every cell is a text: a number that is the text of a choice is that choice.
    assert said({"question": "1+1?", "A": "1", "B": "2", "answer": "2"})[-1][1] == "2"
    own = "Which is red? (A) sky (B) rose"
    assert said({"question": own, "A": "sky", "B": "rose", "answer": "B"})[0][1] == own


def test_choices_that_cannot_be_read_drop_the_row_with_a_reason():
    assert (
        shaped({"question": "q", "choices": "sky or rose", "answer": "B"}).dropped[0].reason
        == "bad_choices"
    )
    assert (
        shaped({"question": "q", "choices": ["sky", "rose"], "answer": 2}).dropped[0].reason
        == "bad_choice"
    )


def test_choices_in_columns_have_no_gap():
    assert choice_columns(("q", "A", "B", "C")) == (("A", "A"), ("B", "B"), ("C", "C"))
    assert choice_columns(("choice1", "choice2")) == (("1", "choice1"), ("2", "choice2"))
    assert choice_columns(("option0", "option1")) == (("0", "option0"), ("1", "option1"))
    assert (
        choice_columns(("A", "C"))
        == choice_columns(("A",))
        == choice_columns(("option2", "option3"))
        == ()
    )


# ---- turns under other names

DIALOGUE = [
    ("user", "Who are you?"),
    ("assistant", "Pip."),
    ("user", "Who built you?"),
    ("assistant", "The ropemakers."),
]


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversation": [
                {"input": "Who are you?", "output": "Pip."},
                {"input": "Who built you?", "output": "The ropemakers."},
            ]
        },
        {
            "conversation": [
                {"human": "Who are you?", "assistant": "Pip."},
                {"human": "Who built you?", "assistant": "The ropemakers."},
            ]
        },
        {
            "conversations": [
                {"user": "Who are you?", "bot": "Pip."},
                {"user": "Who built you?", "bot": "The ropemakers."},
            ]
        },
        {"data": [text for _, text in DIALOGUE]},
        {"messages": [text for _, text in DIALOGUE]},
        {"turns": [[DIALOGUE[0][1], DIALOGUE[1][1]], [DIALOGUE[2][1], DIALOGUE[3][1]]]},
        {
            "contents": [
                {"role": "user" if r == "user" else "model", "parts": [{"text": text}]}
                for r, text in DIALOGUE
            ]
        },
        {"dialogue": [{"speaker": r, "text": text} for r, text in DIALOGUE]},
        {"messages": [{"Role": r, "Content": text} for r, text in DIALOGUE]},
        {"Messages": [{"role": r, "content": text} for r, text in DIALOGUE]},
        {"Conversations": [{"from": r, "value": text} for r, text in DIALOGUE]},
        {
            "conversation": json.dumps(
                [
                    {"human": "Who are you?", "assistant": "Pip."},
                    {"human": "Who built you?", "assistant": "The ropemakers."},
                ]
            )
        },
    ],
)
def test_turns_under_other_names_are_a_dialogue(row):
    assert said(row) == DIALOGUE and said(row | {"system": "Be brief."})[0] == (
        "system",
        "Be brief.",
    )


def test_a_system_prompt_in_the_first_pair_comes_first_and_other_fields_are_named():
    turns = [
        {"system": "Be brief.", "input": "Who are you?", "output": "Pip.", "mood": "glad"},
        {"input": "Who built you?", "output": "The ropemakers."},
    ]
    found = shaped({"conversation": turns})
    assert [(m.role, m.content) for m in found.rows[0].messages] == [
        ("system", "Be brief."),
        *DIALOGUE,
    ]
    assert [one["name"] for one in found.ledger.unused()] == ["turns[].mood"]
    gemini = {"systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]}}
    assert said(
        gemini
        | {
            "contents": [
                {"role": "user", "parts": [{"text": "q"}]},
                {"role": "model", "parts": [{"text": "a"}]},
            ]
        }
    )[0] == ("system", "Be brief.")


def test_a_dialogue_that_is_a_text_is_no_list_of_turns():
    with pytest.raises(DataError, match="--columns prompt=dialogue,completion=summary"):
        shaped({"dialogue": "A: hi. B: hello.", "summary": "They greet."})


# ---- names


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"Instruction": "i", "Input": "n", "Output": "o"}, "alpaca"),
        ({"Prompt": "p", "Completion": "c"}, "prompt_completion"),
        ({" prompt": "p", "completion ": "c"}, "prompt_completion"),
        ({"QUESTION": "q", "Answer": "a"}, "prompt_completion"),
        ({"User": "q", "Assistant": "a"}, "prompt_completion"),
        ({"Text": "t"}, "text"),
        ({"Prompt": "q", "Chosen": "a", "Rejected": "b"}, "preference"),
    ],
)
def test_names_in_capitals_are_the_same_names(row, wanted):
    found = shaped(row)
    assert found.format == wanted and not found.dropped and found.ledger.used() == list(row)


def test_two_spellings_of_one_name_stay_two_columns():
    found = shaped({"Text": "one", "text": "two"}, format_name="text")
    assert found.rows[0].text == "two" and [one["name"] for one in found.ledger.unused()] == [
        "Text"
    ]


def test_facts_for_reward_functions_keep_the_name_the_file_gives_them():
    assert only({"Prompt": "q", "Answer_Key": "x", "Answer": "y"}, format_name="prompts").facts == {
        "Answer_Key": "x",
        "Answer": "y",
    }
    assert only(
        {"q": "q", "Loesung": "x"}, columns={"prompt": "q", "solution": "Loesung"}
    ).facts == {"solution": "x"}
