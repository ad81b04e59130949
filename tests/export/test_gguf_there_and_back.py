"""A GGUF file that we wrote is opened again as the model that it was made of, also where its settings
are not those of the family's best known size.

llama.cpp has some settings built in and reads others from keys that Transformers drops; what comes
back must compute the same numbers, whoever dropped them. The oracle is Transformers on both folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import exported
from transformers import AutoModelForCausalLM

from tunewright.core.telling import Quiet
from tunewright.export import gguf
from tunewright.sources.gguf import convert

TOKENS = [5, 17, 200, 9, 33, 120, 64, 7, 250, 11, 300, 2, 8, 41, 99, 140, 3, 77, 210, 56]
LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3 of the usual period": ("gemma3_text", {}),
    "gemma3 where every second block sees everything": (
        "gemma3_text",
        {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "gemma3 without windows": (
        "gemma3_text",
        {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
    ),
    "gemma3 with stretched positions": ("gemma3_text", {"rope_parameters": LINEAR}),
    "gemma2 with other caps": (
        "gemma2",
        {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 7.0},
    ),
    "qwen3": ("qwen3", {}),
    "phi3": ("phi3", {}),
    "mistral": ("mistral", {}),
}


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([TOKENS])).logits[0]


@pytest.mark.wide("gemma3 where every second block sees everything", rest="slow")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_written_is_read_as_the_same_model(kind: str, tmp_path: Path) -> None:
    family, changes = KINDS[kind]
    folder = exported.folder_of(tmp_path / "base", family, **changes)
    gguf.export_gguf(folder, tmp_path / "base.gguf", type="f32", tell=Quiet())
    convert(tmp_path / "base.gguf", tmp_path / "back")
    wanted, found = logits(folder), logits(tmp_path / "back")
    assert float((wanted - found).abs().max() / wanted.abs().max()) < 1e-5
