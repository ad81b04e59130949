"""Families whose blocks are not all alike: every method trains everything it says, or is refused
with a code. Shared tiny models, a few steps each.

That a parameter learns is read off the parameter: with AdamW and no weight decay it moves exactly
if it got a gradient.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.engine.layout import obstacle
from tunewright.engine.loaded import use_layout
from tunewright.models import anatomy
from tunewright.models.kernels.fused import accelerate

LINEAR = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
DELTA = {
    "head_dim": 16, "layer_types": LINEAR, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
STATES = {
    "mamba_n_heads": 12,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
WINDOWS = {
    "sliding_window": 7,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "tie_word_embeddings": True,
}
OWN_ROWS = {
    "head_dim": 16,
    "vocab_size_per_layer_input": tiny.VOCABULARY,
    "hidden_size_per_layer_input": 8,
    **WINDOWS,
}
ODD: dict[str, dict[str, Any]] = {
    "qwen3_5_text": DELTA,
    "qwen3_next": {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1},
    "gemma4_text": {**OWN_ROWS, "global_head_dim": 32},
    "gemma3n_text": {**OWN_ROWS, "num_kv_shared_layers": 0, "laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [64] * 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64, **STATES},
    "bamba": {"attn_layer_indices": [1, 3], **STATES},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 4,
              "use_mamba_kernels": False},
    "falcon_h1": {"mamba_d_ssm": 96, "head_dim": 12, **STATES},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3, "block_multiple_of": 8},
    "mamba2": {"num_heads": 12, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2, "chunk_size": 16},
    "nemotron_h": {"head_dim": 12, "mamba_num_heads": 12, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16, "mamba_expand": 2,
                   "layers_block_type": ["mamba", "mlp", "attention", "mlp"]},
    "recurrent_gemma": {"lru_width": 48, "block_types": ["recurrent", "recurrent", "attention"], "attention_window_size": 7, "head_dim": 12},
    "deepseek_v3": {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 2,
                    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4},
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "loha": {"rank": 2}, "lokr": {"rank": 2}, "adalora": {"rank": 2, "start_rank": 3}, "vera": {"rank": 4}, "oft": {"block_size": 4}, "boft": {"block_size": 4},
    "peft": {"type": "HRA", "options": {"r": 2}}, "galore": {"rank": 4, "refresh": 2}, "apollo": {"rank": 4, "refresh": 2}, "apollo_mini": {"refresh": 2},
    "lisa": {"blocks": 4}, "llama_pro": {"blocks": 4}, "new_tokens": {"tokens": list(range(3, 9))}, "diff_pruning": {"target": 0.2},
    **{kind: {"rank": 2} for kind in ("lora", "rslora", "dora", "lora_plus", "pissa", "olora", "eva")},
    **{kind: {"num_tokens": 3} for kind in ("prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2")},
}  # fmt: skip
STEPS = 3


@functools.cache
def base(family: str) -> Any:
    sizes = {"num_hidden_layers": 4, "initializer_range": 0.1, **ODD[family]}
    return tiny.make_model(family, **sizes)


def outcome(kind: str, family: str) -> str:
    """The code of the refusal, or `trains`, or what did not learn."""
    entry, model = methods.get(kind), copy.deepcopy(base(family))
    assert entry is not None
    config = entry.config(**SETTINGS.get(kind, {}))
    samples = tiny.dialogues()
    torch.manual_seed(3)
    try:
        if "obstacles" in entry.facts:
            found = entry.facts["obstacles"](config, model.config)
            if found:
                return str(found[0].code)
        accelerate(model)
        attached = entry.function(config, model, anatomy.of(model), "tiny")
        if attached.look is not None:
            attached.look([b.tokens for s in samples for b in s.branches])
    except TunewrightError as e:
        return str(e.problems[0].code)
    layout = "padded" if obstacle(model, attached.needs.layout) else "tree"
    use_layout(model, layout)
    if attached.begin:
        attached.begin(STEPS)
    stepper = tiny.make_stepper(model, attached, layout=layout, weight_decay=0.0)
    before = tiny.trained(attached)
    for step in range(1, STEPS + 1):
        stepper.step(samples, step, 1e-2)
    after = tiny.trained(attached)
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    return f"still: {', '.join(still)}" if still else "trains"


KINDS = [kind for kind in methods.names() if kind not in ("loftq", "adalora")]
"""All but the one that needs a quantised base, and the one whose schedule needs more steps than are
taken here."""
STATE = {
    "prefix_tuning": "E-METHOD-74",
    "p_tuning_v2": "E-METHOD-74",
    "mixture_of_depths": "E-METHOD-46",
}
TABLES = {
    "prompt_tuning": "E-METHOD-75",
    "p_tuning": "E-METHOD-75",
    "llama_pro": "E-METHOD-71",
    "mixture_of_depths": "E-METHOD-46",
    "bitfit": "E-METHOD-01",
}
REFUSED: dict[str, dict[str, str]] = {
    "qwen3_5_text": {**STATE, "bitfit": "E-METHOD-01"},
    "gemma4_text": TABLES,
}
"""What the two families that people have are refused, and for what reason; everything else trains
on them."""
SOME = ["lora", "full", "llama_pro", "prefix_tuning", "prompt_tuning", "pissa"]


@pytest.mark.wide("lora", "full", "prefix_tuning", "llama_pro", "mixture_of_depths")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", REFUSED)
def test_every_method_trains_on_unlike_blocks_or_is_refused(family: str, kind: str) -> None:
    assert outcome(kind, family) == REFUSED[family].get(kind, "trains")


@pytest.mark.wide("lora", "prefix_tuning")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("family", [family for family in ODD if family not in REFUSED])
def test_the_common_methods_train_on_other_odd_families_or_are_refused(
    family: str, kind: str
) -> None:
    found = outcome(kind, family)
    assert found == "trains" or found.startswith("E-"), found
    assert found == "trains" or kind not in ("lora", "full"), found


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SOME])
@pytest.mark.parametrize("family", [family for family in ODD if family not in REFUSED])
def test_every_method_trains_on_every_odd_family_or_is_refused(family: str, kind: str) -> None:
    found = outcome(kind, family)
    assert found == "trains" or found.startswith("E-"), found


@pytest.mark.filterwarnings("ignore")
def test_oft_turns_rows_of_four_dimensions_as_its_merged_weights_do() -> None:
    """DeepSeek-V3 gives one of its projections rows for each head, which PEFT's layer takes for an
    image."""
    entry, model = methods.get("oft"), copy.deepcopy(base("deepseek_v3"))
    assert entry is not None
    attached = entry.function(entry.config(block_size=4), model, anatomy.of(model), "tiny")
    tiny.randomise(attached)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        tuned = attached.model.eval()(input_ids=ids).logits
        assert attached.merge is not None
        merged = attached.merge()(input_ids=ids).logits
        plain = base("deepseek_v3")(input_ids=ids).logits
    assert torch.allclose(tuned, merged, atol=1e-4)
    assert not torch.allclose(tuned, plain, atol=1e-2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["prefix_tuning", "p_tuning_v2"])
def test_a_prefix_on_layers_with_keys_of_two_sizes_is_that_of_plain_peft(
    tmp_path: Any, kind: str
) -> None:
    """The saved folder on an untouched base, opened by plain PEFT, gives the loss that the run
    computes."""
    from peft import PeftModel

    from tunewright.engine.policy import Policy

    entry, model = methods.get(kind), copy.deepcopy(base("gemma4_text"))
    assert entry is not None
    attached = entry.function(entry.config(num_tokens=3), model, anatomy.of(model), "tiny")
    tiny.randomise(attached)
    attached.save(tmp_path)
    use_layout(model, "padded")
    samples = tiny.nothing_shared()[:1]
    with torch.no_grad():
        ours = Policy(attached.model.eval(), model, "padded")(samples).logprob
    theirs = PeftModel.from_pretrained(copy.deepcopy(base("gemma4_text")), tmp_path).eval()
    branch = samples[0].branches[0]
    ids = torch.tensor([branch.tokens])
    with torch.no_grad():
        logprobs = (
            theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        )
    wanted = torch.stack([logprobs[i - 1, branch.tokens[i]] for i in branch.learnt])
    assert torch.allclose(ours, wanted, atol=1e-4)


ROLES = {
    "qwen3_5_text": {"in_proj_qkv": "attention.qkv", "in_proj_z": "attention.gate", "in_proj_a": "attention.gate", "in_proj_b": "attention.gate",
                     "out_proj": "attention.output", "o_proj": "attention.output", "q_proj": "attention.query", "down_proj": "mlp.down"},
    "qwen3_next": {"in_proj_qkvz": "attention.qkv", "in_proj_ba": "attention.gate", "out_proj": "attention.output"},
    "gemma4_text": {"o_proj": "attention.output", "down_proj": "mlp.down", "per_layer_input_gate": None, "per_layer_projection": None},
    "nemotron_h": {"in_proj": "attention.qkv", "up_proj": "mlp.up", "down_proj": "mlp.down", "o_proj": "attention.output"},
    "lfm2": {"in_proj": "attention.qkv", "out_proj": "attention.output", "w1": "mlp.gate", "w3": "mlp.up", "w2": "mlp.down"},
    "recurrent_gemma": {"linear_x": "attention.qkv", "linear_y": "attention.gate", "linear_out": "attention.output", "o_proj": "attention.output"},
    "jamba": {"in_proj": "attention.qkv", "dt_proj": "attention.gate", "x_proj": "attention.gate", "out_proj": "attention.output"},
}  # fmt: skip


@pytest.mark.parametrize("family", ROLES)
def test_gates_and_decays_are_no_output_projections(family: str) -> None:
    found = anatomy.of(base(family))
    for name, role in ROLES[family].items():
        modules = [m for m in [*found.linear, *found.past] if m.rpartition(".")[2] == name]
        assert modules and {found.role_of(m) for m in modules} == {role}, name


def test_attention_covers_the_whole_of_linear_attention_and_output_only_its_end() -> None:
    found = anatomy.of(base("qwen3_5_text"))
    parts = {name.rpartition(".")[2] for name in found.select(["attention"])}
    assert parts == {
        "in_proj_qkv",
        "in_proj_z",
        "in_proj_a",
        "in_proj_b",
        "out_proj",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    assert {name.rpartition(".")[2] for name in found.select(["attention.output"])} == {
        "out_proj",
        "o_proj",
    }


def test_what_a_kernel_reads_past_the_layer_is_left_out_and_said() -> None:
    found = anatomy.of(base("jamba"))
    assert {name.rpartition(".")[2] for name in found.past} == {"x_proj", "dt_proj", "out_proj"}
    assert not set(found.past) & {*found.linear, *found.select(["attention"])} and any(
        "dt_proj" in note for note in found.notes
    )
    assert found.select(["dt_proj"])  # a person may still name it


def test_an_adapter_on_blocks_that_share_a_weight_is_not_merged() -> None:
    """Zamba's blocks are one weight with an adapter each: merged, it would hold what both learnt."""
    from helpers import causal

    from tunewright.core.registry import methods
    from tunewright.engine.loaded import put_new
    from tunewright.models import anatomy

    model = causal.model_of("zamba")
    entry = methods.get("lora")
    assert entry is not None
    attached = put_new(entry.config(rank=2), model, anatomy.of(model), "tiny")
    assert attached.merge is None and attached.merge_reason.count("shared_transf") == 2


def test_a_state_space_is_trained_as_any_other_model(tmp_path: Path) -> None:
    """Its configuration states no heads, and the estimate before a run needs none."""
    from helpers import building, causal, story

    model = causal.model_of("mamba", vocab_size=320)
    model.save_pretrained(tmp_path / "model")
    building.make_tokenizer().save_pretrained(tmp_path / "model")
    rows = story.rows_file(tmp_path / "rows.json", 4)
    words = story.words(tmp_path / "model", rows, tmp_path / "run", "engine.epochs=1", "probes=1")
    done = story.tunewright(*words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
