"""EVA and LoftQ: starts that are measured, against plain linear algebra on the same rows and
weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story, tiny

from tunewright.core.config import BaseConfig
from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.methods.saved import put_on
from tunewright.models import anatomy
from tunewright.models.load import load_model

RANK = 4


def rows() -> list[list[int]]:
    return [b.tokens for sample in tiny.dialogues() + tiny.pairs() for b in sample.branches]


def attach(kind: str, model: Any, **settings: Any) -> Any:
    entry = methods.get(kind)
    assert entry is not None
    torch.manual_seed(0)
    return entry.function(entry.config(rank=RANK, **settings), model, anatomy.of(model), "tiny")


def inputs_of(model: Any, name: str) -> torch.Tensor:
    """(N, inputs): what a layer reads on all tokens of all rows, one row at a time."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda module, given, out: seen.append(given[0][0].detach())
    )
    with torch.no_grad():
        for row in rows():
            model(input_ids=torch.tensor([row]), use_cache=False)
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
)
def test_eva_spans_the_directions_in_which_the_inputs_of_a_layer_vary_most(name: str) -> None:
    X = inputs_of(tiny.make_model("llama"), name)
    C = X - X.mean(0)
    attached = attach("eva", tiny.make_model("llama"))
    attached.look(rows())
    A = dict(attached.model.named_parameters())[
        f"base_model.model.{name}.lora_A.default.weight"
    ].detach()
    caught = float((C @ A.T).square().sum())
    best = float(torch.linalg.svdvals(C)[:RANK].square().sum())
    drawn = float((C @ torch.linalg.qr(torch.randn(C.shape[1], RANK)).Q).square().sum())
    # PEFT's decomposition is incremental and ends when the directions hardly turn any more, so it
    # is near the best, not the best.
    assert caught >= 0.9 * best > 2 * drawn


def test_eva_as_an_option_of_lora_is_the_same_start() -> None:
    both = []
    for kind, settings in (("eva", {}), ("lora", {"eva": True})):
        attached = attach(kind, tiny.make_model("llama"), **settings)
        attached.look(rows())
        both.append(
            {
                n: p.detach().clone()
                for n, p in attached.model.named_parameters()
                if n in attached.parameters
            }
        )
    assert both[0].keys() == both[1].keys() and all(
        torch.equal(p, both[1][n]) for n, p in both[0].items()
    )


def test_eva_with_rho_moves_ranks_and_keeps_their_sum() -> None:
    attached = attach("eva", tiny.make_model("llama"), rho=2.0)
    attached.look(rows())
    ranks = [p.shape[0] for n, p in attached.model.named_parameters() if ".lora_A." in n]
    assert sum(ranks) == RANK * 14 and max(ranks) <= 2 * RANK and len(set(ranks)) > 1


@pytest.mark.parametrize("given", [[], [[5]], [[7, 7, 7]]])
def test_eva_on_too_few_tokens_is_refused_and_does_not_go_on_for_ever(
    given: list[list[int]],
) -> None:
    attached = attach("eva", tiny.make_model("llama"))
    with pytest.raises(TunewrightError) as caught:
        attached.look(given)
    assert [p.code for p in caught.value.problems] == ["E-METHOD-61"]


def test_eva_reads_rows_whose_tokens_are_all_the_same_without_hanging() -> None:
    attached = attach("eva", tiny.make_model("llama"))
    try:
        attached.look([[7] * 30 for _ in range(4)])
    except TunewrightError as e:
        assert [p.code for p in e.problems] == ["E-METHOD-61"]
    else:
        assert all(
            bool(torch.isfinite(p).all())
            for n, p in attached.model.named_parameters()
            if n in attached.parameters
        )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"niter": 8}, {"alpha": 8.0}])
def test_loftq_brings_a_quantised_layer_as_near_to_the_original_as_a_product_of_its_rank_can(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    folder = tiny.save_folder(tmp_path / "base", family)
    model = load_model(folder, dtype="float32", base=BaseConfig(bits=4))
    attached = attach("loftq", model, **settings)
    name = "model.layers.1.mlp.up_proj" if family == "llama" else "transformer.h.1.attn.c_attn"
    layer = attached.model.base_model.model.get_submodule(name)
    W = dict(tiny.make_model(family).named_parameters())[f"{name}.weight"].detach()
    W = W if family == "llama" else W.T
    Q = layer.get_base_layer().weight
    made = (
        Q
        + layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    ).detach()
    best = torch.linalg.svdvals(W - Q)[RANK:].square().sum().sqrt()
    assert float((W - made).norm()) <= 1.01 * float(best) < 0.95 * float((W - Q).norm())


def test_loftq_starts_nearer_to_the_unquantised_model_than_the_quantised_one_is(
    tmp_path: Path,
) -> None:
    folder = tiny.save_folder(tmp_path / "base", "llama")
    ids = torch.tensor([rows()[0]])

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits

    whole = logits(load_model(folder, dtype="float32"))
    model = load_model(folder, dtype="float32", base=BaseConfig(bits=4))
    quantised = logits(model)
    entry = methods.get("loftq")
    assert entry is not None
    attached = entry.function(entry.config(rank=24), model, anatomy.of(model), "tiny")
    assert float((logits(attached.model) - whole).norm()) < 0.6 * float((quantised - whole).norm())


def test_loftq_needs_a_quantised_base_and_its_original_weights(tmp_path: Path) -> None:
    with pytest.raises(TunewrightError) as caught:
        attach("loftq", tiny.make_model("llama"))
    assert [p.code for p in caught.value.problems] == ["E-METHOD-60"]
    folder = tiny.save_folder(tmp_path / "base", "llama")
    model = load_model(folder, dtype="float32", base=BaseConfig(bits=4))
    tiny.make_model("llama", seed=9).save_pretrained(
        folder
    )  # other weights than those that were quantised
    with pytest.raises(TunewrightError) as caught:
        attach("loftq", model)
    assert [p.code for p in caught.value.problems] == ["E-METHOD-62"]


def test_a_saved_loftq_adapter_is_for_its_quantised_base_only(tmp_path: Path) -> None:
    folder = tiny.save_folder(tmp_path / "base", "llama")
    attached = attach("loftq", load_model(folder, dtype="float32", base=BaseConfig(bits=4)))
    attached.save(tmp_path / "adapter")
    again = put_on(
        load_model(folder, dtype="float32", base=BaseConfig(bits=4)), tmp_path / "adapter"
    )
    assert again.merge is None and again.merge_reason
    with pytest.raises(TunewrightError) as caught:
        put_on(load_model(folder, dtype="float32"), tmp_path / "adapter")
    assert [p.code for p in caught.value.problems] == ["E-METHOD-63"]


def test_a_run_without_bits_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    from tunewright.core import compat
    from tunewright.core.runfile import parse_run

    for given in ({"method.kind": "loftq"}, {"method.loftq": True}):
        run = parse_run({"model": "none", "data.train": "none.json", **given}, {}).config
        assert [p.code for p in compat.problems(run)] == ["E-METHOD-60"]
        run = parse_run(
            {"model": "none", "data.train": "none.json", "base.bits": 4, **given}, {}
        ).config
        assert compat.problems(run) == []


@pytest.mark.parametrize(("kind", "more"), [("eva", []), ("loftq", ["base.bits=4"])])
def test_a_whole_run_learns_answers_and_is_read_back(
    tmp_path: Path, kind: str, more: list[str]
) -> None:
    model, data = (
        story.model_folder(tmp_path / "model"),
        story.rows_file(tmp_path / "rows.json", 12),
    )
    out = tmp_path / "run"
    done = story.tunewright(
        *story.words(
            model,
            data,
            out,
            f"method.kind={kind}",
            "method.rank=4",
            "engine.learning_rate=1e-2",
            *more,
        )
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "done" and summary["final_loss"] < 0.97 * summary["first_loss"]
    assert summary["trainable_parameters"] == 4 * 2 * (2 * 128 + 2 * 96 + 3 * 160)
    asked = story.tunewright("chat", str(out), "-q", "what is it?", "--json")
    assert asked.returncode == 0, asked.stderr
    merged = story.tunewright("export", "merge", str(out), str(tmp_path / "merged"))
    assert (merged.returncode == 0) == (kind == "eva"), merged.stderr
