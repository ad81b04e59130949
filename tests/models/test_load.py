"""Opening a folder: all weights, no surprises, and what the folder is."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.building import CHATML, codes, make_model, make_tokenizer

from tunewright.core import signals
from tunewright.core.errors import Interrupted, ModelError
from tunewright.models import load
from tunewright.text.chat_kind import kind_of_model, stop_ids, turn_end_id
from tunewright.text.tokenizer import load_tokenizer

Edit = Callable[..., Path]


def test_a_model_comes_ready_and_frozen_without_touching_the_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def refuse(*_: Any) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model, original = load.load_model(folder, dtype="float32"), make_model()
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.dtype is torch.float32
    assert model.config._attn_implementation == "sdpa"
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), original.state_dict().values(), strict=True)
    )
    assert load_tokenizer(folder).decode([5, 6])
    assert load.load_model(folder, dtype=torch.bfloat16, attention="eager").dtype is torch.bfloat16


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_missing_weight_is_an_error_not_a_random_number(folder: Path) -> None:
    rewrite(folder, lambda w: w.pop("model.layers.1.mlp.down_proj.weight"))
    with pytest.raises(ModelError, match="1 missing, 0 unexpected") as caught:
        load.load_model(folder, dtype="float32")
    assert codes(caught.value) == ["E-MODEL-33"]


def test_a_weight_without_a_place_is_an_error(folder: Path) -> None:
    rewrite(folder, lambda w: w.update(extra=w["model.norm.weight"].clone()))
    with pytest.raises(ModelError, match="0 missing, 1 unexpected"):
        load.load_model(folder, dtype="float32")


def test_a_stop_while_weights_load_is_no_fault_of_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = signals.StopFlag()
    stop.signal = signal.SIGTERM

    def stopped(*_: Any, **__: Any) -> None:
        stop.check()

    monkeypatch.setattr(load, "_built", stopped)
    with pytest.raises(Interrupted) as caught:
        load.load_model(folder, dtype="float32")
    assert codes(caught.value) == ["E-RUN-06"]


def test_a_weight_of_another_shape_is_an_error(edit: Edit) -> None:
    with pytest.raises(ModelError) as caught:
        load.load_model(edit(intermediate_size=48), dtype="float32")
    assert codes(caught.value)[0] in ("E-MODEL-32", "E-MODEL-33")


def test_dropouts_of_the_config_are_set_to_zero_and_said(edit: Edit) -> None:
    notes: list[str] = []
    model = load.load_model(edit(attention_dropout=0.25), dtype="float32", notes=notes)
    assert model.config.attention_dropout == 0.0
    assert notes == ["attention_dropout 0.25 in the model's config was set to 0"]


def test_dropout_modules_of_older_families_are_silent_too(tmp_path: Path, tokenizer: Any) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    notes: list[str] = []
    model = load.load_model(tmp_path, dtype="float32", notes=notes).train()
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert {n.split()[0] for n in notes} >= {"attn_pdrop", "embd_pdrop", "resid_pdrop"}
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_sizes_come_from_the_headers(folder: Path) -> None:
    model = make_model()
    count = sum(p.numel() for p in model.parameters())
    assert load.parameter_count(folder) == count
    assert load.weight_bytes(folder) == 4 * count


def test_a_tied_head_that_is_stored_all_the_same_is_counted_once_and_loads(folder: Path) -> None:
    count = load.parameter_count(folder)
    rewrite(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert load.parameter_count(folder) == count
    model = load.load_model(folder, dtype="float32")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_folder_without_a_tokenizer_says_so(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError) as caught:
        load_tokenizer(folder)
    assert codes(caught.value) == ["E-MODEL-31"]


def test_every_way_to_end_an_answer_is_a_stop(tokenizer: Any) -> None:
    from transformers import GenerationConfig

    assert turn_end_id(tokenizer) == 2
    assert stop_ids(tokenizer) == [2]
    assert stop_ids(tokenizer, GenerationConfig(eos_token_id=[0])) == [0, 2]
    assert stop_ids(make_tokenizer(eos="<|endoftext|>"), {"eos_token_id": 0}) == [0, 2]
    assert stop_ids(make_tokenizer(template=None, eos="<|endoftext|>")) == [0]


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no') }}", "{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "{{ messages[0]['content'] }}", "{{ ''.__class__.__mro__ }}"],
)  # fmt: skip
def test_a_template_that_ends_no_turn_gives_no_stop_and_no_crash(template: str) -> None:
    assert turn_end_id(make_tokenizer(template=template)) is None


@pytest.mark.parametrize(
    ("name", "template", "stops", "is_chat", "word"),
    [
        ("model", CHATML, [0, 2], True, "stops at"),
        ("Some-0.5B", CHATML, 0, False, "stops only at <|endoftext|>"),
        ("Some-0.5B-Instruct", CHATML, 0, True, "name"),
        ("model", None, 0, False, "no chat template"),
        ("model-it", None, 0, True, "name"),
        ("model-base", CHATML.replace("<|im_end|>", "<|endoftext|>"), 0, False, "base"),
        ("model", CHATML.replace("<|im_end|>", "<|endoftext|>"), 0, True, "no stronger evidence"),
        ("edition", CHATML.replace("<|im_end|>", ""), 0, False, "does not mark the end"),
    ],
)
def test_base_and_chat_are_told_apart_with_a_reason(
    folder: Path, name: str, template: str | None, stops: Any, is_chat: bool, word: str
) -> None:
    folder = folder.rename(folder.parent / name)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": stops}), encoding="utf-8"
    )
    found = kind_of_model(folder, make_tokenizer(template=template, eos="<|endoftext|>"))
    assert found.is_chat is is_chat
    assert word in found.reason


@pytest.mark.parametrize(("stated", "wanted"), [({}, 5e5), ({"rope_theta": 1e6}, 1e6)])
def test_dbrx_computes_with_the_base_of_positions_that_its_file_states(
    stated: dict[str, float], wanted: float, tmp_path: Path
) -> None:
    """Transformers 5.23 reads it nowhere; the published file has it in `attn_config`."""
    import torch
    from helpers import causal

    causal.model_of("dbrx").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config.pop("rope_parameters", None)
    config["attn_config"]["rope_theta"] = 5e5
    (tmp_path / "config.json").write_text(json.dumps(config | stated), "utf-8")
    model = load.load_model(tmp_path, dtype="float32")
    assert model.config.rope_parameters["rope_theta"] == wanted
    freq = next(b for n, b in model.named_buffers() if n.endswith("rotary_emb.inv_freq"))
    size = 2 * len(freq)
    expected = 1.0 / wanted ** (torch.arange(0, size, 2).float() / size)
    torch.testing.assert_close(freq, expected)


def test_a_cap_on_the_scores_is_kept_whatever_transformers_says_of_sdpa(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers 5.17 says that PyTorch's attention does for Gemma 2, and leaves the cap out."""
    import torch
    from helpers import tiny
    from transformers import Gemma2PreTrainedModel

    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    folder, notes = tiny.save_folder(tmp_path / "model", "gemma2"), list[str]()
    model: Any = load.load_model(folder, dtype="float32", notes=notes)
    assert any("eager" in note for note in notes)
    assert model.config._attn_implementation == load.stock_attention(model) == "eager"
    tokens = torch.tensor([list(range(5, 30))])
    model.set_attn_implementation("eager")
    capped = model(tokens).logits
    model.config.attn_logit_softcapping = None
    for block in model.model.layers:
        block.self_attn.attn_logit_softcapping = None
    assert (model(tokens).logits - capped).abs().max() > 1e-3, "the cap does nothing in this model"
    assert load.stock_attention(model) == "sdpa"
