"""Callbacks hear what the event log says, may stop a run and add figures, and change no step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import story

import tunewright
from tunewright.core import callbacks
from tunewright.core.callbacks import (
    Callback,
    CheckpointSaved,
    HeldOutMeasured,
    QuestionsAnswered,
    RunFinished,
    Running,
    RunStarted,
    StepTaken,
)
from tunewright.core.errors import TrainingError, UsageError
from tunewright.core.telling import Quiet
from tunewright.record.folder import read_summary

STEPS = 6
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"><rect width="4" height="4"/></svg>'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json", 16)
    return folder


def run(place: Path, out: Path, *on: Callback, **engine: Any) -> tunewright.Run:
    sizes = {"steps": STEPS, "batch_size": 4, "save_every": 2, "evaluate_every": 2}
    return tunewright.train(
        model=str(place / "model"),
        data={"train": str(place / "rows.json"), "held_out": 4},
        engine={**sizes, "dtype": "float32", "threads": 1, "show_answers": 1, **engine},
        out=str(out),
        probes=2,
        forgetting="off",
        tell=Quiet(),
        on=on,
    )


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == name]


class Hears(Callback):
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def started(self, run: Running, event: RunStarted) -> None:
        self.folder, self.total = run.folder, run.total_steps
        self.heard.append(("started", event))

    def step(self, run: Running, event: StepTaken) -> None:
        assert run.step == event.step
        self.heard.append(("step", event))

    def measured(self, run: Running, event: HeldOutMeasured) -> None:
        self.heard.append(("measured", event))

    def checkpoint(self, run: Running, event: CheckpointSaved) -> None:
        assert (event.folder / "MANIFEST.json").is_file()
        self.heard.append(("checkpoint", event))

    def answered(self, run: Running, event: QuestionsAnswered) -> None:
        self.heard.append(("answered", event))

    def finished(self, run: Running, event: RunFinished) -> None:
        self.heard.append(("finished", event))

    def of(self, hook: str) -> list[Any]:
        return [event for name, event in self.heard if name == hook]


@pytest.fixture(scope="module")
def plain(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as it is when nobody listens."""
    return run(place, tmp_path_factory.mktemp("plain") / "run").folder


@pytest.fixture(scope="module")
def heard(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Hears:
    found = Hears()
    run(place, tmp_path_factory.mktemp("heard") / "run", found)
    return found


def test_a_callback_hears_what_the_event_log_says(heard: Hears) -> None:
    (start,) = heard.of("started")
    assert (start.step, start.total_steps, start.device) == (0, STEPS, "cpu") and start.versions
    steps = events(heard.folder, "step")
    assert [(s.step, s.loss, s.learning_rate) for s in heard.of("step")] == [
        (e["step"], e["loss"], e["learning_rate"]) for e in steps
    ]
    assert [dict(s.terms) for s in heard.of("step")] == [e["terms"] for e in steps]
    assert [(m.step, m.held_out_loss) for m in heard.of("measured")] == [
        (e["step"], e["held_out_loss"]) for e in events(heard.folder, "evaluation")
    ]
    saved = [c.step for c in heard.of("checkpoint")]
    assert saved == [e["step"] for e in events(heard.folder, "checkpoint")] and STEPS in saved
    assert heard.heard[-1][0] == "finished"


def test_answers_come_before_during_and_after(heard: Hears) -> None:
    told = heard.of("answered")
    rows = [
        json.loads(line) for line in (heard.folder / "before_after.jsonl").read_text().splitlines()
    ]
    for when, column in (("before", "before"), ("after", "after")):
        (one,) = [a for a in told if a.when == when]
        assert [a.answer for a in one.answers] == [row[column] for row in rows]
        assert [a.expected or "" for a in one.answers] == [row["expected"] for row in rows]
    during = [a for a in told if a.when == "during"]
    assert [a.step for a in during] == [e["step"] for e in events(heard.folder, "answers")] != []


def test_the_end_is_told_with_the_summary(heard: Hears) -> None:
    (end,) = heard.of("finished")
    assert end.status == "done" and end.summary["steps"] == STEPS
    assert end.summary["final_loss"] == read_summary(heard.folder)["final_loss"]


def test_listening_changes_no_bit(plain: Path, heard: Hears) -> None:
    name = Path("adapter") / "adapter_model.safetensors"
    assert story.digest(plain / name) == story.digest(heard.folder / name)
    losses = [[e["loss"] for e in events(folder, "step")] for folder in (plain, heard.folder)]
    assert losses[0] == losses[1]


def test_what_a_hook_is_given_cannot_be_written_into(heard: Hears) -> None:
    step, end = heard.of("step")[0], heard.of("finished")[0]
    with pytest.raises(AttributeError):
        step.loss = 0.0
    for mapping in (step.terms, step.figures, heard.of("started")[0].versions):
        with pytest.raises(TypeError):
            mapping["x"] = 1.0  # type: ignore[index]
    assert end.summary["status"] == "done"


class StopsAt(Callback):
    def __init__(self, hook: str, step: int):
        self.hook, self.at = hook, step

    def _look(self, run: Running) -> None:
        if run.step >= self.at:
            run.stop("it is enough")

    def started(self, run: Running, event: RunStarted) -> None:
        if self.hook == "started":
            self._look(run)

    def step(self, run: Running, event: StepTaken) -> None:
        if self.hook == "step":
            self._look(run)

    def measured(self, run: Running, event: HeldOutMeasured) -> None:
        if self.hook == "measured":
            self._look(run)

    def finished(self, run: Running, event: RunFinished) -> None:
        run.stop("too late")


@pytest.mark.parametrize(
    ("hook", "at", "last"), [("started", 0, 1), ("step", 3, 3), ("measured", 2, 2)]
)
def test_a_callback_stops_the_run_like_early_stopping(
    place: Path, tmp_path: Path, hook: str, at: int, last: int
) -> None:
    done = run(place, tmp_path / "run", StopsAt(hook, at))
    assert done.summary["status"] == "done" and done.summary["stopped_early"]
    assert done.summary["steps"] == last == len(events(done.folder, "step"))
    (told,) = events(done.folder, "stopped_by")
    assert (told["by"], told["reason"], told["step"]) == ("StopsAt", "it is enough", last)
    assert events(done.folder, "evaluation")[-1]["step"] == last
    assert (done.folder / "checkpoints" / f"step-{last:06d}" / "MANIFEST.json").is_file()


class Adds(Callback):
    """The custom figures and the picture of the docs."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def step(self, run: Running, event: StepTaken) -> None:
        self.losses.append(event.loss)
        run.add({"loss/drop": self.losses[0] - event.loss}, square=event.loss**2)

    def measured(self, run: Running, event: HeldOutMeasured) -> None:
        run.add(nothing=math.nan)

    def finished(self, run: Running, event: RunFinished) -> None:
        run.picture("losses.svg", SVG)


def test_figures_and_pictures_of_a_callback_are_kept_and_shown(place: Path, tmp_path: Path) -> None:
    done = run(place, tmp_path / "run", Adds())
    losses = [e["loss"] for e in events(done.folder, "step")]
    added = events(done.folder, "added")
    assert [e["figures"]["square"] for e in added if "square" in e["figures"]] == [
        loss**2 for loss in losses
    ]
    assert {e["by"] for e in added} == {"Adds"}
    assert next(e["figures"] for e in added if "nothing" in e["figures"]) == {"nothing": "NaN"}
    assert (done.folder / "pictures" / "losses.svg").read_text() == SVG
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert "loss/drop" in page and 'alt="losses.svg"' in page and "<rect width" not in page


def broken(hook: str, error: BaseException | None = None) -> Callback:
    """A callback that raises in one hook."""

    def hooked(self: Callback, run: Running, event: Any) -> None:
        raise error or ValueError("planted by hand")

    return type("Broken", (Callback,), {hook: hooked})()


@pytest.mark.parametrize(
    "hook",
    [
        "started",
        "step",
        *(pytest.param(h, marks=pytest.mark.thorough) for h in callbacks.HOOKS[2:-1]),
    ],
)
def test_a_callback_that_raises_ends_the_run_with_a_checkpoint_and_it_goes_on(
    place: Path, plain: Path, tmp_path: Path, hook: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match="E-CALL-01") as caught:
        run(place, out, broken(hook))
    (found,) = caught.value.problems
    assert isinstance(caught.value.__cause__, ValueError) and caught.value.exit_code == 1
    assert (found.fields["name"], found.fields["hook"]) == ("Broken", hook)
    assert found.where.startswith("test_callbacks.py:")
    assert "planted by hand" in Path(found.fields["file"]).read_text()
    summary = read_summary(out)
    assert summary["status"] == "failed" and "Broken" in summary["reason"]
    step = summary["steps"]
    assert (out / "checkpoints" / f"step-{step:06d}" / "MANIFEST.json").is_file()
    again = tunewright.resume(out, tell=Quiet())
    assert again.summary["status"] == "done" and again.summary["steps"] == STEPS
    name = Path("adapter") / "adapter_model.safetensors"
    assert story.digest(out / name) == story.digest(plain / name)


def test_a_callback_that_raises_at_the_end_leaves_a_whole_run(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match="E-CALL-01"):
        run(place, out, broken("finished"))
    assert read_summary(out)["status"] == "done" and (out / "report.html").is_file()


@pytest.mark.parametrize(
    "error", [SystemExit(3), TrainingError.of("E-TRAIN-03")], ids=["exit", "ours"]
)
def test_a_callback_cannot_end_the_program(
    place: Path, tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(TrainingError, match="E-CALL-01"):
        run(place, tmp_path / "run", broken("step", error))


def test_the_error_of_the_run_is_told_before_that_of_a_callback(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.engine.step import Stepper

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise TrainingError.of("E-TRAIN-03")

    monkeypatch.setattr(Stepper, "step", fails)
    with pytest.raises(TrainingError, match="E-TRAIN-03"):
        run(place, tmp_path / "run", broken("finished"))
    assert read_summary(tmp_path / "run")["status"] == "failed"


def test_a_figure_that_is_no_number_and_a_wrong_picture_are_the_callbacks_errors(
    place: Path, tmp_path: Path
) -> None:
    def refused(act: Callable[[Running], Any]) -> str:
        made = type("Odd", (Callback,), {"started": lambda self, run, event: act(run)})()
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(TrainingError, match="E-CALL-01") as caught:
            run(place, out, made)
        return str(caught.value.__cause__)

    assert "'much', not a number" in refused(lambda run: run.add(loss="much"))  # type: ignore[arg-type]
    assert "no name of a picture" in refused(lambda run: run.picture("../x.svg", SVG))


class OnStep(Callback):
    def on_step(self, run: Running, event: StepTaken) -> None:
        raise AssertionError("never called")


class NoEvent(Callback):
    def step(self, run: Running) -> None:  # type: ignore[override]
        raise AssertionError("never called")


def test_what_is_no_callback_is_refused_before_anything_is_created(
    place: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        run(place, tmp_path / "run", Hears, print, OnStep(), NoEvent())  # type: ignore[arg-type]
    codes = [p.code for p in caught.value.problems]
    assert codes == ["E-CALL-02", "E-CALL-03", "E-CALL-04", "E-CALL-05"]
    assert caught.value.problems[2].fields["own"] == "on_step"
    assert not (tmp_path / "run").exists()
