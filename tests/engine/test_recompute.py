"""What is computed again in the backward pass gives the numbers of what was kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.engine import recompute

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
    from tunewright.advise.question import Question, SampleFacts
    from tunewright.core.registry import methods

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
    # Twice the need is never tight.
    assert fit.recompute_for(found, 2 * sizes["none"])[0] == "none"
    room = {name: round(size / fit.TIGHT) + 1 for name, size in sizes.items()}
    assert fit.recompute_for(found, room["selective"])[0] == "selective"
    level, why = fit.recompute_for(found, room["full"])
    assert level == "full" and "GiB" in why
    assert fit.recompute_for(found, 1)[0] == "full"
    assert fit.with_recompute(found, "full").needed_bytes == sizes["full"]


def test_where_the_file_keeps_everything_the_way_out_is_told() -> None:
    from tunewright.advise import fit

    found = fit.estimate(question())
    room = round(fit.needed(found.question, recompute="full") / fit.TIGHT) + 1
    ways = fit.ways_to_fit(found, room)
    assert any(way.settings == ("engine.recompute=full",) for way in ways)
