"""Whole runs that make room in memory: the same adapter, said and written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import story

from tunewright.engine import offload
from tunewright.engine.policy import Policy


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json", 12)
    return folder


def run(place: Path, out: Path, *more: str) -> Any:
    words = story.words(place / "model", place / "rows.json", out, "engine.steps=4", *more)
    done = story.tunewright(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def plain(place: Path) -> str:
    run(place, place / "plain")
    return story.digest(place / "plain" / "adapter" / "adapter_model.safetensors")


def engine_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((out / "run.yaml").read_text())["engine"]
    return found


def test_with_everything_elsewhere_the_adapter_is_the_same_to_the_bit(
    place: Path, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "SMALLEST", 1)
    out = tmp_path / "run"
    run(place, out, "engine.offload=all", "engine.recompute=full")
    assert story.digest(out / "adapter" / "adapter_model.safetensors") == plain
    assert engine_of(out)["offload"] == "all" and engine_of(out)["recompute"] == "full"
    # The same from a checkpoint of it, with everything kept.
    assert engine_of(place / "plain")["offload"] == "none"


def test_a_run_that_is_stopped_goes_on_from_what_lay_elsewhere(
    place: Path, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "SMALLEST", 1)
    out, real, calls = tmp_path / "run", torch.optim.AdamW.step, [0]

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    words = story.words(
        place / "model", place / "rows.json", out, "engine.steps=4", "engine.offload=optimizer",
        "engine.save_every=1",
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        story.tunewright(*words)
    done = story.tunewright("train", str(out), "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert story.digest(out / "adapter" / "adapter_model.safetensors") == plain


def test_memory_that_runs_out_is_said_once_and_the_run_ends_well(
    place: Path, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, out = Policy.forward, tmp_path / "run"

    def forward(self: Policy, samples: Any, noise: Any = None) -> Any:
        found = real(self, samples, noise)
        if torch.is_grad_enabled() and self.recompute == "none":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return found

    monkeypatch.setattr(Policy, "forward", forward)
    done = run(place, out)
    said = done.stdout + done.stderr
    assert said.count("engine.recompute=selective") == 1 and "out of memory" in said
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("done", 4)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    warnings = [e for e in events if e["event"] == "warning"]
    assert all(e["step"] == 1 for e in warnings)
    assert warnings[-1]["level"] == "selective"
    steps = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in steps] == [1, 2, 3, 4] and all(e["applied"] for e in steps)


@pytest.mark.parametrize("value", ["optimizer", "all"])
def test_a_method_with_an_update_rule_of_its_own_keeps_its_state(
    place: Path, tmp_path: Path, value: str
) -> None:
    words = story.words(
        place / "model", place / "rows.json", tmp_path / "run", f"engine.offload={value}",
        "method.kind=galore",
    )  # fmt: skip
    done = story.tunewright(*words)
    assert done.returncode != 0 and "E-COMPAT-12" in done.stdout + done.stderr
