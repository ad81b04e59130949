"""A judge: both orders are asked, contradictions are ties, bad replies are counted, and a biased
judge is found out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.building import codes
from helpers.story import model_folder
from helpers.stub_server import chat, serving

from tunewright.core.errors import DataError, TunewrightError
from tunewright.core.telling import Quiet
from tunewright.core.types import Message
from tunewright.evaluate.asked import Question
from tunewright.evaluate.judge import CHECK, Judged, judge, lines, prompt, report, verdict_of

GOOD, POOR = "Paris", "a much longer answer that says nothing about it"


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A is right. [[A]]", "A"),
        ("[[a]]", "A"),
        ("not [[A]] but [[B]]", "B"),
        ("[[ C ]]", "C"),
        ("B", "B"),
        (" **B**. ", "B"),
        ("Verdict: C", "C"),
        ("结论：A", "A"),
        ("A is better", None),
        ("[[D]]", None),
        ("", None),
        ("I cannot judge", None),
        ("Answer A is better than B", None),
    ],
)
def test_a_verdict_is_read_and_never_guessed(reply: str, verdict: str | None) -> None:
    assert verdict_of(reply) == verdict


def question(expected: str = GOOD) -> Question:
    return Question([Message("user", "Capital of {France}?")], expected, "f:1")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_prompt_holds_both_answers_in_their_order(language: str) -> None:
    ((text),) = (m.content for m in prompt(question(), "first {x}", "second", language))
    assert text.index("Capital of {France}?") < text.index("first {x}") < text.index("second")
    assert "Paris" not in text
    (with_reference,) = prompt(question(), "first", "second", language, expected="Paris")
    assert "Paris" in with_reference.content
    for mark in ("[[A]]", "[[B]]", "[[C]]"):
        assert mark in text


def test_a_dialogue_is_judged_with_all_its_turns() -> None:
    turns = [
        Message("system", "s"),
        Message("user", "one"),
        Message("assistant", "two"),
        Message("user", "three"),
    ]
    (asked,) = prompt(Question(turns, "", "f:1"), "x", "y", "en")
    assert "User: one\n\nAssistant: two\n\nUser: three" in asked.content


@pytest.mark.parametrize(
    ("replies", "result", "disagrees"),
    [
        (("[[A]]", "[[B]]"), "a", False),
        (("[[B]]", "[[A]]"), "b", False),
        (("[[C]]", "[[C]]"), "tie", False),
        (("[[A]]", "[[A]]"), "tie", True),  # the place decides
        (("[[B]]", "[[B]]"), "tie", True),
        (("[[A]]", "[[C]]"), "tie", True),
        (("[[A]]", "?"), None, False),
        (("?", "?"), None, False),
    ],
)
def test_both_orders_decide(replies: tuple[str, str], result: str | None, disagrees: bool) -> None:
    row = Judged(question(), "x", "y", replies)
    assert (row.result, row.disagrees) == (result, disagrees)


def test_figures_are_counted_by_hand() -> None:
    one = (
        [("[[A]]", "[[B]]")] * 5
        + [("[[B]]", "[[A]]")] * 2
        + [("[[A]]", "[[A]]")] * 2
        + [("?", "[[A]]")]
    )
    rows = [Judged(question(), "x", "yy", replies) for replies in one]
    rows.append(Judged(question(), "x", "x", is_equal=True))
    found = report(rows)
    assert {k: found[k] for k in ("n", "wins", "losses", "ties", "equal_answers", "unreadable")} == {
        "n": 10, "wins": 5, "losses": 2, "ties": 3, "equal_answers": 1, "unreadable": 1,
    }  # fmt: skip
    assert found["share"] == pytest.approx(6.5 / 10)
    assert found["disagreed_share"] == pytest.approx(2 / 9)
    assert found["unreadable_replies"] == 1
    # 14 consistent verdicts, half of them for the first place, and 4 for the first place.
    assert found["first_place_share"] == pytest.approx((7 + 4) / 18)
    assert (found["longer_wins"], found["longer_decided"]) == (2, 7)
    low, high = found["interval_95"]
    assert 0 <= low <= found["share"] <= high <= 1


def test_nothing_that_can_be_read_claims_nothing() -> None:
    found = report([Judged(question(), "x", "y", ("?", "?"))] * 3)
    assert (found["share"], found["interval_95"], found["better"]) == (None, [0.0, 1.0], False)
    assert any("no verdict" in warning for warning in found["warnings"])


# ---- the whole command


def candidates(text: str) -> tuple[str, str]:
    a, b = re.findall(r"\[Answer [AB]\]\n(.*?)\n\[End of answer", text, re.DOTALL)
    return a, b


def fair(text: str) -> str:
    a, b = candidates(text)
    return "[[C]]" if a == b else "It knows. [[A]]" if a == GOOD else "It knows. [[B]]"


JUDGES: dict[str, Callable[[str], str]] = {
    "fair": fair,
    "first": lambda text: "[[A]]",
    "longer": lambda text: (
        "[[A]]" if len(candidates(text)[0]) > len(candidates(text)[1]) else "[[B]]"
    ),
    "mute": lambda text: "Both have their merits.",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Capital of country {i}?", "output": POOR} for i in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def run(data: Path, name: str, **how: Any) -> dict[str, Any]:
    """A model that always knows, judged by one of `JUDGES`, both on the loopback."""

    def answer(path: str, body: Any) -> Any:
        text = body["messages"][-1]["content"]
        is_judged = body["model"] == "judge" and text != CHECK
        return chat(JUDGES[name](text) if is_judged else GOOD)

    with serving(answer) as stub:
        return judge(stub.url + "#model", str(data), stub.url + "#judge", tell=Quiet(), **how)


def test_a_fair_judge_finds_the_better_answers(data: Path) -> None:
    found = run(data, "fair", details=True)["judge"]
    assert (found["wins"], found["losses"], found["ties"]) == (12, 0, 0)
    assert found["better"]
    assert found["disagreed"] == 0
    assert found["first_place_share"] == 0.5


def test_a_judge_that_takes_the_first_is_found_out(data: Path) -> None:
    result = run(data, "first")
    found = result["judge"]
    assert (found["ties"], found["disagreed"], found["first_place_share"]) == (12, 12, 1.0)
    assert not found["better"]
    assert any("contradicts itself" in one for one in result["warnings"])


def test_a_judge_that_takes_the_longer_is_found_out(data: Path) -> None:
    result = run(data, "longer")
    assert result["judge"]["worse"]
    assert any("the length" in one for one in result["warnings"])


def test_a_judge_without_verdicts_is_counted(data: Path) -> None:
    result = run(data, "mute")
    assert result["judge"]["n"] == 0
    assert result["judge"]["unreadable"] == 12
    text = "\n".join(lines(result))
    assert "replies without a verdict: 24" in text
    assert "not clearly different" in text


def test_equal_answers_are_ties_without_being_asked(data: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("\n".join(json.dumps({**row, "output": " PARIS"}) for row in rows))
    found = run(data, "first")["judge"]
    assert (found["equal_answers"], found["ties"], found["disagreed_share"]) == (12, 12, None)


def test_another_model_is_judged_beside_the_reference(data: Path) -> None:
    seen: list[str] = []

    def answer(path: str, body: Any) -> Any:
        text = body["messages"][-1]["content"]
        if body["model"] == "judge" and text != CHECK:
            seen.append(text)
            return chat(fair(text))
        return chat(GOOD if body["model"] == "model" else "Rome")

    with serving(answer) as stub:
        result = judge(
            stub.url + "#model", str(data), stub.url + "#judge", against=stub.url + "#other", limit=3, tell=Quiet(), details=True,
        )  # fmt: skip
    assert result["judge"]["wins"] == 3
    assert len(seen) == 6
    assert all(POOR in text for text in seen)  # as the reference
    assert {row["result"] for row in result["rows"]} == {"a"}
    assert any("3 of 12" in one for one in result["warnings"])


def test_chinese_questions_are_judged_in_chinese(data: Path) -> None:
    rows = [{"instruction": f"第{i}个国家的首都是哪里？", "output": "不知道"} for i in range(3)]
    data.write_text("\n".join(map(json.dumps, rows)))
    seen: list[str] = []

    def answer(path: str, body: Any) -> Any:
        seen.append(body["messages"][-1]["content"])
        return chat("[[C]]")

    with serving(answer) as stub:
        result = judge(stub.url + "#m", str(data), stub.url + "#judge", tell=Quiet())
    assert result["judge"]["language"] == "zh"
    assert any("请比较对同一个问题的两个回答" in text for text in seen)


def test_a_judge_of_its_own_answers_is_said(data: Path) -> None:
    with serving(lambda path, body: chat("[[C]]")) as stub:
        result = judge(stub.url + "#m", str(data), stub.url + "#m", limit=2, tell=Quiet())
    assert any("its own answers" in one for one in result["warnings"])


def test_a_local_judge_gives_the_same_twice(data: Path, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", max_position_embeddings=2048)
    one, two = (
        judge(
            str(model), str(data), str(model), limit=2, max_new_tokens=4, tell=Quiet(), details=True
        )
        for _ in range(2)
    )
    assert one["rows"] == two["rows"]
    assert one["judge"]["n"] + one["judge"]["unreadable"] == 2


@pytest.mark.parametrize(
    ("how", "code"),
    [({"language": "de"}, "E-EXAM-04"), ({"limit": 0}, "E-EVAL-05"), ({"max_new_tokens": 0}, "E-EVAL-05"), ({"against": "no/such/folder"}, "E-MODEL-")],
)  # fmt: skip
def test_wrong_usage_is_said_before_anything_is_asked(
    data: Path, how: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TunewrightError) as caught:
        run(data, "fair", **how)
    assert codes(caught.value)[0].startswith(code)


def test_an_address_that_is_wrong_is_said_before_anybody_answers(data: Path) -> None:
    asked: list[str] = []

    def answer(path: str, body: Any) -> Any:
        asked.append(body["model"] if body else path)
        return (401, "no") if body and body["model"] == "judge" else chat(GOOD)

    with serving(answer) as stub, pytest.raises(TunewrightError) as caught:
        judge(stub.url + "#model", str(data), stub.url + "#judge", tell=Quiet())
    assert codes(caught.value) == ["E-ADDR-03"]
    assert asked == ["judge"]


def test_answers_and_verdicts_are_kept(data: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(path: str, body: Any) -> Any:
        text = body["messages"][-1]["content"]
        asked.append("" if text == CHECK else text)
        is_judged = body["model"] == "judge" and text != CHECK
        return chat(fair(text) if is_judged else GOOD)

    with serving(answer) as stub:
        names = (stub.url + "#model", str(data), stub.url + "#judge")
        one, two = (judge(*names, out=tmp_path / "out", tell=Quiet()) for _ in range(2))
    assert one["judge"] == two["judge"]
    assert one["judge"]["wins"] == 12
    assert sum(map(bool, asked)) == 12 + 24


def test_a_judge_that_fails_loses_no_answer(data: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    fails = [True]

    def answer(path: str, body: Any) -> Any:
        text = body["messages"][-1]["content"]
        if text == CHECK:
            return chat("ok")
        asked.append(body["model"])
        if body["model"] == "judge":
            return (400, "no credit") if fails[0] else chat(fair(text))
        return chat(GOOD)

    with serving(answer) as stub:
        names, out = (stub.url + "#model", str(data), stub.url + "#judge"), tmp_path / "out"
        with pytest.raises(TunewrightError) as caught:
            judge(*names, out=out, tell=Quiet())
        assert codes(caught.value) == ["E-ADDR-07"]
        fails[0] = False
        assert judge(*names, out=out, tell=Quiet())["judge"]["wins"] == 12
    assert asked.count("model") == 12


def test_rows_without_answers_need_another_model(tmp_path: Path) -> None:
    data = tmp_path / "asked.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": f"question {i}?"}) for i in range(3)))
    with pytest.raises(DataError) as caught:
        run(data, "fair")
    assert codes(caught.value) == ["E-JUDGE-01"]
