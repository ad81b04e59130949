"""The loop: the best weights come back, and a run that only gets worse stops early."""

from __future__ import annotations

import json
from pathlib import Path

from helpers import story


def test_early_stop_ends_the_run_and_returns_to_the_best_weights(tmp_path: Path) -> None:
    model = story.model_folder(tmp_path / "model")
    data = story.rows_file(tmp_path / "rows.json", 24)
    result = story.tunewright(
        *story.words(model, data, tmp_path / "run", "data.held_out=8", "engine.epochs=60", "engine.evaluate_every=2", "engine.early_stop=2", "engine.learning_rate=0.05", "engine.warmup=0"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    events = [
        json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    ]
    losses = {
        e["step"]: e["held_out_loss"]
        for e in events
        if e["event"] == "evaluation" and e["step"] > 0
    }
    assert summary["stopped_early"] and summary["steps"] < summary["total_steps"]
    assert summary["best_loss"] == min(losses.values()) == summary["held_out_loss"]
    assert any(e["event"] == "returned_to_best" for e in events)
