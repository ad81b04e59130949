"""LoRA: PEFT's layers, PEFT's file, PEFT's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.errors import ModelError
from tunewright.core.registry import methods
from tunewright.models import anatomy
from tunewright.models.load import stock_attention

FAMILIES = ["llama", "qwen3", "phi3", "gemma2", "gpt2"]
IDS = [[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3], [6, 6, 44, 100, 2, 1, 19, 55, 21, 60, 200]]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).logits


def close(a: torch.Tensor, b: torch.Tensor, share: float) -> bool:
    return float((a - b).abs().max()) <= share * float(b.abs().max())


def base_state(model: Any) -> dict[str, torch.Tensor]:
    """The weights of the base by their own names, whether or not adapters sit on it."""
    return {
        n.replace("base_model.model.", "").replace(".base_layer", ""): p.clone()
        for n, p in model.named_parameters()
        if "lora_" not in n
    }


def trained(family: str, steps: int = 3, targets: list[str] | None = None) -> tuple[Any, Any]:
    model = tiny.make_model(family)
    torch.manual_seed(0)
    attached = tiny.attach_lora(model, targets)
    stepper = tiny.make_stepper(model, attached)
    for number in range(1, steps + 1):
        assert stepper.step(tiny.dialogues() + tiny.pairs(), number, 2e-2).applied
    model.set_attn_implementation(stock_attention(model))
    attached.model.eval()
    return attached, model


@pytest.mark.parametrize("family", FAMILIES)
def test_at_step_0_nothing_changes(family: str) -> None:
    model = tiny.make_model(family)
    before = logits(model)
    attached = tiny.attach_lora(model)
    assert torch.equal(logits(attached.model), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_leaves_the_base_bitwise_as_it_was(family: str) -> None:
    before = base_state(tiny.make_model(family))
    attached, model = trained(family)
    after = base_state(attached.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert not close(logits(model), logits(tiny.make_model(family)), 1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_switched_off_it_is_the_untouched_base_bit_for_bit(family: str) -> None:
    attached, model = trained(family)
    assert attached.disabled is not None
    with attached.disabled():
        assert torch.equal(logits(attached.model), logits(tiny.make_model(family)))
    assert not torch.equal(logits(attached.model), logits(tiny.make_model(family)))
    del model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_saved_adapter_gives_the_same_logits_in_plain_peft(family: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tiny.make_model(family).save_pretrained(tmp_path / "base")
    attached, _ = trained(family)
    attached.save(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32, attn_implementation="eager"
    )
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ours = logits(attached.model)
    assert close(logits(plain), ours, 1e-5)
    assert not close(ours, logits(tiny.make_model(family)), 1e-3)


def test_the_logits_of_the_engine_itself_are_those_of_plain_peft(tmp_path: Path) -> None:
    """Not only the reloaded model: the very forward pass that trained, tree and fused layers
    included."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tiny.make_model("llama").save_pretrained(tmp_path / "base")
    attached, model = trained("llama")
    attached.save(tmp_path / "adapter")
    stepper = tiny.make_stepper(model, attached)
    samples = tiny.dialogues()
    ours = stepper.policy(samples).logprob.detach()
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32),
        tmp_path / "adapter",
    ).eval()
    parts = []
    for b in (b for s in samples for b in s.branches):
        with torch.no_grad():
            z = torch.log_softmax(plain(input_ids=torch.tensor([b.tokens])).logits[0], -1)
        parts.append(torch.stack([z[i - 1, b.tokens[i]] for i in b.learnt]))
    assert close(ours, torch.cat(parts), 1e-5)


def test_the_file_holds_the_adapter_and_nothing_else(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    attached, _ = trained("llama", targets=["attention.query", "attention.value"])
    attached.save(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert len(stored) == 2 * 2 * 2  # blocks x modules x (A, B)
    assert sum(t.numel() for t in stored.values()) == sum(
        p.numel() for p in attached.model.parameters() if p.requires_grad
    )
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == (
        "LORA",
        3,
        6,
        "none",
    )
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == "tiny"
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt2"])
def test_merging_gives_plain_weights_with_the_same_answers(family: str) -> None:
    attached, _ = trained(family)
    ours = logits(attached.model)
    assert attached.merge is not None
    merged = attached.merge()
    assert not any("lora" in n for n, _ in merged.named_parameters())
    assert close(logits(merged), ours, 1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_fused_layers_give_pefts_own_gradients(family: str, dtype: str) -> None:
    found = []
    for fused in (True, False):
        model = tiny.make_model(family, dtype)
        torch.manual_seed(0)
        attached = tiny.attach_lora(model, alpha=11.0)
        attached.model.to(getattr(torch, dtype))
        tiny.randomise(attached)
        count = 0
        for module in attached.model.modules():
            if "forward" in vars(module):
                count += 1
                if not fused:
                    del module.forward
        assert count == len(anatomy.of(tiny.make_model(family)).linear)
        out = attached.model(input_ids=torch.tensor(IDS), labels=torch.tensor(IDS))
        out.loss.backward()
        found.append((out.logits.detach(), tiny.gradients(attached)))
    most = (
        1e-6 if dtype == "float64" else 1e-5
    )  # norms and the loss narrow to float32 even in a float64 model
    (ours, got), (theirs, wanted) = found
    assert close(ours, theirs, most)
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert float((got[name] - wanted[name]).norm() / wanted[name].norm()) <= most, name


def test_layers_that_the_fused_form_does_not_cover_keep_pefts_forward() -> None:
    with_dropout = tiny.attach_lora(tiny.make_model("llama"), dropout=0.1)
    assert not any("forward" in vars(m) for m in with_dropout.model.modules())
    conv = tiny.attach_lora(tiny.make_model("gpt2"))
    assert not any("forward" in vars(m) for m in conv.model.modules())


def test_a_merged_or_switched_off_layer_does_not_add_its_update_twice() -> None:
    attached, _ = trained("llama")
    tuned = logits(attached.model)
    attached.model.merge_adapter()
    ids = torch.tensor(IDS)
    assert close(attached.model(input_ids=ids).logits.detach(), tuned, 1e-4)
    attached.model.unmerge_adapter()
    with attached.model.disable_adapter():
        assert close(
            attached.model(input_ids=ids).logits.detach(), logits(tiny.make_model("llama")), 1e-4
        )


@pytest.mark.parametrize(
    ("family", "roles", "names"),
    [
        ("llama", ["attention.query", "attention.value"], ["q_proj", "v_proj"]),
        (
            "llama",
            ["linear"],
            ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        ),
        ("llama", ["mlp"], ["gate_proj", "up_proj", "down_proj"]),
        ("phi3", ["attention.qkv"], ["qkv_proj"]),
        ("phi", ["mlp.up", "mlp.down"], ["fc1", "fc2"]),
    ],
)
def test_roles_and_plain_module_names_select_the_same(
    family: str, roles: list[str], names: list[str]
) -> None:
    assert (
        tiny.attach_lora(tiny.make_model(family), roles).parameters
        == tiny.attach_lora(tiny.make_model(family), names).parameters
    )


def test_a_name_that_stands_in_two_places_selects_only_the_role_asked_for() -> None:
    # GPT-2 has a c_proj in attention and one in the feed-forward part.
    attached = tiny.attach_lora(tiny.make_model("gpt2"), ["mlp.down"])
    assert attached.parameters
    assert all(".mlp.c_proj." in name for name in attached.parameters)


def test_a_target_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ModelError):
        tiny.attach_lora(tiny.make_model("llama"), ["attention.query", "q_prj"])


def test_only_a_and_b_train_and_the_scale_is_alpha_over_rank() -> None:
    attached = tiny.attach_lora(tiny.make_model("llama"), ["attention.query"], rank=4, alpha=10.0)
    assert {n.split(".")[-3] for n in attached.parameters} == {"lora_A", "lora_B"}
    assert attached.parameters == [
        n for n, p in attached.model.named_parameters() if p.requires_grad
    ]
    assert {m.scaling["default"] for m in attached.model.modules() if hasattr(m, "lora_A")} == {2.5}
    default = tiny.attach_lora(tiny.make_model("llama"), rank=4)
    assert {m.scaling["default"] for m in default.model.modules() if hasattr(m, "lora_A")} == {2.0}


def test_adapters_of_a_half_precision_base_train_in_float32() -> None:
    attached = tiny.attach_lora(tiny.make_model("llama", "bfloat16"))
    assert {p.dtype for p in attached.model.parameters() if p.requires_grad} == {torch.float32}


def test_the_config_takes_one_target_as_a_word_and_refuses_nonsense() -> None:
    entry = methods.get("lora")
    assert entry is not None
    assert entry.config(targets="q_proj").targets == ["q_proj"]
    for wrong in ({"rank": 0}, {"dropout": 1.0}, {"alpha": -1}, {"rnak": 3}):
        with pytest.raises(ValueError, match="validation error"):
            entry.config(**wrong)
