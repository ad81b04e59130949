"""A tiny model in a folder, and runs whose adapter was really moved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def write_run(
    place: Path,
    base: Path,
    data: Path | None,
    *,
    spread: float = 0.05,
    targets: list[str] | None = None,
) -> Path:
    """A run folder as `train` leaves it: run.yaml and an adapter, whose B matrices got noise of
    `spread` (0: untrained)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        target_modules=targets or ["q_proj", "v_proj", "down_proj"],
    )
    wrapped = get_peft_model(model, settings)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name and spread:
                parameter.normal_(0, spread)
    wrapped.save_pretrained(str(place / "adapter"), save_embedding_layers=False)
    AutoTokenizer.from_pretrained(base).save_pretrained(str(place / "adapter"))
    train = f"  train: {data}\n" if data else "  train: gone.json\n"
    (place / "run.yaml").write_text(
        f"model: {base}\ndata:\n{train}engine:\n  dtype: float32\n", encoding="utf-8"
    )
    return place


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers.story import model_folder

    return model_folder(tmp_path_factory.mktemp("base"), initializer_range=0.1)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    from helpers.story import rows_file

    place = tmp_path_factory.mktemp("run")
    return write_run(place, base, rows_file(place / "rows.json"))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(base: Path, **settings: Any) -> Path:
        return write_run(tmp_path / "run", base, None, **settings)

    return make
