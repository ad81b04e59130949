"""Whole runs with the parts of this package, and what the commands say of them. Run by
tests/contract/test_outside_package.py, which installs the package first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import story

import tunewright
from tunewright.advise import explaining, fit, listing
from tunewright.core.errors import UsageError
from tunewright.core.registry import formats, methods, objectives, rewards
from tunewright.core.runfile import objective_of, parse_run
from tunewright.core.telling import Quiet
from tunewright.evaluate.scoring import evaluate_target
from tunewright.export.merge import merge_run

PARTS = {"methods": "gain", "objectives": "focal", "formats": "quiz", "rewards": "brief"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "quiz.json"
    found = [{"ask": f"{q} {i}?", "reply": f"it is {i}"} for i, q in enumerate(story.QUESTIONS)]
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def settings(model: Path, data: Path, out: Path, **more: Any) -> dict[str, Any]:
    engine = {"dtype": "float32", "threads": 1, "steps": 3, "batch_size": 2}
    held = {"train": str(data), "held_out": 2}
    return {
        "model": str(model),
        "data": held,
        "engine": engine,
        "out": str(out),
        "probes": 0,
    } | more


@pytest.fixture(scope="module")
def run(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    words = story.words(model, data, out, "method.kind=gain", "objective.kind=focal")
    done = story.tunewright(*words)
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_tells_the_format_learns_and_is_recorded(run: Path) -> None:
    record = (run / "run.yaml").read_text(encoding="utf-8")
    assert "kind: gain" in record and "kind: focal" in record
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "done"
    assert (run / "report.html").stat().st_size > 1000
    report = (run / "data_report.json").read_text(encoding="utf-8")
    assert '"quiz"' in report


def test_what_was_learnt_opens_evaluates_and_merges(run: Path, data: Path, tmp_path: Path) -> None:
    found = evaluate_target(str(run), str(data), dtype="float32", threads=1, tell=Quiet())
    assert found["loss"]["tokens"] > 0
    merge_run(run, tmp_path / "merged", tell=Quiet())
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_run_that_draws_answers_is_judged_by_the_reward(
    model: Path, data: Path, tmp_path: Path
) -> None:
    objective = {"kind": "grpo", "reward": {"kind": "brief", "half": 9}, "generations": 2}
    given = settings(model, data, tmp_path / "o", objective={**objective, "max_new_tokens": 4})
    done = tunewright.train(**given, tell=Quiet())
    assert "brief" in (done.folder / "run.yaml").read_text(encoding="utf-8")


def test_the_lists_name_every_part_with_its_own_words() -> None:
    assert "tunewright_outside" in story.tunewright("list", "methods").stdout
    for axis, name in PARTS.items():
        (row,) = [row for row in listing.rows_of(axis) if row["name"] == name]
        assert row["about"] and "\n" not in row["about"]
        assert any(line.startswith(name) for line in listing.table(axis, listing.rows_of(axis)))
    (gain,) = [row for row in listing.methods() if row["name"] == "gain"]
    assert gain["about"] == "A factor on every channel of each block's feed-forward output."
    assert gain["trainable"] == 30 * 576 and gain["by"] == "tunewright_outside"


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_part_and_its_settings_are_explained(lang: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_LANG", lang)
    pages = {"focal": "https://example.org/focal"}
    for axis, name in PARTS.items():
        found = explaining.explain(name)
        assert found["axis"] == axis and found["page"] == pages.get(name, "")
        assert name in found["ours"] and explaining.lines(found)
    (form,) = [
        form
        for key in explaining.explain("method.every")["keys"]
        for form in key["forms"]
        if "gain" in form["kinds"]
    ]
    assert form["help"] == "Give factors to every n-th block only." and form["default"] == "1"


def test_a_misspelt_name_or_setting_is_guessed(model: Path, data: Path, tmp_path: Path) -> None:
    given = {"model": str(model), "data.train": str(data)}
    with pytest.raises(UsageError) as caught:
        parse_run({**given, "objective.kind": "focall"}, {})
    assert caught.value.problems[0].fields["guess"] == "focal"
    with pytest.raises(UsageError, match="gamma"):
        parse_run({**given, "objective.kind": "focal", "objective.gama": 1}, {})


def test_memory_is_estimated_before_anything_is_loaded(model: Path, data: Path) -> None:
    given = {"model": str(model), "data.train": str(data), "method.kind": "gain"}
    config = parse_run({**given, "objective.kind": "focal"}, {}).config
    shape = fit.shape_of(model)
    facts = fit.SampleFacts(6, 120, 60, longest=20)
    found = fit.of_run(
        config,
        objective_of(config),
        shape,
        facts,
        steps=3,
        dtype="float32",
        device="cpu",
        rows_per_pass=512,
    )
    assert found.peak_bytes > 0


def test_each_axis_holds_the_name() -> None:
    for registry in (methods, objectives, formats, rewards):
        assert PARTS[registry.axis] in registry.names()
