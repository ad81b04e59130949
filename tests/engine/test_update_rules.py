"""Lion, schedule-free AdamW and Adam-mini beside the packages of their authors, step by step on all
weights of a small model; and parts that learn at other rates."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.config import EngineConfig
from tunewright.core.errors import CompatError
from tunewright.engine.optim import Places, averages, heads_of, make_optimizer, optimizer_for
from tunewright.engine.rates import factors, role_of
from tunewright.models import anatomy

RATE, DECAY, STEPS = 3e-3, 0.1, 5


def gradients(model: Any, number: int) -> None:
    """The same made-up gradient for the same parameter in every copy."""
    generator = torch.Generator().manual_seed(number)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator) * 0.1


def both(family: str = "llama", **engine: Any) -> tuple[Any, Any, Any]:
    """(a model with our optimiser over every weight, that optimiser, a copy of the model)."""
    torch.manual_seed(0)
    mine = tiny.make_model(family).requires_grad_(True)
    theirs = copy.deepcopy(mine)
    roles = anatomy.of(mine).roles
    ours = make_optimizer(
        EngineConfig(weight_decay=DECAY, **engine),
        list(mine.named_parameters()),
        places=Places(rows=heads_of(mine, roles)),
    )
    return mine, ours, theirs


def rate(optimizer: Any, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def agree(mine: Any, theirs: Any) -> None:
    for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert float((p - q).detach().norm()) <= 1e-5 * float(q.detach().norm()), name


def decayed(model: Any) -> list[dict[str, Any]]:
    """Groups as ours: matrices decayed, vectors not."""
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("betas", [None, [0.8, 0.95]])
def test_lion_is_lion_pytorchs(betas: list[float] | None) -> None:
    package = pytest.importorskip("lion_pytorch")
    mine, ours, theirs = both(optimizer="lion", betas=betas)
    usual = package.Lion(decayed(theirs), lr=RATE, betas=tuple(betas or (0.9, 0.99)))
    for number in range(STEPS):
        for model, optimizer in ((mine, ours), (theirs, usual)):
            gradients(model, number)
            rate(optimizer, RATE / (1 + number))
            optimizer.step()
    agree(mine, theirs)


def test_schedule_free_adamw_is_its_authors_with_the_same_warm_up() -> None:
    package = pytest.importorskip("schedulefree")
    mine, ours, theirs = both(optimizer="adamw_schedule_free")
    usual = package.AdamWScheduleFree(decayed(theirs), lr=RATE, warmup_steps=3)
    usual.train()
    for number in range(STEPS):
        gradients(mine, number)
        rate(ours, RATE * min(1.0, (number + 1) / 3))
        ours.step()
        gradients(theirs, number)
        usual.step()
    agree(mine, theirs)
    learning = [p.detach().clone() for p in mine.parameters()]
    averages(ours)[0].average_into()
    usual.eval()
    agree(mine, theirs)
    assert any(not torch.equal(p, q) for p, q in zip(mine.parameters(), learning, strict=True))


def test_adam_mini_is_its_authors() -> None:
    package = pytest.importorskip("adam_mini")
    mine, ours, theirs = both(optimizer="adam_mini")
    config = theirs.config
    with contextlib.redirect_stdout(None):
        usual = package.Adam_mini(
            theirs.named_parameters(),
            lr=RATE,
            weight_decay=DECAY,
            dim=config.hidden_size,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            verbose=False,
        )
        for number in range(STEPS):
            for model, optimizer in ((mine, ours), (theirs, usual)):
                gradients(model, number)
                rate(optimizer, RATE)
                optimizer.step()
    agree(mine, theirs)
    kept = sum(v["block_sq"].numel() for v in ours.state.values())
    assert kept < 0.1 * sum(p.numel() for p in mine.parameters())


def test_measuring_the_mean_leaves_what_learns_as_it_was() -> None:
    model = tiny.make_model("llama")
    attached = tiny.attach_all(model)
    stepper = tiny.make_stepper(model, attached, optimizer="adamw_schedule_free")
    for number in (1, 2, 3):
        stepper.step(tiny.dialogues(), number, RATE)
    before = tiny.trained(attached)
    with stepper.handed_out():
        inside = tiny.trained(attached)
    after = tiny.trained(attached)
    assert any(not torch.equal(inside[n], before[n]) for n in before)
    assert all(torch.equal(after[n], before[n]) for n in before)
    stepper.hand_out()
    assert all(torch.equal(tiny.trained(attached)[n], inside[n]) for n in before)


def test_schedule_free_is_constant_unless_somebody_wants_a_fall() -> None:
    assert EngineConfig(optimizer="adamw_schedule_free").schedule == "constant"
    assert EngineConfig(optimizer="adamw_schedule_free", schedule="cosine").schedule == "cosine"
    assert EngineConfig().schedule == "cosine"


# ---- parts at other rates


def lora_rates(rates: dict[str, float]) -> dict[str, set[float]]:
    """The factors of the parameters of a LoRA, by the last word of their module and side."""
    model = tiny.make_model("llama")
    roles = anatomy.of(model).roles
    attached = tiny.attach_lora(model, rank=4)
    optimizer = optimizer_for(EngineConfig(rates=rates), attached, model, roles)
    names = {id(p): n for n, p in attached.model.named_parameters()}
    found: dict[str, set[float]] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            module, side = names[id(p)].split(".")[-4:-2]
            found.setdefault(f"{module}.{side}", set()).add(round(group["rate_factor"], 6))
    return found


def test_the_narrowest_word_counts_and_the_side_of_lora_multiplies() -> None:
    found = lora_rates({"linear": 0.5, "attention.query": 0.2, "v_proj": 3.0, "lora_b": 16.0})
    assert found["q_proj.lora_A"] == {0.2} and found["q_proj.lora_B"] == {3.2}
    assert found["v_proj.lora_A"] == {3.0} and found["v_proj.lora_B"] == {48.0}
    assert found["up_proj.lora_A"] == {0.5} and found["up_proj.lora_B"] == {8.0}


def test_a_word_that_names_nothing_that_trains_is_refused() -> None:
    with pytest.raises(CompatError) as caught:
        lora_rates({"embedding": 0.1, "attention.query": 0.5, "nothing": 2.0})
    assert [(p.code, p.fields["word"]) for p in caught.value.problems] == [
        ("E-KEY-01", "embedding"),
        ("E-KEY-01", "nothing"),
    ]


def test_every_part_of_a_whole_model_has_its_rate() -> None:
    model = tiny.make_model("gpt2")  # c_proj is in the attention and in the MLP
    roles = anatomy.of(model).roles
    names = [n for n, _ in model.named_parameters()]
    assert role_of("transformer.h.0.attn.c_proj.weight", roles) == "attention.output"
    assert role_of("transformer.h.1.mlp.c_proj.bias", roles) == "mlp.down"
    made = factors({"mlp": 0.1, "embedding": 0.3, "bias": 2.0}, names, roles, {})
    assert made["transformer.h.0.mlp.c_proj.weight"] == 0.1
    assert made["transformer.h.0.mlp.c_proj.bias"] == 2.0
    assert made["transformer.wte.weight"] == 0.3
    assert "transformer.h.0.attn.c_attn.weight" not in made
