"""Bottleneck adapters: where they stand, what they compute (a scalar reference from the papers),
saving, generation with a cache."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.errors import ModelError
from tunewright.core.registry import methods
from tunewright.methods.saved import put_on
from tunewright.models import anatomy

IDS = [[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3], [6, 6, 44, 100, 2, 1, 19, 55, 21, 60, 200]]
KINDS = ["adapter", "houlsby", "pfeiffer", "parallel_adapter"]


def logits(model: Any, ids: Any = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), use_cache=False).logits


def attach(kind: str, model: Any, **settings: Any) -> Any:
    entry = methods.get(kind)
    assert entry is not None
    torch.manual_seed(0)
    return entry.function(entry.config(**settings), model, anatomy.of(model), "tiny")


def made(kind: str, family: str = "llama", **settings: Any) -> Any:
    model = tiny.make_model(family)
    attached = attach(kind, model, **settings)
    tiny.randomise(attached, spread=0.1)
    return attached


def scalar_adapter(x: list[float], weights: dict[str, Any], scale: float) -> list[float]:
    """s (W_up relu(W_down x + b_down) + b_up), number by number."""
    low = [
        max(0.0, sum(w * v for w, v in zip(row, x, strict=True)) + b)
        for row, b in zip(weights["down"], weights["down_bias"], strict=True)
    ]
    return [
        scale * (sum(w * v for w, v in zip(row, low, strict=True)) + b)
        for row, b in zip(weights["up"], weights["up_bias"], strict=True)
    ]


def reference(attached: Any, placement: str, scale: float) -> torch.Tensor:
    """Logits of a Llama with adapters, from the papers' equations: the untouched blocks' own
    attention and feed-forward, the residual sums written here."""
    trained = {
        n: p.detach().double().tolist()
        for n, p in attached.model.named_parameters()
        if n in set(attached.parameters)
    }
    model = tiny.make_model("llama", "float64")

    def adapt(h: torch.Tensor, block: int, place: str) -> torch.Tensor:
        start = f"model.layers.{block}.adapter_{place}."
        weights = {n.removeprefix(start): v for n, v in trained.items() if n.startswith(start)}
        rows = [scalar_adapter(row, weights, scale) for row in h.reshape(-1, h.shape[-1]).tolist()]
        return torch.tensor(rows, dtype=torch.float64).view(h.shape)

    with torch.no_grad():
        h = model.model.embed_tokens(torch.tensor(IDS))
        positions = torch.arange(h.shape[1])[None].expand(2, -1)
        turned = model.model.rotary_emb(h, positions)
        for i, block in enumerate(model.model.layers):
            seen = torch.full((1, 1, h.shape[1], h.shape[1]), -math.inf, dtype=torch.float64).triu(
                1
            )
            s = block.self_attn(
                block.input_layernorm(h), position_embeddings=turned, attention_mask=seen
            )[0]
            h = h + s + (adapt(s, i, "attention") if placement == "houlsby" else 0)
            n = block.post_attention_layernorm(h)
            f = block.mlp(n)
            h = h + f + adapt(n if placement == "parallel" else f, i, "mlp")
        return model.lm_head(model.model.norm(h))


@pytest.mark.parametrize(
    ("kind", "placement", "scale"),
    [
        ("adapter", "pfeiffer", 1.0),
        ("houlsby", "houlsby", 1.0),
        ("parallel_adapter", "parallel", 4.0),
    ],
)
def test_the_logits_are_those_of_the_papers_equations(
    kind: str, placement: str, scale: float
) -> None:
    attached = made(kind, bottleneck=5)
    wanted = reference(attached, placement, scale)
    ours = logits(attached.model).double()
    assert float((ours - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert float((ours - logits(tiny.make_model("llama"))).abs().max()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_waist_is_as_wide_as_asked_and_pfeiffers_a_sixteenth(kind: str) -> None:
    attached = attach(kind, tiny.make_model("llama"))
    waists = {p.shape[0] for n, p in attached.model.named_parameters() if n.endswith(".down")}
    assert waists == {3 if kind == "pfeiffer" else 64}
    places = {n.split(".")[-2] for n in attached.parameters}
    assert places == (
        {"adapter_mlp", "adapter_attention"} if kind == "houlsby" else {"adapter_mlp"}
    )


@pytest.mark.parametrize("kind", ["houlsby", "parallel_adapter"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi", "gpt_neox"])
def test_generating_with_the_cache_gives_what_reading_all_at_once_gives(
    kind: str, family: str
) -> None:
    attached = made(kind, family)
    ids = torch.tensor([IDS[0]])
    model = attached.model
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=5,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    for at in range(ids.shape[1], out.shape[1]):
        assert int(logits(model, out[:, :at].tolist())[0, -1].argmax()) == int(out[0, at])


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_every_activation_is_another_function(activation: str) -> None:
    found = logits(made("adapter", activation=activation).model)
    others = [
        logits(made("adapter", activation=other).model)
        for other in ("relu", "gelu", "silu", "tanh")
        if other != activation
    ]
    assert all(not torch.allclose(found, other, atol=1e-4) for other in others)


def test_half_precision_bases_keep_their_adapters_in_float32_and_their_logits_in_half() -> None:
    model = tiny.make_model("llama", "bfloat16")
    attached = attach("houlsby", model)
    assert {p.dtype for n, p in model.named_parameters() if n in set(attached.parameters)} == {
        torch.float32
    }
    assert logits(model).dtype == torch.bfloat16


def test_the_saved_folder_holds_only_the_adapters_and_opens_on_the_base(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    attached = made("houlsby", bottleneck=4)
    wanted = logits(attached.model)
    attached.save(tmp_path)
    stored = load_file(tmp_path / "method.safetensors")
    assert len(stored) == 2 * 2 * 4  # blocks x places x (down, its bias, up, its bias)
    assert sum(t.numel() for t in stored.values()) == 2 * 2 * (2 * 48 * 4 + 4 + 48)
    described = json.loads((tmp_path / "tunewright_method.json").read_text(encoding="utf-8"))
    assert (
        described["kind"],
        described["config"]["bottleneck"],
        described["base_model_name_or_path"],
    ) == ("houlsby", 4, "tiny")
    opened = put_on(tiny.make_model("llama"), tmp_path)
    assert torch.equal(logits(opened.model), wanted)
    assert not any(p.requires_grad for p in opened.model.parameters())
    again = put_on(tiny.make_model("llama"), tmp_path, trainable=True)
    assert [n for n, p in again.model.named_parameters() if p.requires_grad] == attached.parameters


def test_a_folder_that_does_not_fit_or_cannot_be_read_is_refused(tmp_path: Path) -> None:
    made("adapter", bottleneck=4).save(tmp_path)
    with pytest.raises(ModelError, match="E-METHOD-42"):
        put_on(tiny.make_model("llama", num_hidden_layers=3), tmp_path)
    with pytest.raises(ModelError, match="E-METHOD-42"):
        put_on(tiny.make_model("llama", hidden_size=64), tmp_path)
    (tmp_path / "method.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="E-METHOD-41"):
        put_on(tiny.make_model("llama"), tmp_path)


def test_a_family_without_a_module_around_feed_forward_refuses_the_parallel_placement() -> None:
    model = (
        tiny.make_model("opt", word_embed_proj_dim=48, ffn_dim=64)
        if "opt" in tiny.FAMILIES
        else _opt()
    )
    with pytest.raises(ModelError, match="E-METHOD-40"):
        attach("parallel_adapter", model)
    assert attach("pfeiffer", _opt()).parameters


def _opt() -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {
        "vocab_size": 211,
        "hidden_size": 48,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    return (
        OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=48, dropout=0.0))
        .eval()
        .requires_grad_(False)
    )


def test_the_estimate_counts_what_trains() -> None:
    from tunewright.models.shape import ModelShape, trainable_parameters

    model = tiny.make_model("llama")
    shape = ModelShape.from_config(model.config.to_dict())
    for kind in KINDS:
        entry = methods.get(kind)
        assert entry is not None
        attached = attach(kind, tiny.make_model("llama"))
        wanted = sum(
            p.numel() for n, p in attached.model.named_parameters() if n in set(attached.parameters)
        )
        assert trainable_parameters(shape, entry.config()) == wanted
