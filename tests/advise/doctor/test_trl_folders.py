"""Folders that TRL's own trainer leaves: `doctor` says of each what is wrong with it, and nothing of
one that learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import plain, story

from tunewright.commands.doctor import diagnose
from tunewright.core.telling import Quiet

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trl")
    story.model_folder(folder / "base", max_position_embeddings=128)
    plain.write(folder / "rows.json", plain.rows())
    return folder


def by_trl(
    base: Path,
    out: Path,
    given: list[dict[str, str]] | None = None,
    *,
    lora: bool = False,
    masked: bool = False,
    **how: Any,
) -> Path:
    """A training of a tiny model by SFTTrainer on rows of prompt and completion. `masked`: nothing
    of any row is learnt."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    rows: list[dict[str, Any]] = [
        {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
        for row in given or plain.rows()
    ]
    if masked:
        # TRL drops such rows where it prepares the data; who prepares it meets them.
        how["dataset_kwargs"] = {"skip_prepare_dataset": True}
        ids, attention, _ = plain.batch(tokenizer, plain.rows())
        rows = [
            {"input_ids": one[: int(there.sum())].tolist(), "labels": [-100] * int(there.sum())}
            for one, there in zip(ids, attention, strict=True)
        ]
    settings: dict[str, Any] = {
        "max_steps": 150,
        "learning_rate": 4e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 12,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
        **how,
    }
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=trl.SFTConfig(output_dir=str(out), **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if lora else None,
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return out


def found(
    place: Path, target: Path, base: Path | None = None, rows: str = "rows.json"
) -> list[str]:
    examination = diagnose(
        str(target),
        model=str(base or place / "base"),
        data=str(place / rows),
        tell=Quiet(),
        device="cpu",
        threads=1,
    )
    return [finding.code for finding in examination.findings]


def fall(folder: Path) -> float:
    """The last loss as a share of the first."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = [one["loss"] for one in log if "loss" in one]
    return float(losses[-1] / losses[0])


def test_nothing_is_said_of_trainings_that_learnt(place: Path) -> None:
    """Of a whole model, and of an adapter on it for other rows."""
    good = by_trl(place / "base", place / "good")
    assert fall(good) < 0.3 and found(place, good) == []
    others = plain.rows(32)[16:]
    plain.write(place / "others.json", others)
    how = {"lora": True, "learning_rate": 1.5e-2, "max_steps": 120}
    adapter = by_trl(good, place / "adapter", others, **how)
    assert fall(adapter) < 0.3 and found(place, adapter, good, "others.json") == []


def test_labels_that_are_all_masked(place: Path) -> None:
    folder = by_trl(place / "base", place / "masked", masked=True, max_steps=20)
    assert found(place, folder)[0] == "labels_all_masked"


@pytest.mark.parametrize(("lora", "code"), [(False, "weights_unchanged"), (True, "adapter_zero")])
def test_a_rate_of_zero(place: Path, lora: bool, code: str) -> None:
    out = place / f"still_{lora}"
    folder = by_trl(place / "base", out, lora=lora, learning_rate=0.0, max_steps=30)
    assert found(place, folder)[0] == code
