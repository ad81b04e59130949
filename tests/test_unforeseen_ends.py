"""Whatever ends a run, its folder says how far it came, one message has a code, the traceback is in
a file, and the run can go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from helpers import story
from typer.testing import CliRunner

import tunewright
from tunewright import cli
from tunewright import story as the_story
from tunewright.commands import pipeline, pipeline_plan
from tunewright.core.errors import TrainingError, TunewrightError, UnexpectedError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.engine import loop
from tunewright.engine.decoding import answers as generate
from tunewright.engine.step import Stepper
from tunewright.models import load
from tunewright.record import folder
from tunewright.run import evidence

Plant = Callable[[pytest.MonkeyPatch, BaseException], None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json")
    return folder


def keys(place: Path, out: Path) -> dict[str, Any]:
    return {
        "model": str(place / "model"), "data.train": str(place / "rows.json"), "data.held_out": 3, "out": str(out), "probes": 1, "forgetting": "off", "engine.dtype": "float32",
        "engine.threads": 1, "engine.steps": 4, "engine.batch_size": 4, "engine.save_every": 1, "engine.evaluate_every": 2,
    }  # fmt: skip


def start(place: Path, out: Path) -> Any:
    return the_story.train(parse_run(keys(place, out), {}), tell=Quiet())


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the run leaves when nothing happens to it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    start(place, out)
    return story.digest(out / "adapter" / "adapter_model.safetensors")


def after(owner: Any, name: str, calls: int) -> Plant:
    """Raises in place of call number `calls` + 1 of a function."""

    def plant(patch: pytest.MonkeyPatch, error: BaseException) -> None:
        real, seen = getattr(owner, name), [0]

        def planted(*args: Any, **kwargs: Any) -> Any:
            seen[0] += 1
            if seen[0] > calls:
                raise error
            return real(*args, **kwargs)

        patch.setattr(owner, name, planted)

    return plant


def plant_saving(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    from peft import PeftModel

    after(PeftModel, "save_pretrained", 0)(patch, error)


PLACES: dict[str, tuple[Plant, int, str]] = {
    "the first question": (after(generate, "answer", 0), 0, "asking before"),
    "the first measurement": (after(Stepper, "held_out", 0), 0, "learning"),
    "a step": (after(Stepper, "step", 2), 2, "learning (after step 2 of 4)"),
    "a later measurement": (after(Stepper, "held_out", 1), 2, "learning"),
    "a checkpoint": (after(loop.checkpoint, "save", 2), 2, "learning"),
    # Its own questions are asked before: one call.
    "the question after training": (after(generate, "answer", 1), 4, "asking after"),
    "saving": (plant_saving, 4, "saving"),
    "opening again": (after(load, "load_model", 1), 4, "opening what was saved"),
}
"""Where -> (how it is planted, steps that were taken, what the message says it was doing)."""


def ended(place: Path, out: Path, error: BaseException, plant: Plant) -> TunewrightError:
    """The error with which a run ends in which `error` is planted."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, error)
        with pytest.raises(TunewrightError) as caught:
            start(place, out)
    return caught.value


@pytest.mark.wide("a step", "a checkpoint", "the first question")
@pytest.mark.parametrize("where", PLACES)
def test_a_run_that_dies_says_how_far_it_came_and_goes_on_to_the_same_end(
    place: Path, whole: str, tmp_path: Path, where: str
) -> None:
    plant, steps, doing = PLACES[where]
    out, planted = tmp_path / "run", RuntimeError("planted by hand")
    error = ended(place, out, planted, plant)
    assert (
        isinstance(error, UnexpectedError) and error.exit_code == 1 and error.__cause__ is planted
    )
    (found,) = error.problems
    assert (
        found.code == "E-TRAIN-06"
        and doing in found.line()
        and "RuntimeError: planted by hand" in found.line()
    )
    assert (
        found.where == str(out / "traceback.txt")
        and "planted by hand" in (out / "traceback.txt").read_text()
    )
    assert "in planted" in (out / "traceback.txt").read_text()  # the frames, not the sentence alone
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["total_steps"]) == ("failed", steps, 4)
    assert summary["reason"] == str(error) and (out / "report.html").is_file()
    the_story.resume_run(out, tell=Quiet())
    assert json.loads((out / "summary.json").read_text())["status"] == "done"
    assert story.digest(out / "adapter" / "adapter_model.safetensors") == whole


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyError("name"), "E-TRAIN-06"), (SystemExit(3), "E-TRAIN-06"), (RecursionError("deep"), "E-TRAIN-06"), (AssertionError(), "E-TRAIN-06"),
        (IndexError("index out of range in self"), "E-TRAIN-10"), (ValueError("two\nlines"), "E-TRAIN-06"), (OSError(28, "No space left on device"), "E-TRAIN-08"), (PermissionError(13, "no"), "E-TRAIN-08"),
        (MemoryError(), "E-TRAIN-07"), (torch.OutOfMemoryError("CUDA out of memory"), "E-TRAIN-07"), (OSError(12, "Cannot allocate memory"), "E-TRAIN-07"),
    ],
    ids=repr,
)  # fmt: skip
def test_whatever_is_raised_gets_a_code_of_its_kind(
    place: Path, tmp_path: Path, error: BaseException, code: str
) -> None:
    found = ended(place, tmp_path / "run", error, after(Stepper, "held_out", 1))
    assert [p.code for p in found.problems] == [code] and found.__cause__ is error
    assert type(error).__name__ in found.problems[0].line() and "\n" not in found.problems[0].line()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")], ids=repr
)
def test_memory_that_runs_out_in_a_step_keeps_its_own_message(
    place: Path, tmp_path: Path, error: BaseException
) -> None:
    found = ended(place, tmp_path / "run", error, after(Stepper, "step", 1))
    assert isinstance(found, TrainingError) and [p.code for p in found.problems] == ["E-TRAIN-02"]


def test_a_run_that_cannot_be_loaded_again_says_so_in_its_folder(
    place: Path, whole: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ended(place, out, RuntimeError("first"), after(Stepper, "step", 3))
    with pytest.MonkeyPatch.context() as patch:
        after(load, "load_model", 0)(patch, RuntimeError("second"))
        with pytest.raises(UnexpectedError) as caught:
            the_story.resume_run(out, tell=Quiet())
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["reason"]) == (
        "failed",
        3,
        str(caught.value),
    )
    text = (out / "traceback.txt").read_text()
    assert text.index("first") < text.index("second")  # the older one is not lost
    the_story.resume_run(out, tell=Quiet())
    assert story.digest(out / "adapter" / "adapter_model.safetensors") == whole


def test_a_summary_that_cannot_be_written_is_told_and_the_first_fault_with_it(
    place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"

    def both(patch: pytest.MonkeyPatch, error: BaseException) -> None:
        after(Stepper, "step", 2)(patch, error)
        for owner in (evidence, folder):
            real = owner.write_json
            patch.setattr(
                owner,
                "write_json",
                lambda path, value, real=real: (
                    _full(path) if path.name == "summary.json" else real(path, value)
                ),
            )

    error = ended(place, out, RuntimeError("planted"), both)
    assert (
        [p.code for p in error.problems] == ["E-TRAIN-06", "E-TRAIN-09"]
        and "planted" in str(error)
        and "No space left" in str(error)
    )
    assert "planted" in (out / "traceback.txt").read_text()
    the_story.resume_run(out, tell=Quiet())
    assert json.loads((out / "summary.json").read_text())["status"] == "done"


def _full(path: Path) -> None:
    raise OSError(28, "No space left on device", str(path))


def test_a_report_that_cannot_be_made_leaves_a_summary(place: Path, tmp_path: Path) -> None:
    from tunewright.report import html

    error = ended(place, tmp_path / "run", RuntimeError("planted"), after(html, "write_report", 0))
    assert "writing the report" in str(error)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_before_the_folder_is_there_nothing_is_created_and_python_gets_the_exception_itself(
    place: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        after(load, "load_model", 0)(patch, RuntimeError("planted"))
        with pytest.raises(RuntimeError, match="planted"):
            start(place, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_from_python_the_error_is_ours_with_the_exception_as_its_cause(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(Stepper, "step", 1)(monkeypatch, ZeroDivisionError("planted"))
    with pytest.raises(UnexpectedError) as caught:
        tunewright.train(
            model=str(place / "model"),
            data=str(place / "rows.json"),
            out=str(tmp_path / "run"),
            engine={"steps": 2},
            tell=Quiet(),
        )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("outside", [False, True])
def test_a_pipeline_says_which_stages_are_done_and_goes_on(
    place: Path, tmp_path: Path, outside: bool
) -> None:
    made = {"model": str(place / "model"), "data": {"train": str(place / "rows.json"), "held_out": 3}, "probes": 0, "forgetting": "off",
            "engine": {"dtype": "float32", "steps": 2, "batch_size": 4, "threads": 1},
            "stages": [{"name": "one"}, {"name": "two", "adapter": "stage:one"}]}  # fmt: skip
    (tmp_path / "pipe.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
    planned = pipeline_plan.load_pipeline(
        tmp_path / "pipe.yaml", [], {"out": str(tmp_path / "out")}
    )
    with pytest.MonkeyPatch.context() as patch:
        # In the second stage's third step, or between the stages.
        (after(pipeline, "_result_of", 1) if outside else after(Stepper, "step", 3))(
            patch, RuntimeError("planted")
        )
        with pytest.raises(UnexpectedError) as caught:
            pipeline.run_pipeline(planned, tell=Quiet())
    assert isinstance(caught.value.__cause__, RuntimeError)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "failed" and [row["status"] for row in summary["stages"]] == [
        "done",
        "done" if outside else "failed",
    ]
    assert (
        "planted"
        in (tmp_path / "out" / ("." if outside else "02-two") / "traceback.txt").read_text()
    )
    pipeline.resume_pipeline(tmp_path / "out", tell=Quiet())
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "done"


COMMANDS = {
    "tunewright.serve.answering.open_target": ["chat", "m", "-q", "?"],
    "tunewright.evaluate.scoring.evaluate_target": ["evaluate", "m", "--data", "f"],
    "tunewright.commands.advise.advise": ["advise", "--model", "m", "--data", "f"],
    "tunewright.export.merge.merge_run": ["export", "merge", "r", "o"],
    "tunewright.data.checks.driver.check": ["data", "check", "f"],
    "tunewright.story.train": ["train", "model=m", "data=f"],
    "tunewright.bench.speed.bench": ["bench", "model=m", "data=f"],
    "tunewright.advise.explaining.explain": ["explain", "w"],
}


@pytest.mark.parametrize("target", COMMANDS)
@pytest.mark.parametrize(
    ("error", "code"), [(IndexError("planted"), "E-RUN-16"), (MemoryError(), "E-RUN-17")]
)
def test_every_command_says_one_coded_sentence_and_keeps_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, error: Exception, code: str
) -> None:
    import importlib

    owner, _, name = target.rpartition(".")
    after(importlib.import_module(owner), name, 0)(monkeypatch, error)
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    result = CliRunner().invoke(cli.app, COMMANDS[target])
    assert (
        result.exit_code == 1
        and code in result.stderr
        and "Traceback" not in result.output + result.stderr
    )
    kept = tmp_path / "cache" / "tracebacks" / "traceback.txt"
    assert str(kept) in result.stderr and type(error).__name__ in kept.read_text()
    as_json = CliRunner().invoke(cli.app, [*COMMANDS[target], "--json"])
    assert json.loads(as_json.stdout)["problems"][0]["code"] == code


def test_exits_of_the_command_line_itself_are_no_faults() -> None:
    from tunewright.cli.speaking import speaks

    for error in (typer.Exit(3), typer.Abort(), typer.BadParameter("no")):

        @speaks
        def command(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)):
            command()
