"""What the report says of a set holds of that set."""

from __future__ import annotations

import json
import re

from helpers.families import tokenizer_of

from tunewright.core.config import DataConfig
from tunewright.core.telling import Once, Tell
from tunewright.data.checks.driver import check, describe_checked
from tunewright.data.checks.opening import Opened
from tunewright.data.checks.showing import describe_row, show_row
from tunewright.data.inspecting import inspect
from tunewright.models import vocabulary
from tunewright.text.renderer import Renderer


def rows_in(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_new_words_of_the_model_are_no_control_tokens(tmp_path):
    tokenizer = tokenizer_of("chatml")
    vocabulary.add_tokens(tokenizer, ["<lamp>", "<|user|>"])
    file = rows_in(
        tmp_path,
        [
            {
                "question": f"q {i}",
                "answer": f"<lamp> lit <|user|> {i}" + (" <|im_end|> x" if i < 4 else ""),
            }
            for i in range(30)
        ],
    )
    found = {
        one["key"]: one
        for one in inspect(DataConfig(train=file, held_out=0), Renderer(tokenizer)).report[
            "findings"
        ]
    }
    assert (
        found["control_tokens"]["count"] == 4
        and "<lamp>" not in found["control_tokens"]["what"]
        and "<|user|>" not in found["control_tokens"]["what"]
    )
    # The same words in rows for a model that does not have them are text and control nothing.
    plain = {
        one["key"]: one
        for one in inspect(
            DataConfig(train=file, held_out=0), Renderer(tokenizer_of("chatml"))
        ).report["findings"]
    }
    assert "<|user|>" in plain["control_tokens"]["what"]


def test_a_set_of_which_nothing_is_left_does_not_speak_of_questions_and_its_score_adds_up(tmp_path):
    file = rows_in(tmp_path, [{"question": f"q {i}", "answer": ""} for i in range(12)])
    opened = Opened(Renderer(tokenizer_of("chatml")), None)
    said = describe_checked(check(DataConfig(train=file), opened))
    assert "rows only ask" not in said and "rows 12 -> 0 kept" in said
    last = next(line for line in said.splitlines() if line.startswith("score"))
    assert "score 0 of 100" in last and "not a single row can be used" in last


def test_parts_of_a_score_add_up_or_their_sum_is_told(tmp_path):
    for rows in (
        [{"question": f"q {i}", "answer": f"a {i}" if i > 3 else ""} for i in range(40)],
        [
            {"question": "same", "answer": "<|im_start|>user\nq<|im_end|> mail me@there.org"}
            for i in range(40)
        ]
        + [{"question": "q", "answer": ""}] * 60,
    ):
        checked = check(
            DataConfig(train=rows_in(tmp_path, rows), held_out=0),
            Opened(Renderer(tokenizer_of("chatml")), None),
        )
        last = next(
            line for line in describe_checked(checked).splitlines() if line.startswith("score")
        )
        parts = sum(int(n) for n in re.findall(r" -(\d+)", last))
        assert checked.score == max(0, 100 - parts)
        assert (f"{parts} in total" in last) == (parts > 100)


def test_running_text_is_shown_as_running_text(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "hello world again"}\n', encoding="utf-8")
    said = describe_row(
        show_row(
            DataConfig(train=str(file), held_out=0),
            Opened(Renderer(tokenizer_of("chatml")), None),
            1,
        )
    )
    assert "running text: " in said and "dialogue" not in said


def test_a_line_is_told_once():
    lines = []

    class Kept(Tell):
        def line(self, text):
            lines.append(text)

    tell = Once(Kept())
    for text in ("model: a", "rows", "model: a"):
        tell.line(text)
    assert lines == ["model: a", "rows"]


def test_thoughts_are_counted_and_told(tmp_path):
    from helpers.families import THINKING

    rows = [
        {
            "question": f"q {i}",
            "answer": ("<think>\nhm so\n</think>\n\n" if i % 3 == 0 else "") + f"lamp {i}",
        }
        for i in range(30)
    ]
    file = rows_in(tmp_path, rows)
    told = {}
    for mode in ("auto", "keep", "off"):
        renderer = Renderer(tokenizer_of("qwen3", THINKING))
        report = inspect(DataConfig(train=file, held_out=0, thinking=mode), renderer).report
        told[mode] = report["thinking"]
        assert any("have thoughts" in line for line in report["warnings"]) and any(
            "empty thoughts" in line for line in report["warnings"]
        )
    counts = {"rows_with_thoughts": 10, "rows_without": 20, "by_rows": True, "template": "switch"}
    assert all(counts.items() <= one.items() for one in told.values())
    per_row = len(renderer.tokenizer.encode("<think>\nhm so\n</think>", add_special_tokens=False))
    assert [told[m]["tokens_learnt"] for m in told] == [10 * per_row, 0, 0]
    assert [told[m]["empty_not_learnt"] for m in told] == [20, 20, 30]
    assert [told[m]["asked"] for m in told] == [True, True, False]


def test_a_template_without_a_switch_says_that_the_setting_has_no_effect(tmp_path):
    file = rows_in(tmp_path, [{"question": f"q {i}", "answer": f"lamp {i}"} for i in range(30)])
    for mode in ("off", "keep"):
        report = inspect(
            DataConfig(train=file, thinking=mode), Renderer(tokenizer_of("chatml"))
        ).report
        assert any(f"data.thinking={mode} has no effect" in line for line in report["warnings"])
    assert not any(
        "thinking" in line
        for line in inspect(DataConfig(train=file), Renderer(tokenizer_of("chatml"))).report[
            "warnings"
        ]
    )


def test_off_is_a_word_in_yaml():
    assert DataConfig(train="x", thinking=False).thinking == "off"


def test_both_answers_of_a_pair_are_asked_in_one_form(tmp_path):
    from helpers.families import THINKING
    from helpers.rows import encode

    from tunewright.core.types import Message, Origin, Preference

    renderer = Renderer(tokenizer_of("qwen3.5", THINKING))
    for chosen, opens in (
        ("<think>\nhm\n</think>\n\nyes", "<think>\n"),
        ("yes", "<think>\n\n</think>\n\n"),
    ):
        pair = Preference(
            [Message("user", "q")],
            [Message("assistant", chosen)],
            [Message("assistant", "no")],
            Origin("f", 1, 1),
        )
        one, other = encode([pair], renderer, max_tokens=None).samples[0].branches
        asked = renderer.question(pair)
        assert one.tokens[: len(asked)] == asked == other.tokens[: len(asked)] and renderer.decode(
            asked
        ).endswith(opens)
        assert renderer.decode([other.tokens[i] for i in other.learnt]) == "no<|im_end|>"
