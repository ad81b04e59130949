"""A GGUF file in float16 of a Llama or Qwen2 folder, so that llama.cpp and OpenVINO GenAI decode the
same weights. Laid out as llama.cpp's own converter does: matrices in float16, vectors in float32,
and the query and key rows of a Llama interleaved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
CONTROL, NORMAL, UNUSED = 3, 1, 5


def write(folder: Path, path: Path) -> Path:
    """Write the model of `folder` (one safetensors file and a byte-level BPE tokenizer) to `path`,
    unless it is there."""
    if path.exists():
        return path
    import gguf
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), config["model_type"])
    _sizes(writer, config)
    _tokenizer(writer, folder, config)
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a dict
            theirs = _name(name)
            if theirs is not None:
                _add(writer, theirs, tensors.get_tensor(name), config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _sizes(writer: Any, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or config
    writer.add_type("model")
    writer.add_file_type(1)
    writer.add_quantization_version(2)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])


def _tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {one["content"]: one["id"] for one in stored["added_tokens"]}
    by_id = {i: text for text, i in {**stored["model"]["vocab"], **added}.items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(config["vocab_size"])]
    kinds = [
        CONTROL if by_id.get(i) in added else NORMAL if i in by_id else UNUSED
        for i in range(config["vocab_size"])
    ]
    merges = stored["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))
    writer.add_add_bos_token(False)


def _name(name: str) -> str | None:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    if not name.startswith("model.layers."):
        return None
    number, rest = name.removeprefix("model.layers.").split(".", 1)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{number}.{NAMES[module]}.{kind}"


def _add(writer: Any, name: str, tensor: Any, config: dict[str, Any]) -> None:
    if config["model_type"] == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config["num_attention_heads" if ".attn_q." in name else "num_key_value_heads"]
        halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
        tensor = halves.transpose(1, 2).reshape(tensor.shape)
    tensor = tensor.half() if tensor.ndim > 1 else tensor.float()
    writer.add_tensor(name, tensor.contiguous().numpy())
