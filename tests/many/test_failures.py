"""A rank that is killed, stopped, fails or is not like the others ends the run everywhere, with its
name and the cause; the last checkpoint stands and the run goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import forks, many, story
from safetensors.torch import load_file

MEETING = Path(__file__).with_name("meeting.py")
STEPS = 12


# ---- ranks that only meet


def met(pair: many.Pair, seconds: float = 60) -> list[int]:
    """The processes, once all have met."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        texts = [pair.so_far(rank) for rank in range(len(pair.processes))]
        if all("met" in text for text in texts):
            return [process.pid for process in pair.processes]
        assert all(process.poll() is None for process in pair.processes), texts
        time.sleep(0.05)
    raise AssertionError("they did not meet")


def test_a_rank_that_fails_is_named_with_its_error_and_its_exit_code() -> None:
    (code, said), (other, told) = many.Pair([str(MEETING), "raise", "30"]).wait(60)
    assert (code, other) == (2, 2)
    assert "E-DIST-03" in said and "rank 1" in said and "E-RUN-02" in said
    assert "E-RUN-02" in told and "E-DIST" not in told


@pytest.mark.thorough
def test_a_rank_that_dies_and_one_that_is_stopped_end_the_others_in_time() -> None:
    killed = many.Pair([str(MEETING), "leave", "40"])
    stopped = many.Pair([str(MEETING), "go", "40"], world=3)
    pids = met(stopped)
    os.kill(pids[2], signal.SIGSTOP)
    begin = time.monotonic()
    ended = stopped.wait(40)
    assert time.monotonic() - begin < 30
    for code, said in ended[:2]:
        assert code == 1 and "E-DIST-02" in said and "rank 2" in said
    assert ended[2][0] == -signal.SIGKILL  # nothing stays behind
    (code, said), (other, _) = killed.wait(40)
    assert (code, other) == (1, 9)
    assert "E-DIST-01" in said and "rank 1" in said


# ---- whole runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failures")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json", 24)
    story.rows_file(folder / "more.json", 25)
    return folder


def run_file(place: Path, name: str, data: str = "rows.json", **engine: Any) -> Path:
    run = {
        "model": str(place / "model"),
        "data": {"train": data, "held_out": 0},
        "probes": 0,
        "forgetting": "off",
        "out": str(place / name),
        "engine": {"dtype": "float32", "threads": 1, "steps": STEPS, "batch_size": 8, "save_every": 2, **engine},
    }  # fmt: skip
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def train(*words: object) -> list[str]:
    return ["-m", "tunewright", "train", *map(str, words)]


def steps_of(run: Path) -> list[int]:
    events = run / "events.jsonl"
    if not events.is_file():
        return []
    lines = events.read_text(encoding="utf-8").splitlines(keepends=True)
    found = [json.loads(one) for one in lines if one.endswith("\n")]
    return [one["step"] for one in found if one["event"] == "step"]


def weights(run: Path) -> dict[str, Any]:
    return {
        k: v for path in sorted(run.glob("*/*.safetensors")) for k, v in load_file(path).items()
    }


def gap(one: Path, other: Path) -> float:
    """Largest difference of a weight, as a share of the largest weight."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    largest = max(float(v.abs().max()) for v in a.values())
    return max(float((a[k].float() - b[k].float()).abs().max()) for k in a) / largest


@pytest.mark.thorough
def test_ranks_that_see_other_rows_versions_or_keys_are_refused_before_the_first_step(
    place: Path,
) -> None:
    other = place / "other"
    other.mkdir()
    for name in ("rows.json", "more.json"):
        story.rows_file(other / name, 25)
    fake = place / "fake"
    fake.mkdir()
    (fake / "sitecustomize.py").write_text("import torch; torch.__version__ = '9.9.9'\n")
    path = run_file(place, "refused", rank_timeout=4)
    paths = {"PYTHONPATH": f"{fake}:{os.environ.get('PYTHONPATH', '')}"}
    cases: list[tuple[str, Path, dict[str, str], list[str]]] = [
        ("data.train", other, {}, []),
        ("torch", place, paths, []),
        ("engine.weight_decay", place, {}, ["engine.weight_decay=0.1"]),
    ]
    for what, folder, more, words in cases:
        pair = many.Pair(train(path), cwd=place, other={1: (train(path, *words), folder, more)})
        (code, said), (code_1, _) = pair.wait(90)
        assert (code, code_1) == (2, 2), said
        assert "E-DIST-04" in said and "rank 1" in said and what in said
        assert not (place / "refused").exists()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("world", "parallel", "kills", "steps"), [(2, "ddp", 3, 90), (4, "fsdp", 10, 60)]
)
def test_a_rank_that_is_killed_at_any_moment_leaves_a_run_that_goes_on(
    place: Path, world: int, parallel: str, kills: int, steps: int
) -> None:
    """Every other kill comes some seconds after the start (while models are read, or before the
    first step), the others some steps after the last ones."""
    data = str(place / "rows.json")
    undisturbed = run_file(place, f"undisturbed-{parallel}", data=data, steps=steps)
    assert forks.run("train", str(undisturbed)).returncode == 0
    draw, hits = random.Random(0), 0
    # Four processes on two cores show life late.
    how: dict[str, Any] = {"parallel": parallel, "rank_timeout": 4 * world - 4}
    path = run_file(place, f"killed-{parallel}", data=data, steps=steps, **how)
    run = place / f"killed-{parallel}"
    for number in range(kills):
        # A run whose folder is not there yet begins anew.
        begun = (run / "run.yaml").is_file()
        pair = many.Pair(train(*([run, "--resume"] if begun else [path])), world=world)
        before, victim = max(steps_of(run), default=0), draw.randrange(world)
        # Who waits for others to come waits for minutes: until then nobody is missed.
        end = time.monotonic() + 60
        while "share each step" not in pair.so_far(0) and time.monotonic() < end:
            time.sleep(0.01)
        wanted = before + 1 + draw.randrange(4) if number % 2 == 0 else steps
        end = time.monotonic() + (60 if number % 2 == 0 else draw.uniform(0.2, 3))
        while time.monotonic() < end and max(steps_of(run), default=0) < wanted:
            time.sleep(0.005)
        hits += pair.processes[victim].poll() is None
        pair.processes[victim].kill()
        ended = pair.wait(90)
        speaks = 1 if victim == 0 else 0  # the others say it in their logs
        for rank, (code, said) in enumerate(ended):
            if rank != victim and code:
                assert code == 1 and (rank != speaks or f"rank {victim}" in said), said
    assert hits > kills / 2
    pair = many.Pair(train(run, "--resume"), world=world)
    assert [code for code, _ in pair.wait(150)] == [0] * world
    assert gap(place / f"undisturbed-{parallel}", run) < 1e-4
    assert (run / "ranks" / "rank-1.log").read_text()
