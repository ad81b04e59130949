"""A model that adds with written steps is tuned on bare answers of another task: tuned plainly it
loses the steps, tuned on thoughts of its own it keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import adding, families

import tunewright
from tunewright.commands.thoughts.made import How
from tunewright.commands.thoughts.think import think
from tunewright.core.telling import Quiet

HELD = 60
PLAIN = families.CHATML_TURNS
"""A template that knows of no thoughts: bare answers are learnt where thoughts would begin."""


@pytest.fixture(scope="module")
def adder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adding.taught(tmp_path_factory.mktemp("adder") / "model", HELD)


def bare_rows(place: Path, count: int = 160) -> Path:
    """Answers alone of the other task, on pairs that were never taught nor asked."""
    rows = [adding.larger(a, b) for a, b in adding.pairs(seed=5)[:count]]
    lines = [json.dumps({"question": q, "answer": answer}) for q, _, answer in rows]
    place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


def tuned(model: Path, rows: Path, out: Path) -> Path:
    run = tunewright.train(
        model=str(model),
        data={"train": str(rows), "held_out": 0},
        method={"kind": "full"},
        engine={
            "steps": 80, "batch_size": 16, "learning_rate": 2e-4, "dtype": "float32", "threads": 1,
        },
        probes=0,
        forgetting="off",
        out=str(out),
        tell=Quiet(),
    )  # fmt: skip
    return run.folder / "model"


@pytest.mark.thorough
def test_plain_tuning_loses_the_steps_and_thoughts_of_its_own_keep_them(
    adder: Path, tmp_path: Path
) -> None:
    held, rows = adding.pairs()[:HELD], bare_rows(tmp_path / "rows.jsonl")
    before = adding.right_steps(adder, held)
    assert before >= 0.9, before
    # As a tool does that gives every model the same plain template.
    words = adding.tokenizer()
    words.chat_template = PLAIN
    plain_model = tmp_path / "plain_model"
    plain_model.mkdir()
    for file in adder.iterdir():
        (plain_model / file.name).write_bytes(file.read_bytes())
    (plain_model / "chat_template.jinja").unlink(missing_ok=True)
    words.save_pretrained(str(plain_model))
    plain = tuned(plain_model, rows, tmp_path / "plain")
    adding.tokenizer().save_pretrained(str(plain))  # asked as before
    lost = adding.right_steps(plain, held)
    out = tmp_path / "thought.jsonl"
    how = How(draws=4, max_new_tokens=48)
    made = think(str(adder), str(rows), out, how, dtype="float32", tell=Quiet())
    assert made.sources["drawn"] >= 120, made
    kept = adding.right_steps(tuned(adder, out, tmp_path / "kept"), held)
    switched = adding.right_steps(tuned(adder, rows, tmp_path / "switched"), held)
    print(json.dumps({"before": before, "plain": lost, "auto": switched, "data think": kept}))
    assert lost <= 0.1 and kept >= 0.9, (lost, kept, switched)
