"""Modules that train whole beside a LoRA, other ranks and strengths for some layers: beside PEFT's
own model from the same words, saved, opened by plain PEFT, merged, switched off."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from pydantic import ValidationError

from tunewright.core.config import BaseConfig
from tunewright.core.errors import CompatError
from tunewright.core.registry import methods
from tunewright.methods.saved import put_on
from tunewright.models import anatomy
from tunewright.models.quantised import quantise_model
from tunewright.models.shape import ModelShape

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT remarks on tied weights
IDS = torch.arange(6)[None] + 5


def attach(model: Any, kind: str = "lora", **settings: Any) -> Any:
    entry = methods.get(kind)
    assert entry is not None
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = {"rank": 4, "targets": ["attention.query"], **settings}
        return entry.function(entry.config(**given), model, anatomy.of(model), "tiny")


def move(attached: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in attached.model.named_parameters():
            if name in attached.parameters:
                p.add_(torch.randn(p.shape, generator=generator) * 0.05)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits[0].float()


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


WHOLE = [
    ("llama", True, ["embedding"]),
    ("llama", True, ["head"]),
    ("llama", False, ["embedding", "head"]),
    ("llama", False, ["lm_head"]),
    ("llama", False, ["norm"]),
    ("gpt2", True, ["embedding"]),
    ("llama", False, ["mlp.down"]),
]


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa"])
@pytest.mark.parametrize(("family", "tied", "names"), WHOLE)
def test_a_whole_module_is_saved_opened_merged_and_switched_off(
    tmp_path: Path, family: str, tied: bool, names: list[str], kind: str
) -> None:
    from peft import PeftModel

    base = tiny.make_model(family, tie_word_embeddings=tied)
    fresh = [copy.deepcopy(base) for _ in range(3)]
    attached = attach(base, kind, modules_to_save=names, targets=["attention"])
    own = [n for n in attached.parameters if "modules_to_save" in n]
    assert own and all(
        p.dtype == torch.float32
        for n, p in attached.model.named_parameters()
        if n in attached.parameters
    )
    untouched = logits(fresh[2])
    assert gap(logits(attached.model), untouched) < 1e-5  # nothing changes at step 0
    move(attached)
    learnt = logits(attached.model)
    assert gap(learnt, untouched) > 1e-2
    attached.save(tmp_path)
    assert gap(logits(put_on(fresh[0], tmp_path).model), learnt) < 1e-5
    if kind != "pissa":  # whose folder PEFT opens with a start of its own taken out, as we say
        assert gap(logits(PeftModel.from_pretrained(fresh[1], tmp_path)), learnt) < 1e-5
    if attached.disabled is not None:
        with attached.disabled():
            assert gap(logits(attached.model), untouched) < 1e-5
    merged = attached.merge()
    assert gap(logits(merged), learnt) < 1e-4
    if tied:
        assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight


def test_ranks_and_strengths_of_some_layers_are_pefts(tmp_path: Path) -> None:
    import peft

    patterns: dict[str, Any] = {
        "rank_pattern": {"q_proj": 8, "model.layers.0.self_attn.v_proj": 2},
        "alpha_pattern": {"q_proj": 32, "layers.1.mlp.*": 4},
    }
    model = tiny.make_model("llama")
    plain = copy.deepcopy(model)
    targets = ["q_proj", "v_proj", "up_proj"]
    ours = attach(model, targets=targets, alpha=16, **patterns).model
    settings = peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets, **patterns)
    theirs = peft.get_peft_model(plain, settings)
    layers = {n: m for n, m in ours.named_modules() if hasattr(m, "lora_A")}
    for name, module in theirs.named_modules():
        if hasattr(module, "lora_A"):
            assert layers[name].r == module.r and layers[name].scaling == module.scaling, name
    assert {m.r["default"] for m in layers.values()} == {2, 4, 8}


def test_roles_name_layers_and_the_narrowest_word_counts() -> None:
    wrapped = attach(
        tiny.make_model("llama"),
        targets=["linear"],
        rank_pattern={"mlp": 2, "mlp.down": 6, "up_proj": 5},
    ).model
    ranks = {
        n.rpartition(".")[2]: (m.r["default"], m.scaling["default"])
        for n, m in wrapped.named_modules()
        if hasattr(m, "lora_A")
    }
    # No alpha: each layer has twice its own rank, the strength of all.
    assert ranks["q_proj"] == (4, 2.0) and ranks["gate_proj"] == (2, 2.0)
    assert ranks["down_proj"] == (6, 2.0) and ranks["up_proj"] == (5, 2.0)


def test_patterns_are_said_where_they_fit_nothing() -> None:
    with pytest.raises(CompatError) as caught:
        attach(
            tiny.make_model("llama"), rank_pattern={"mlp": 2, "q_proj": 3}, alpha_pattern={"zz": 1}
        )
    assert [(p.code, p.where, p.fields["key"]) for p in caught.value.problems] == [
        ("E-KEY-02", "method.rank_pattern", "mlp"),
        ("E-KEY-02", "method.alpha_pattern", "zz"),
    ]


def test_a_module_is_either_whole_or_low_rank() -> None:
    with pytest.raises(CompatError) as caught:
        attach(tiny.make_model("llama"), targets=["linear"], modules_to_save=["mlp.down"])
    assert caught.value.problems[0].code == "E-KEY-03"


def test_a_quantised_module_cannot_train_whole() -> None:
    model = tiny.make_model("llama")
    quantise_model(model, BaseConfig(bits=8).number_type, True, 16, None)
    with pytest.raises(CompatError) as caught:
        attach(model, modules_to_save=["mlp.down"])
    assert caught.value.problems[0].code == "E-KEY-04"
    assert attach(model, modules_to_save=["head"]).parameters


@pytest.mark.parametrize(
    "settings",
    [
        {"eva": True, "modules_to_save": ["head"]},
        {"eva": True, "rank_pattern": {"mlp": 3}},
        {"rank_pattern": {"mlp": 0}},
        {"alpha_pattern": {"mlp": True}},
        {"rank_pattern": {"(": 3}},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    entry = methods.get("lora")
    assert entry is not None
    with pytest.raises(ValidationError):
        entry.config(**settings)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embedding"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["norm"], "rank_pattern": {"mlp": 2, "attention.query": 7}},
        {"modules_to_save": ["attention.query"], "targets": ["mlp"]},
    ],
)
def test_the_estimate_counts_what_trains(tied: bool, settings: dict[str, Any]) -> None:
    model = tiny.make_model("llama", tie_word_embeddings=tied)
    shape = ModelShape.from_config(model.config.to_dict())
    entry = methods.get("lora")
    assert entry is not None
    config = entry.config(**{"rank": 4, "targets": ["linear"], **settings})
    attached = entry.function(config, model, anatomy.of(model), "tiny")
    named = dict(attached.model.named_parameters())
    assert config.trainable_numbers(shape) == sum(named[n].numel() for n in attached.parameters)
