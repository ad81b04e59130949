"""Whole runs on checkpoints that are quantised already: planned, trained, saved, asked, merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import packing, story

from tunewright.advise import fit
from tunewright.core.config import BaseConfig
from tunewright.models import load


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`few` (GPTQ, 4 bits) and `few-wide`, the same numbers as plain weights; rows."""
    at = tmp_path_factory.mktemp("few")
    packing.checkpoint(
        story.model_folder(at / "plain", intermediate_size=128), at / "few", "gptq", size=32
    )
    story.rows_file(at / "rows.json")
    return at


def trained(place: Path, model: str, out: Path, *more: str) -> dict[str, Any]:
    done = story.tunewright(
        *story.words(place / model, place / "rows.json", out, "engine.epochs=2", *more)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads((out / "summary.json").read_text("utf-8"))
    return found | {"said": done.stderr + done.stdout}


def losses(out: Path) -> list[float]:
    events = [json.loads(line) for line in (out / "events.jsonl").read_text("utf-8").splitlines()]
    return [e["loss"] for e in events if "loss" in e]


@pytest.mark.slow
def test_a_run_on_stored_bits_learns_what_a_run_on_their_numbers_learns(
    place: Path, tmp_path: Path
) -> None:
    few = trained(place, "few", tmp_path / "a")
    again = trained(place, "few", tmp_path / "b", "base.dequantise=true")
    plain = trained(place, "few-wide", tmp_path / "c")
    assert "gptq (4 bits)" in few["said"] and "gptq" in again["said"]
    assert few["trainable_parameters"] == plain["trainable_parameters"]
    assert few["total_parameters"] == plain["total_parameters"]
    for other in ("b", "c"):
        assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / other), rel=1e-4)
    done = story.tunewright(
        "evaluate", str(tmp_path / "a"), "--data", str(place / "rows.json"), "--json"
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_gguf_file_is_written_from_stored_bits_and_proven(place: Path, tmp_path: Path) -> None:
    trained(place, "few", tmp_path / "run", "engine.learning_rate=0.02")
    out = tmp_path / "out.gguf"
    done = story.tunewright("export", "gguf", str(tmp_path / "run"), str(out), "--type", "f16")
    assert done.returncode == 0, done.stderr[-2000:]
    proof = json.loads(out.with_suffix(".proof.json").read_text("utf-8"))
    assert proof["verdict"] == "agrees"


@pytest.mark.slow
def test_a_merge_writes_plain_weights_and_says_so(place: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    trained(place, "few", tmp_path / "run", "engine.learning_rate=0.02")
    done = story.tunewright("export", "merge", str(tmp_path / "run"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "gptq" in done.stderr + done.stdout
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    from peft import PeftModel

    base = load.load_model(place / "few-wide", dtype="float32")
    tuned = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        gap = (merged(input_ids=ids).logits - tuned(input_ids=ids).logits).abs().max()
        moved = (load.load_model(place / "few-wide", dtype="float32")(ids).logits
                 - merged(ids).logits).abs().max()  # fmt: skip
    assert float(gap) < 0.05 < float(moved)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["base.bits=4"], "E-MODEL-93"),
        (["method.kind=full"], "E-MODEL-92"),
        (["method.kind=bitfit"], "E-MODEL-92"),
    ],
)
def test_what_does_not_go_with_stored_bits_is_refused_before_anything_is_loaded(
    place: Path, tmp_path: Path, more: list[str], code: str
) -> None:
    words = story.words(place / "few", place / "rows.json", tmp_path / "run", *more)
    done = story.tunewright(*words)
    assert done.returncode != 0 and code in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_estimate_counts_stored_bits_and_wide_weights_as_they_are(place: Path) -> None:
    shape = fit.shape_of(place / "few")
    assert shape.parameters == fit.shape_of(place / "plain").parameters
    # 4 bits, and for 32 of them 16 bits of scale and 4 of zero point; an input's group, 32 bits.
    assert 4.6 < shape.stored_bits < 5.2
    assert fit.bits_held(BaseConfig(), shape) == shape.stored_bits
    assert fit.bits_held(BaseConfig(dequantise=True), shape) is None
    assert fit.bits_held(BaseConfig(bits=8, dequantise=True), shape) == 8.0
    assert fit.bits_held(BaseConfig(), fit.shape_of(place / "plain")) is None


@pytest.mark.slow
def test_a_dry_run_needs_less_memory_for_stored_bits(place: Path, tmp_path: Path) -> None:
    found = []
    for model, more in (("few", []), ("few", ["base.dequantise=true"])):
        words = story.words(place / model, place / "rows.json", tmp_path / "run", *more)
        done = story.tunewright(*words, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout))
    weights = [
        one["parts"]["weights"] if "parts" in one else one["memory"]["weights"] for one in found
    ]
    assert weights[0] < weights[1]
