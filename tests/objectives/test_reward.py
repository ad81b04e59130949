"""The reward objective against Transformers' own sequence classifier with one label, and the files
it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.registry import objectives
from tunewright.core.types import Branch, Sample
from tunewright.engine.loaded import use_layout
from tunewright.models.scalar_heads import put_heads

PAD = 210


def pairs() -> list[Sample]:
    def pair(
        index: int,
        prompt: list[int],
        chosen: list[int],
        rejected: list[int],
        weight: float = 1.0,
        margin: float | None = None,
    ) -> Sample:
        def branch(answer: list[int], role: str) -> Branch:
            return Branch(
                prompt + answer,
                list(range(len(prompt), len(prompt) + len(answer))),
                [weight] * len(answer),
                role=role,
            )

        return Sample(
            [branch(chosen, "chosen"), branch(rejected, "rejected")],
            index,
            facts={} if margin is None else {"margin": margin},
        )

    return [
        pair(0, [5, 9, 17, 33], [4, 8, 90, 2], [4, 8, 7, 7, 3, 2]),
        pair(1, [5, 9, 17, 40, 41], [6, 2], [44, 100, 1, 2], 2.0, 0.5),
        pair(2, [6, 6], [19, 55, 21, 60, 2], [19, 2]),
        pair(3, [6, 6, 7], [19, 55], [19, 55, 60]),  # one answer is the beginning of the other
        pair(4, [8, 8], [3], [4]),
    ]  # fmt: skip


def classifier(model: Any, weight: torch.Tensor) -> Any:
    """Transformers' own class with the body and head of ours."""
    from transformers import AutoModelForSequenceClassification

    config = tiny.make_config(model.config.model_type, num_labels=1)
    config.pad_token_id = PAD
    made = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    prefix = model.base_model_prefix + "."
    body = {k: v for k, v in model.state_dict().items() if k.startswith(prefix)}
    made.load_state_dict({**body, "score.weight": weight}, strict=True)
    return made.eval()


def slow_loss(theirs: Any, samples: list[Sample], center: float) -> torch.Tensor:
    total = weights = torch.zeros(())
    for sample in samples:
        longest = max(len(b.tokens) for b in sample.branches)
        ids = torch.tensor([b.tokens + [PAD] * (longest - len(b.tokens)) for b in sample.branches])
        mask = (ids != PAD).long()
        chosen, rejected = theirs(input_ids=ids, attention_mask=mask).logits[:, 0]
        weight = sample.branches[0].weights[0]
        value = (
            -torch.log(torch.sigmoid(chosen - rejected - sample.facts.get("margin", 0.0)))
            + center * (chosen + rejected) ** 2
        )
        total, weights = total + weight * value, weights + weight
    return total / weights


def prepared(family: str, layout: str, rows: int, **settings: Any) -> tuple[Any, Any, Any]:
    return tiny.make_scorer("reward", family, layout, rows, **settings)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("rows", [4096, 24, 1])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_value_and_gradient_equal_those_of_transformers_classifier(
    family: str, layout: str, rows: int
) -> None:
    model, _, stepper = prepared(family, layout, rows, center=0.1)
    report = stepper.gradients(pairs())
    theirs = classifier(model, model.score.weight.detach().clone())
    loss = slow_loss(theirs, pairs(), 0.1)
    loss.backward()
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    found = dict(model.named_parameters())
    for name, p in theirs.named_parameters():
        assert (
            p.grad is not None
            and float((found[name].grad - p.grad).norm()) <= 1e-5 * float(p.grad.norm()) + 1e-8
        ), name
    assert 0 <= report.figures["accuracy"] <= 1
    assert report.figures["margin"] == pytest.approx(
        report.figures["rewards_chosen"] - report.figures["rewards_rejected"], abs=1e-5
    )


def test_the_head_trains_is_saved_and_read_by_plain_peft_and_transformers(tmp_path: Path) -> None:
    from peft import PeftModel

    from tunewright.methods.saved import put_on

    torch.manual_seed(4)
    model = tiny.make_model("llama")
    attached = tiny.attach_lora(model)
    put_heads(model, attached, ("score",))
    tiny.randomise(attached)
    before = model.score.weight.detach().clone()
    stepper = tiny.make_stepper(model, attached, learning_rate=0.01)
    entry = objectives.get("reward")
    assert entry is not None
    stepper.objective, stepper.policy.heads = entry.function(entry.config()), ("score",)
    losses = [stepper.step(pairs(), n, 0.01).loss for n in range(1, 8)]
    assert losses[-1] < losses[0] and not torch.equal(before, model.score.weight)
    with torch.no_grad():
        ours = stepper.policy(pairs()).score
    attached.save(tmp_path)

    plain = tiny.make_model("llama")
    theirs = PeftModel.from_pretrained(classifier(plain, torch.zeros(1, 48)), tmp_path).eval()
    read = [
        float(theirs(input_ids=torch.tensor([b.tokens])).logits[0, 0].detach())
        for s in pairs()
        for b in s.branches
    ]
    assert read == pytest.approx(ours.tolist(), rel=1e-4, abs=1e-5)

    again = tiny.make_model("llama")
    loaded = put_on(again, tmp_path)
    use_layout(again, "tree")
    from tunewright.engine.policy import Policy

    policy = Policy(loaded.model, again, "tree")
    policy.heads = ("score",)
    with torch.no_grad():
        assert torch.equal(policy(pairs()).score, ours)


def test_a_model_trained_as_a_whole_is_saved_as_a_sequence_classifier(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from tunewright.models import load
    from tunewright.models.scalar_heads import as_classifier

    model = tiny.make_model("qwen2")
    weight = torch.randn(1, 48)
    model.save_pretrained(tmp_path)
    as_classifier(tmp_path, weight)
    theirs, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert (
        not info["missing_keys"] and not info["unexpected_keys"] and theirs.config.num_labels == 1
    )
    assert torch.equal(theirs.score.weight, weight)
    assert theirs.config.pad_token_id not in (theirs.config.eos_token_id, None)
    ours = load.load_model(tmp_path, dtype="float32")
    assert torch.equal(ours.score.weight, weight)
