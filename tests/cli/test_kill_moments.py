"""`kill -9` at the moments that matter: loading, tokenising, before the first checkpoint, inside a
save, at the very end."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from helpers import forks, story

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

STEPS, SAVE_EVERY = 15, 2
SETTINGS = ["engine.epochs=5", f"engine.save_every={SAVE_EVERY}"]
BEFORE_THE_FOLDER = [
    ["tunewright.run.prepare", "inspect", 1],  # reading the rows
    ["tunewright.run.prepare", "inspect", 2],  # rendering and tokenising
    ["tunewright.text.tokenizer", "load_tokenizer", 1],
    ["tunewright.models.load", "load_model", 1],
    ["tunewright.record.folder", "create", 1],
    ["os", "replace", 1],
]
STEPPING = [
    ["tunewright.run.asking", "Asker.before", 1],
    ["tunewright.engine.step", "Stepper.step", 1],  # before the first checkpoint
    ["tunewright.models.load", "load_model", 1],  # loading, with a folder there
]
ENDING = [
    ["tunewright.engine.loop", "Loop._return_to_best", 1],
    ["tunewright.run.asking", "Asker.begun", 1],
    # The adapter's files are written, the reload is not done.
    ["tunewright.run.saved", "_logits", 1],
    ["tunewright.run.saved", "_logits", 2],
    ["tunewright.run.evidence", "finish", 1],
    ["tunewright.run.evidence", "write_json", 1],  # the summary
    ["tunewright.report.html", "write_report", 1],
]


def _plan(seed: int) -> list[list[object]]:
    """Twenty moments in the order of a run; the steps and the file operations of saves are drawn."""
    draw = random.Random(seed)
    saves: list[list[object]] = [
        [
            *draw.choice([["os", "fsync"], ["os", "rename"], ["safetensors.torch", "save_file"]]),
            draw.randint(1, 4),
        ]
        for _ in range(6)
    ]
    steps: list[list[object]] = [
        ["tunewright.engine.step", "Stepper.step", draw.randint(1, 4)] for _ in range(4)
    ]
    middle = saves + steps
    draw.shuffle(middle)
    ends = draw.sample(ENDING, 4)
    return [*draw.sample(BEFORE_THE_FOLDER, 3), *STEPPING, *middle, *sorted(ends, key=ENDING.index)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "every"),
    [
        pytest.param(0, 2, marks=pytest.mark.thorough),
        pytest.param(0, 1, marks=pytest.mark.slow),
        pytest.param(1, 1, marks=pytest.mark.thorough),
        pytest.param(2, 1, marks=pytest.mark.thorough),
    ],
)
def test_twenty_kills_later_the_run_has_the_same_bytes(
    tmp_path: Path, seed: int, every: int
) -> None:
    """With every second of them each time, with all of them in `slow`, with other draws in
    `thorough`."""
    model, data = story.model_folder(tmp_path / "model"), story.rows_file(tmp_path / "rows.json")
    golden = tmp_path / "golden"
    assert story.tunewright(*story.words(model, data, golden, *SETTINGS)).returncode == 0
    run, moments = tmp_path / "run", _plan(seed)[::every]
    attempts = forks.play(story.words(model, data, run, *SETTINGS), run, moments)
    assert len(moments) == 20 // every and len(attempts) == len(moments) + 1
    killed = [a for a in attempts if a["status"] == -9]
    # A moment may lie behind the run's end (its fourth save after three were made); most must hit,
    # and nothing may fail in another way.
    assert len(killed) >= 0.7 * len(moments), attempts
    assert {a["status"] for a in attempts} <= {-9, 0}, attempts
    assert json.loads((run / "summary.json").read_text())["status"] == "done"
    assert story.digest(run / "adapter" / "adapter_model.safetensors") == story.digest(
        golden / "adapter" / "adapter_model.safetensors"
    )
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert sum(e["event"] == "step" for e in events) <= STEPS + len(killed) * SAVE_EVERY
    assert sum(e["event"] == "resumed" for e in events) >= len(moments) / 4
