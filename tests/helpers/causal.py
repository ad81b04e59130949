"""A tiny random model of every causal class that the installed Transformers has, its sizes chosen by
rules.

A rule is a name of a setting and a small value for it; what a class derives from those it derives
itself. Of the lists that say what each layer is, one layer of each different kind is kept. `SPECIAL`
holds what no rule can know; `CANNOT` the classes that are no language models by themselves.
"""

from __future__ import annotations

import copy
from typing import Any

VOCABULARY = 211
HIDDEN, HEADS, KV_HEADS, HEAD = 48, 4, 2, 12
WINDOW = 7

RULES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "lru_width"), HIDDEN),
    **dict.fromkeys(("backbone_hidden_size", "word_embed_proj_dim", "embedding_size"), HIDDEN),
    **dict.fromkeys(("input_embedding_size", "dim_model_base", "attention_hidden_size"), HIDDEN),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff"), 64
    ),
    **dict.fromkeys(("dim_ff", "d_inner", "ffn_hidden_size", "feed_forward_size"), 64),
    **dict.fromkeys(("shared_intermediate_size", "dense_intermediate_size"), 64),
    **dict.fromkeys(("intermediate_size_mlp", "prefix_dense_intermediate_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_experts_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "n_kv_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), HEADS),
    **dict.fromkeys(
        ("swa_num_attention_heads", "linear_num_heads", "linear_num_value_heads"), HEADS
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), KV_HEADS),
    **dict.fromkeys(("linear_num_key_heads", "num_global_key_value_heads"), KV_HEADS),
    **dict.fromkeys(("head_dim", "swa_head_dim", "kv_channels", "dim_head", "d_head"), HEAD),
    **dict.fromkeys(("global_head_dim", "attention_head_dim", "attention_head_size"), HEAD),
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("model_max_length", "max_target_positions", "context_length"), 512),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size"), WINDOW),
    **dict.fromkeys(("sliding_window_size", "local_attention", "attention_chunk_size"), WINDOW),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    "top_k_experts": 2,
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "gated_norm_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim"), 8),
    "qk_rope_head_dim": 4,
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    "moe_layer_start_index": 0,
    "moe_layer_interval": 1,
    **dict.fromkeys(("index_n_heads",), 2),
    **dict.fromkeys(("index_head_dim",), 8),
    **dict.fromkeys(("index_topk",), 512),
    # state spaces
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 12),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_d_ssm"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups", "n_mamba_heads"), 1),
    **dict.fromkeys(("mamba_expand", "expand"), 2),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("attn_layer_period", "expert_layer_period"), 2),
    **dict.fromkeys(("attn_layer_offset", "expert_layer_offset"), 1),
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "laurel_rank": 8,
    "rotary_dim": 4,
    "kv_sharing_layers": 0,
    **dict.fromkeys(("pad_token_id", "padding_idx", "pad_index"), 0),
    **dict.fromkeys(("bos_token_id", "bos_index", "decoder_start_token_id"), 1),
    **dict.fromkeys(("eos_token_id", "eos_index", "eod_token_id", "forced_eos_token_id"), 2),
    "sep_token_id": 2,
    "initializer_range": 0.3,
    "init_std": 0.3,
    "use_mamba_kernels": False,
    "is_decoder": True,
}
KEEP_NONE = {
    "n_inner",
    "q_lora_rank",
    "sliding_window",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "n_group",
    "topk_group",
}
"""Settings that stay None where None is their default (None is a way of its own)."""
_NO_IMAGES = {"image_token_id": 5}
_DRAFT = "writes no text by itself: it needs hidden states of the model that it drafts for"
_AUDIO = "predicts codes of sound in several books at once, not words"
SPECIAL: dict[str, dict[str, Any]] = {
    "blt": {
        **{
            f"{part}_config": {
                "hidden_size": 48,
                "hidden_size_global": 48,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "num_hidden_layers": 2,
                "intermediate_size": 64,
                "vocab_size": VOCABULARY,
                "cross_attn_k": 1,
                "head_dim": 12,
            }
            for part in ("encoder", "decoder", "global", "patcher")
        },
        "encoder_hash_byte_group_vocab": 64,
        "cross_attn_k": 1,
        "encoder_hash_byte_group_size": [3],
    },
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 2, 2],
            }
        }
    },
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2}, "ffn_config": {"moe_top_k": 2}},
    "bamba": {"attn_layer_indices": [1]},
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 12, "head_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 96},
    "dots3_note": {
        "vision_config": {"adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN},
        "audio_config": {"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
    },
    "lfm2": {
        "block_multiple_of": 8,
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 16,
    },
    "stablelm": {
        "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_type": "default"}
    },
    "xmod": {"default_language": "en_XX"},
    "deepseek_v4": {"initializer_range": 0.1},
    "nemotron_h": {"initializer_range": 0.1},
    # As the checkpoints that write are; the default looks ahead, to fill gaps.
    "xlm": {"causal": True},
    "hrm_text": {"initializer_range": 0.1, "embedding_scale": 2.0},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "zamba": {
        "num_hidden_layers": 4,
        "attention_hidden_size": 96,
        "attention_head_dim": 24,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "zamba2": {
        # With 0.3 the state space doubles rounding errors token by token: answers with a cache and
        # without differ by 3e-2 nats in float32 and by 2e-7 in float64.
        "initializer_range": 0.1,
        "num_hidden_layers": 4,
        "attention_hidden_size": 96,
        "attention_head_dim": 24,
        "n_mamba_heads": 12,
        "num_query_groups": 4,
        "num_attention_heads": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "roc_bert": {
        "pronunciation_vocab_size": 32,
        "shape_vocab_size": 32,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "rembert": {"output_embedding_size": 32},
}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 12,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 8,
    "ple_embed_dim": 8,
    "ngram_vocab_size_base": 64,
}
SPECIAL |= {"qwen4_exp_text": _QWEN4, "qwen4_exp": {"text_config": _QWEN4}}
SPECIAL |= {name: {"moe_intermediate_size": 32} for name in ("hunyuan_v1_moe",)}
SHIFTED_ELSEWHERE = {
    "bart",
    "bigbird_pegasus",
    "blenderbot",
    "blenderbot-small",
    "marian",
    "mbart",
    "mvp",
    "pegasus",
    "plbart",
    "trocr",
    "whisper",
    "git",
    "xlm",
}
"""Decoders of translation models, whose own loss compares a row with the token it read: whoever
trains them shifts the labels; XLM wants the same. And GIT, whose loss leaves out the rows
of an image."""
GENERATES_OTHERWISE = {
    "camembert",
    "data2vec-text",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
    "moshi",
    "xlm",
}
"""RoBERTa and its kin count positions from the id of their padding on; Transformers' `generate`
gives them positions from 0 and so asks another model than `forward` is. Moshi's takes the sound that
belongs to the words. XLM's puts a word for a gap at the end, which it fills."""
LOST_IN_PEFT = {"laguna", "inkling2_text"}
"""Families of which PEFT 0.21 renames tensors of an adapter that have their final name already, and
then loses them without a word. Here they are found."""
CANNOT: dict[str, str] = {
    "gemma4_assistant": _DRAFT,
    "gemma4_unified_assistant": _DRAFT,
    "cpmant": "as Transformers computes it, every word reads the later ones",
    "xlnet": "it fills gaps in any order and reads later words; with attn_type=uni, which no "
    "published checkpoint has, Transformers takes one text at a time alone",
    "reformer": "its reversible layers give no gradient where the embedding is frozen, and while it "
    "trains, every text must have exactly as many tokens as its axial positions",
    "prophetnet": "it predicts several tokens at once, with positions that it counts by itself",
    "musicgen": _AUDIO,
    "musicgen_melody": _AUDIO,
    "gemma3n": "its class needs the package timm for images; its language model is gemma3n_text",
}


def types() -> list[str]:
    """Every `model_type` with a causal class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _ruled(defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings by the rules, for a class whose defaults are these."""
    found = {}
    for name, value in defaults.items():
        if name in RULES and not isinstance(
            value,
            list | dict | bool
            if name != "is_decoder" and name != "use_mamba_kernels"
            else list | dict,
        ):
            if value is None and name in KEEP_NONE:
                continue
            found[name] = RULES[name]
    heads, keys = defaults.get("num_attention_heads"), defaults.get("num_key_value_heads")
    if "num_key_value_heads" in found and heads == keys:
        found["num_key_value_heads"] = found["num_attention_heads"]
    if "qk_rope_head_dim" in defaults and defaults.get("head_dim") == defaults["qk_rope_head_dim"]:
        found["head_dim"] = RULES["qk_rope_head_dim"]
    return found


def _layers(defaults: dict[str, Any]) -> tuple[list[int], dict[str, list[Any]], str]:
    """(one layer of each kind, the lists that say what each layer is, name of the count)."""
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        count = defaults.get(name)
        if isinstance(count, int):
            break
    else:
        return [], {}, ""
    lists = {
        k: list(v)
        for k, v in defaults.items()
        if isinstance(v, list | tuple) and len(v) == count and count > 3
    }
    if not lists:
        return [], {}, name
    seen: dict[Any, int] = {}
    for i, kind in enumerate(zip(*lists.values(), strict=True)):
        seen.setdefault(repr(kind), i)
    kept = sorted(seen.values())
    while len(kept) < 2:
        kept = sorted({*kept, max(kept) + 1})
    return kept, lists, name


def _settings(config: Any, special: dict[str, Any]) -> dict[str, Any]:
    defaults = {k: v for k, v in vars(config).items() if not k.startswith("_")}
    sizes = _ruled(defaults)
    kept, lists, name = _layers(defaults)
    if lists:
        sizes[name] = len(kept)
        for key, values in lists.items():
            picked = [values[i] for i in kept]
            if all(isinstance(v, int) and not isinstance(v, bool) and v > 3 for v in picked):
                picked = (
                    [RULES["num_attention_heads"]] * len(kept)
                    if "heads" in key
                    else [min(v, 64) for v in picked]
                )
            sizes[key] = picked
    return {**sizes, **special}


def config_of(model_type: str, **changes: Any) -> Any:
    """A tiny configuration of a model type."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    special = copy.deepcopy(SPECIAL.get(model_type, {}))
    try:
        default = kind()
    except Exception:
        default = None
    given: dict[str, Any] = {}
    if default is not None:
        for name in dict(kind.sub_configs):
            own = getattr(default, name, None)
            if own is not None:
                given[name] = _settings(own, special.pop(name, {}))
        given |= _settings(default, {})
    return kind(**{**given, **special, **changes})


def model_of(model_type: str, dtype: str = "float32", seed: int = 0, **changes: Any) -> Any:
    """A causal language model with random weights, in eval mode."""
    import torch
    from transformers import AutoModelForCausalLM

    from tunewright.models.load import keep_rotary_base, silence_dropout

    config = config_of(model_type, **changes)
    keep_rotary_base(config, {})
    silence_dropout(config)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(torch.randn(p.shape) * 0.1)
    model.name_or_path = "tiny"
    return model.to(getattr(torch, dtype)).requires_grad_(False).eval()
