"""Checkpoints that are quantised already: every format beside slow code that follows its
description, and beside the libraries that write and read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import packing, story
from safetensors.torch import load_file, save_file

from tunewright.core.config import BaseConfig
from tunewright.core.errors import ModelError
from tunewright.models import load, stored_bits
from tunewright.models.quantised import is_quantised
from tunewright.sources import few_bits

IDS = torch.tensor(
    [[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3], [6, 6, 44, 100, 2, 1, 19, 55, 21, 60, 200]]
)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gptq": ("gptq", {}),
    "gptq in order of importance": ("gptq", {"shuffled": True}),
    "gptq of 3 bits, zero points as they are": ("gptq", {"bits": 3, "form": "gptq_v2"}),
    "gptq of 8 bits": ("gptq", {"bits": 8, "size": 32}),
    "gptq of 2 bits, one group": ("gptq", {"bits": 2, "size": 4096}),
    "awq": ("awq", {}),
    "fp8 in blocks": ("fp8", {}),
    "fp8 in blocks that are not stated": ("fp8", {"block": (16, 64)}),
    "fp8 by matrix": ("fp8", {"block": None, "name": "weight_scale"}),
    "fp8 by row": ("fp8", {"block": (1, 4096), "name": "weight_scale"}),
    "int8": ("int8", {}),
    "packed": ("packed", {}),
    "packed with zero points": ("packed", {"symmetric": False}),
    "packed in 3 bits": ("packed", {"bits": 3}),
    "nf4": ("bnb4", {}),
    "fp4, plain scales": ("bnb4", {"kind": "fp4", "nested": False}),
    "LLM.int8": ("bnb8", {}),
}


def plain_folder(place: Path, **changes: Any) -> Path:
    return story.model_folder(place, intermediate_size=128, **changes)


def written(place: Path, case: str) -> tuple[Path, Path]:
    """(the checkpoint in few bits, the same as plain numbers)."""
    kind, how = KINDS[case]
    wide = packing.checkpoint(plain_folder(place / "plain"), place / "few", kind, **how)
    return place / "few", wide


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("case", KINDS)
def test_a_checkpoint_in_few_bits_computes_what_its_numbers_compute(
    case: str, tmp_path: Path
) -> None:
    few, plain = written(tmp_path, case)
    wanted = load.load_model(plain, dtype="float32")
    notes: list[str] = []
    as_stored = load.load_model(few, dtype="float32", base=BaseConfig(), notes=notes)
    wide = load.load_model(few, dtype="float32", base=BaseConfig(dequantise=True))
    assert is_quantised(as_stored) and not is_quantised(wide)
    for model in (as_stored, wide):
        assert float((logits(model) - logits(wanted)).abs().max()) < 2e-5
        assert getattr(model.config, "quantization_config", None) is None
        for name, p in wanted.named_parameters():
            found = model.get_submodule(name.rpartition(".")[0]).weight
            torch.testing.assert_close(found, p, rtol=1e-5, atol=1e-6)
    found = few_bits.find(few)
    assert found is not None and found.kinds in notes[0] and len(found.matrices) == 14
    # GPTQ stores a bias of zeros beside every matrix.
    assert load.parameter_count(few) == pytest.approx(load.parameter_count(plain), rel=0.02)
    held = sum(b.numel() * b.element_size() for m in as_stored.modules()
               if isinstance(m, stored_bits.StoredLinear) for b in m.buffers())  # fmt: skip
    assert held == pytest.approx(found.bits_per_weight / 8 * found.numbers, rel=0.02)


@pytest.mark.parametrize("case", KINDS)
def test_any_rows_are_those_of_the_whole(case: str, tmp_path: Path) -> None:
    few, plain = written(tmp_path, case)
    model = load.load_model(few, dtype="float32", base=BaseConfig())
    layer: Any = model.get_submodule("model.layers.1.mlp.down_proj")
    whole = load_file(plain / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    for first, after in ((0, 64), (0, 8), (3, 29), (63, 64), (8, 24)):
        found = layer.rows(first, after, torch.float32)
        torch.testing.assert_close(found, whole[first:after].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_packed_integers_are_what_compressed_tensors_unpacks(bits: int, symmetric: bool) -> None:
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    args = QuantizationArgs(
        num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=32
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    scale = (weight.view(40, 3, 32).amax(-1) - weight.view(40, 3, 32).amin(-1)) / (2**bits - 1)
    zero = torch.zeros(40, 3, dtype=torch.int8) if symmetric else torch.ones(40, 3).to(torch.int8)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    few = PackedQuantizationCompressor.compress(state, scheme)
    theirs = PackedQuantizationCompressor.decompress(few, scheme)["weight"]
    parts = {name.removeprefix("weight_"): t for name, t in few.items()}
    ours = stored_bits.decode("packed", parts, {"bits": bits}, 0, 40)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", [{}, {"block": None, "name": "weight_scale_inv"}])
def test_fp8_is_what_transformers_makes_of_it(how: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    kind = packing.SAID["fp8"] | ({"weight_block_size": None} if how else {})
    packing.checkpoint(plain_folder(tmp_path / "plain"), tmp_path / "few", "fp8", **how)
    config = json.loads((tmp_path / "few" / "config.json").read_text("utf-8"))
    config["quantization_config"] = kind
    (tmp_path / "few" / "config.json").write_text(json.dumps(config), "utf-8")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "few", dtype=torch.float32)
    ours = load.load_model(tmp_path / "few", dtype="float32", base=BaseConfig())
    assert float((logits(ours) - logits(theirs)).abs().max()) < 1e-4


@pytest.mark.slow
def test_experts_in_mxfp4_are_wide_when_asked_for_and_refused_otherwise(tmp_path: Path) -> None:
    """gpt-oss as it is published, its experts in blocks and scales."""
    from helpers import causal
    from transformers import AutoModelForCausalLM, Mxfp4Config

    made = causal.model_of("gpt_oss", hidden_size=64, intermediate_size=64, num_hidden_layers=2)
    made.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for name in [n for n in stored if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = stored.pop(name).shape
        size = (experts, outputs, inputs // 32, 16)
        stored[f"{name}_blocks"] = torch.randint(0, 256, size, generator=draw).to(torch.uint8)
        stored[f"{name}_scales"] = torch.randint(118, 124, size[:3], generator=draw).to(torch.uint8)
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
    )
    ours = load.load_model(tmp_path, dtype="float32", base=BaseConfig(dequantise=True))
    assert float((logits(ours) - logits(theirs)).abs().max()) < 1e-4
    assert code_of(tmp_path, BaseConfig()) == "E-MODEL-94"


def code_of(folder: Path, base: BaseConfig | None) -> str:
    with pytest.raises(ModelError) as caught:
        load.load_model(folder, dtype="float32", base=base)
    return caught.value.problems[0].code


def test_mixed_experts_in_fp8_are_made_wide_one_by_one(tmp_path: Path) -> None:
    """Each expert is stored as matrices of its own and computed from one tensor."""
    from helpers import causal

    made = causal.model_of("qwen3_moe", hidden_size=64, moe_intermediate_size=32)
    made.save_pretrained(tmp_path / "plain")
    wide = packing.checkpoint(tmp_path / "plain", tmp_path / "few", "fp8", block=(16, 16))
    found = few_bits.find(tmp_path / "few")
    assert found is not None and any(".experts.0." in name for name in found.matrices)
    ours = load.load_model(tmp_path / "few", dtype="float32", base=BaseConfig(dequantise=True))
    theirs = load.load_model(wide, dtype="float32")
    assert float((logits(ours) - logits(theirs)).abs().max()) < 2e-5
    assert code_of(tmp_path / "few", BaseConfig()) == "E-MODEL-94"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"quant_method": "auto-round"}, "auto-round"),
        ({"checkpoint_format": "marlin"}, "qweight"),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_own_word(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    few, _ = written(tmp_path, "gptq")
    config = json.loads((few / "config.json").read_text("utf-8"))
    config["quantization_config"] |= change
    (few / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError) as caught:
        load.load_model(few, dtype="float32")
    (said,) = caught.value.problems
    assert said.code == "E-MODEL-91" and told in str(said)


def test_blocks_of_fp8_that_cannot_be_told_from_the_scales_are_refused(tmp_path: Path) -> None:
    packing.checkpoint(
        plain_folder(tmp_path / "plain", hidden_size=72, num_attention_heads=4, head_dim=16),
        tmp_path / "few", "fp8", block=(28, 28),
    )  # fmt: skip
    assert code_of(tmp_path / "few", None) == "E-MODEL-91"


def test_blocks_that_do_not_divide_a_weight_are_as_stated(tmp_path: Path) -> None:
    plain = plain_folder(tmp_path / "plain", hidden_size=72, num_attention_heads=4, head_dim=16)
    wide = packing.checkpoint(plain, tmp_path / "few", "fp8")
    for base in (BaseConfig(), None):
        found = load.load_model(tmp_path / "few", dtype="float32", base=base)
        gap = logits(found) - logits(load.load_model(wide, dtype="float32"))
        assert float(gap.abs().max()) < 2e-5


def test_words_that_nobody_describes_are_refused(tmp_path: Path) -> None:
    few, _ = written(tmp_path, "gptq")
    stored = load_file(few / "model.safetensors")
    stored["model.layers.0.mlp.odd"] = torch.zeros(4, 4, dtype=torch.int32)
    save_file(stored, few / "model.safetensors", metadata={"format": "pt"})
    assert code_of(few, None) == "E-MODEL-91"


def test_base_bits_are_refused_unless_the_weights_are_made_wide_first(tmp_path: Path) -> None:
    few, plain = written(tmp_path, "gptq")
    assert code_of(few, BaseConfig(bits=4)) == "E-MODEL-93"
    again = load.load_model(few, dtype="float32", base=BaseConfig(bits=8, dequantise=True))
    wanted = load.load_model(plain, dtype="float32", base=BaseConfig(bits=8))
    assert float((logits(again) - logits(wanted)).abs().max()) < 1e-5


def test_a_plain_checkpoint_says_that_there_is_nothing_to_make_wide(tmp_path: Path) -> None:
    folder, notes = plain_folder(tmp_path), list[str]()
    assert few_bits.find(folder) is None
    load.load_model(folder, dtype="float32", base=BaseConfig(dequantise=True), notes=notes)
    assert any("base.dequantise" in note for note in notes)


def test_gradients_through_a_stored_layer_are_those_of_the_wide_one(tmp_path: Path) -> None:
    few, plain = written(tmp_path, "awq")
    found = []
    for folder, base in ((few, BaseConfig()), (plain, None)):
        model = load.load_model(folder, dtype="float32", base=base)
        given = model.get_input_embeddings()(IDS).detach().requires_grad_(True)
        model(inputs_embeds=given, use_cache=False).logits.square().sum().backward()
        found.append(given.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
