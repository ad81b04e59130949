"""Whole runs in shares on four processes: what each holds at rest, the files they leave, and going
on with another number of processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import story
from safetensors.torch import load_file

from tunewright.core.runfile import parse_run, read_yaml
from tunewright.core.telling import Quiet
from tunewright.record import checkpoint
from tunewright.story import resume_run, train

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shares")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json", 24)
    run = {
        "model": str(folder / "model"),
        "data": {"train": str(folder / "rows.json"), "held_out": 4},
        "probes": 1,
        "forgetting": "off",
        "method": {"kind": "full"},
        "engine": {"dtype": "float32", "threads": 1, "steps": 6, "batch_size": 6, "save_every": 2},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    return folder


def start(place: Path, name: str, **engine: Any) -> Path:
    given, where = read_yaml(place / "run.yaml")
    given |= {"out": str(place / name), **{f"engine.{k}": v for k, v in engine.items()}}
    return train(parse_run(given, where), tell=Quiet()).folder


def weights(run: Path) -> dict[str, Any]:
    return load_file(run / "model" / "model.safetensors")


def gap(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    largest = max(float(v.abs().max()) for v in a.values())
    return max(float((a[k] - b[k]).abs().max()) for k in a) / largest


@pytest.mark.parametrize(
    ("method", "parallel"), [("lora", "ddp"), ("lora", "fsdp"), ("adalora", "ddp")]
)
def test_twenty_steps_leave_the_adapter_of_one_process(
    place: Path, method: str, parallel: str
) -> None:
    given, where = read_yaml(place / "run.yaml")
    given |= {"method.kind": method, "method.rank": 2, "engine.steps": 20}
    given |= {"probes": 0, "data.held_out": 0}
    found = []
    for name, more in (("one", {}), ("two", {"processes": 2, "parallel": parallel})):
        out = place / f"{method}-{parallel}-{name}"
        keys = {"out": str(out), **{f"engine.{k}": v for k, v in more.items()}}
        run = train(parse_run(given | keys, where), tell=Quiet()).folder
        found.append(load_file(run / "adapter" / "adapter_model.safetensors"))
    one, two = found
    assert one.keys() == two.keys()
    largest = max(float(v.abs().max()) for v in one.values())
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-4 * largest
    # AdaLoRA's entries that were set to 0 are the same.
    assert all(bool(((one[k] == 0) == (two[k] == 0)).all()) for k in one if "lora_E" in k)


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(one) for one in (run / "events.jsonl").read_text().splitlines()]
    return {one["step"]: one["loss"] for one in lines if one["event"] == "step"}


def cut_back(run: Path, to: Path) -> Path:
    """A copy of a finished run as it was after step 4."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "model")
    shutil.rmtree(to / "checkpoints" / "step-000006")
    summary = json.loads((to / "summary.json").read_text())
    (to / "summary.json").write_text(json.dumps(summary | {"status": "stopped"}))
    return to


def test_four_processes_in_shares_leave_what_one_leaves(place: Path) -> None:
    alone, four = start(place, "alone"), start(place, "four", processes=4, parallel="fsdp")
    assert gap(alone, four) < 1e-4
    for step, loss in losses(alone).items():
        assert losses(four)[step] == pytest.approx(loss, rel=1e-4)
    summary = json.loads((four / "summary.json").read_text())
    assert (summary["processes"], summary["parallel"], summary["status"]) == (4, "fsdp", "done")
    assert len(summary["ranks"]) == 4
    found = checkpoint.load_latest(four / "checkpoints")
    assert found is not None and found.in_shards
    assert not list(four.rglob("*.metadata"))  # nothing is pickled

    for processes in (1, 2):
        again = cut_back(four, place / f"again-{processes}")
        words = [f"engine.processes={processes}"]
        words += ["engine.parallel=fsdp"] if processes > 1 else []
        resume_run(again, tell=Quiet(), words=words)
        assert gap(alone, again) < 1e-4
        for step, loss in losses(alone).items():
            assert losses(again)[step] == pytest.approx(loss, rel=1e-4)
