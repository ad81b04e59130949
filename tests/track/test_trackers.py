"""Trackers read what a run writes down, from a process beside it; nothing that they do reaches the
run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers import story, trackers

import tunewright
from tunewright import track
from tunewright.core.errors import UsageError
from tunewright.core.telling import Quiet, Tell
from tunewright.track import beside, reading, settings
from tunewright.track.state import State

STEPS = 4


class Hears(Tell):
    """Keeps the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        pass


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json", 16)
    return folder


def train(place: Path, out: Path, tell: Tell | None = None, **more: Any) -> Path:
    engine = {"steps": STEPS, "batch_size": 4, "evaluate_every": 2, "dtype": "float32"}
    return tunewright.train(
        model=str(place / "model"),
        data={"train": str(place / "rows.json"), "held_out": 4},
        engine={**engine, "threads": 1, "show_answers": 1},
        out=str(out),
        probes=2,
        forgetting="off",
        tell=tell or Quiet(),
        **more,
    ).folder


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that no tracker was told of."""
    return train(place, tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake stands where the library would."""
    folder = trackers.fake(tmp_path / "library")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("track", "checkpoints"))
    return to


def wanted(run: Path, last: int | None = None) -> dict[tuple[str, int], float]:
    """Step and held-out figures as events.jsonl says them."""
    found = {}
    for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "step" and (last is None or event["step"] <= last):
            names = ("loss", "learning_rate", "gradient_norm", "seconds", "memory_bytes")
            found |= {(f"train/{name}", event["step"]): float(event[name]) for name in names}
        if event["event"] == "evaluation" and (last is None or event["step"] <= last):
            found["held_out/loss", event["step"]] = event["held_out_loss"]
    return found


def metrics(run: Path) -> dict[tuple[str, int], float]:
    """What the fake was told, which must be once each."""
    told = [(one[1], one[3], one[2]) for one in trackers.told(run) if one[0] == "metric"]
    assert len({(name, step) for name, step, _ in told}) == len(told)
    return {(name, step): value for name, step, value in told}


def ended(run: Path, kind: str = "comet") -> State:
    """The state of a tracker once its process has ended: it goes on when the run is over."""
    until = time.monotonic() + 60
    while (state := State.read(run, kind)).status not in ("done", "failed"):
        assert time.monotonic() < until, state
        time.sleep(0.05)
    return state


class Waits(tunewright.Callback):
    """Holds a run after its first step until its tracker misbehaves, so that the other steps are
    taken while it does. (A run of some steps is otherwise over before the tracker's process has
    imported anything.)"""

    def __init__(self, run: Path) -> None:
        self.run_folder, self.steps_after = run, list[int]()
        self.child: subprocess.Popen[bytes] | None = None

    def spawns(self, spawn: Callable[..., Any]) -> Callable[..., Any]:
        def keeping(*given: Any) -> Any:
            self.child = spawn(*given)
            return self.child

        return keeping

    def step(self, run: tunewright.Running, event: tunewright.StepTaken) -> None:
        if event.step > 1:
            self.steps_after.append(event.step)
            return
        until, mark = time.monotonic() + 60, self.run_folder / "track" / "comet" / "misbehaves"
        while not mark.exists() and State.read(self.run_folder, "comet").status != "failed":
            assert time.monotonic() < until
            self._hurry()
            time.sleep(0.05)

    def _hurry(self) -> None:
        """It asks for idle time only, which other programs may leave none of."""
        assert self.child is not None
        for task in Path(f"/proc/{self.child.pid}/task").glob("*"):
            with contextlib.suppress(OSError, AttributeError):
                os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))


# ---- what is written in the run file


def test_trackers_are_named_in_the_run_file_in_every_form() -> None:
    given = ["tensorboard", {"kind": "wandb", "project": "mine", "online": True}]
    assert track.problems(given) == []
    first, second = track.chosen(given)
    assert (first.kind, first.settings.folder) == ("tensorboard", None)
    assert (second.settings.project, second.settings.online) == ("mine", True)


@pytest.mark.parametrize(
    ("given", "code", "where"),
    [
        (["tensorbord"], "E-TRACK-02", "track[0]"),
        ([{"project": "x"}], "E-TRACK-02", "track[0]"),
        (["comet", {"kind": "comet"}], "E-TRACK-03", "track[1]"),
        ([{"kind": "tensorboard", "online": True}], "E-TRACK-04", "track[0].online"),
        ([{"kind": "wandb", "projekt": "x"}], "E-TRACK-04", "track[0].projekt"),
        ([{"kind": "wandb", "online": "perhaps"}], "E-TRACK-04", "track[0].online"),
    ],
)
def test_wrong_trackers_are_refused_before_anything_is_created(
    place: Path, tmp_path: Path, given: list[Any], code: str, where: str
) -> None:
    with pytest.raises(UsageError) as caught:
        train(place, tmp_path / "run", track=given)
    (found,) = caught.value.problems
    assert (found.code, found.where) == (code, where)
    assert not (tmp_path / "run").exists()


# ---- a run with a tracker


def test_a_run_tells_its_tracker_all_that_it_wrote_down(
    place: Path, done: Path, tmp_path: Path, library: Path
) -> None:
    tell = Hears()
    run = train(place, tmp_path / "run", tell, track="comet")
    state = ended(run)
    assert state.status == "done" and state.step == STEPS
    found, asked = metrics(run), wanted(run)
    assert {key: found[key] for key in asked} == asked and len(asked) == 5 * STEPS + 3
    told = trackers.told(run)
    assert told[0][0] == "opened" and told[-1] == ["ended"]
    assert {one[1] for one in told if one[0] == "file"} >= {"run.yaml", "summary.json"}
    texts = {one[1]: one[2] for one in told if one[0] == "text"}
    assert set(texts) == {"answers", "before_after"} and "| question |" in texts["before_after"]
    parameters = next(one[1] for one in told if one[0] == "parameters")
    assert parameters["engine.steps"] == STEPS
    assert any("comet" in line for line in tell.lines)
    name = Path("adapter") / "adapter_model.safetensors"
    assert story.digest(run / name) == story.digest(done / name)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("raises", "E-TRACK-07"),
        ("raises at once", "E-TRACK-07"),
        ("hangs", "E-TRACK-05"),
        ("fills", "E-TRACK-06 E-TRACK-07"),
        ("scatters", "E-TRACK-06"),
    ],
)
def test_a_tracker_that_misbehaves_changes_nothing(
    place: Path,
    done: Path,
    tmp_path: Path,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    code: str,
) -> None:
    for name, value in (("", how), ("_PATIENCE", "1"), ("_BYTES", "3000000")):
        monkeypatch.setenv(f"TUNEWRIGHT_TRACK{name}" if name else "FAKE_TRACKER", value)
    during = Waits(tmp_path / "run")
    monkeypatch.setattr(beside, "_spawn", during.spawns(beside._spawn))
    run = train(place, tmp_path / "run", track=["comet"], on=[during])
    # It misbehaved after the first step, and the other steps were taken after that.
    assert during.steps_after == list(range(2, STEPS + 1))
    assert json.loads((run / "summary.json").read_text())["status"] == "done"
    state = ended(run)
    assert state.problem is not None and state.problem["code"] in code
    with FileLock(run / "track" / "comet.lock", timeout=30):
        pass  # its process has ended
    name = Path("adapter") / "adapter_model.safetensors"
    assert story.digest(run / name) == story.digest(done / name)
    assert sum(p.stat().st_size for p in (run / "track").rglob("*") if p.is_file()) < 30_000_000
    # Later, with a library that works, nothing is missing and nothing stands there twice but what
    # the broken one may have taken.
    monkeypatch.setenv("FAKE_TRACKER", "")
    monkeypatch.delenv("TUNEWRIGHT_TRACK_BYTES")
    (told,) = track.runs(run, ["comet"], {}, Quiet(), again=True)
    assert told["trackers"]["comet"]["status"] == "done"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB of its own; skips where this person may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["the run's disk", "a disk of its own", "a full disk"])
@pytest.mark.parametrize("how", ["fills", "scatters"])
def test_a_tracker_cannot_fill_a_real_disk(
    place: Path,
    done: Path,
    tmp_path: Path,
    library: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    where: str,
) -> None:
    monkeypatch.setenv("FAKE_TRACKER", how)
    own: dict[str, Any] = {} if where == "the run's disk" else {"folder": str(small_disk / "own")}
    if where == "a full disk":
        left = shutil.disk_usage(small_disk).free - 8192
        (small_disk / "other").write_bytes(b"x" * left)
    out = (tmp_path if own else small_disk) / "run"
    run = train(place, out, track=[{"kind": "comet", **own}])
    assert json.loads((run / "summary.json").read_text())["status"] == "done"
    state = ended(run)
    assert state.problem is not None and state.problem["code"] in ("E-TRACK-06", "E-TRACK-07")
    with FileLock(run / "track" / "comet.lock", timeout=30):
        pass
    if where != "a full disk":  # what was full before stays full
        assert shutil.disk_usage(small_disk).free > 8_000_000
    name = Path("adapter") / "adapter_model.safetensors"
    assert story.digest(run / name) == story.digest(done / name)


def test_a_library_that_is_missing_is_said_and_the_run_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "_is_there", lambda module: False)
    tell = Hears()
    run = train(place, tmp_path / "run", tell, track=["swanlab"])
    (line,) = [line for line in tell.lines if "E-TRACK-01" in line]
    assert "pip install 'tunewright[track]'" in line
    assert json.loads((run / "summary.json").read_text())["status"] == "done"
    with pytest.raises(UsageError, match="E-TRACK-01"):
        track.runs(run, [], {}, Quiet())


def test_a_process_that_cannot_be_started_is_said_and_the_run_goes_on(
    place: Path, tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*words: Any) -> Any:
        raise OSError("planted: no more processes")

    monkeypatch.setattr(beside, "_spawn", refuses)
    tell = Hears()
    run = train(place, tmp_path / "run", tell, track=["comet"])
    assert any("E-TRACK-08" in line and "planted" in line for line in tell.lines)
    assert json.loads((run / "summary.json").read_text())["status"] == "done"


# ---- afterwards, and again


def test_a_run_is_told_afterwards_once(done: Path, tmp_path: Path, library: Path) -> None:
    run = copied(done, tmp_path / "run")
    told = story.tunewright("track", str(run), "--to", "comet", "--json")
    assert told.returncode == 0, told.stderr
    (found,) = json.loads(told.stdout)
    assert found["trackers"]["comet"]["status"] == "done"
    asked = wanted(run)
    assert {key: metrics(run)[key] for key in asked} == asked
    before = trackers.told(run)
    assert story.tunewright("track", str(run), "--to", "comet").returncode == 0
    more = trackers.told(run)[len(before) :]
    assert [one[0] for one in more] == ["opened", "other", "ended"]
    keys = {one[1] for one in trackers.told(run) if one[0] == "opened"}
    assert len(keys) == 1
    assert story.tunewright("track", str(run), "--to", "comet", "--again").returncode == 0
    again = [one for one in trackers.told(run)[len(before) + 3 :] if one[0] == "metric"]
    assert len(again) == sum(one[0] == "metric" for one in before)


def test_a_run_that_was_taken_up_again_is_told_every_step_once(
    done: Path, tmp_path: Path, library: Path
) -> None:
    run = copied(done, tmp_path / "run")
    events, summary = run / "events.jsonl", run / "summary.json"
    lines = events.read_text(encoding="utf-8").splitlines(keepends=True)
    third = next(n for n, line in enumerate(lines) if '"step": 3' in line) + 1
    kept = summary.read_text()
    summary.unlink()
    events.write_text("".join(lines[:third]), encoding="utf-8")
    track.runs(run, ["comet"], {}, Quiet())
    first = metrics(run)
    assert {key for key in first if key[0] == "train/loss"} == {
        ("train/loss", n) for n in (1, 2, 3)
    }
    # It goes on from step 2: step 3 is written again, with other seconds.
    resumed = [json.dumps({"event": "resumed", "time": 1.0, "step": 2}) + "\n"]
    second = next(
        n for n, line in enumerate(lines) if '"event": "step"' in line and '"step": 3' in line
    )
    other = {**json.loads(lines[second]), "seconds": 99.0}
    rest = [json.dumps(other) + "\n", *lines[third:]]
    events.write_text("".join([*lines[:third], *resumed, *rest]), encoding="utf-8")
    summary.write_text(kept)
    track.runs(run, ["comet"], {}, Quiet())
    found = metrics(run)
    assert {k[1] for k in found if k[0] == "train/loss"} == set(range(1, STEPS + 1))
    assert first.items() <= found.items()
    assert {one[1] for one in trackers.told(run) if one[0] == "opened"} == {
        trackers.told(run)[0][1]
    }


def test_steps_that_are_read_together_count_as_they_came_last(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    step = {"event": "step", "time": 1.0, "step": 1, "loss": 2.0}
    lines = [step, {**step, "loss": "NaN"}, {**step, "step": 0, "loss": 5}, {"event": "odd"}, [1]]
    text = "\n".join(json.dumps(line) for line in lines) + '\nhalf {"event"'
    path.write_text(text, encoding="utf-8")
    reader, told = reading.EventReader(path), reading.Told()
    batch = told.news(reader.read())
    assert [(one.step, str(one.values["train/loss"])) for one in batch.figures] == [
        (0, "5.0"),
        (1, "nan"),
    ]
    assert not told.news(reader.read())
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(" ...\n" + json.dumps({**step, "step": 2, "terms": {"sft": 1}}) + "\n")
    (one,) = told.news(reader.read()).figures
    assert (one.step, one.values) == (2, {"train/loss": 2.0, "terms/sft": 1.0})


def test_a_process_that_ends_without_a_word_is_said(
    done: Path, tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRACKER", "ends")
    run = copied(done, tmp_path / "run")
    told = story.tunewright("track", str(run), "--to", "comet", "--json")
    assert told.returncode == 1 and "E-TRACK-10" in told.stderr
    (found,) = json.loads(told.stdout)
    assert found["trackers"]["comet"]["status"] == "failed"


@pytest.mark.parametrize(("words", "code"), [(("--to", "comet"), "E-TRACK-09"), ((), "E-RUN-04")])
def test_a_folder_that_is_no_run_cannot_be_told(
    tmp_path: Path, library: Path, words: tuple[str, ...], code: str
) -> None:
    told = story.tunewright("track", str(tmp_path), *words)
    assert told.returncode == 2 and code in told.stderr


def test_a_run_without_trackers_asks_for_one(done: Path) -> None:
    told = story.tunewright("track", str(done))
    assert told.returncode == 2 and "E-TRACK-11" in told.stderr


# ---- the real libraries, in their offline or local mode


@pytest.mark.peer
@pytest.mark.parametrize("kind", sorted(trackers.READERS))
def test_a_real_tracker_holds_the_figures_of_the_run(
    place: Path, tmp_path: Path, kind: str
) -> None:
    import numpy as np

    for module in track.chosen([kind])[0].entry.facts["needs"]:
        pytest.importorskip(module)
    pytest.importorskip("resvg_py")
    run = train(place, tmp_path / "run", track=[kind])
    state = ended(run, kind)
    log = (run / "track" / f"{kind}.log").read_text(encoding="utf-8")
    assert state.status == "done", (state.problem, log)
    held = trackers.held_by(kind, run / "track" / kind)
    assert len({one[:2] for one in held}) == len(held)
    found = {(tag, step): value for tag, step, value in held}
    for key, value in wanted(run).items():
        stored = float(np.float32(value)) if kind == "tensorboard" else value
        assert found[key] == stored, key


@pytest.mark.peer
@pytest.mark.parametrize("kind", sorted(trackers.READERS))
def test_a_real_tracker_goes_on_where_a_run_was_taken_up_again(
    done: Path, tmp_path: Path, kind: str
) -> None:
    for module in track.chosen([kind])[0].entry.facts["needs"]:
        pytest.importorskip(module)
    run = copied(done, tmp_path / "run")
    events, summary = run / "events.jsonl", run / "summary.json"
    text, kept = events.read_text(encoding="utf-8"), summary.read_text()
    lines = text.splitlines(keepends=True)
    third = next(n for n, line in enumerate(lines) if '"step": 3' in line) + 1
    summary.unlink()
    events.write_text("".join(lines[:third]), encoding="utf-8")
    track.runs(run, [kind], {}, Quiet())
    assert State.read(run, kind).step == 3
    # The process was killed while it was told something: its own files say how far they go.
    state = State.read(run, kind)
    state.unsure = True
    state.write(run)
    events.write_text("".join([*lines[:third], *lines[third - 2 :]]), encoding="utf-8")
    summary.write_text(kept)
    track.runs(run, [kind], {}, Quiet())
    held = trackers.held_by(kind, run / "track" / kind)
    assert len({one[:2] for one in held}) == len(held)
    assert {step for tag, step, _ in held if tag == "train/loss"} == set(range(1, STEPS + 1))
