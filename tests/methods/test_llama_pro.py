"""LLaMA Pro: new blocks that do nothing at first, stand where the paper puts them, and leave a
plain larger model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story, tiny

from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.export.merge import merge_run
from tunewright.methods.llama_pro import places
from tunewright.models import anatomy
from tunewright.models.load import stock_attention
from tunewright.story import train

IDS = torch.tensor([[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3]])


def put(model: Any, **settings: Any) -> Any:
    entry = methods.get("llama_pro")
    assert entry is not None
    return entry.function(entry.config(**settings), model, anatomy.of(model), "tiny")


def four_blocks(family: str) -> Any:
    kinds = (
        {"layer_types": ["sliding_attention", "full_attention"] * 2} if family == "gemma2" else {}
    )
    return tiny.make_model(family, num_hidden_layers=4, **kinds)


def logits(model: Any) -> torch.Tensor:
    model.set_attn_implementation(stock_attention(model))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize(
    ("layers", "new", "after"),
    [
        (32, 8, [3, 7, 11, 15, 19, 23, 27, 31]),
        (30, 7, [3, 8, 12, 16, 20, 25, 29]),
        (2, 1, [1]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_new_blocks_stand_at_the_end_of_equal_groups(
    layers: int, new: int, after: list[int]
) -> None:
    assert places(layers, new) == after


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gpt2"])
def test_the_old_blocks_are_those_of_before_and_the_new_ones_copies_without_a_voice(
    family: str,
) -> None:
    model = four_blocks(family)
    names = anatomy.of(model).blocks
    old = [copy.deepcopy(model.get_submodule(name)) for name in names]
    before = logits(model)
    attached = put(model, blocks=2)
    grown = [model.get_submodule(name) for name in anatomy.of(model).blocks]
    assert len(grown) == 6 and model.config.num_hidden_layers == 6
    root = names[0].rpartition(".")[0]
    assert {name.removeprefix(f"{root}.").partition(".")[0] for name in attached.parameters} == {
        "2",
        "5",
    }
    for place, number in enumerate((0, 1, None, 2, 3, None)):
        if number is not None:
            assert all(
                torch.equal(a, b)
                for a, b in zip(
                    grown[place].state_dict().values(),
                    old[number].state_dict().values(),
                    strict=True,
                )
            )
    silent = [n for n in attached.parameters if not bool(dict(model.named_parameters())[n].any())]
    assert len([n for n in silent if n.endswith("weight")]) == 4  # two projections of two blocks
    assert torch.equal(logits(model), before)
    if getattr(model.config, "layer_types", None):
        kinds = model.config.layer_types
        assert len(kinds) == 6 and kinds[2] == kinds[1] and kinds[5] == kinds[4]
    assert {id(m.config) for block in grown for m in block.modules() if hasattr(m, "config")} <= {
        id(model.config)
    }
    numbers = [
        m.layer_idx
        for block in grown
        for m in block.modules()
        if isinstance(getattr(m, "layer_idx", None), int)
    ]
    assert sorted(set(numbers)) == list(range(6)) and numbers == sorted(numbers)


def test_new_blocks_learn_their_own_norms_also_where_the_old_ones_compute_in_a_faster_form() -> (
    None
):
    from tunewright.models.kernels.fused import accelerate

    def gradients(fast: bool) -> dict[str, Any]:
        model = tiny.make_model("llama")
        if fast:
            assert accelerate(model)  # as a run does, before the method is put on
        attached = put(model)
        tiny.randomise(attached, spread=0.2)
        tiny.make_stepper(model, attached).gradients(tiny.dialogues())
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    fast, plain = gradients(True), gradients(False)
    assert set(fast) == set(plain) and any("norm" in n for n in fast)
    assert all(float((fast[n] - plain[n]).norm()) <= 1e-5 * float(plain[n].norm()) for n in fast)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2"])
def test_what_it_wrote_as_a_plain_model_answers_alike_with_and_without_a_cache(
    family: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = four_blocks(family)
    attached = put(model)
    tiny.randomise(attached, spread=0.3)
    tuned = logits(model)
    merged = attached.merge()
    merged.save_pretrained(str(tmp_path))
    plain = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32)
    assert float((logits(plain) - tuned).abs().max()) <= 1e-5 * float(tuned.abs().max())
    with torch.no_grad():
        cache = plain(input_ids=IDS[:, :-1], use_cache=True).past_key_values
        last = plain(input_ids=IDS[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
    assert float((last - tuned[:, -1]).abs().max()) <= 1e-4 * float(tuned.abs().max())


def test_a_run_is_merged_into_a_plain_larger_model_and_only_new_tensors_count_as_changed(
    tmp_path: Path,
) -> None:
    model = story.model_folder(tmp_path / "model", "qwen2", num_hidden_layers=4)
    given = {
        "model": str(model), "data.train": str(story.rows_file(tmp_path / "rows.json")), "data.held_out": 0, "out": str(tmp_path / "run"), "probes": 2, "forgetting": "off",
        "method.kind": "llama_pro", "method.blocks": 2, "engine.dtype": "float32", "engine.threads": 1, "engine.epochs": 3, "engine.learning_rate": 1e-3,
    }  # fmt: skip
    train(parse_run(given, dict.fromkeys(given, "test")), tell=Quiet())
    stored = sum(f.stat().st_size for f in (tmp_path / "run" / "adapter").glob("*.safetensors"))
    assert stored < (model / "model.safetensors").stat().st_size
    verdict = merge_run(tmp_path / "run", tmp_path / "merged", dtype="float32", tell=Quiet())
    assert (
        verdict["verdict"] == "equal" and verdict["tensors"] == 4 * 12 + 2 * 12 + 2
    )  # qwen2: 12 a block, embedding, last norm; the head is tied
    assert 2 * 7 <= verdict["tensors_changed"] <= 2 * 12


def test_what_cannot_be_is_refused() -> None:
    def codes(model: Any, **settings: Any) -> list[str]:
        with pytest.raises(TunewrightError) as caught:
            put(model, **settings)
        assert all(p.what() and p.remedy() for p in caught.value.problems)
        return [p.code for p in caught.value.problems]

    assert codes(tiny.make_model("llama"), blocks=3) == ["E-METHOD-70"]
    assert codes(tiny.make_model("gpt2", scale_attn_by_inverse_layer_idx=True)) == ["E-METHOD-71"]
    numbered = tiny.make_model("llama")
    numbered.config.mlp_only_layers = [1]
    assert codes(numbered) == ["E-METHOD-71"]


def test_the_estimate_counts_the_blocks_it_will_have() -> None:
    from tunewright.models.shape import ModelShape

    shape = ModelShape.from_config(tiny.make_config("llama", num_hidden_layers=4).to_dict())
    entry = methods.get("llama_pro")
    assert entry is not None
    grown = entry.config(blocks=2).grown(shape)
    assert (grown.layers, shape.layers) == (
        6,
        4,
    ) and grown.block_weights * 4 == shape.block_weights * 6
