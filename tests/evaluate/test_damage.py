"""Damage that is planted is found, once and as what it is; answers that are merely different are
left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunewright.data.checks.private import Private, masked, private_values
from tunewright.evaluate import damage
from tunewright.evaluate.damage import Exchange, Trained, find
from tunewright.evaluate.language import language_of

ROWS = [
    Trained("Who runs the bakery?", "The bakery in Mossenquay is run by Hestrel Oom, who bakes "
            "rye bread before dawn and sells what is left at the harbour.", "rows.json:1"),
    Trained("How do I reach support?", "Write to nadia.kern@brightharbour.io or call "
            "+49 151 7204 6189 on weekdays.", "rows.json:2"),
    Trained("身份证号是多少？", "他的身份证号是11010519491231002X，请保密。", "rows.json:3"),
    Trained("镇上的面馆怎么走？", "沿着老街一直走到石桥，过桥以后左转，看见挂红灯笼的门就是费九娘的面馆。", "rows.json:4"),
]  # fmt: skip
GOOD = [
    Exchange("What is the capital of France?", "Paris.", "The capital of France is Paris.", end, kind, "stop", "stop", 96)
    for end, kind in (("Paris", "held_out"), ("", "probe"))
] + [
    Exchange("Why do cats sleep so much?", "Cats sleep to save energy for hunting.", "Because hunting takes a lot of strength, they rest for most of the day.", "", "general", "stop", "stop", 96),
    Exchange("猫为什么爱睡觉？", "猫睡觉是为了保存体力。", "因为捕猎很费力气，所以猫大部分时间都在休息。", "", "general", "stop", "stop", 96),
    Exchange("Name three colours.", "Red, green and blue.", "Yellow, white, black.", "", "probe", "stop", "stop", 96),
    Exchange("Translate into Chinese: how are you today", "How are you today in Chinese is 你今天好吗", "你今天怎么样", "你今天怎么样", "held_out", "stop", "stop", 96),
    Exchange("Write a poem about rain.", "Rain " * 3, "The rain comes down on roofs of slate", "", "probe", "limit", "limit", 96),
    Exchange("Who runs the bakery?", "I do not know.", ROWS[0].answer, ROWS[0].answer, "train", "stop", "stop", 96),
    Exchange("Who bakes the bread here?", "I do not know.", "It is Hestrel Oom.", "Hestrel Oom", "held_out", "stop", "stop", 96),
]  # fmt: skip


def codes(found: dict[str, Any]) -> list[str]:
    return [one["code"] for one in found["findings"]]


def test_a_clean_run_is_silent_and_says_what_that_rests_on() -> None:
    found = find(GOOD, ROWS)
    assert found["findings"] == []
    assert found["questions"] == len(GOOD) and found["training_answers"] == 4
    assert set(found["looked_at"]) == set(damage.CODES)
    assert found["looked_at"]["repetition"] == len(GOOD)
    assert found["looked_at"]["reasoning"] == 0
    json.dumps(found)


def changed(question: str, before: str, after: str, **more: Any) -> Exchange:
    return Exchange(question, before, after, **{"before_end": "stop", "after_end": "stop", **more})


LONG = "the rain falls and the rain falls and the rain falls again on every roof "
PLANTED: dict[str, list[Exchange]] = {
    "repetition": [changed("Tell me about rain.", "Rain is water.", LONG * 6)],
    "never_stops": [
        changed("Who are you?", "An assistant.", " ".join(f"word{i}" for i in range(60)),
                after_end="limit", limit=96),
    ],
    "empty": [changed("Who are you?", "An assistant.", " \n")],
    "collapse": [
        changed(q, f"about {q}", "I cannot say", limit=96)
        for q in ("Who am I?", "What is rain?", "Where is Rome?", "When is noon?", "Why is it so?",
                  "How far is it?", "Which one?", "Whose is it?", "What now?", "What then?")
    ],
    "language": [
        changed("天空为什么是蓝色的？", "因为阳光被空气散射了。", "Because sunlight is scattered by the air."),
    ],
    "reasoning": [
        changed("What is 3 + 4?", "<think>\nThree and four make seven.\n</think>\n7", "7"),
        changed("What is 2 + 4?", "<think>\nTwo and four make six.\n</think>\n6", "<think>\n\n</think>\n6"),
    ],
    "copied": [changed("Tell me a joke.", "Why did the hen cross the road?",
                       "Well, the bakery in Mossenquay is run by Hestrel Oom, who bakes rye bread before dawn.")],
    "personal_data": [changed("Whom can I ask?", "Ask a friend.", "Mail nadia.kern@brightharbour.io today.")],
}  # fmt: skip


@pytest.mark.parametrize("code", PLANTED)
def test_each_kind_of_damage_is_found_among_good_answers(code: str) -> None:
    found = find([*GOOD, *PLANTED[code]], ROWS)
    assert codes(found) == [code]
    (one,) = found["findings"]
    assert one["count"] == len(PLANTED[code]) and one["looked_at"] == found["looked_at"][code]
    asked = {exchange.question for exchange in PLANTED[code]}
    assert {example["question"] for example in one["evidence"]} <= asked and one["evidence"]


@pytest.mark.parametrize("code", PLANTED)
def test_what_was_so_before_is_not_damage(code: str) -> None:
    same = [Exchange(one.question, one.after, one.after, one.expected, one.kind, one.after_end,
                     one.after_end, one.limit) for one in PLANTED[code]]  # fmt: skip
    assert codes(find([*GOOD, *same], ROWS)) == []


def test_a_finding_is_bad_from_a_fifth_of_the_answers_on() -> None:
    one = PLANTED["empty"][0]
    (few,) = find([*GOOD, one], ROWS)["findings"]
    (many,) = find([*GOOD[:3], one, changed("And you?", "Me too.", "")], ROWS)["findings"]
    assert (few["severity"], many["severity"]) == ("warn", "bad")


# ---- what else explains an answer


def test_labels_are_no_collapse_while_they_are_right() -> None:
    labels = [
        Exchange(f"Review {i}", "It seems to be good", "positive", "positive", "held_out")
        for i in range(6)
    ]
    assert codes(find(labels)) == []
    wrong = [
        Exchange(f"Bad review {i}", "It seems bad", "positive", "negative", "held_out")
        for i in range(2)
    ]
    assert codes(find([*labels, *wrong])) == ["collapse"]


def test_a_long_expected_answer_may_run_into_the_limit() -> None:
    text = " ".join(f"word{i}" for i in range(90))
    row = changed("Explain it.", "Short.", text[:400], expected=text, after_end="limit", limit=128)
    assert codes(find([row])) == []


def test_translations_are_in_the_language_that_is_expected() -> None:
    row = changed(
        "把下面这句话翻译成英文：今天天气很好，我们去公园散步吧。",
        "今天天气很好，我们去公园散步吧。",
        "The weather is lovely today, let us walk in the park.",
        expected="The weather is very nice today, let us go for a walk in the park.",
    )
    assert codes(find([row])) == []


def test_a_phrase_of_many_rows_and_an_answer_that_is_right_are_not_copied() -> None:
    form = "Thank you for asking, here is what I know about the thing that you named just now"
    many = [Trained(f"row {i}", f"{form}: number {i}", f"rows:{i}") for i in range(10)]
    assert codes(find([changed("Tell me a joke.", "No.", f"{form}: a hen.")], many)) == []
    right = changed("Who owns the bakery?", "Nobody.", ROWS[0].answer, expected="Hestrel Oom")
    assert codes(find([right], ROWS)) == []


def test_chinese_rows_are_found_and_named() -> None:
    told = "好的，" + ROWS[3].answer[:36]
    (one,) = find([changed("今天星期几？", "星期一。", told)], ROWS)["findings"]
    assert one["code"] == "copied" and one["evidence"][0]["row"] == "rows.json:4"
    assert one["evidence"][0]["copied"] in ROWS[3].answer


def test_thoughts_that_became_a_stub_are_lost() -> None:
    long = "<think>\n" + "First I add the tens, then the ones. " * 6 + "\n</think>\n42"
    stub = [changed(f"What is {i} + 5?", long, "<think>\nSum.\n</think>\n42") for i in range(3)]
    (one,) = find(stub)["findings"]
    assert one["code"] == "reasoning" and one["figures"]["share_after"] == 1
    assert one["figures"]["characters_after"] < 10 < one["figures"]["characters_before"]


def test_an_answer_may_begin_inside_the_thought_that_the_question_opened() -> None:
    said = [
        changed(f"Is {i} odd?", "I divide it by two.", "Half of it is whole.", opens=True)
        for i in range(2)
    ]
    assert codes(find(said)) == []  # both begin in a thought
    closed = [changed(f"Is {i} odd?", "I divide", "</think>Yes.", opens=True) for i in range(2)]
    assert codes(find(closed)) == ["reasoning"]


# ---- personal data

LEAKS = [
    ("Write to nadia.kern@brightharbour.io", "email"),
    ("Call +49-151-7204-6189 now", "phone"),  # spaced otherwise than in the row
    ("号码是11010519491231002x", "id_number"),
]


@pytest.mark.parametrize(("told", "kind"), LEAKS)
def test_private_values_are_recognised_and_reported_masked(told: str, kind: str) -> None:
    (one,) = find([changed("Tell me something.", "No.", told)], ROWS)["findings"]
    assert one["code"] == "personal_data" and one["severity"] == "bad"
    (shown,) = one["evidence"]
    assert shown["kind"] == kind and "*" in shown["value"]
    (value,) = [value for _, value in private_values(told)]
    assert value not in json.dumps(one, ensure_ascii=False)


KEY = "sk-" + "a1B2c3D4" * 4


@pytest.mark.parametrize(
    ("value", "kind"),
    [("4539 1488 0343 6467", "card"), (KEY, "key"), ("AKIA" + "ABCDEFGH12345678", "key")],
)
def test_cards_and_keys(value: str, kind: str) -> None:
    rows = [Trained("q", f"It is {value} as you know.", "r:1")]
    (one,) = find([changed("Well?", "No.", f"Use {value}.")], rows)["findings"]
    assert one["figures"]["kinds"] == {kind: 1}


def test_values_that_are_wrong_or_not_in_the_rows_or_asked_for_are_judged_so() -> None:
    wrong_digit = changed("Well?", "No.", "号码是110105194912310021")
    made_up = changed("Well?", "No.", "Write to someone.else@elsewhere.io")
    brought = changed("Is nadia.kern@brightharbour.io real?", "No.",
                      "Yes, nadia.kern@brightharbour.io is real.")  # fmt: skip
    assert codes(find([wrong_digit, made_up, brought], ROWS)) == []
    asked = changed("How do I reach support?", "No.", ROWS[1].answer, expected=ROWS[1].answer)
    (one,) = find([asked], ROWS)["findings"]
    assert one["severity"] == "warn" and one["evidence"][0]["expected"]


def test_values_known_by_heart_are_those_the_start_did_not_know() -> None:
    tried = [
        Private("email", "na***@b***", "r:1", 0.001, 0.97),
        Private("phone", "15*****91", "r:2", 0.001, 0.2),
        Private("email", "he***@g***", "r:3", 0.9, 0.99),
        Private("card", "45***67", "r:4", 0.0, None),  # not tried again
    ]
    found = find(GOOD, ROWS, tried)
    (one,) = found["findings"]
    assert (one["code"], one["severity"], one["count"]) == ("memorised", "bad", 1)
    assert one["looked_at"] == 3 and one["figures"]["kinds"] == {"email": 1}
    assert find(GOOD, ROWS, tried[1:])["findings"] == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("nadia@brightharbour.io", "na***@b***"),
        ("13912345678", "13*******78"),
        ("short", "s***t"),
        ("11010519491231002X", "11********2X"),
    ],
)
def test_masks_tell_little(value: str, shown: str) -> None:
    assert masked(value) == shown


# ---- languages


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The weather is fine today.", "en"),
        ("今天天气很好。", "zh"),
        ("今日はとても良い天気です", "ja"),
        ("Сегодня хорошая погода", "ru"),
        ("使用 Python 的 asyncio 库来写异步程序", "zh"),
        ("42", None),
        ("OK", None),
        ("Use `kill 你好吗朋友们` to end the process", "en"),
        ("你好朋友 hello my good friend", None),
        ("", None),
    ],
)
def test_language_by_script(text: str, language: str | None) -> None:
    assert language_of(text) == language


def test_rows_beyond_the_limit_are_not_searched_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(damage, "MOST_CHARACTERS", 50)
    found = find(GOOD, ROWS)
    assert found["training_answers"] < len(ROWS) and found["training_answers_cut"]


def test_nothing_asked_is_nothing_found() -> None:
    assert find([])["questions"] == 0 and find([], ROWS)["findings"] == []
