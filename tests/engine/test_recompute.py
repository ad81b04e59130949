"""What is computed again in the backward pass gives the numbers of what was kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.advise.question import Question, SampleFacts
from tunewright.advise.room import Room, rooms
from tunewright.core.registry import methods
from tunewright.engine import recompute
from tunewright.models.limits import KEEP_BYTES

FAMILIES = ["llama", "gemma2", "gpt2", "qwen2", "mixtral", "phi3"]


def gradients(level: str, family: str = "llama", layout: str = "tree", **method: Any) -> Any:
    """(report, gradients by name, random state after) of one step's gradient."""
    model = tiny.make_model(family)
    torch.manual_seed(1)
    attached = tiny.attach_lora(model, **method) if method else tiny.attach_all(model)
    stepper = tiny.make_stepper(model, attached, layout)
    recompute.install(stepper.policy, level)
    torch.manual_seed(2)
    report = stepper.gradients(tiny.dialogues())
    found = {name: p.grad.clone() for name, p in stepper.trained() if p.grad is not None}
    return report, found, torch.rand(3)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", ["selective", "full"])
def test_gradients_are_those_of_what_is_kept(level: str, family: str, layout: str) -> None:
    kept, wanted, _ = gradients("none", family, layout)
    again, found, _ = gradients(level, family, layout)
    assert again.loss == kept.loss and found.keys() == wanted.keys()
    scale = max(float(g.abs().max()) for g in wanted.values())
    assert max(float((found[n] - wanted[n]).abs().max()) for n in wanted) <= 1e-6 * scale


@pytest.mark.parametrize("level", ["selective", "full"])
def test_dropout_is_replayed(level: str) -> None:
    """The draws are the same, in the step and after it."""
    kept, wanted, after = gradients("none", rank=4, dropout=0.3)
    again, found, now = gradients(level, rank=4, dropout=0.3)
    assert torch.equal(after, now)
    assert again.loss == kept.loss
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    _, without, _ = gradients(level, rank=4, dropout=0.0)
    assert not all(torch.equal(without[name], wanted[name]) for name in wanted)


def kept_bytes(level: str) -> int:
    """Bytes that autograd keeps of a pass."""
    model = tiny.make_model("llama", num_hidden_layers=8)
    stepper = tiny.make_stepper(model, tiny.attach_lora(model))
    recompute.install(stepper.policy, level)
    stepper.policy.model.train()
    seen: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stepper.policy(tiny.dialogues())
    return sum(seen.values())


def test_less_is_kept() -> None:
    none, selective, full = (kept_bytes(level) for level in recompute.LEVELS)
    # Of eight blocks one is left alone; the rest keep their input, a small part of a block.
    assert full < 0.4 * none
    assert full < selective < 0.9 * none


def test_an_unknown_mlp_leaves_the_model_as_it_is() -> None:
    model = tiny.make_model("llama")
    stepper = tiny.make_stepper(model, tiny.attach_lora(model))
    recompute.install(stepper.policy, "auto")
    assert stepper.policy.recompute == "none"
    assert not any("forward" in vars(block) for block in model.model.layers)


def question(**changed: Any) -> Any:
    from tunewright.advise.fit import ModelShape

    shape = ModelShape.from_config(
        {
            "model_type": "llama",
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49_152,
            "tie_word_embeddings": True,
        }
    )
    given = {
        "shape": shape,
        "trainable": 4_884_480,
        "rows_per_pass": 2000,
        "facts": SampleFacts(100, 200_000, 190_000, 2000),
        "steps": 100,
        "batch_size": 1,
        "dtype": "float32",
        "method": methods.get("lora").config(),
    }
    return Question(**{**given, **changed})


def test_auto_takes_as_little_as_the_memory_asks_for() -> None:
    from tunewright.advise import fit

    found = fit.estimate(question())
    sizes = {level: fit.needed(found.question, recompute=level) for level in recompute.LEVELS}
    assert sizes["full"] < sizes["selective"] < sizes["none"]

    def chosen(available: int) -> tuple[Any, dict[str, str]]:
        return fit.room_for(found, "auto", "none", available)

    # Twice the need is never tight.
    assert chosen(2 * sizes["none"])[0] == Room()
    room = {name: round(size / fit.TIGHT) + 1 for name, size in sizes.items()}
    assert chosen(room["selective"])[0].recompute == "selective"
    full, why = chosen(room["full"])
    assert full.recompute == "full" and "GiB" in why["engine.recompute"]
    assert chosen(1)[0].recompute == "full"
    assert fit.with_room(found, full).needed_bytes == sizes["full"]
    assert fit.room_for(found, "none", "none", 1)[0] == Room()


def test_attention_probabilities_are_the_first_that_are_not_kept() -> None:
    from tunewright.advise import fit

    facts = SampleFacts(100, 90_000, 80_000, 200)
    found = fit.estimate(question(rows_per_pass=1000, batch_size=8, facts=facts))
    kept, without = (fit.needed(found.question, keep_bytes=n) for n in (KEEP_BYTES, 0))
    assert without < kept
    room, why = fit.room_for(found, "auto", "auto", round(without / fit.TIGHT) + 1)
    assert room == Room(keep_bytes=0)
    assert "attention" in why["engine.recompute"] and "fits" in why["engine.offload"]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_optimisers_state_leaves_only_where_that_is_needed(device: str) -> None:
    from tunewright.advise import fit

    asked = question(method=methods.get("full").config(), trainable=134_515_008, device=device)
    found = fit.estimate(asked)
    lean = fit.needed(asked, recompute="full", keep_bytes=0)
    leaner = fit.needed(asked, recompute="full", keep_bytes=0, offload="optimizer")
    leanest = fit.needed(asked, recompute="full", keep_bytes=0, offload="all")
    # Two moments of 4 bytes.
    assert lean - leaner > 0.8 * 8 * 134_515_008
    assert leanest < leaner

    def chosen(most: int, recompute: str = "full") -> Any:
        available = next(
            n for n in range(most, 2 * most, most // 200) if fit.comfortable(asked, n) >= most
        )
        return fit.room_for(found, recompute, "auto", available)[0].offload

    assert chosen(lean) == "none"
    assert chosen(leaner) == "optimizer"
    assert chosen(leanest) == "all"
    # A method with an update rule of its own keeps its state.
    galore = question(method=methods.get("galore").config(), trainable=100)
    assert {one.offload for one in rooms(galore, "auto", "auto")} == {"none", "activations"}


def test_where_the_file_keeps_everything_the_way_out_is_told() -> None:
    from tunewright.advise import fit

    found = fit.estimate(question())
    room = round(fit.needed(found.question, recompute="full") / fit.TIGHT) + 1
    ways = fit.ways_to_fit(found, room)
    assert any(way.settings == ("engine.recompute=full",) for way in ways)


def test_holes_are_given_back_when_they_are_more_than_blocks_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    MiB = 2**20
    # In MiB: after it was given back, a block later, then growing by holes.
    # Above half of what a block takes, 50 and then 35.
    seen = iter([500, 600, 640, 650, 651, 550, 620, 655, 656, 0])
    monkeypatch.setattr(recompute, "resident_bytes", lambda: next(seen) * MiB)
    given_back: list[int] = []
    monkeypatch.setattr(recompute, "return_freed_memory", lambda: given_back.append(1))
    holes = recompute._Holes()
    counts = []
    for _ in range(8):
        holes.look()
        counts.append(len(given_back))
    assert counts == [0, 0, 0, 0, 1, 1, 1, 2]
