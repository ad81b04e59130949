"""A killed run, resumed, is the run that was never killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import story

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


# A shell's background job ignores SIGINT, and so would all that it starts.
POSIX: dict[str, Any] = (
    {}
    if os.name == "nt"
    else {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
)


def _launch(words: list[str]) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tunewright", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=env,
        **POSIX,
    )


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
        child = _launch(words)
        try:
            child.wait(timeout=draw.uniform(0.2, total))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            hits += 1
        child.communicate()
    words = (
        ["train", str(run), "--resume"]
        if run.exists()
        else story.words(model, data, run, *SETTINGS)
    )
    child = _launch(words)
    _, err = child.communicate(timeout=300)
    assert child.returncode == 0, err.decode()
    return story.digest(run / "adapter" / "adapter_model.safetensors"), hits


@pytest.mark.parametrize("seed", [1, 2])
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


def _wait(child: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    """Until `ready`, for as long as the child lives: a loaded machine may take a minute to import
    torch."""
    deadline = time.monotonic() + 240
    while not ready() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_verified_checkpoint_and_its_exit_code(
    model: Path, golden: tuple[str, float], tmp_path: Path, number: signal.Signals
) -> None:
    from tunewright.record import checkpoint

    run = tmp_path / "run"
    child = _launch(story.words(model, story.rows_file(tmp_path / "rows.json"), run, *SETTINGS))
    events = run / "events.jsonl"
    _wait(child, lambda: events.exists() and events.read_text().count('"step", ') >= 3)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + number, err.decode()
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
    child = _launch(story.words(model, story.rows_file(tmp_path / "rows.json"), run, *SETTINGS))
    _wait(child, lambda: len(checkpoint.steps_in(run / "checkpoints")) >= 2)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    newest = checkpoint.folder_of(run / "checkpoints", checkpoint.steps_in(run / "checkpoints")[-1])
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    result = story.tunewright("train", str(run), "--resume")
    assert result.returncode == 0, result.stderr
    assert newest.name in result.stderr and "quarantine" in result.stderr
    assert story.digest(run / "adapter" / "adapter_model.safetensors") == golden[0]
