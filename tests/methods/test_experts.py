"""LoRA on experts, beside plain PEFT and Transformers' own load-balancing loss."""

from __future__ import annotations

import copy
import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.core.types import Attached
from tunewright.engine.loaded import put_new, put_saved, use_layout
from tunewright.engine.routing import Routing, watching
from tunewright.models import anatomy

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**EXPERTS, "head_dim": 12},
    "deepseek_v3": {
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 1,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 12, "sliding_window": 7, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
}  # fmt: skip
ALL = ["linear", "experts", "router"]
LAYOUTS = {"gpt_oss": "padded"}


@functools.cache
def base(family: str) -> Any:
    return tiny.make_model(family, initializer_range=0.2, **SHAPES[family])


def attached_to(family: str, targets: list[str], kind: str = "lora", **more: Any) -> Attached:
    entry, model = methods.get(kind), copy.deepcopy(base(family))
    assert entry is not None
    config = entry.config(rank=4, targets=targets, **more)
    return put_new(config, model, anatomy.of(model), "tiny")


def opened_by_peft(family: str, folder: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(copy.deepcopy(base(family)), folder, is_trainable=True)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(3, 40)[None]).logits
    return found


def by_hand(model: Any, samples: list[Any], balance: float = 0.0) -> tuple[Any, float, float]:
    """(gradients, loss, balancing loss) of Transformers on all samples at once, padded."""
    branches = [b for s in samples for b in s.branches]
    longest = max(len(b.tokens) for b in branches)
    ids = torch.zeros(len(branches), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, b in enumerate(branches):
        ids[row, : len(b.tokens)] = torch.tensor(b.tokens)
        mask[row, : len(b.tokens)] = 1
        for i in b.learnt:
            labels[row, i] = b.tokens[i]
    more = {"output_router_logits": True} if balance else {}
    out = model(input_ids=ids, attention_mask=mask, use_cache=False, **more)
    z, wanted = out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(z, wanted)
    aux = out.aux_loss if balance else torch.zeros(())
    (loss + balance * aux).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found, "nothing trains"
    return found, float(loss.detach()), float(aux.detach())


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm()) if float(b.norm()) else float(a.norm())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", SHAPES)
def test_gradients_are_those_of_plain_peft_and_the_adapter_opens_and_merges(
    family: str, tmp_path: Path
) -> None:
    attached = attached_to(family, ALL)
    tiny.randomise(attached, spread=0.1)
    attached.save(tmp_path)
    mine = logits(attached.model)
    theirs = opened_by_peft(family, tmp_path)
    scale = float(mine.abs().max())
    assert float((logits(theirs) - mine).abs().max()) <= 1e-5 * scale
    again = put_saved(copy.deepcopy(base(family)), tmp_path)
    assert torch.equal(logits(again.model), mine)
    assert float((logits(base(family)) - mine).abs().max()) > 0.05 * scale

    samples = tiny.dialogues()
    layout = LAYOUTS.get(family, "tree")
    causal = attached.model.get_base_model()
    stepper = tiny.make_stepper(causal, attached, layout=layout)
    stepper.gradients(samples)
    ours = tiny.gradients(attached)
    wanted, _, _ = by_hand(theirs.eval(), samples)
    assert set(ours) == set(wanted) and any("experts" in name for name in wanted)
    assert max(far(ours[name], wanted[name]) for name in wanted) <= 1e-5

    assert attached.merge is not None
    use_layout(causal, "padded")
    assert float((logits(attached.merge()) - mine).abs().max()) <= 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_balancing_loss_is_the_models_own_with_a_denominator_of_its_own(
    family: str, layout: str, tmp_path: Path
) -> None:
    if layout == "tree" and family == "gpt_oss":
        layout = "padded"
    attached = attached_to(family, ["linear"])
    tiny.randomise(attached, spread=0.1)
    attached.save(tmp_path)
    other = opened_by_peft(family, tmp_path)
    causal = attached.model.get_base_model()
    stepper = tiny.make_stepper(causal, attached, layout=layout)
    stepper.policy.routing = Routing(causal, 0.05)
    samples = tiny.dialogues()
    report = stepper.gradients(samples)
    ours = tiny.gradients(attached)
    wanted, loss, aux = by_hand(other.eval(), tiny.dialogues(), 0.05)
    assert report.terms["balance"] / 0.05 == pytest.approx(aux, abs=1e-6)
    assert report.loss == pytest.approx(loss + 0.05 * aux, abs=1e-5)
    assert max(far(ours[name], wanted[name]) for name in wanted) <= 1e-5
    visits = stepper.policy.routing.visits
    tokens = sum(len(b.tokens) for s in samples for b in s.branches)
    assert len(visits) == 2 and {float(v.sum()) for v in visits.values()} == {2.0 * tokens}


@pytest.mark.filterwarnings("ignore")
def test_an_expert_that_no_token_visits_is_named() -> None:
    model = copy.deepcopy(base("gpt_oss"))
    with torch.no_grad():
        model.model.layers[1].mlp.router.bias[2] = -1000.0
    attached = tiny.attach_lora(model)
    stepper = tiny.make_stepper(model, attached, layout="padded")
    stepper.policy.routing = routing = Routing(model)
    stepper.gradients(tiny.dialogues())
    assert routing.unseen() == {"model.layers.1.mlp.experts": [2]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe"])
def test_linear_is_every_layer_but_the_experts_whatever_peft_takes_the_names_for(
    family: str, tmp_path: Path
) -> None:
    """PEFT takes `gate_proj`, `up_proj` and `down_proj` for the tensors of all experts."""
    attached = attached_to(family, ["linear"])
    causal = attached.model.get_base_model()
    sits = {name for name, module in causal.named_modules() if hasattr(module, "lora_A")}
    assert sits == set(anatomy.of(base(family)).linear)
    tiny.randomise(attached, spread=0.1)
    attached.save(tmp_path)
    mine = logits(attached.model)
    assert torch.allclose(logits(opened_by_peft(family, tmp_path)), mine, atol=1e-4)
    assert torch.equal(logits(put_saved(copy.deepcopy(base(family)), tmp_path).model), mine)


def rank_of_each(attached: Attached) -> set[int]:
    return {
        module.r["default"]
        for module in attached.model.modules()
        if type(module).__name__ == "ParamWrapper"
    }


@pytest.mark.filterwarnings("ignore")
def test_an_expert_gets_its_share_of_the_rank_or_the_rank_that_is_asked_for() -> None:
    attached = attached_to("mixtral", ["experts"])
    assert rank_of_each(attached) == {2}
    assert "rank 2 for each of the 4" in attached.notes[-1]
    assert rank_of_each(attached_to("mixtral", ["experts"], expert_rank=3)) == {3}
    rooted = attached_to("mixtral", ["linear", "experts"], kind="rslora")
    scales = {
        round(m.scaling["default"], 6) for m in rooted.model.modules() if hasattr(m, "lora_A")
    }
    assert len(scales) == 1  # a lower rank at the strength of all others


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "targets", "more", "codes"),
    [
        ("dora", ["experts"], {}, ["E-METHOD-90"]),
        ("lora", ["experts"], {"dropout": 0.1}, ["E-METHOD-90"]),
        ("lora", ["linear"], {"expert_rank": 2}, ["E-METHOD-91"]),
        ("lora", ["router"], {"expert_rank": 2}, ["E-METHOD-91"]),
        ("pissa", ["experts.down"], {}, ["E-METHOD-77"]),
        ("loha", ["experts"], {}, ["E-MODEL-90"]),
        ("lora", ["gate_proj"], {}, ["E-MODEL-36"]),
        ("lora", ["experts.gate"], {}, ["E-MODEL-35"]),
    ],
)
def test_what_does_not_go_with_experts_has_an_error(
    kind: str, targets: list[str], more: dict[str, Any], codes: list[str]
) -> None:
    with pytest.raises(TunewrightError) as caught:
        attached_to("mixtral", targets, kind, **more)
    assert [p.code for p in caught.value.problems] == codes


def test_a_balancing_loss_of_a_family_without_one_is_refused() -> None:
    with pytest.raises(TunewrightError) as caught:
        Routing(copy.deepcopy(base("deepseek_v3")), 0.01)
    assert [p.code for p in caught.value.problems] == ["E-COMPAT-90"]
    with pytest.raises(TunewrightError) as caught:
        watching(tiny.make_model("llama"), "auto")
    assert [p.code for p in caught.value.problems] == ["E-COMPAT-91"]
    assert watching(tiny.make_model("llama"), None) is None
    assert (found := watching(copy.deepcopy(base("mixtral")), "auto")) and found.weight == 0.001


@pytest.mark.parametrize("targets", [["linear"], ["linear", "experts"], ["experts.down"], ALL])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_what_is_counted_from_sizes_is_what_trains(family: str, targets: list[str]) -> None:
    """For the estimate: `plan` and `advise` see a `config.json` and no weights."""
    from tunewright.models.shape import ModelShape

    attached = attached_to(family, targets)
    entry = methods.get("lora")
    assert entry is not None
    shape = ModelShape.from_config(base(family).config.to_dict())
    counted = entry.config(rank=4, targets=targets).trainable_numbers(shape)
    wanted = set(attached.parameters)
    trains = sum(p.numel() for n, p in attached.model.named_parameters() if n in wanted)
    assert counted == trains


@pytest.mark.parametrize("family", SHAPES)
def test_a_merged_model_is_saved_and_opened_by_plain_transformers(
    family: str, tmp_path: Path
) -> None:
    """What `export merge` does: fold the experts' updates in, write, read afresh."""
    from transformers import AutoModelForCausalLM

    attached = attached_to(family, ["linear", "experts"])
    tiny.randomise(attached, spread=0.2)
    wanted = logits(attached.model)
    assert attached.merge is not None
    attached.merge().save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert float((logits(opened) - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
    assert float((logits(base(family)) - wanted).abs().max()) > 1e-2
