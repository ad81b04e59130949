"""What is said about columns that were not understood: found, nearest, and flags that work when
they are copied."""

from __future__ import annotations

import re
import shlex

import pytest

from tunewright.core.errors import DataError
from tunewright.core.runfile import columns_of
from tunewright.core.types import Conversation, Origin, PlainText, Preference
from tunewright.core.words import set_language
from tunewright.data.files.source import RawRow
from tunewright.data.formats.shaping import shape


def shaped(*values, **more):
    return shape(
        [RawRow(value, Origin("f.json", i, i)) for i, value in enumerate(values, 1)], **more
    )


def refused(*values, **more) -> str:
    with pytest.raises(DataError) as caught:
        shaped(*values, **more)
    return caught.value.problems[0].line()


def copied(line: str) -> dict:
    """The arguments that the flags in a message stand for, as a shell and the command line read
    them."""
    flags = re.search(r"`(--columns [^`]+)`", line)
    assert flags, line
    return {"columns": columns_of([shlex.split(flags.group(1))[1]])}


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        (
            {"article": "A long text.", "highlights": "Short."},
            Conversation,
            ["A long text.", "Short."],
        ),
        (
            {"source": "A long text about ships.", "target": "Short."},
            Conversation,
            ["A long text about ships.", "Short."],
        ),
        ({"src": "Haus", "tgt": "house"}, Conversation, ["Haus", "house"]),
        ({"question": "Who?", "answerText": "Pip."}, Conversation, ["Who?", "Pip."]),
        ({"question": "Who?", "final_answer": "Pip."}, Conversation, ["Who?", "Pip."]),
        ({"instruction": "Who?", "target": "Pip."}, Conversation, ["Who?", "Pip."]),
        ({"问题": "谁？", "答案": "皮普。"}, Conversation, ["谁？", "皮普。"]),
        (
            {"问题": "谁？", "回答": "皮普。", "历史": [["在吗？", "在。"]]},
            Conversation,
            ["在吗？", "在。", "谁？", "皮普。"],
        ),
        ({"指令": "翻译", "输入": "房子", "输出": "house"}, Conversation, ["翻译\n房子", "house"]),
        ({"文本": "很好", "标签": "正面"}, Conversation, ["很好\n\nLabel:", "正面"]),
        ({"review": "Fine film.", "sentiment": "good", "source": "web"}, None, None),
        (
            {"sentence1": "A man runs.", "sentence2": "One moves.", "label": 1},
            Conversation,
            ["A man runs.\n\nLabel:", "1"],
        ),
        (
            {"题目": "哪个？", "A": "天", "B": "地", "答案": "A"},
            Conversation,
            ["哪个？\n\nA. 天\nB. 地", "A"],
        ),
        (
            {"sentence_text": "Fine film.", "remark": "A good one."},
            Conversation,
            ["Fine film.", "A good one."],
        ),
        ({"promt": "q", "completion": "a"}, Conversation, ["q", "a"]),
        ({"my question": "q", "the, answer": "a"}, Conversation, ["q", "a"]),
        ({"code": "print(1)"}, PlainText, ["print(1)"]),
        ({"query": "q", "accepted": "a", "rejected": "b"}, Preference, ["q"]),
    ],
)
def test_unknown_columns_come_with_flags_that_work(row, kind, said):
    line = refused(row)
    assert "E-DATA-08" in line and all(f"`{name}`" in line for name in row)
    if kind is None:
        assert "`--columns prompt=YOURS" in line
        return
    made = shaped(row, **copied(line)).rows[0]
    assert type(made) is kind
    assert (
        [made.text] == said
        if isinstance(made, PlainText)
        else [m.content for m in (made.prompt if isinstance(made, Preference) else made.messages)]
        == said
    )


def test_a_list_that_is_no_list_of_turns_is_shown_with_what_turns_look_like():
    line = refused({"conversation": [{"left": "a", "right": "b"}], "id": 1})
    assert "a list of an object with left, right" in line and "human and assistant" in line


def test_question_alone_with_an_answer_of_another_name_is_no_row_without_an_answer():
    assert "E-DATA-08" in refused(
        {"question": "q", "wahrheit": "w"}, {"question": "r", "wahrheit": "v"}
    )
    assert "E-DATA-08" in refused({"instruction": "q", "wahrheit": "w"})


LONG = "The harbour lies behind the hill and is closed in winter."
BESIDE = [
    ({"content": LONG, "summary": "A harbour."}, ["prompt", "completion"]),
    ({"document": LONG, "summary": "A harbour."}, ["prompt", "completion"]),
    ({"text": LONG, "summary": "A harbour."}, ["prompt", "completion"]),
    ({"text": LONG, "category": "harbours"}, ["label"]),
    ({"content": LONG, "category": "harbours"}, ["text", "label"]),
    ({"text": LONG, "target": "A harbour."}, ["prompt", "completion"]),
    ({"Text": LONG, "Sentiment": "calm"}, ["text", "label"]),
    ({"text": LONG, "stars": 4}, ["label"]),
    ({"text": LONG, "output": "A harbour."}, ["prompt", "completion"]),
    (
        {"text": LONG, "what it says": "There is a harbour, and it is closed."},
        ["prompt", "completion"],
    ),
    ({"content": LONG, "摘要": "港口在山后。"}, ["prompt", "completion"]),
    ({"text": LONG, "类别": "港口"}, ["label"]),
]


@pytest.mark.parametrize(("row", "roles"), BESIDE)
def test_a_text_with_its_answer_beside_it_is_refused_with_flags_that_work(row, roles):
    line = refused(row)
    text, answer = row
    assert "E-DATA-86" in line and f"`{answer}`" in line
    asked = copied(line)
    assert set(asked["columns"]) <= {*roles, "text", "prompt", "completion", "label"}
    made = shaped(row, **asked)
    assert (
        isinstance(made.rows[0], Conversation)
        and made.rows[0].answer() == str(row[answer])
        and not made.ledger.unused()
    )
    alone = re.search(r"`--format (\w+)`", line)
    assert alone
    found = shaped(row, format_name=alone.group(1))
    assert found.rows[0].text == row[text] and [one["name"] for one in found.ledger.unused()] == [
        answer
    ]


def test_a_few_short_texts_again_and_again_are_labels_whatever_their_name():
    rows = [{"text": f"{LONG} {i}", "kind_of_thing": ["sea", "land"][i % 2]} for i in range(8)]
    assert "`--columns label=kind_of_thing" in refused(*rows)


@pytest.mark.parametrize(
    "more",
    [
        {
            "url": "https://a.b/c",
            "timestamp": "2020-01-01",
            "language": "en",
            "language_score": 0.9,
            "token_count": 12,
            "dump": "CC-2020-1",
            "file_path": "a/b",
        },
        {"meta": {"set": "Books"}, "id": "7", "source": "web"},
        {"title": "Harbour"},
        {"max_stars_repo_name": "a/b", "hexsha": "00ff", "size": 12},
        {"score": 3},
        {"raw": LONG},
        {"note": None},
    ],
)
def test_a_corpus_with_its_bookkeeping_stays_running_text(more):
    found = shaped({"text": LONG, **more}, {"text": LONG + "!", **more})
    assert found.format == "text" and {one["name"] for one in found.ledger.unused()} == set(more)


@pytest.mark.parametrize(
    ("row", "columns", "code"),
    [
        ({"Question": "q", "Thoughts": "t", "Response": "a"}, {"question": "Question", "answer": "Response", "raesoning": "Thoughts"}, "E-DATA-85.*closest: reasoning"),
        ({"q": "q", "a": "a", "s": "x"}, {"instruction": "q", "output": "a", "summary": "s"}, "E-DATA-85.*alpaca reads: instruction"),
        ({"t": "t", "k": "k"}, {"text": "t", "key": "k"}, "E-DATA-85"),
        ({"q": "q", "a": "a", "b": "b"}, {"question": "q", "answer": "a", "response": "b"}, "E-DATA-87"),
    ],
)  # fmt: skip
def test_a_column_that_was_named_and_would_not_be_used_is_an_error(row, columns, code):
    assert re.search(code, refused(row, row, columns=columns))


def test_a_named_column_that_is_used_now_and_then_or_empty_is_no_error():
    rows = [{"q": "q", "a": "a", "r": ""}, {"q": "q", "a": "a", "r": "because"}]
    found = shaped(*rows, columns={"question": "q", "answer": "a", "reasoning": "r"})
    assert [row.answer() for row in found.rows] == ["a", "<think>\nbecause\n</think>\n\na"]
    assert (
        len(shaped(rows[0], columns={"question": "q", "answer": "a", "reasoning": "r"}).rows) == 1
    )


def test_a_column_in_the_way_of_a_renamed_one_is_named():
    found = shaped(
        {"content": "c", "prompt": "p", "completion": "a"}, columns={"prompt": "content"}
    )
    assert found.rows[0].messages[0].content == "c" and [
        one["name"] for one in found.ledger.unused()
    ] == ["prompt"]


@pytest.mark.parametrize("name", ["summary", "text", "target", "reply", "译文"])
def test_a_prompt_with_its_answer_under_another_name_is_no_prompt_alone(name):
    row = {"prompt": "Who built the harbour?", name: "Nobody knows."}
    line = refused(row)
    assert "E-DATA-88" in line and shaped(row, **copied(line)).rows[0].answer() == "Nobody knows."
    assert shaped(row, format_name="prompts").rows[0].facts == {name: "Nobody knows."}
    # What reward functions compare with stays a fact.
    assert shaped({"prompt": "q", "target": 42, "ground_truth": "x"}).format == "prompts"


def test_two_formats_at_once_come_with_the_flag():
    assert "--format prompt_completion" in refused({"prompt": "q", "answer": "a"})


def test_the_messages_are_there_in_chinese():
    set_language("zh")
    assert "可直接复制：`--columns prompt=content,completion=summary" in refused(
        {"content": LONG, "summary": "s"}
    )
    assert "可直接复制：`--columns prompt=问题,completion=答案" in refused(
        {"问题": "谁？", "答案": "皮普。"}
    )
