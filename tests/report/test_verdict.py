"""Warnings and advice follow from the figures, each rule shown to speak and to be silent."""

from __future__ import annotations

import pytest
from helpers.fake_run import DATA, SUMMARY, events, rows, write_run

from tunewright.core.comparing import goes_in_circles
from tunewright.report.html import render
from tunewright.report.record import read_record
from tunewright.report.verdict import advice, headline, show, warnings_of

GOOD = {**SUMMARY, "skipped_steps": 0}
CALM = [e for e in events(nan_at=None) if e["event"] != "evaluation"]
RIGHT = [r for r in rows() if r["kind"] == "train" and r["expected"] in r["after"]]


def judged(folder, **changes):
    record = read_record(
        write_run(folder, **{"summary": GOOD, "events": CALM, "rows": RIGHT, **changes})
    )
    return (
        headline(record).key,
        {f.key.removeprefix("report.warn.") for f in warnings_of(record)},
        {f.key.removeprefix("report.next.") for f in advice(record)},
    )


def test_a_good_run_gets_no_warning_and_is_to_be_used(tmp_path):
    assert judged(tmp_path / "r") == ("report.learnt.yes", set(), {"use"})


@pytest.mark.parametrize(
    ("final", "key"),
    [(2.9, "barely"), (2.8, "yes"), (3.3, "rose"), ("NaN", "not_finite"), (None, "unknown")],
)
def test_did_it_learn(tmp_path, final, key):
    assert (
        judged(tmp_path / "r", summary={**GOOD, "final_loss": final})[0]
        == f"report.learnt.{'yes' if key == 'yes' else key}"
    )


def test_a_run_that_barely_learnt_says_so_and_what_to_try(tmp_path):
    _, warned, told = judged(tmp_path / "r", summary={**GOOD, "final_loss": 3.0})
    assert "barely" in warned and "poor" in told and "use" not in told


def test_held_out_loss_that_rose_is_memorising(tmp_path):
    _, warned, told = judged(tmp_path / "r", summary={**GOOD, "held_out_loss": 3.6})
    assert warned == {"held_out_rose"} and "memorised" in told


def test_held_out_loss_that_rose_from_its_lowest_point(tmp_path):
    points = [
        {"event": "evaluation", "step": s, "held_out_loss": v} for s, v in ((10, 1.0), (20, 1.5))
    ]
    assert judged(tmp_path / "a", events=[*CALM, *points], summary={**GOOD, "held_out_loss": 1.5})[
        1
    ] == {"overfit"}
    assert judged(tmp_path / "b", events=[*CALM, *points], summary={**GOOD, "held_out_loss": 1.0})[
        1
    ] == {"overfit_kept"}


def test_skipped_steps_are_told(tmp_path):
    _, warned, told = judged(tmp_path / "r", summary={**GOOD, "skipped_steps": 2})
    assert warned == {"skipped"} and "not_finite" in told
    assert judged(tmp_path / "e", summary={}, events=events())[1] >= {"skipped"}


def test_endless_answers_are_told(tmp_path):
    circling = [{**RIGHT[0], "after": RIGHT[0]["expected"] + " and so on" * 30}]
    assert judged(tmp_path / "a", rows=circling)[1] == {"endless"}
    assert judged(tmp_path / "b", rows=[{**RIGHT[0], "after_cut": True}])[2] >= {"endless"}


def test_what_was_forgotten_is_told(tmp_path):
    _, warned, told = judged(
        tmp_path / "r", rows=[*RIGHT, *(r for r in rows() if r["kind"] == "general")]
    )
    assert warned == {"forgotten"} and "forgotten" in told


def test_an_answer_that_changed_after_a_reload_is_told(tmp_path):
    assert judged(tmp_path / "a", rows=[{**RIGHT[0], "after_reload": "something else"}])[1] == {
        "reload"
    }
    assert (
        judged(tmp_path / "b", rows=[{**RIGHT[0], "after_reload": RIGHT[0]["after"]}])[1] == set()
    )


def test_a_run_without_an_end_is_to_be_resumed(tmp_path):
    for status in ("stopped", "failed", "anything"):
        assert "resume" in judged(tmp_path / status, summary={**GOOD, "status": status})[2]


def test_reworded_questions_need_more_wordings(tmp_path):
    held = [{**RIGHT[0], "kind": "held_out", "after": "no idea"}]
    assert "wordings" in judged(tmp_path / "r", rows=[*RIGHT, *held])[2]


def test_dropped_rows_and_no_held_out_rows_are_told(tmp_path):
    summary = {key: value for key, value in GOOD.items() if not key.startswith("held_out")}
    told = judged(
        tmp_path / "r", data={**DATA, "rows_dropped": 100, "held_out": 0}, summary=summary
    )[2]
    assert {"dropped", "no_held_out"} <= told


@pytest.mark.parametrize(
    ("answer", "endless"),
    [
        ("It is Odric. " * 10, True),
        ("它是一个小镇。" * 8 + "它是", True),
        ("no no no no", False),
        ("Yes.", False),
        (
            "The tide turns twice a day, and the ferry follows it in the morning and in the evening.",
            False,
        ),
    ],
)
def test_answers_that_go_in_circles(answer, endless):
    assert goes_in_circles(answer) is endless


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (None, "–"),
        (0.0, "0"),
        (3.21345, "3.213"),
        (0.00004, "4e-5"),
        (0.000383, "3.83e-4"),
        (12345.6, "12,346"),
    ],
)
def test_figures_for_people(value, text):
    assert show(value) == text


def test_a_run_that_ended_before_the_second_asking_forgot_nothing(tmp_path):
    before_only = [{**r, "after": ""} for r in rows()]
    for status in ("failed", "stopped", None):
        summary = {**GOOD, "status": status, "reason": "no memory <left>"}
        record = read_record(
            write_run(tmp_path / str(status), summary=summary, events=CALM, rows=before_only)
        )
        assert not any(c.asked or c.forgotten for c in record.counts)
        page = render(tmp_path / str(status), "en")
        assert (
            "before the questions were asked again" in page
            and "no memory &lt;left&gt;" in page
            and ">After<" not in page
        )


def test_weights_kept_too_early_are_not_called_memorising(tmp_path):
    points = [
        {"event": "evaluation", "step": s, "held_out_loss": v} for s, v in ((10, 1.0), (20, 1.5))
    ]
    wrong = [{**r, "after": "no idea"} for r in RIGHT]
    told = judged(
        tmp_path / "r", events=[*CALM, *points], summary={**GOOD, "held_out_loss": 1.0}, rows=wrong
    )[2]
    assert "best_too_early" in told and not told & {"memorised", "poor"}


@pytest.mark.parametrize(
    ("rewards", "key"),
    [
        ([0.1, 0.2, 0.1, 0.5, 0.6, 0.7, 0.8, 0.8, 0.9, 0.9], "reward_rose"),
        ([0.9, 0.8, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.2], "reward_fell"),
        ([0.5, 0.7, 0.4, 0.6, 0.5, 0.4, 0.6, 0.5, 0.6, 0.5], "reward_same"),
        ([1.0] * 10, "reward_same"),
        ([0.3], "unknown"),
    ],
)
def test_a_run_that_learns_from_rewards_is_judged_by_them(tmp_path, rewards, key):
    """Its loss is no measure: here it falls to a tenth each time."""
    told = [
        {"event": "step", "step": n + 1, "loss": 1.0 - 0.09 * n, "figures": {"reward": reward}}
        for n, reward in enumerate(rewards)
    ]
    assert judged(tmp_path / "r", events=told)[0] == f"report.learnt.{key}"


def test_a_loss_that_rose_is_not_said_to_have_fallen(tmp_path):
    """3.1 -> 3.3 was told with "the training loss fell by 0 %"."""
    _, warned, _ = judged(tmp_path / "r", summary={**GOOD, "final_loss": 3.3})
    assert "rose" in warned and "barely" not in warned
