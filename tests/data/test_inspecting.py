"""The data report: every row accounted for, worthless data refused, one example with its learnt
tokens marked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError
from tunewright.core.words import set_language
from tunewright.data import describe, inspect
from tunewright.data.store.counting import shared_prefix


def alpaca(count, start=0):
    return [
        {"instruction": f"question {i}", "output": f"answer {i}"}
        for i in range(start, start + count)
    ]


def look(renderer, train, **more):
    return inspect(DataConfig(train=train, **more), renderer, 2000, 0)


def test_report_accounts_for_every_row(renderer, write):
    rows = [*alpaca(30), {"instruction": "x"}, {"instruction": "y", "output": ""}, 7, *alpaca(1)]
    data = look(renderer, write("a.json", rows))
    report = data.report
    assert report["rows_read"] == 34 and report["rows_kept"] == 31 and report["rows_dropped"] == 3
    assert {k: v["count"] for k, v in report["reasons"].items()} == {
        "no_answer": 1,
        "empty_answer": 1,
        "not_an_object": 1,
    }
    assert report["reasons"]["no_answer"]["examples"][0].endswith("a.json:122")
    assert report["dropped"]["total"] == 3 and report["dropped"]["rows"][0].endswith(
        "a.json:122: no_answer"
    )
    assert report["train"] + report["held_out"] == 31 and report["held_out"] == 3 == len(
        data.held_out
    ) == len(data.held_out_rows)
    assert report["duplicates"] == 1 and report["held_out_overlap"] == 0
    assert (
        report["format"] == "alpaca"
        and report["encoding"] == "utf-8"
        and report["template"] == "model's own"
    )
    assert [s.index for s in data.train] == list(range(28)) and [s.origin for s in data.train] == [
        r.origin for r in data.train_rows
    ]
    json.dumps(report)


def test_counts_of_tokens_are_those_of_the_samples(renderer, write):
    data = look(renderer, write("a.json", alpaca(10)))
    report, branches = data.report, [b for s in data.train for b in s.branches]
    assert report["tokens_total"] == sum(len(b.tokens) for b in branches)
    assert report["learnt_tokens"] == sum(len(b.learnt) for b in branches)
    assert report["answers"] == 10 and report["stop_learnt_share"] == 1
    lengths = sorted(len(b.tokens) for b in branches)
    assert report["length_percentiles"] == {
        "min": lengths[0],
        "50": lengths[4],
        "90": lengths[8],
        "99": lengths[9],
        "max": lengths[9],
    }


def test_example_shows_the_learnt_tokens(renderer, write):
    report = look(renderer, write("a.json", alpaca(1))).report
    pieces = report["example"]["pieces"]
    assert [p["learnt"] for p in pieces] == [False, True] and pieces[1][
        "text"
    ] == "answer 0<|im_end|>"
    assert "⟦answer 0<|im_end|>⟧" in describe(report) and "\x1b" not in describe(report)
    assert "\x1b[32manswer 0<|im_end|>\x1b[0m" in describe(report, colour=True)
    set_language("zh")
    assert "保留" in describe(report)


def test_text_from_a_file_cannot_command_the_terminal(renderer, write):
    report = look(
        renderer, write("a.json", [{"instruction": "q", "output": "\x1b[2Jhidden\x9b1m"}])
    ).report
    assert "\x1b" not in describe(report) and "\\x1b[2J" in describe(report)


@given(sequences=st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=12))
@settings(max_examples=80, deadline=None)
def test_shared_prefix_counts_the_nodes_of_a_trie(sequences):
    nodes = {tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)}
    found = shared_prefix(sequences)
    assert found["rows_logical"] == sum(map(len, sequences)) and found[
        "rows_physical_estimate"
    ] == len(nodes)


def test_limit_comes_before_the_split_and_counts_over_files(renderer, write):
    files = [write("a.json", alpaca(25)), write("b.jsonl", alpaca(25, 25))]
    report = look(renderer, files, limit=40).report
    assert report["rows_read"] == 40 and report["held_out"] == 4


def test_sources_may_have_formats_columns_and_weights_of_their_own(renderer, write):
    train = [
        {"file": write("a.json", alpaca(3)), "weight": 2},
        {
            "file": write("b.jsonl", [{"q": "a", "a": "b"}]),
            "columns": {"question": "q", "answer": "a"},
        },
    ]
    data = look(renderer, train)
    assert data.report["format"] == "alpaca, prompt_completion" and [
        r.weight for r in data.train_rows
    ] == [2, 2, 2, 1]
    for bad, code in (
        ([{"path": "x"}], "E-DATA-19"),
        ([{"file": train[0]["file"], "weight": -1}], "E-DATA-20"),
        ([], "E-DATA-01"),
    ):
        with pytest.raises(DataError, match=code):
            look(renderer, bad)


def test_held_out_file_is_measured_with_and_overlap_is_counted(renderer, write):
    data = look(
        renderer, write("a.json", alpaca(30)), held_out=write("h.json", alpaca(5, 28)), limit=30
    )
    assert (
        data.report["train"] == 30
        and data.report["held_out"] == 5
        and data.report["held_out_overlap"] == 2
    )
    assert any("2 held-out" in w for w in data.report["warnings"])


@pytest.mark.parametrize(("value", "count"), [("0.2", 6), ("4", 4), (0, 0), (0.5, 15)])
def test_held_out_may_be_a_share_or_a_count_also_as_text(renderer, write, value, count):
    assert look(renderer, write("a.json", alpaca(30)), held_out=value).report["held_out"] == count


def test_system_prompt_of_the_run_goes_to_rows_that_bring_none(renderer, write):
    rows = [*alpaca(1), {**alpaca(1, 1)[0], "system": "own"}]
    data = look(renderer, write("a.json", rows), system="default")
    assert [r.messages[0].content for r in data.train_rows] == ["default", "own"]


@pytest.mark.parametrize(
    ("rows", "more", "code"),
    [
        ([{"instruction": "x"}], {}, "E-DATA-12"),
        (alpaca(3), {"max_tokens": 5}, "E-DATA-12"),
        ([{"instruction": "x", "output": "y", "weight": 0}], {}, "E-DATA-12"),
        (alpaca(3), {"held_out": 3}, "E-DATA-15"),
        ([{"a": 1}], {}, "E-DATA-08"),
    ],
)
def test_worthless_data_is_refused(renderer, write, rows, more, code):
    with pytest.raises(DataError, match=code) as caught:
        look(renderer, write("a.json", rows), **more)
    assert caught.value.exit_code == 2


def test_all_reasons_stand_in_the_refusal(renderer, write):
    with pytest.raises(DataError, match=r"2 there is no answer \(\S+a\.json:\d+\), 1 longer than"):
        look(renderer, write("a.json", [{"instruction": "x"}] * 2 + alpaca(1)), max_tokens=5)


def test_answers_without_learnt_stop_tokens_are_refused(write):
    from helpers.families import tokenizer_of

    from tunewright.text.rendered import Rendered
    from tunewright.text.renderer import Renderer

    renderer = Renderer(tokenizer_of("chatml"))
    rendered = renderer.render_many

    def without_stops(dialogues, forms=None):
        made = rendered(dialogues, forms)
        for out in (one for one in made if isinstance(one, Rendered)):
            out.spans, out.stop_index = (
                [(a, b - 1) for a, b in out.spans],
                [None for _ in out.spans],
            )
        return made

    renderer.render_many = without_stops
    with pytest.raises(DataError, match="E-DATA-14"):
        look(renderer, write("a.json", alpaca(3)))


def test_without_tokens_nothing_is_encoded(write):
    data = inspect(DataConfig(train=write("a.json", alpaca(30))), None, None, 0, needs_tokens=False)
    assert data.report["train"] == 27 and data.train == [] and data.report["tokens_total"] is None
    assert "27" in describe(data.report)


def test_the_data_room_loads_neither_torch_nor_transformers():
    code = (
        "import sys, tunewright.data; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_both_languages_have_the_same_keys_and_placeholders():
    import string

    from tunewright.core.words import ASSETS

    def fields(value):
        texts = value.values() if isinstance(value, dict) else [value]
        names = {n for t in texts for _, n, _, _ in string.Formatter().parse(t) if n}
        return (
            names
            if isinstance(value, str)
            else {
                n for k in ("what", "do") for _, n, _, _ in string.Formatter().parse(value[k]) if n
            }
        )

    en, zh = (
        json.loads((ASSETS / "locales" / lang / "data.json").read_text(encoding="utf-8"))
        for lang in ("en", "zh")
    )
    assert en.keys() == zh.keys()
    for key in en:
        assert fields(en[key]) == fields(zh[key]), key
        if isinstance(en[key], dict):
            assert all(en[key][part] and zh[key][part] for part in ("what", "do", "page"))
