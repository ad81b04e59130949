"""A sweep tries settings on one run: every trial once, whatever ends it in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers import story

from tunewright.commands import sweep_spaces, sweeping
from tunewright.core.errors import TunewrightError, UsageError
from tunewright.core.runfile import load_run
from tunewright.core.telling import Quiet
from tunewright.record.folder import read_summary

STEPS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json", 16)
    (folder / "run.yaml").write_text(
        f"model: {folder / 'model'}\ndata: {{train: {folder / 'rows.json'}, held_out: 4}}\n"
        f"engine: {{steps: {STEPS}, batch_size: 4, evaluate_every: 1, dtype: float32, threads: 1}}\n",
        encoding="utf-8",
    )
    return folder


# ---- what is searched


def test_lists_and_ranges_are_searched_and_the_rest_holds_for_all() -> None:
    words = [
        "method.rank=8,16",
        "engine.learning_rate=1e-4..1e-3",
        "engine.warmup=1..9",
        "probes=2",
    ]
    spaces, fixed = sweep_spaces.parse([*words, "engine.betas=[0.9,0.95],[0.8,0.9]"])
    rank, rate, warmup, betas = spaces
    assert rank.choices == (8, 16) and betas.choices == ([0.9, 0.95], [0.8, 0.9])
    assert (rate.low, rate.high, rate.whole, rate.is_log) == (1e-4, 1e-3, False, True)
    assert (warmup.low, warmup.high, warmup.whole, warmup.is_log) == (1, 9, True, False)
    assert fixed == ["probes=2"]
    assert rate.rounded(0.000345678) == 0.000346 and rate.rounded(0.0000999) == 1e-4
    assert len(sweep_spaces.grid([rank, warmup]) or []) == 18
    assert sweep_spaces.grid([rate]) is None
    for space in spaces:
        assert sweep_spaces.of_dict(space.key, sweep_spaces.as_dict(space)) == space


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("engine.steps=5", "E-SWEEP-01"),
        ("model=../model", "E-SWEEP-01"),
        ("out=a,b", "E-SWEEP-02"),
        ("track=tensorboard,wandb", "E-SWEEP-02"),
        ("engine.steps=9..3", "E-SWEEP-04"),
        ("engine.steps=3..3", "E-SWEEP-04"),
        ("method.rank=8,8", "E-SWEEP-05"),
        ("method.rank=8,,16", "E-SWEEP-05"),
    ],
)
def test_what_cannot_be_searched_is_refused(word: str, code: str) -> None:
    with pytest.raises(UsageError, match=code):
        sweep_spaces.parse([word])
    with pytest.raises(UsageError, match="E-SWEEP-03"):
        sweep_spaces.parse(["method.rank=8,16", "method.rank=4,5"])


# ---- with Optuna


def sweep(place: Path, out: Path, *words: str, **more: Any) -> dict[str, Any]:
    pytest.importorskip("optuna")
    return sweeping.start(place / "run.yaml", list(words), out=out, tell=Quiet(), **more)


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    trials = [{k: v for k, v in t.items() if k != "seconds"} for t in record["trials"]]
    return {**record, "trials": trials}


@pytest.mark.peer
def test_a_grid_tries_every_combination_and_the_best_is_that_of_the_table(
    place: Path, tmp_path: Path
) -> None:
    found = sweep(place, tmp_path / "s", "method.rank=2,4", "engine.learning_rate=1e-3,1e-2")
    tried = [tuple(t["params"].values()) for t in found["trials"]]
    assert tried == [(2, 1e-3), (2, 1e-2), (4, 1e-3), (4, 1e-2)] and found["sampler"] == "grid"
    for trial in found["trials"]:
        run = read_summary(tmp_path / "s" / "trials" / f"{trial['number'] + 1:02d}")
        assert trial["value"] == run["held_out_loss"] and trial["steps"] == run["steps"]
    done = [t for t in found["trials"] if t["status"] == "done"]
    best = min(done, key=lambda t: t["value"])
    assert found["best"] == best["number"]
    given = load_run(tmp_path / "s" / "best.yaml").given
    assert given["method.rank"] == best["params"]["method.rank"] and "out" not in given
    assert given["engine.steps"] == STEPS
    table = sweeping.table(found)
    assert table[1].startswith(f"{best['number'] + 1}*") and f"{best['value']:.6g}" in table[1]
    page = (tmp_path / "s" / "report.html").read_text(encoding="utf-8")
    assert page.count("<path") == 4 and 'class="best"' in page


@pytest.mark.peer
def test_the_same_seed_gives_the_same_trials(place: Path, tmp_path: Path) -> None:
    words = ("engine.learning_rate=1e-4..1e-2", "method.rank=2..8")
    first, second, third = (
        sweep(place, tmp_path / name, *words, trials=5, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert without_times(first) == without_times(second)
    assert first["trials"][0]["params"] != third["trials"][0]["params"]
    assert len({json.dumps(t["params"]) for t in first["trials"]}) == 5


@pytest.mark.peer
def test_settings_that_do_not_go_together_end_their_trial_and_not_the_sweep(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Quiet, "line", lambda self, text: said.append(text))
    found = sweep(
        place, tmp_path / "s", "engine.least_rate=0.0,0.1", "engine.schedule=cosine,constant"
    )
    how = {tuple(t["params"].values()): t["status"] for t in found["trials"]}
    assert how[0.1, "constant"] == "refused" and how[0.0, "constant"] in ("done", "pruned")
    told = next(t for t in found["trials"] if t["status"] == "refused")
    assert told["problem"]["code"] == "E-COMPAT-12"
    (line,) = [n for n, text in enumerate(said) if "refused" in text]
    assert said[line + 1].startswith("  E-COMPAT-12")


@pytest.mark.peer
def test_a_sweep_with_nothing_to_compare_by_ends_with_its_first_trial(
    place: Path, tmp_path: Path
) -> None:
    with pytest.raises(TunewrightError, match="E-SWEEP-11"):
        sweep(place, tmp_path / "s", "method.rank=2,4", metric="accuracy", higher=True)
    assert len(list((tmp_path / "s" / "trials").iterdir())) == 1
    few = place / "few.json"
    few.write_text(json.dumps(json.loads((place / "rows.json").read_text())[:8]))
    words = ("method.rank=2,4", f"data.train={few}", "data.held_out=null")
    with pytest.raises(TunewrightError, match="E-SWEEP-12"):
        sweep(place, tmp_path / "t", *words)


@pytest.mark.peer
def test_one_process_at_a_time_does_a_sweep(place: Path, tmp_path: Path) -> None:
    found = sweep(place, tmp_path / "s", "method.rank=2,4")
    with FileLock(tmp_path / "s" / ".lock"), pytest.raises(UsageError, match="E-SWEEP-14"):
        sweeping.resume(tmp_path / "s", Quiet())
    assert sweeping.resume(tmp_path / "s", Quiet())["trials"] == found["trials"]


@pytest.mark.peer
def test_a_hopeless_trial_is_stopped_early(place: Path, tmp_path: Path) -> None:
    rates = "1e-3,2e-3,3e-3,4e-3,5e-3,1e-12"
    found = sweep(place, tmp_path / "s", f"engine.learning_rate={rates}")
    last = found["trials"][-1]
    assert last["params"] == {"engine.learning_rate": 1e-12}
    assert last["status"] == "pruned" and last["steps"] < STEPS
    assert found["best"] != last["number"]
    kept = sweep(place, tmp_path / "k", f"engine.learning_rate={rates}", prune=False)
    assert {t["status"] for t in kept["trials"]} == {"done"}


@pytest.mark.peer
def test_minutes_give_every_trial_the_same_samples(place: Path, tmp_path: Path) -> None:
    found = sweep(place, tmp_path / "s", "engine.batch_size=2,4", minutes=0.001, prune=False)
    steps = {t["params"]["engine.batch_size"]: t["steps"] for t in found["trials"]}
    assert found["samples"] and steps == {2: STEPS, 4: STEPS}
    assert not list((tmp_path / "s").glob(".*"))


@pytest.mark.peer
def test_a_sweep_that_is_killed_three_times_goes_on_exactly(place: Path, tmp_path: Path) -> None:
    words = ["engine.learning_rate=1e-4..1e-2", "method.rank=2..8"]
    whole = sweep(place, tmp_path / "whole", *words, trials=12, seed=3)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "tunewright", "sweep"]
    first = [str(place / "run.yaml"), *words, "--trials=12", "--seed=3", f"--out={out}"]
    for number in range(3):
        argv = [*command, *(first if number == 0 else [str(out), "--resume"])]
        child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_trial(out, 4 * number, child)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    found = sweeping.resume(out, Quiet())
    assert without_times(found) == {**without_times(whole), "given": found["given"]}
    runs = sorted(path.name for path in (out / "trials").iterdir())
    assert runs == [f"{n:02d}" for n in range(1, 13)]
    again = sweeping.resume(out, Quiet())
    assert again["trials"] == found["trials"]


def wait_for_trial(out: Path, done: int, child: subprocess.Popen[bytes]) -> None:
    """Until the run of trial `done` + 1 has begun."""
    until = time.monotonic() + 90
    while not (out / "trials" / f"{done + 1:02d}" / "events.jsonl").is_file():
        assert time.monotonic() < until and child.poll() is None
        time.sleep(0.01)


# ---- the command


def test_wrong_sweeps_are_refused_before_anything_is_created(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "require_optuna", lambda: None)
    run, rank, out = str(place / "run.yaml"), "method.rank=2,4", f"--out={tmp_path / 's'}"
    for words, code in (
        ([run, "engine.steps=3"], "E-SWEEP-01"),
        ([run, rank, "--sampler=magic"], "E-SWEEP-07"),
        ([run, rank, "--trials=0"], "E-SWEEP-08"),
        ([run, rank, "--minutes=-1"], "E-SWEEP-08"),
        ([run, "engine.learning_rate=1e-4..1e-3", "--sampler=grid"], "E-SWEEP-09"),
        ([run, rank, "data.held_out=0"], "E-SWEEP-12"),
        ([run, "method.rnak=2,4"], "E-CONFIG-03"),
        ([run, rank, "--resume"], "E-SWEEP-13"),
        ([str(tmp_path), "--resume"], "E-SWEEP-06"),
    ):
        told = story.tunewright("sweep", *words, *([] if "--resume" in words else [out]))
        assert told.returncode == 2 and code in told.stderr, (words, told.stderr)
    assert not (tmp_path / "s").exists()


def test_a_sweep_without_optuna_names_the_extra(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"E-SWEEP-10[\s\S]*tunewright\[sweep\]"):
        sweeping.require_optuna()
