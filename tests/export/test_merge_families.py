"""Merged folders of five more families are what PEFT's adapter on its base computes, for whoever
opens them with plain Transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import exported
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tunewright.core.telling import Quiet
from tunewright.export import merge
from tunewright.models.load import stock_attention

FAMILIES = ("gemma2", "gemma3_text", "mistral", "phi3", "qwen3")
IDS = torch.tensor([[5, 17, 200, 9, 33, 120, 64, 7, 250, 11, 300, 2] * 2])
"""Longer than the sliding windows of the Gemma shapes."""


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits[0].float()
    return found


def plain(folder: Path) -> torch.nn.Module:
    """Whatever is in the folder, computed in float32."""
    found: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found.set_attn_implementation(stock_attention(found))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_folder_is_the_adapter_on_its_base(tmp_path: Path, family: str) -> None:
    base = exported.folder_of(tmp_path / "base", family)
    run = exported.run_of(tmp_path / "run", base)
    expected = logits(PeftModel.from_pretrained(plain(base), str(run / "adapter")))
    largest = expected.abs().max()
    assert (logits(plain(base)) - expected).abs().max() > 0.05 * largest
    for dtype, bound in (("float32", 1e-4), ("bfloat16", 0.03)):
        out = tmp_path / dtype
        verdict = merge.merge_run(run, out, dtype=dtype, tell=Quiet())
        stored = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
        assert str(stored.dtype) == f"torch.{dtype}"
        said = logits(plain(out))
        # In bfloat16 each weight is off by up to 1/256 of itself, either way.
        assert (said - expected).abs().max() <= bound * largest
        agreeing = (said.argmax(-1) == expected.argmax(-1)).float().mean()
        assert agreeing == 1 if dtype == "float32" else agreeing >= 0.9
        assert verdict["verdict"] == ("equal" if dtype == "float32" else "agrees"), verdict
