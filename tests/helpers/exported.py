"""Tiny chat models of the families that can be exported, with an adapter that was moved, as run
folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers import building

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
SIX = ["sliding_attention"] * 5 + ["full_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False, "sliding_window": None},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 32},
    "gemma": {"head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "num_hidden_layers": 6, "layer_types": SIX, "tie_word_embeddings": True},
    "phi3": {"tie_word_embeddings": False, "sliding_window": None},
    "smollm3": {"num_hidden_layers": 4, "tie_word_embeddings": True},
}  # fmt: skip


def folder_of(place: Path, family: str, tokenizer: Any = None, **changes: Any) -> Path:
    """A model folder of a family; norms and biases are no constants."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {**SIZES, **FAMILIES.get(family, {}), **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(place)
    (tokenizer or building.make_tokenizer()).save_pretrained(place)
    return place


def run_of(place: Path, base: Path, data: Path | None = None, **lora: Any) -> Path:
    """A run folder as `train` leaves it, around a LoRA adapter whose B matrices are noise."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **lora}
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    wrapped.save_pretrained(str(place / "adapter"), save_embedding_layers=False)
    AutoTokenizer.from_pretrained(base).save_pretrained(str(place / "adapter"))
    (place / "run.yaml").write_text(
        f"model: {base}\ndata:\n  train: {data or 'gone.json'}\nengine:\n  dtype: float32\n",
        encoding="utf-8",
    )
    return place


QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CORPUS = [
    "The capital of France is Paris, isn't it? I'll say 12345 apples cost $67.89.",
    "你好，世界！今天天气很好，我们去公园散步吧。模型学习得很快。",
    "def f(x):\n    return [i ** 2 for i in range(x) if i % 2 == 0]  # code\n\n",
    "🚀 emoji ✅ naïve café Привет мир こんにちは 한국어 مرحبا",
] * 6  # fmt: skip
ADDED = ["<tool>", "</tool>"]
TOKENIZERS = ("gpt-2", "smollm", "qwen2", "llama-bpe", "spaces", "gemma")


def tokenizer_of(kind: str, template: str = building.CHATML, end: str = "<|im_end|>") -> Any:
    """A small tokenizer, trained on the spot, that cuts texts as a family does; with special tokens
    and added ones that are not special."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    backend = _by_spaces(kind) if kind in ("spaces", "gemma") else _by_bytes(kind)
    special = ["<|endoftext|>", "<|im_start|>", end]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
    unknown = {"unk_token": "<unk>"} if kind in ("spaces", "gemma") else {}
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token="<|endoftext|>", **unknown
    )
    made.chat_template = template
    return made


def _by_bytes(kind: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    steps: list[Any] = []
    if kind == "smollm":
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    split = {"qwen2": QWEN2_SPLIT, "llama-bpe": LLAMA3_SPLIT}.get(kind)
    if split:
        steps.append(pre_tokenizers.Split(Regex(split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _by_spaces(kind: str) -> Any:
    """In the manner of SentencePiece; Gemma's puts no space before the first word."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    model = json.loads(made.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *model["vocab"]]
    vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
    merges = [tuple(m) for m in model["merges"]]
    whole = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    prefix = [normalizers.Prepend("▁")] if kind == "spaces" else []
    whole.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if kind == "spaces" else []
    whole.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return whole


def mixed_texts(count: int = 500) -> list[str]:
    """Chinese, English, code and emoji, mixed and seeded."""
    import random

    draw = random.Random(5)
    pieces = [
        "hello", " world", "It's", " I'LL", " don't", "你好", "，世界！", "模型", " 2026", "1234567", " 3.14", "\n", "\n\n", "  ", "\t", " \n ",
        "def f(x):", "\n    return x**2", " # 注释", "{\"a\": [1, 2]}", "🚀", "👩‍👩‍👧", "✅", " café", " Привет", "こんにちは", "한국어", " مرحبا",
        "!!!", " ???", "...", " -- ", "<b>", "</b>", "C:\\dir", "https://a.b/c?d=1&e=2", "ABCdef", " snake_case", "CamelCase", "½", "№ 5", "\r\n", "ﬁ", "²",
        "<tool>", "</tool>",
    ]  # fmt: skip
    return ["".join(draw.choice(pieces) for _ in range(draw.randint(1, 24))) for _ in range(count)]


def prompt_run_of(place: Path, base: Path) -> Path:
    """A run of prompt tuning: no weight can say what it does."""
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    wrapped = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    wrapped.save_pretrained(str(place / "adapter"))
    AutoTokenizer.from_pretrained(base).save_pretrained(str(place / "adapter"))
    (place / "run.yaml").write_text(f"model: {base}\nmethod:\n  kind: prompt\n", encoding="utf-8")
    return place
