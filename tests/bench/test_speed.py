"""`bench` measures what `train` does: the same parts, made ready by the same function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import building, causal, story

from tunewright.bench.speed import bench
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.engine import opening
from tunewright.story import train


def given(place: Path, **more: Any) -> dict[str, Any]:
    rows = story.rows_file(place / "rows.json", 12)
    model = story.model_folder(place / "model", num_hidden_layers=4)
    keys = {
        "model": str(model),
        "data.train": str(rows),
        "data.held_out": 0,
        "probes": 0,
        "engine.dtype": "float32",
        "engine.threads": 1,
    }
    return keys | {
        "engine.batch_size": 4,
        "engine.epochs": 3,
        "method.kind": "freeze",
        "method.blocks": 1,
        "out": str(place / "run"),
        **more,
    }


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_bench_keeps_activations_where_training_does(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    to_train = opening.to_train
    monkeypatch.setattr(
        opening,
        "to_train",
        lambda *words, **named: made.append(to_train(*words, **named)) or made[-1],
    )
    parsed = parse_run({**given(tmp_path), "engine.activation_cache": cache}, {})
    figures = bench(parsed, steps=2, certificate=False, tell=Quiet())
    train(parsed, tell=Quiet())
    ours, theirs = made
    assert ours.cache != "off" if cache == "auto" else ours.cache == "off"
    assert (ours.cache == "off") == (theirs.cache == "off") and figures[
        "activation_cache"
    ] == ours.cache
    assert (ours.rate, ours.layout, ours.schedule) == (theirs.rate, theirs.layout, theirs.schedule)
    if cache == "off":
        assert "seconds_per_step_cached" not in figures
        return
    # Every row was looked at twice, and the second time nothing below the trained block was
    # computed.
    first, again = (sum(figures[key]) for key in ("seconds_per_step", "seconds_per_step_cached"))
    assert ours.stepper.policy.cache.hits >= 8 and ours.stepper.policy.cache.misses <= 8
    assert figures["train_seconds"] == pytest.approx(first / 3 + again * 2 / 3, abs=0.01)
    assert figures["samples_per_second"] == pytest.approx(8 / figures["train_seconds"], rel=0.05)


@pytest.mark.parametrize("family", ["lfm2", "mamba"])
def test_the_certificate_is_of_the_layout_in_which_the_run_learns(
    family: str, tmp_path: Path
) -> None:
    """Branches cannot share the state of a convolution or a recurrence: such a model is trained
    one sample a row, and certified so."""
    causal.model_of(family, vocab_size=320).save_pretrained(tmp_path / family)
    building.make_tokenizer().save_pretrained(tmp_path / family)
    more = {"model": str(tmp_path / family), "method.kind": "lora"}
    keys = {key: value for key, value in given(tmp_path).items() if key != "method.blocks"} | more
    found = bench(parse_run(keys, dict.fromkeys(keys, "test")), steps=1, tell=Quiet())
    assert found["layout"] == "padded" and found["certificate"]["passed"], found
