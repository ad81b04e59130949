"""Reward, GRPO and RLOO against the losses of TRL's own trainers: same tiny Llama, same answers,
value and gradient in float32. Needs `pip install trl`.

The answers are drawn and judged by us; TRL's trainer is given their token ids, advantages, old and
reference log-probabilities and computes its loss. TRL's `epsilon_high` of CISPO is the cap of the
ratio itself, ours is its distance from 1. PPO is in no released TRL of this generation.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import test_policy
import test_reward
import torch
from helpers import tiny

from tunewright.core.types import Branch, Sample
from tunewright.engine.rollouts.rounds import RoundStepper

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
trl = pytest.importorskip("trl")

SAME_LENGTH = [[5, 9, 17, 33], [5, 9, 17, 40], [6, 6, 9, 12], [8, 3, 100, 7]]
GRPO: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"loss": "grpo", "beta": 0.3},
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
    ),
    ({"loss": "grpo", "beta": 0.3, "weigh_kl": True}, {"loss_type": "grpo", "beta": 0.3}),
    ({"loss": "dapo", "clip_high": 0.28}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    ({"loss": "dr_grpo", "scale": "none"}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    (
        {"loss": "grpo", "ratio": "answer"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    ),
    ({"loss": "cispo", "clip_high": 0.05}, {"loss_type": "cispo", "epsilon_high": 1.05}),
]


@pytest.fixture(autouse=True)
def _said(record_property: Any) -> None:
    record_property("trl", trl.__version__)


def prepared(kind: str, settings: dict[str, Any]) -> tuple[RoundStepper, Any, Any]:
    """(stepper whose policy moved since the answers were drawn, the round, a plain copy of the
    model with every weight trainable)."""
    made = test_policy.stepper_for(kind, settings)
    prompts = [Sample([Branch(tokens, [], [])], i) for i, tokens in enumerate(SAME_LENGTH)]
    judged = made.draw_and_judge(prompts, 1)
    made._old_values([judged.samples])
    if made.rollouts is not None and made.rollouts.reference:
        made._reference_values(judged.samples)
    made.rollouts.judge(judged.groups)  # type: ignore[union-attr]
    tiny.randomise(made.attached, seed=5, spread=0.02)
    # Made anew by PEFT: a copy of ours would carry our fused layers, which belong to the model they
    # were made for.
    theirs = peft.get_peft_model(
        tiny.make_model("llama"), copy.deepcopy(made.attached.model.peft_config["default"])
    )
    theirs.load_state_dict(made.attached.model.state_dict(), strict=True)
    theirs.get_base_model().set_attn_implementation("eager")
    return made, judged, theirs


def batch_of(judged: Any) -> dict[str, Any]:
    """The round as TRL's trainers pass it on: prompts and completions apart, completions padded on
    the right."""
    rows = [(s.branches[0], s.facts["experience"]) for s in judged.samples]
    longest = max(e.num_tokens for _, e in rows)

    def padded(values: Any, fill: float = 0) -> torch.Tensor:
        return torch.stack(
            [
                torch.cat(
                    [
                        torch.as_tensor(v),
                        torch.full((longest - len(v),), fill, dtype=torch.as_tensor(v).dtype),
                    ]
                )
                for v in values
            ]
        )

    prompts = torch.tensor([b.tokens[: b.learnt[0]] for b, _ in rows])
    found = {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": padded([b.tokens[b.learnt[0] :] for b, _ in rows]),
        "completion_mask": padded([[1] * e.num_tokens for _, e in rows]), "advantages": torch.stack([e.advantage[0] for _, e in rows]),
        "old_per_token_logps": padded([e.old for _, e in rows]), "old_logps": torch.stack([e.old.sum() for _, e in rows]),
        "num_items_in_batch": torch.tensor(float(sum(e.num_tokens for _, e in rows))),
    }  # fmt: skip
    if rows[0][1].reference is not None:
        found["ref_per_token_logps"] = padded([e.reference for _, e in rows])
    return found


def compared(made: RoundStepper, judged: Any, theirs: Any, loss: torch.Tensor) -> None:
    report = super(RoundStepper, made).gradients(judged.samples)
    ours = tiny.gradients(made.attached)
    loss.backward()
    found = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5, abs=1e-6)
    whole = sum(float(g.norm()) ** 2 for g in found.values()) ** 0.5
    gap = sum(float((ours[n] - g).norm()) ** 2 for n, g in found.items()) ** 0.5
    assert whole > 1e-5 and gap <= 1e-5 * whole and set(ours) == set(found)


def trainer_of(kind: str, theirs: Any, place: Path, **options: Any) -> Any:
    from datasets import Dataset
    from test_against_trl import tokenizer

    config = {"grpo": trl.GRPOConfig, "rloo": trl.RLOOConfig}[kind](
        output_dir=str(place), use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=12, num_generations=3, max_completion_length=6,
        temperature=0.9, gradient_accumulation_steps=1, gradient_checkpointing=False, **options,
    )  # fmt: skip
    # The trainer looks its model up by the name of its folder.
    tiny.make_model("llama").save_pretrained(place / "base")
    tokenizer().save_pretrained(place / "base")
    for model in (theirs, theirs.get_base_model()):
        model.config._name_or_path = model.name_or_path = str(place / "base")
    made = {"grpo": trl.GRPOTrainer, "rloo": trl.RLOOTrainer}[kind](
        model=theirs, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=config, train_dataset=Dataset.from_list([{"prompt": "a"}] * 12),
        processing_class=tokenizer(),
    )  # fmt: skip
    made.current_gradient_accumulation_steps = 1
    theirs.train()
    return made


@pytest.mark.parametrize(("settings", "options"), GRPO)
def test_grpo_equals_trl(settings: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    made, judged, theirs = prepared("grpo", settings)
    trainer = trainer_of("grpo", theirs, tmp_path, **{"beta": 0.0, **options})
    compared(made, judged, theirs, trainer._compute_loss(theirs, batch_of(judged)))


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_rloo_equals_trl(beta: float, tmp_path: Path) -> None:
    made, judged, theirs = prepared("rloo", {"beta": beta})
    trainer = trainer_of("rloo", theirs, tmp_path, beta=beta)
    compared(made, judged, theirs, trainer._compute_loss(theirs, batch_of(judged)))


@pytest.mark.parametrize("center", [0.0, 0.1])
def test_reward_equals_trl(center: float, tmp_path: Path) -> None:
    from types import SimpleNamespace

    model, _, stepper = test_reward.prepared("llama", "tree", 4096, center=center)
    samples = [s for s in test_reward.pairs() if s.branches[0].weights[0] == 1.0]
    for sample in samples:
        sample.facts["margin"] = 0.25 * sample.index
    report = stepper.gradients(samples)
    theirs = test_reward.classifier(model, model.score.weight.detach().clone()).train()
    sides = [s.branches[k].tokens for k in (0, 1) for s in samples]
    longest = max(map(len, sides))
    inputs = {
        "input_ids": torch.tensor([t + [test_reward.PAD] * (longest - len(t)) for t in sides]),
        "attention_mask": torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in sides]), "margin": torch.tensor([s.facts["margin"] for s in samples]),
    }  # fmt: skip
    bare = trl.RewardTrainer.__new__(trl.RewardTrainer)
    gathering = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    from collections import defaultdict

    vars(bare).update(
        model=theirs, args=SimpleNamespace(center_rewards_coefficient=center or None), accelerator=gathering, _total_train_tokens=0, _tp_size=1,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )  # fmt: skip
    loss = bare.compute_loss(theirs, inputs)
    loss.backward()
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    found = dict(model.named_parameters())
    for name, p in theirs.named_parameters():
        assert float((found[name].grad - p.grad).norm()) <= 1e-5 * float(p.grad.norm()) + 1e-8, name
