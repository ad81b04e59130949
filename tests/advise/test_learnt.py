"""What finished runs teach the next estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunewright.advise import learnt
from tunewright.core import machine


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path))


def kind(**changes: Any) -> learnt.Kind:
    given: dict[str, Any] = {
        "model": "llama 64x2", "method": "lora", "objective": "sft", "dtype": "float32", "threads": 2, "by": "trial",
        **changes,
    }  # fmt: skip
    return learnt.Kind(**given)


def test_nothing_is_corrected_before_a_run() -> None:
    known = learnt.about(kind(), "cpu")
    assert (known.of("train"), known.memory, known.runs) == (1.0, 1.0, 0)


def test_one_run_of_the_same_kind_corrects_its_parts() -> None:
    learnt.remember(kind(), "cpu", {"train": 10, "memory": 100}, {"train": 15, "memory": 120})
    known = learnt.about(kind(), "cpu")
    assert known.of("train") == pytest.approx(1.5) and known.memory == pytest.approx(1.2)
    assert known.alike and known.of("ask") == 1.0


def test_the_newest_runs_count_and_one_accident_does_not() -> None:
    for took in (50, 12, 90, 11, 12):
        learnt.remember(kind(), "cpu", {"train": 10}, {"train": took})
    assert learnt.about(kind(), "cpu").of("train") == pytest.approx(1.2)


def test_runs_of_another_kind_correct_only_where_several_agree() -> None:
    learnt.remember(kind(method="full"), "cpu", {"train": 10}, {"train": 20})
    assert learnt.about(kind(), "cpu").of("train") == 1.0
    for _ in range(2):
        learnt.remember(kind(method="full"), "cpu", {"train": 10}, {"train": 20})
    known = learnt.about(kind(), "cpu")
    assert known.of("train") == pytest.approx(2.0) and not known.alike
    # What was counted says nothing of what was tried, and memory belongs to its own kind.
    assert learnt.about(kind(by="count"), "cpu").of("train") == 1.0 and known.memory == 1.0


def test_parts_that_were_short_say_nothing() -> None:
    learnt.remember(kind(), "cpu", {"train": 0.1, "load": 5}, {"train": 0.2, "load": 6})
    known = learnt.about(kind(), "cpu")
    assert known.of("train") == 1.0 and known.of("load") == pytest.approx(1.2)


def test_no_correction_is_larger_than_an_accident_would_make_it() -> None:
    learnt.remember(kind(), "cpu", {"train": 1, "ask": 900}, {"train": 900, "ask": 1})
    known = learnt.about(kind(), "cpu")
    assert known.of("train") == learnt.MOST and known.of("ask") == 1 / learnt.MOST


def test_another_machine_another_device_and_other_versions_know_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learnt.remember(kind(), "cpu", {"train": 10}, {"train": 15})
    assert learnt.about(kind(), "cuda:0").runs == 0
    with monkeypatch.context() as other:
        other.setattr(learnt, "versions", lambda: {"torch": "9"})
        assert learnt.about(kind(), "cpu").runs == 0
    elsewhere = machine.fingerprint() | {"processor": "another"}
    monkeypatch.setattr(learnt, "fingerprint", lambda: elsewhere)
    assert learnt.about(kind(), "cpu").runs == 0


def test_only_the_latest_runs_are_kept() -> None:
    for number in range(learnt.MOST_RUNS + 5):
        learnt.remember(kind(model=str(number)), "cpu", {"train": 10}, {"train": 15})
    assert len(learnt._runs("cpu")) == learnt.MOST_RUNS


def test_what_was_made_beside_other_programs_teaches_its_memory_and_no_time() -> None:
    took = {"train": 112.0, "load": 6.0, "memory": 120.0}
    learnt.remember(kind(), "cpu", {"train": 26, "load": 5, "memory": 100}, took, ["train"])
    known = learnt.about(kind(), "cpu")
    assert known.of("train") == 1.0 and known.memory == pytest.approx(1.2)
    assert known.of("load") == pytest.approx(1.2) and known.disturbed == 1
    learnt.remember(kind(), "cpu", {"train": 26}, {"train": 27})
    known = learnt.about(kind(), "cpu")
    assert known.of("train") == pytest.approx(27 / 26) and known.disturbed == 1


def test_runs_of_which_nobody_knows_who_held_the_processors_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {"kind": vars(kind()), "estimated": {"train": 26}, "measured": {"train": 112}}
    monkeypatch.setattr(learnt.findings, "read", lambda *_: [before])
    assert learnt.about(kind(), "cpu").of("train") == 1.0
