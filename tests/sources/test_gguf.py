"""GGUF files into plain folders: bit for bit, with the right tokens, and never trusting a header."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from helpers.building import codes, make_model, make_tokenizer, write_gguf

from tunewright.core.errors import ModelError
from tunewright.models import load
from tunewright.sources import gguf, vet
from tunewright.text.tokenizer import load_tokenizer

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", make_model(), tokenizer)


@pytest.fixture(scope="module")
def converted(file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    said: list[str] = []
    target = tmp_path_factory.mktemp("converted") / "tiny"
    gguf.convert(file, target, said.append)
    return target, said


def test_the_converted_weights_are_those_of_the_original_bit_for_bit(
    converted: tuple[Path, list[str]],
) -> None:
    import torch

    model, original = load.load_model(converted[0], dtype="float32"), make_model()
    assert vet.problems_of(converted[0]) == []
    for name, weight in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)


def test_digits_are_split_one_by_one_for_smollm(converted: tuple[Path, list[str]]) -> None:
    tokens = load_tokenizer(converted[0]).tokenize("of 2026 Paris")
    assert [t for t in tokens if t.isdigit()] == ["2", "0", "2", "6"]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "a 2026", ["a", "Ġ", "2", "0", "2", "6"]),
        ("gpt-2", "a 2026", ["a", "Ġ2026"]),
        ("llama-bpe", "a 2026", ["a", "Ġ", "202", "6"]),
        ("qwen2", "a 2026", ["a", "Ġ", "2", "0", "2", "6"]),
        ("tekken", "camelCase", ["camel", "Case"]),
        ("gpt-4o", "isn't", ["isn't"]),
        ("qwen2", "isn't", ["isn", "'t"]),
    ],
)  # fmt: skip
def test_text_is_cut_as_the_named_pre_tokenizer_cuts_it(
    pre: str, text: str, pieces: list[str]
) -> None:
    tokenizer = make_tokenizer()
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(inner["vocab"], key=inner["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in inner["merges"]]
    data = {
        "general.architecture": "llama",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
    }
    said: list[str] = []
    built = gguf._byte_level(gguf.Header(data), said.append)
    assert [
        piece for piece, _ in built.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    ] == pieces
    assert built.decode(built(text).input_ids) == text
    assert not said


def test_an_unknown_pre_tokenizer_is_said(tmp_path: Path, tokenizer: Any) -> None:
    said: list[str] = []
    gguf.convert(
        write_gguf(tmp_path / "x.gguf", make_model(), tokenizer, pre="never-heard-of"),
        tmp_path / "out",
        said.append,
    )
    assert any("never-heard-of" in text for text in said)


def test_padding_is_not_the_end_of_a_turn_and_both_configs_agree(
    converted: tuple[Path, list[str]],
) -> None:
    folder, said = converted
    tokenizer = load_tokenizer(folder)
    config, generation = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("config.json", "generation_config.json")
    )
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert config["eos_token_id"] == generation["eos_token_id"] == tokenizer.eos_token_id == 2
    assert config["pad_token_id"] == generation["pad_token_id"] == tokenizer.pad_token_id == 0
    assert any("<|endoftext|>" in text for text in said)
    assert any("float32" in text for text in said)


def test_every_token_that_the_file_calls_an_end_is_kept(tmp_path: Path, tokenizer: Any) -> None:
    gguf.convert(
        write_gguf(tmp_path / "x.gguf", make_model(), tokenizer, eos=0, eot=2), tmp_path / "out"
    )
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))[
        "eos_token_id"
    ] == [0, 2]


def test_special_tokens_and_the_chat_template_survive(
    converted: tuple[Path, list[str]], tokenizer: Any
) -> None:
    again = load_tokenizer(converted[0])
    assert again.chat_template == tokenizer.chat_template
    assert again("<|im_start|>Paris<|im_end|>").input_ids[0] == 1
    assert again("<|im_start|>Paris<|im_end|>").input_ids[-1] == 2
    assert again.decode(again("it's 你好").input_ids) == "it's 你好"


def test_a_head_stored_twice_is_tied_again_and_another_head_is_not(
    tmp_path: Path, tokenizer: Any
) -> None:
    gguf.convert(
        write_gguf(tmp_path / "same.gguf", make_model(tie=True), tokenizer, head=True),
        tmp_path / "same",
    )
    gguf.convert(
        write_gguf(tmp_path / "other.gguf", make_model(tie=False), tokenizer, head=True),
        tmp_path / "other",
    )
    for name, tied in (("same", True), ("other", False)):
        config = json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8"))
        assert config["tie_word_embeddings"] is tied
        model = load.load_model(tmp_path / name, dtype="float32")
        assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_the_config_keeps_rope_and_head_width_and_loses_what_described_the_file(
    converted: tuple[Path, list[str]],
) -> None:
    config = json.loads((converted[0] / "config.json").read_text(encoding="utf-8"))
    assert config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["head_dim"] == 16
    assert not {"_name_or_path", "_model_name_or_path", "quantization_config"} & set(config)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_weights_can_be_read_by_whoever_can_read_the_config(
    converted: tuple[Path, list[str]],
) -> None:
    modes = {p.name: p.stat().st_mode & 0o777 for p in converted[0].iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] & 0o644


def test_llama_3_rope_factors_are_recognised_and_others_refused() -> None:
    import numpy as np
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    wanted = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters={**wanted, "rope_theta": 500000.0},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (np.arange(64) / 64)
    table = plain / scaled.double().numpy()
    found = gguf._llama3_rope(table, 500000.0)
    assert found is not None
    assert found == {**wanted, "factor": pytest.approx(8.0, rel=1e-5)}
    assert gguf._llama3_rope(table * 1.5, 500000.0) is None
    assert gguf._llama3_rope(np.full(64, np.nan), 500000.0) is None


def _damage(raw: bytes, at: int, value: bytes) -> bytes:
    return raw[:at] + value + raw[at + len(value) :]


def spoiled(raw: bytes) -> dict[str, bytes]:
    key = raw.index(b"general.architecture")
    block = raw.index(b"llama.block_count") + len(b"llama.block_count") + 4
    width = raw.index(b"llama.embedding_length") + len(b"llama.embedding_length") + 4
    inner = raw.index(b"llama.feed_forward_length") + len(b"llama.feed_forward_length") + 4
    vocabulary = raw.index(b"llama.vocab_size") + len(b"llama.vocab_size") + 4
    tokens = raw.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    tensor = raw.index(b"token_embd.weight") + len(b"token_embd.weight")
    big, int32 = struct.pack("<Q", 2**62), struct.pack("<I", 2**31 - 1)
    return {
        "empty": b"", "no signature": b"GGML" + raw[4:], "version": _damage(raw, 4, b"\x09"), "tensor count": _damage(raw, 8, big),
        "key count": _damage(raw, 16, big), "key length": _damage(raw, key - 8, big), "value type": _damage(raw, key + 20, int32),
        "block count": _damage(raw, block, int32), "width": _damage(raw, width, int32), "feed forward": _damage(raw, inner, int32),
        "vocabulary": _damage(raw, vocabulary, int32), "list length": _damage(raw, tokens, big),
        "string of 2^40": _damage(raw, tokens + 8, struct.pack("<Q", 2**40)), "rank": _damage(raw, tensor, int32),
        "dimensions": _damage(raw, tensor + 4, big), "overflow": _damage(raw, tensor + 4, big + big),
        "type": _damage(raw, tensor + 20, int32), "offset": _damage(raw, tensor + 24, big), "cut off": raw[: len(raw) // 2], "header only": raw[:30],
    }  # fmt: skip


def test_a_header_that_lies_gives_an_error_and_no_memory(file: Path, tmp_path: Path) -> None:
    for name, content in spoiled(file.read_bytes()).items():
        path = tmp_path / "bad.gguf"
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(ModelError) as caught:
            gguf.convert(path, tmp_path / "out")
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert codes(caught.value) == ["E-MODEL-15"], name
        assert peak_bytes < 4 << 20, name
    assert not (tmp_path / "out").exists()


def test_random_damage_never_escapes_as_another_exception(file: Path, tmp_path: Path) -> None:
    import random

    raw, draw = file.read_bytes(), random.Random(0)
    path = tmp_path / "bad.gguf"
    for _ in range(300):
        at = draw.randrange(8000)
        path.write_bytes(_damage(raw, at, draw.randbytes(draw.choice((1, 4, 8)))))
        try:
            gguf.read_header(path)
        except ModelError as e:
            assert codes(e) == ["E-MODEL-15"]


def test_what_lies_beside_the_file_is_not_read(file: Path, tmp_path: Path) -> None:
    place = tmp_path / "downloads"
    place.mkdir()
    canary = tmp_path / "canary"
    (place / "tiny.gguf").write_bytes(file.read_bytes())
    (place / "own.py").write_text(f"open({str(canary)!r}, 'w')", encoding="utf-8")
    for name in (
        "config.json",
        "tokenizer_config.json",
        "adapter_config.json",
        "generation_config.json",
    ):
        content = {
            "auto_map": {"AutoConfig": "own.X", "AutoTokenizer": "own.X"},
            "base_model_name_or_path": "/nowhere",
            "peft_type": "LORA",
        }
        (place / name).write_text(json.dumps(content), encoding="utf-8")
    gguf.convert(place / "tiny.gguf", tmp_path / "out")
    assert vet.problems_of(tmp_path / "out") == []
    assert not canary.exists()


def test_an_unknown_architecture_is_an_error_with_the_cause(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(
        file.read_bytes()
        .replace(b"llama.", b"lamma.")
        .replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lamma")
    )
    with pytest.raises(ModelError) as caught:
        gguf.convert(path, tmp_path / "out")
    assert codes(caught.value) == ["E-MODEL-16"]
    assert "lamma" in str(caught.value)


def test_a_file_that_lacks_weights_is_refused_not_filled_with_random_numbers(
    tmp_path: Path, tokenizer: Any
) -> None:
    path = write_gguf(tmp_path / "x.gguf", make_model(), tokenizer)
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_norm.weight", b"blk.1.ffn_mist.weight"))
    with pytest.raises(ModelError) as caught:
        gguf.convert(path, tmp_path / "out")
    assert codes(caught.value) == ["E-MODEL-16"]
