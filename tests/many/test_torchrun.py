"""Runs that torchrun itself starts: on two nodes (two agents on the loopback address, through the
script under `recipes/cluster`), and started again after a rank was killed."""

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
import yaml
from helpers import forks, many, story
from safetensors.torch import load_file

pytestmark = pytest.mark.thorough
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "cluster" / "torchrun.sh"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json", 24)
    done = forks.run("train", str(run_file(folder, "alone")))
    assert done.returncode == 0, done.stderr
    return folder


def run_file(place: Path, name: str, **engine: Any) -> Path:
    run = {
        "model": str(place / "model"),
        "data": {"train": str(place / "rows.json"), "held_out": 0},
        "probes": 0,
        "forgetting": "off",
        "out": str(place / name),
        "engine": {"dtype": "float32", "threads": 1, "steps": 10, "batch_size": 8, "save_every": 2, **engine},
    }  # fmt: skip
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "TUNEWRIGHT_LANG": "en", **more}


def gap(one: Path, other: Path) -> float:
    """Largest difference of a weight, as a share of the largest weight."""
    a, b = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, other))
    assert a.keys() == b.keys()
    largest = max(float(v.abs().max()) for v in a.values())
    return max(float((a[k] - b[k]).abs().max()) for k in a) / largest


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found


def test_two_agents_as_two_nodes_leave_the_adapter_of_one_process(place: Path) -> None:
    path = run_file(place, "nodes")
    port = str(many.free_port())
    words = environment(MASTER_ADDR="127.0.0.1", PORT=port, GPUS="1", RUN=str(path))
    agents = [
        subprocess.Popen(
            ["sh", str(RECIPE), str(node)],
            env=words,
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    ended = [agent.communicate(timeout=140) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n----\n".join(
        text[-3000:] for text, _ in ended
    )
    told = summary(place / "nodes")
    assert (told["processes"], told["parallel"], told["status"]) == (2, "ddp", "done")
    assert gap(place / "alone", place / "nodes") < 1e-4


def steps_of(run: Path) -> list[int]:
    events = run / "events.jsonl"
    lines = events.read_text(encoding="utf-8").splitlines(keepends=True) if events.is_file() else []
    found = [json.loads(one) for one in lines if one.endswith("\n")]
    return [one["step"] for one in found if one["event"] == "step"]


def children_of(pid: int) -> list[int]:
    """Processes that `pid` started and that are there."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in found]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_killed_rank_began_is_ended_by_a_restart(place: Path) -> None:
    path, run = run_file(place, "restarted", steps=40), place / "restarted"
    command = ["torchrun", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["--master-port", str(many.free_port()), "-m", "tunewright", "train", str(path)]
    agent = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    end = time.monotonic() + 90
    while time.monotonic() < end and max(steps_of(run), default=0) < 5:
        time.sleep(0.01)
    before = children_of(agent.pid)
    os.kill(before[-1], signal.SIGKILL)
    said, _ = agent.communicate(timeout=120)
    assert agent.returncode == 0, said[-3000:]
    assert summary(run)["status"] == "done"
    assert sorted(set(steps_of(run))) == list(range(1, 41))
    whole = run_file(place, "undisturbed", steps=40)
    assert forks.run("train", str(whole)).returncode == 0
    assert gap(place / "undisturbed", run) < 1e-4
