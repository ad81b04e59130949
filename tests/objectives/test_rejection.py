"""Rejection sampling: which answers are learnt, against a reference written from the paper, and
whole runs in which nothing, or the right thing, is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import thinking

import tunewright
from tunewright.core.telling import Quiet
from tunewright.core.types import Experience
from tunewright.objectives.rejection import RejectionConfig, chosen
from tunewright.rewards.reaching import is_number, reaches


def experience(reward: float, tokens: list[int], finished: bool = True) -> Experience:
    return Experience(reward, len(tokens), finished, [-1.0] * len(tokens), tokens=tokens)


GROUP = [
    experience(0.2, [1, 2]),
    experience(1.0, [3, 2]),
    experience(1.5, [4, 5, 2]),
    experience(1.0, [3, 2]),
    experience(2.0, [9, 9], finished=False),
]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [2, 1]),
        ({"most": 1}, [2]),
        ({"threshold": 0.0}, [2, 1, 0]),
        ({"threshold": 3.0}, []),
        ({"choose": "best", "threshold": 3.0}, [2]),
    ],
)
def test_answers_that_pass_are_chosen_once_and_none_that_was_cut_off(settings, wanted):
    config = RejectionConfig(reward="finished", **settings)
    found = chosen(GROUP, config)
    assert [next(i for i, e in enumerate(GROUP) if e is one) for one in found] == wanted


def test_the_best_of_equal_answers_teaches_nothing():
    config = RejectionConfig(reward="finished", choose="best")
    assert chosen([experience(1.0, [1]), experience(1.0, [2])], config) == []


@pytest.mark.parametrize(
    ("text", "expected", "mode", "right"),
    [
        ("so it is 42.", "42", "auto", True),
        ("so it is 1,042", "42", "auto", False),
        ("paris", "Paris.", "auto", True),
        ("It is Paris", "Paris", "auto", False),
        ("It is Paris", "Paris", "contains", True),
        ("The 3 wise men", "3 wise men", "auto", False),
        ("x = 7", "because 3+4\n#### 7", "auto", True),
        ("", "7", "auto", False),
        ("7 %", "$7", "auto", True),
        ("答案是 12", "１２", "auto", True),
    ],
)
def test_an_answer_reaches_the_rows_own(text, expected, mode, right):
    assert reaches(text, expected, mode) is right


@pytest.mark.parametrize(("text", "number"), [("12", True), ("12 kg", False), ("3 m", True)])
def test_what_counts_as_a_number(text, number):
    assert is_number(text) is number


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It answers "lamp 1" or "lamp 2" to each question, each about as often; it thinks before."""
    folder = thinking.base_folder(tmp_path_factory.mktemp("rejection"))
    rows = {}
    for i in range(1, 4):
        rows[f"what is {i}"] = "<think>\nhm 2\n</think>\n\nlamp 1"
        rows[f"what is  {i}"] = "<think>\nhm 2\n</think>\n\nlamp 2"
    return thinking.teach(folder, rows, steps=60)


def trained(model: Path, rows: Path, out: Path, **objective):
    return tunewright.train(
        model=str(model),
        data={"train": str(rows), "held_out": 0},
        objective={"kind": "rejection", "reward": "reaches", "max_new_tokens": 24, **objective},
        method={"kind": "full"},
        engine={"steps": 6, "batch_size": 3, "dtype": "float32", "threads": 1, "seed": 1},
        probes=1,
        forgetting="off",
        out=str(out),
        tell=Quiet(),
    )


def rows_in(place: Path, answer: str) -> Path:
    rows = [{"question": f"what is {i}", "answer": answer} for i in range(1, 4)]
    place.write_text(json.dumps(rows), encoding="utf-8")
    return place


def events(folder: Path) -> list[dict]:
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [one for one in map(json.loads, lines) if "reward" in json.dumps(one)]


def test_a_run_keeps_what_passes_and_judges_the_answer_without_its_thought(model, tmp_path):
    run = trained(model, rows_in(tmp_path / "rows.json", "lamp 1"), tmp_path / "run")
    told = json.dumps(events(run.folder))
    assert '"kept"' in told and '"prompts_kept"' in told
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["status"] == "done"


def test_where_nothing_passes_no_weight_moves(model, tmp_path):
    run = trained(model, rows_in(tmp_path / "rows.json", "2"), tmp_path / "run")
    # 2 stands in every thought, and is the whole answer of none.
    from safetensors.torch import load_file

    before, after = (
        load_file(str(place / "model.safetensors")) for place in (model, run.folder / "model")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
