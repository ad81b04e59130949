"""A killed run, resumed, is the run that was never killed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import forks, story

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SETTINGS = ["engine.epochs=20", "engine.save_every=5"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def golden(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    place = tmp_path_factory.mktemp("golden")
    start = time.monotonic()
    result = story.tunewright(
        *story.words(model, story.rows_file(place / "rows.json"), place / "run", *SETTINGS)
    )
    assert result.returncode == 0, result.stderr
    return story.digest(
        place / "run" / "adapter" / "adapter_model.safetensors"
    ), time.monotonic() - start


def _kill_until_done(
    model: Path, place: Path, total: float, seed: int, kills: int
) -> tuple[str, int]:
    """Kill up to `kills` times at random moments, then let it finish. Returns the digest of the
    adapter's bytes and the kills that hit."""
    draw, hits = random.Random(seed), 0
    data, run = story.rows_file(place / "rows.json"), place / "run"
    for _ in range(kills):
        words = (
            ["train", str(run), "--resume"]
            if run.exists()
            else story.words(model, data, run, *SETTINGS)
        )
        child = forks.start(*words)
        if child.wait(draw.uniform(0.2, total)) is None:
            child.send_signal(signal.SIGKILL)
            hits += 1
        child.wait()
    words = (
        ["train", str(run), "--resume"]
        if run.exists()
        else story.words(model, data, run, *SETTINGS)
    )
    done = forks.run(*words)
    assert done.returncode == 0, done.stderr
    return story.digest(run / "adapter" / "adapter_model.safetensors"), hits


@pytest.mark.parametrize(
    "seed", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.thorough)]
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    model: Path, golden: tuple[str, float], tmp_path: Path, seed: int
) -> None:
    adapter, hits = _kill_until_done(model, tmp_path, golden[1], seed, 2)
    assert adapter == golden[0]
    _few_steps_were_lost(tmp_path / "run", hits)


def _few_steps_were_lost(run: Path, hits: int) -> None:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    executed = sum(e["event"] == "step" for e in events)
    assert executed <= 60 + hits * 5


def _wait(child: forks.Fork, ready: Callable[[], bool]) -> None:
    """Until `ready`, for as long as the child lives."""
    deadline = time.monotonic() + 240
    while not ready() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_verified_checkpoint_and_its_exit_code(
    model: Path, golden: tuple[str, float], tmp_path: Path, number: signal.Signals
) -> None:
    from tunewright.record import checkpoint

    run = tmp_path / "run"
    child = forks.start(
        *story.words(model, story.rows_file(tmp_path / "rows.json"), run, *SETTINGS)
    )
    events = run / "events.jsonl"
    _wait(child, lambda: events.exists() and events.read_text().count('"step", ') >= 3)
    child.send_signal(number)
    assert child.wait() == 128 + number, child.err.read_text()
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped"
    found = checkpoint.load_latest(run / "checkpoints")
    assert found is not None and found.step >= 3
    assert story.tunewright("train", str(run), "--resume").returncode == 0
    assert story.digest(run / "adapter" / "adapter_model.safetensors") == golden[0]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    model: Path, golden: tuple[str, float], tmp_path: Path
) -> None:
    from tunewright.record import checkpoint

    run = tmp_path / "run"
    child = forks.start(
        *story.words(model, story.rows_file(tmp_path / "rows.json"), run, *SETTINGS)
    )
    _wait(child, lambda: len(checkpoint.steps_in(run / "checkpoints")) >= 2)
    child.send_signal(signal.SIGTERM)
    child.wait()
    newest = checkpoint.folder_of(run / "checkpoints", checkpoint.steps_in(run / "checkpoints")[-1])
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    result = story.tunewright("train", str(run), "--resume")
    assert result.returncode == 0, result.stderr
    assert newest.name in result.stderr and "quarantine" in result.stderr
    assert story.digest(run / "adapter" / "adapter_model.safetensors") == golden[0]
