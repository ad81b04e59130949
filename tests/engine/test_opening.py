"""The one door to a model: the order is the same wherever a model is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import story, tiny

from tunewright.core.config import EngineConfig
from tunewright.core.errors import ModelError
from tunewright.core.registry import methods
from tunewright.core.telling import Quiet
from tunewright.engine import opening, placement
from tunewright.engine.loaded import put_new
from tunewright.models import anatomy


def world() -> placement.World:
    return placement.start(EngineConfig(dtype="float32", device="cpu"))


def test_a_method_that_needs_padded_rows_gets_them_wherever_it_is_opened() -> None:
    model = tiny.make_model("llama")
    entry = methods.get("mixture_of_depths")
    assert entry is not None and entry.config is not None
    attached = put_new(entry.config(), model, anatomy.of(model), "tiny")
    assert opening.Loaded(model, attached, 0).choose_layout(EngineConfig(), "float32")[0] == (
        "padded"
    )


def test_nothing_that_is_opened_from_files_trains(tmp_path: Path) -> None:
    folder = story.model_folder(tmp_path / "model")
    loaded = opening.from_files(folder, None, world())
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.vocabulary == loaded.causal.get_input_embeddings().weight.shape[0]
    policy = loaded.policy("tree", heads=("value",), temperature=2.0)
    assert (policy.heads, policy.temperature, policy.layout) == (("value",), 2.0, "tree")


def test_a_model_that_gives_words_cannot_be_opened_to_score(tmp_path: Path) -> None:
    found = opening.find(str(story.model_folder(tmp_path / "model")), Quiet())
    with pytest.raises(ModelError, match="E-OBJ-34"):
        opening.to_score(found, "tree", world())


def test_a_pass_at_a_temperature_divides_the_logits() -> None:
    model = tiny.make_model("llama")
    loaded = opening.Loaded(model, None, 0)
    with torch.no_grad():
        plain = (
            loaded.policy("tree", temperature=1.0)
            .head()
            .logits(torch.ones(1, model.config.hidden_size))
        )
        halved = (
            loaded.policy("tree", temperature=2.0)
            .head()
            .logits(torch.ones(1, model.config.hidden_size))
        )
    torch.testing.assert_close(halved * 2, plain)
