"""Where the time of a run went: in its summary, its report and its closing sentences."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from helpers import story

from tunewright.advise import learnt
from tunewright.core.stopwatch import OTHER, PARTS
from tunewright.run import evidence
from tunewright.run.evidence import time_sentence


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(a finished run with everything a run can spend time on, what it said)."""
    place = tmp_path_factory.mktemp("seconds")
    words = story.words(
        story.model_folder(place / "model"),
        story.rows_file(place / "rows.json", 14),
        place / "run",
        "data.held_out=4",
        "engine.batch_size=2",
        "engine.save_every=2",
        "engine.evaluate_every=epoch",
        "probes=1",
    )
    done = story.tunewright(*words)
    assert done.returncode == 0, done.stderr
    return place / "run", done.stderr


def test_the_parts_of_a_run_add_up_to_it(told: tuple[Path, str]) -> None:
    summary = summary_of(told[0])
    seconds = summary["seconds"]
    assert list(seconds) == [*PARTS, OTHER]
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) == pytest.approx(summary["wall_seconds"], abs=0.1)
    for part in ("evaluate", "checkpoint", "train"):
        # Saving what was trained is no checkpoint of the loop, and between two steps lies a moment.
        assert seconds[part] >= summary[f"{part}_seconds"] - 0.002
    assert seconds["train"] + seconds["evaluate"] <= summary["wall_seconds"] - seconds["load"]


def test_the_estimate_stands_beside(told: tuple[Path, str]) -> None:
    estimated = summary_of(told[0])["estimated_seconds"]
    assert set(estimated) == {"load", "ask", "train", "evaluate", "checkpoint"}
    assert all(value > 0 for value in estimated.values())
    page = (told[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("estimated:") == 6  # and the memory
    for phrase in ("asking the questions", "reading the data", "everything else"):
        assert phrase in page


def test_the_processors_that_each_part_got_stand_beside(told: tuple[Path, str]) -> None:
    summary = summary_of(told[0])
    got = summary["processors"]["train"]
    assert 0 < got["own"] <= 2 * (os.cpu_count() or 1)
    assert got["others"] is None or got["others"] >= 0
    assert set(summary["disturbed"]) <= {*PARTS, OTHER}
    said = "`plan` learns no time from it" in told[1]
    assert said is ("train" in summary["disturbed"])


@pytest.mark.parametrize("busy", [False, True])
def test_a_disturbed_part_or_estimate_teaches_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """The run took 112 s beside another program, or was estimated beside one, and 26 s alone."""
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path))
    kind = learnt.Kind("a model", "lora", "sft", "float32", 2, "trial")
    monkeypatch.setattr(evidence.fit, "kind_of_run", lambda *_, **__: kind)
    part = frozenset(("train",))

    class Estimate:
        raw: ClassVar = {"train": 26.0, "memory": 100.0}
        question = SimpleNamespace(trial=object())

        def disturbed_parts(self) -> frozenset[str]:
            return part if busy else frozenset()

    reached: Any = SimpleNamespace(
        plan=SimpleNamespace(resume=None, config=None, shape=None),
        decided=SimpleNamespace(world=SimpleNamespace(device="cpu", dtype="float32", threads=2)),
        progress=SimpleNamespace(stopped_early=False),
        estimate=Estimate(),
    )
    took = {"seconds": {"train": 112.0}, "peak_memory_bytes": 150}
    evidence._learn_from(reached, took | {"disturbed": [] if busy else ["train"]})
    known = learnt.about(kind, "cpu")
    assert (known.of("train"), known.memory, known.disturbed) == (1.0, 1.5, 1)


def test_one_sentence_says_what_took_long(told: tuple[Path, str]) -> None:
    (line,) = re.findall(r"^time: .*$", told[1], re.MULTILINE)
    assert line == time_sentence(summary_of(told[0])["seconds"])


@pytest.mark.parametrize(
    ("lang", "sentence"),
    [
        ("en", "time: 36 s training, 9.2 s asking, 0.6 s loading"),
        ("zh", "用时：训练 36 秒，提问 9.2 秒，加载 0.6 秒"),
    ],
)
def test_the_sentence_names_the_longest_first_and_nothing_short(
    monkeypatch: pytest.MonkeyPatch, lang: str, sentence: str
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_LANG", lang)
    assert time_sentence({"load": 0.61, "ask": 9.21, "train": 36.4, "report": 0.2}) == sentence


def test_every_part_has_its_word_in_both_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    for lang in ("en", "zh"):
        monkeypatch.setenv("TUNEWRIGHT_LANG", lang)
        sentence = time_sentence(dict.fromkeys((*PARTS, OTHER), 2.0))
        assert sentence.count("2.0") == len(PARTS) + 1


def test_a_run_that_is_taken_up_again_tells_of_its_own_part(
    told: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(told[0], run)
    before = summary_of(run)
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    shutil.rmtree(last)
    (run / "summary.json").unlink()
    done = story.tunewright("train", str(run), "--resume")
    assert done.returncode == 0, done.stderr
    after = summary_of(run)
    assert after["steps"] == before["steps"]
    assert sum(after["seconds"].values()) == pytest.approx(after["wall_seconds"], abs=0.1)
    # The figures of the whole run hold both parts, `seconds` this command only.
    assert 0 < after["seconds"]["train"] < after["train_seconds"]
    assert min(after["seconds"].values()) >= 0


def test_a_page_of_an_earlier_version_still_says_where_its_time_went(
    told: tuple[Path, str], tmp_path: Path
) -> None:
    from tunewright.report import html

    run = tmp_path / "run"
    shutil.copytree(told[0], run)
    summary = summary_of(run)
    del summary["seconds"], summary["estimated_seconds"]
    del summary["estimated_peak_memory_bytes"]
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    page = html.render(run, "en")
    assert "answering the questions" in page
    assert "estimated:" not in page
