"""What a run promises at its edges: what is saved answers as what was trained, a loss that is no
number changes nothing, and a run that changed nothing is no success."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story
from safetensors.torch import load_file, save_file

from tunewright.core.errors import TrainingError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.story import train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json")
    return folder


@pytest.fixture(scope="module")
def broken(place: Path) -> Path:
    """The same model where one token of every answer has an embedding that is not a number. It is
    none of those with which a layout is tried, so that the run starts."""
    from transformers import AutoTokenizer

    from tunewright.engine.layout import probe_samples

    folder = story.model_folder(place / "broken", tie_word_embeddings=False)
    tried = {token for s in probe_samples(320) for b in s.branches for token in b.tokens}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((place / "rows.json").read_text(encoding="utf-8"))
    answers = [set(tokenizer(row["output"], add_special_tokens=False)["input_ids"]) for row in rows]
    token = min(set.intersection(*answers) - tried)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def run(model: Path, place: Path, out: Path, **engine: Any) -> Path:
    keys: dict[str, Any] = {
        "model": str(model),
        "data.train": str(place / "rows.json"),
        "data.held_out": 0,
        "out": str(out),
        "probes": 1,
        "forgetting": "off",
        "engine.dtype": "float32",
        "engine.threads": 1,
        "engine.batch_size": 4,
        **{f"engine.{name}": value for name, value in engine.items()},
    }
    return train(parse_run(keys, {}), tell=Quiet()).folder


def failure(model: Path, place: Path, out: Path, **engine: Any) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        run(model, place, out, **engine)
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["status"] == "failed"
    assert not (out / "adapter").exists(), "nothing that failed looks finished"
    return caught.value


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = (out / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_the_saved_files_answer_as_the_trained_model_did(place: Path, tmp_path: Path) -> None:
    out = run(place / "model", place, tmp_path / "run", steps=6, learning_rate=1e-2)
    (reloaded,) = events(out, "reloaded")
    assert reloaded["largest_logit_difference"] <= 1e-3


def test_saved_files_that_answer_otherwise_end_the_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library writes one tensor wrong; nobody would see it in the losses."""
    from peft import PeftModel

    real = PeftModel.save_pretrained

    def save(self: Any, folder: str, *args: Any, **kwargs: Any) -> None:
        real(self, folder, *args, **kwargs)
        file = Path(folder) / "adapter_model.safetensors"
        weights = load_file(file)
        name = next(n for n in weights if "lora_B" in n and "down_proj" in n)
        save_file({**weights, name: weights[name] * 3 + 0.5}, file, metadata={"format": "pt"})

    monkeypatch.setattr(PeftModel, "save_pretrained", save)
    with pytest.raises(TrainingError) as caught:
        run(place / "model", place, tmp_path / "run", steps=3)
    assert [p.code for p in caught.value.problems] == ["E-TRAIN-04"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["steps"]) == ("failed", 3)
    (reloaded,) = events(tmp_path / "run", "reloaded")
    assert reloaded["largest_logit_difference"] > 1e-3


def test_the_third_step_in_a_row_that_is_no_number_ends_the_run(
    place: Path, broken: Path, tmp_path: Path
) -> None:
    error = failure(broken, place, tmp_path / "run", steps=8)
    (found,) = error.problems
    assert found.code == "E-TRAIN-01" and "3 steps in a row" in str(error)
    steps = events(tmp_path / "run", "step")
    assert [(one["step"], one["applied"]) for one in steps] == [(1, False), (2, False), (3, False)]
    assert all(one["loss"] == "NaN" for one in steps)


def test_a_run_all_of_whose_steps_were_skipped_is_a_failure(
    place: Path, broken: Path, tmp_path: Path
) -> None:
    error = failure(broken, place, tmp_path / "run", steps=2)
    assert [p.code for p in error.problems] == ["E-TRAIN-03"]


def test_out_of_memory_names_the_keys_that_help_and_leaves_what_was_reached(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = torch.optim.AdamW.step, [0]

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise torch.OutOfMemoryError("out of memory: planted")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    error = failure(place / "model", place, tmp_path / "run", steps=6, save_every=1)
    (found,) = error.problems
    assert found.code == "E-TRAIN-02"
    assert "engine.rows_per_pass" in str(error) and "data.max_tokens" in str(error)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 2


def test_save_every_epoch_saves_at_the_end_of_each_epoch(place: Path, tmp_path: Path) -> None:
    """12 rows, 4 a step: three steps are an epoch."""
    out = run(place / "model", place, tmp_path / "run", epochs=3, save_every="epoch")
    assert [event["step"] for event in events(out, "checkpoint")] == [3, 6, 9]
