"""Questions that are asked while a run learns change nothing of what it learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import story

from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.story import train


@pytest.mark.wide("0.3")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_answers_are_written_and_the_weights_stay_the_same_bytes(
    tmp_path: Path, dropout: float
) -> None:
    model = story.model_folder(tmp_path / "model")
    rows = tmp_path / "rows.json"
    rows.write_text(
        json.dumps(
            [{"instruction": f"what is {i}", "output": f"the small model {i}"} for i in range(12)]
        )
    )
    weights = []
    for count in (0, 2):
        keys = {
            "model": str(model),
            "data.train": str(rows),
            "data.held_out": 2,
            "method.kind": "lora",
            "method.dropout": dropout,
            "engine.steps": 6,
            "engine.evaluate_every": 2,
            "engine.show_answers": count,
            "engine.dtype": "float32",
            "probes": ["what is 3", "who learns", "where"],
            "forgetting": "off",
            "out": str(tmp_path / f"run-{count}"),
        }
        done = train(parse_run(keys, {}), tell=Quiet())
        weights.append((done.folder / "adapter" / "adapter_model.safetensors").read_bytes())
        events = [
            json.loads(line)
            for line in (done.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        told = [event for event in events if event["event"] == "answers"]
        assert [event["step"] for event in told] == ([2, 4] if count else [])
        for event in told:
            assert [one["question"] for one in event["answers"]] == ["what is 3", "who learns"]
            assert all(isinstance(one["answer"], str) for one in event["answers"])
    assert weights[0] == weights[1]
