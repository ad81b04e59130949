"""Roles to modules, on models without weights."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.building import codes

from tunewright.core.errors import ModelError
from tunewright.models import anatomy

SPLIT = ["attention.query", "attention.key", "attention.value", "attention.output"]
GATED = ["mlp.gate", "mlp.up", "mlp.down"]
EXPERTS = ["experts.gate_up", "experts.down", "router"]
OUTSIDE = ["norm", "embedding", "head"]
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "llama": ({}, SPLIT + GATED),
    "mistral": ({}, SPLIT + GATED),
    "qwen2": ({}, SPLIT + GATED),
    "qwen3": ({"head_dim": 16}, SPLIT + GATED),
    "gemma": ({"head_dim": 16}, SPLIT + GATED),
    "gemma2": ({"head_dim": 16}, SPLIT + GATED),
    "gemma3_text": ({"head_dim": 16}, SPLIT + GATED),
    "phi": ({}, [*SPLIT, "mlp.up", "mlp.down"]),
    "phi3": ({}, ["attention.qkv", "attention.output", "mlp.gate_up", "mlp.down"]),
    "gpt2": (
        {"n_embd": 64, "n_layer": 2, "n_head": 4},
        ["attention.qkv", "attention.output", "mlp.up", "mlp.down"],
    ),
    "gpt_neox": ({}, ["attention.qkv", "attention.output", "mlp.up", "mlp.down"]),
    "qwen3_moe": (
        {"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2},
        [*SPLIT, *EXPERTS],
    ),
}


def build(model_type: str, **changes: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        k: v
        for k, v in SIZES.items()
        if model_type != "gpt2" or k in ("vocab_size", "bos_token_id", "eos_token_id")
    }
    config = AutoConfig.for_model(
        model_type, **{**sizes, **FAMILIES.get(model_type, ({},))[0], **changes}
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_has_its_roles_in_every_block(model_type: str) -> None:
    found = anatomy.of(build(model_type))
    expected = FAMILIES[model_type][1]
    assert set(found.roles) == {*expected, *OUTSIDE}
    assert not found.guessed
    assert len(found.blocks) == 2
    assert all(len(found.roles[role]) == 2 for role in expected)
    # Every linear module of the blocks has a role, so `all` is the union of the roles, but for
    # experts and what chooses among them.
    layers = [role for role in expected if role not in EXPERTS]
    assert set(found.linear) == {name for role in layers for name in found.roles[role]}
    assert set(found.parameters) == {n for r in expected if r in EXPERTS for n in found.roles[r]}


@pytest.mark.parametrize("model_type", [t for t in FAMILIES if t != "qwen3_moe"])
def test_guessing_from_names_and_shapes_finds_what_the_card_says(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(model_type)
    known = anatomy.of(model)
    monkeypatch.setattr(anatomy, "cards", dict)
    guessed = anatomy.of(model)
    assert guessed.guessed
    assert guessed.roles == known.roles
    assert "is not listed" in guessed.notes[0]


def test_roles_groups_and_module_names_select_in_the_order_of_the_model() -> None:
    found = anatomy.of(build("llama"))
    block = "model.layers.{}.self_attn.{}_proj"
    assert found.select(["attention.value", "q_proj", "attention.query"]) == [
        block.format(i, p) for i in (0, 1) for p in "qv"
    ]
    assert len(found.select(["attention"])) == 8
    assert len(found.select(["mlp"])) == 6
    assert found.select(["all"]) == found.select(["linear"]) == found.select(["attention", "mlp"])
    assert found.select(["head", "embedding"]) == ["model.embed_tokens", "lm_head"]
    assert found.select(["layers.1.mlp.up_proj"]) == ["model.layers.1.mlp.up_proj"]
    assert found.role_of("model.layers.1.mlp.up_proj") == "mlp.up"
    assert len(found.select(["norm"])) == 5


def test_every_target_that_matches_nothing_is_named_with_a_guess() -> None:
    with pytest.raises(ModelError) as caught:
        anatomy.of(build("llama")).select(["attention.qeury", "q_prj", "attention.query"])
    assert codes(caught.value) == ["E-MODEL-35", "E-MODEL-35"]
    assert "`attention.query`" in caught.value.problems[0].what()
    assert "`q_proj`" in caught.value.problems[1].what()
    assert "mlp.down" in caught.value.problems[0].remedy()


def test_a_part_that_a_family_does_not_have_is_not_guessed_to_be_itself() -> None:
    """As in a mixture of experts whose matrices are one block of numbers: no linear layer is left
    that `mlp` could mean."""
    from dataclasses import replace

    found = anatomy.of(build("llama"))
    left = {role: names for role, names in found.roles.items() if not role.startswith("mlp.")}
    without = replace(
        found, roles=left, modules=[name for name in found.modules if ".mlp." not in name]
    )
    for target in ("mlp", "mlp.down"):
        with pytest.raises(ModelError) as caught:
            without.select([target])
        (one,) = caught.value.problems
        assert (
            one.code == "E-MODEL-35"
            and "Did you mean" not in one.what()
            and "attention, all" in one.remedy()
            and "mlp" not in one.remedy()
        )
    with pytest.raises(ModelError) as caught:
        without.select(["attentoin"])
    assert "Did you mean `attention`" in caught.value.problems[0].what()


@pytest.mark.parametrize(("model_type", "target", "word"), [("phi3", "attention.query", "attention.qkv"), ("gpt2", "attention.value", "attention.qkv"), ("phi3", "mlp.gate", "mlp.gate_up")])  # fmt: skip
def test_a_part_of_a_fused_matrix_names_the_whole(model_type: str, target: str, word: str) -> None:
    with pytest.raises(ModelError, match=word) as caught:
        anatomy.of(build(model_type)).select([target])
    assert codes(caught.value) == ["E-MODEL-36"]


def test_a_fused_role_on_a_split_model_names_the_parts() -> None:
    with pytest.raises(
        ModelError, match="attention.query, attention.key, attention.value"
    ) as caught:
        anatomy.of(build("llama")).select(["attention.qkv"])
    assert codes(caught.value) == ["E-MODEL-37"]


def test_experts_stored_as_one_tensor_are_noted_and_routers_are_left_out() -> None:
    found = anatomy.of(build("qwen3_moe"))
    assert "mlp.experts" in found.notes[0]
    assert not [name for name in found.select(["all"]) if name.endswith("mlp.gate")]


def test_every_model_type_has_one_card_and_only_known_roles() -> None:
    import json

    from tunewright.core.words import ASSETS

    families = json.loads((ASSETS / "anatomies.json").read_text(encoding="utf-8"))
    types = [t for card in families.values() for t in card["model_types"]]
    assert len(types) == len(set(types))
    assert {role for card in families.values() for role in card["roles"]} <= set(anatomy.ROLES)
