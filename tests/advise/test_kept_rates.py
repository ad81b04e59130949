"""Rates that a command measured serve the next one that computes nothing itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunewright.advise import speed
from tunewright.models.shape import ModelShape

WORLD = SimpleNamespace(device="cpu", dtype="float32", threads=1)
RATES = speed.Rates(1e11, 2e10, 1e-6, 1e-5)


@pytest.fixture
def shape() -> ModelShape:
    return ModelShape.from_config(
        {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 100,
        }
    )


@pytest.fixture(autouse=True)
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every measurement that was made, in place of its 0.15 s."""
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path))
    made: list[str] = []
    monkeypatch.setattr(speed, "measured_rate", lambda *_, **__: made.append("rate") or RATES.flops)
    monkeypatch.setattr(speed, "measured_reading", lambda _: RATES.bytes)
    monkeypatch.setattr(
        speed, "measured_fixed", lambda **_: (RATES.operation_seconds, RATES.compile_seconds)
    )
    return made


def test_a_rate_is_measured_once(shape: ModelShape, measured: list[str]) -> None:
    assert speed.kept_rates(shape, WORLD) == RATES
    assert speed.kept_rates(shape, WORLD) == RATES
    assert measured == ["rate"]
    speed.measured_rates(shape, WORLD)  # who computes measures anew
    assert measured == ["rate"] * 2


@pytest.mark.parametrize("other", [{"dtype": "bfloat16"}, {"threads": 2}, {"device": "mps"}])
def test_it_holds_for_what_it_was_measured_with(
    shape: ModelShape, measured: list[str], other: dict[str, object]
) -> None:
    speed.kept_rates(shape, WORLD)
    speed.kept_rates(shape, SimpleNamespace(**{**vars(WORLD), **other}))
    assert len(measured) == 2


def test_it_grows_old(
    shape: ModelShape, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speed.kept_rates(shape, WORLD)
    now = speed.time.time()
    later = SimpleNamespace(time=lambda: now + 3600 * speed.MOST_HOURS + 1)
    monkeypatch.setattr(speed, "time", later)
    speed.kept_rates(shape, WORLD)
    assert len(measured) == 2


def test_nothing_heavy_is_loaded_for_names_and_rates() -> None:
    code = (
        "import sys, tunewright.engine.naming, tunewright.run.prepare, tunewright.commands.planning;"
        "print([n for n in ('torch', 'transformers', 'peft') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
