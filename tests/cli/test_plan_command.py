"""`tunewright plan` as a person runs it: what it says, what it refuses, and that a run agrees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import story

LLAMA_70B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "max_position_embeddings": 131072,
}  # fmt: skip
GiB = 2**30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    story.model_folder(folder / "model", num_hidden_layers=8)
    story.rows_file(folder / "rows.json", 24)
    (folder / "70b").mkdir()
    (folder / "70b" / "config.json").write_text(json.dumps(LLAMA_70B))
    (folder / "run.yaml").write_text(
        f"model: {folder / 'model'}\ndata: {{train: {folder / 'rows.json'}, held_out: 4}}\n"
        f"method: {{kind: lora}}\nout: {folder / 'run'}\nprobes: 2\n"
        "engine: {dtype: float32, threads: 1, batch_size: 4, epochs: 2}\n"
    )
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))


def planned(*words: str) -> dict[str, Any]:
    done = story.tunewright("plan", *words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_run_that_fits_is_planned_in_full(place: Path) -> None:
    run = str(place / "run.yaml")
    done = story.tunewright("plan", run, "--price", "0.3", "--watts", "200")
    assert done.returncode == 0, done.stderr
    for part in ("memory: about", "it fits", "time: about", "whole command", "tokens:", "disk:", "kWh", "price", "measured here"):  # fmt: skip
        assert part in done.stdout, part
    found = planned(run, "--price", "0.3", "--watts", "200")
    assert found["fits"] and found["problems"] == [] and found["tried_blocks"] >= 4
    assert sum(found["parts"].values()) == found["peak_memory_bytes"]
    assert found["wall_seconds"] > found["train_seconds"] > 0
    assert set(found["seconds"]) == {"load", "ask", "train", "evaluate", "checkpoint"}
    kwh = 0.2 * found["wall_seconds"] / 3600
    assert found["electricity"]["kwh"] == pytest.approx(kwh)
    assert found["electricity"]["cost"] == pytest.approx(0.3 * kwh)
    assert not (place / "run").exists()  # nothing is written


def test_the_plan_counts_the_tokens_and_the_disk_that_the_run_takes(place: Path) -> None:
    run = str(place / "run.yaml")
    found = planned(run)
    done = story.tunewright("train", run, f"out={place / 'counted'}", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["steps"] == found["steps"]
    assert found["tokens"]["computed"] == pytest.approx(summary["physical_rows"], rel=0.05)
    assert found["tokens"]["learnt"] == pytest.approx(summary["label_tokens"], rel=0.05)
    assert summary["trainable_parameters"] == found["trainable_parameters"]
    kept = sorted((place / "counted" / "checkpoints").glob("step-*"))
    size = sum(p.stat().st_size for p in kept[-1].glob("*.safetensors"))
    assert found["checkpoints"]["bytes"] == pytest.approx(size, rel=0.1)
    # The estimate stands beside what was measured, and it is the plan's.
    assert set(summary["estimated_seconds"]) == set(found["seconds"])
    assert summary["estimated_peak_memory_bytes"] > 0
    assert "estimated before the start" in done.stderr


def test_the_second_plan_knows_what_the_first_run_took(place: Path) -> None:
    run = str(place / "run.yaml")
    first = planned(run)
    assert first["learnt_from_runs"] == 0
    done = story.tunewright("train", run, f"out={place / 'learnt'}", "--json")
    summary = json.loads(done.stdout)
    second = planned(run)
    assert second["learnt_from_runs"] == 1
    gap = [abs(p["peak_memory_bytes"] / summary["peak_memory_bytes"] - 1) for p in (first, second)]
    assert gap[1] <= gap[0] + 0.02


def test_a_dry_run_gives_the_same_estimate(place: Path) -> None:
    run = str(place / "run.yaml")
    found = planned(run)
    done = story.tunewright("train", run, "--dry-run", "--json")
    dry = json.loads(done.stdout)
    if found["tried_blocks"] == dry["tried_blocks"]:  # nothing else held the machine
        assert dry["parts"] == found["parts"] and dry["peak_memory_bytes"] == found["peak_memory_bytes"]  # fmt: skip
        assert dry["train_seconds"] == pytest.approx(found["train_seconds"], rel=0.01)
    assert dry["steps"] == found["steps"]


def test_a_70b_full_fine_tune_is_refused_without_torch_with_what_would_fit(place: Path) -> None:
    """In a process of its own, which never imports what takes seconds."""
    program = "import sys; from tunewright.cli import main; sys.argv = sys.argv[1:]\ntry: main()\nfinally: sys.stderr.write(f'torch {\"torch\" in sys.modules}')"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, "tunewright", "plan", f"model={place / '70b'}", f"data.train={place / 'rows.json'}", "method.kind=full"],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 2 and "E-FIT-01" in done.stderr
    assert (
        "does not fit" in done.stdout
        and "with every saving" in done.stdout
        and "a model of up to" in done.stderr
    )
    assert "torch False" in done.stderr


def test_70b_in_4_bits_on_48_gb(place: Path) -> None:
    words = [f"model={place / '70b'}", "--tokens", "256", "--rows", "1000", "base.bits=4", "base.block=64"]  # fmt: skip
    found = planned(
        *words, "--device", "A6000", "--memory", "48GB", "engine.rows_per_pass=256",
        "method.targets=[attention.query,attention.value]",
    )  # fmt: skip
    assert found["fits"] and found["available_memory_bytes"] == 48 * GiB
    assert 36 * GiB < found["parts"]["weights"] < 42 * GiB
    assert found["train_seconds"] and found["device_name"] == "RTX A6000"
    # With every matrix learning it fits where blocks are computed again, which is found by itself.
    every = planned(*words, "--device", "A6000")
    assert every["fits"] and every["needed_memory_bytes"] <= 48 * GiB
    kept = story.tunewright(
        "plan",
        *words,
        "--device",
        "A6000",
        "--json",
        "engine.recompute=none",
        "engine.offload=none",
    )
    ways = json.loads(kept.stdout)["ways"]
    assert ways and all(way["needed_memory_bytes"] <= 48 * GiB for way in ways)


def test_a_full_7b_says_what_it_needs_and_where_it_fits() -> None:
    done = story.tunewright(
        "plan", "--size", "7B", "method.kind=full", "--device", "4090", "--json"
    )
    assert done.returncode == 2 and "E-FIT-01" in done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] is False and found["problems"][0]["code"] == "E-FIT-01"
    # Weights and gradients in float32; the optimiser's moments lie in the memory of the host, and
    # blocks are computed again.
    assert 50 * GiB < found["needed_memory_bytes"] < 80 * GiB
    assert {"A100 80GB", "H100 80GB", "H200"} <= set(found["fits_on"])
    kept = story.tunewright(
        "plan", "--size", "7B", "method.kind=full", "--device", "4090", "--json",
        "engine.offload=none", "engine.recompute=full",
    )  # fmt: skip
    whole = json.loads(kept.stdout)
    assert 90 * GiB < whole["needed_memory_bytes"] < 140 * GiB
    assert whole["fits_on"] == ["H200", "Apple M2 Ultra", "MI300X"]
    assert found["ways"] and all("method.kind=lora" in way["settings"] for way in found["ways"])


def test_1_8b_in_4_bits_on_4_gb() -> None:
    found = planned("--size", "1.8B", "base.bits=4", "--memory", "4GB", "--device", "RTX 3060 12GB", "engine.rows_per_pass=512")  # fmt: skip
    assert found["fits"] and found["needed_memory_bytes"] < 4 * GiB


def test_the_table_shows_every_method_and_several_sizes() -> None:
    done = story.tunewright("plan", "--table", "--memory", "24GB")
    assert done.returncode == 0, done.stderr
    assert "✗" in done.stdout and "lora + base.bits=4" in done.stdout and "galore" in done.stdout
    found = planned("--table", "--memory", "24GB")
    rows = {row["method"]: row["cells"] for row in found["rows"]}
    assert len(rows) > 30 and all(len(cells) == 8 for cells in rows.values())
    for cells in rows.values():
        sizes = [c["needed_memory_bytes"] for c in cells]
        assert sizes[0] == min(sizes) and sizes[-1] == max(sizes)
        assert all(c["fits"] == (c["needed_memory_bytes"] <= 24 * GiB) for c in cells)
    for lora, full in zip(rows["lora + base.bits=4"], rows["full"], strict=True):
        assert lora["needed_memory_bytes"] < full["needed_memory_bytes"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--device", "RTX 9999", "--size", "7B"], "E-FIT-03"),
        (["--memory", "lots", "--size", "7B"], "E-FIT-04"),
        (["--size", "huge"], "E-FIT-06"),
        (["--size", "0B"], "E-FIT-06"),
        (["--size", "7B", "method.kind=lorra"], "E-CONFIG"),
        (["--size", "7B", "engine.batch_size=0"], "E-CONFIG"),
        (["nowhere.yaml"], "E-"),
        (["model=/nowhere", "data.train=/nowhere.json"], "E-"),
        (["--size", "7B", "--rows", "0"], "rows"),
        (["--size", "7B", "--watts", "-1"], "watts"),
    ],
)
def test_wrong_input_is_refused_with_its_reason(words: list[str], code: str) -> None:
    done = story.tunewright("plan", *words)
    assert done.returncode == 2 and code in done.stderr, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr


def test_a_folder_and_a_pipeline_are_told_apart_from_a_run_file(tmp_path: Path) -> None:
    done = story.tunewright("plan", str(tmp_path))
    assert done.returncode == 2 and "E-RUN-09" in done.stderr
    file = tmp_path / "pipeline.yaml"
    file.write_text("stages:\n  one: {model: a, data: b}\n  two: {model: one, data: c}\n")
    done = story.tunewright("plan", str(file))
    assert done.returncode == 2 and "E-FIT-05" in done.stderr


def test_it_speaks_chinese(place: Path) -> None:
    done = story.tunewright("plan", "--size", "7B", "method.kind=full", "--device", "4090", TUNEWRIGHT_LANG="zh")  # fmt: skip
    assert (
        done.returncode == 2 and "放不下" in done.stdout and "不改设置就放得下的设备" in done.stdout
    )
