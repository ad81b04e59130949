"""Distillation on the student's own answers: what is learnt on is what the student drew, the loss
is the divergence from the teacher there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.registry import objectives
from tunewright.core.types import Branch, Message, Sample
from tunewright.engine.loaded import use_layout
from tunewright.engine.oracles.teacher import Teacher
from tunewright.engine.policy import Policy
from tunewright.engine.rollouts.on_policy import OnPolicyStepper
from tunewright.engine.rollouts.rounds import Asking
from tunewright.engine.rollouts.sampling import Sampler

ROWS = [
    ([5, 9, 17, 33], [7, 8, 2]),
    ([5, 9, 17, 40, 41], [70, 2]),
    ([6, 6], [9, 9, 9, 2]),
    ([8, 3, 100], [11, 2]),
]
STOPS = frozenset({2, 3, 4, 50, 60})


def made(
    layout: str = "tree", rows_per_pass: int = 4096, seed: int = 0, **settings: Any
) -> OnPolicyStepper:
    entry = objectives.get("gkd")
    assert entry is not None
    objective = entry.function(entry.config(**{"teacher": "t", "max_new_tokens": 6, **settings}))
    torch.manual_seed(3)
    model = tiny.make_model("llama")
    attached = tiny.attach_lora(model)
    tiny.randomise(attached, spread=0.05)
    common = tiny.make_stepper(
        model, attached, layout=layout, rows_per_pass=rows_per_pass, learning_rate=0.01
    )
    use_layout(model, layout)
    policy = Policy(attached.model, model, layout)
    taught = tiny.make_model("qwen3", seed=7, num_hidden_layers=3)
    use_layout(taught, "tree")
    policy.teacher = Teacher(
        objective.teacher,
        tiny.VOCABULARY,
        lambda: Policy(taught, taught, "tree"),
        lambda: {"weights": "a"},
    )
    asking = Asking(
        lambda s: s.branches[0].tokens[: s.facts["last_span"][0]],
        lambda s: [Message("user", "")],
        lambda s: {},
        lambda ids: " ".join(map(str, ids)),
        STOPS,
    )
    return OnPolicyStepper(
        policy,
        attached,
        objective,
        common.optimizer,
        rows_per_pass,
        None,
        seed,
        own=objective.own_answers,
        asking=asking,
        sampler=Sampler(policy, STOPS),
    )


def samples() -> list[Sample]:
    found = []
    for i, (prompt, answer) in enumerate(ROWS):
        learnt = list(range(len(prompt), len(prompt) + len(answer)))
        found.append(
            Sample(
                [Branch(prompt + answer, learnt, [1.0] * len(learnt))],
                i,
                facts={"last_span": (len(prompt), len(prompt) + len(answer))},
            )
        )
    return found


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize(
    ("divergence", "temperature"), [("jensen_shannon", 1.0), ("forward", 1.3), ("reverse", 0.8)]
)
def test_the_gradient_is_that_of_the_divergence_on_what_was_drawn(
    layout: str, divergence: str, temperature: float
) -> None:
    stepper = made(layout, divergence=divergence, temperature=temperature, on_policy=1.0)
    drawn = [sample for sample, _ in stepper.draw(samples(), 1)]
    for sample, (prompt, answer) in zip(drawn, ROWS, strict=True):
        branch = sample.branches[0]
        assert branch.tokens[: len(prompt)] == prompt and branch.learnt == list(
            range(len(prompt), len(branch.tokens))
        )
        assert (
            1 <= len(branch.learnt) <= 6
            and (branch.tokens[-1] in STOPS or len(branch.learnt) == 6)
            and branch.tokens[len(prompt) :] != answer
        )
    report = stepper.gradients(drawn)
    ours = tiny.gradients(stepper.attached)
    student, taught = stepper.attached.model.eval(), stepper.policy.teacher.policy.model
    student.set_attn_implementation("eager")
    taught.set_attn_implementation("eager")
    total, count = torch.zeros(()), 0
    for branch in (s.branches[0] for s in drawn):
        ids = torch.tensor([branch.tokens])
        z_s = student(input_ids=ids, use_cache=False).logits[0].float()
        with torch.no_grad():
            z_t = taught(input_ids=ids, use_cache=False).logits[0].float()
        for i in branch.learnt:
            t, s = (
                torch.softmax(z_t[i - 1] / temperature, -1),
                torch.softmax(z_s[i - 1] / temperature, -1),
            )
            m = (t + s) / 2
            total = total + {
                "forward": (t * torch.log(t / s)).sum(), "reverse": (s * torch.log(s / t)).sum(),
                "jensen_shannon": 0.5 * (t * torch.log(t / m)).sum() + 0.5 * (s * torch.log(s / m)).sum(),
            }[divergence]  # fmt: skip
            count += 1
    loss = temperature**2 * total / count
    loss.backward()
    theirs = tiny.gradients(stepper.attached)
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    whole = math.sqrt(sum(float(g.norm()) ** 2 for g in theirs.values()))
    gap = math.sqrt(sum(float((ours[name] - g).norm()) ** 2 for name, g in theirs.items()))
    assert whole > 1e-5 and gap <= 1e-5 * whole


def test_which_steps_draw_and_what_is_drawn_depends_on_the_seed_and_the_step_alone() -> None:
    some, again, other_seed, always = (
        made(on_policy=0.3),
        made(on_policy=0.3),
        made(on_policy=0.3, seed=1),
        made(on_policy=1.0),
    )
    share = [some.draws(number) for number in range(1, 401)]
    assert 90 <= sum(share) <= 150
    assert share == [again.draws(number) for number in range(1, 401)]
    assert share != [other_seed.draws(number) for number in range(1, 401)]
    assert all(always.draws(number) for number in range(1, 50))
    one, other = made(), made(rows_per_pass=7)
    assert [s.branches[0].tokens for s, _ in one.draw(samples(), 3)] == [
        s.branches[0].tokens for s, _ in other.draw(samples(), 3)
    ]
    assert [s.branches[0].tokens for s, _ in one.draw(samples(), 4)] != [
        s.branches[0].tokens for s, _ in other.draw(samples(), 3)
    ]


def test_the_other_steps_are_plain_distillation_on_the_rows_answers() -> None:
    stepper, plain = made(on_policy=0.3), made(on_policy=0.3)
    number = next(n for n in range(1, 100) if not stepper.draws(n))
    report = stepper.step(samples(), number, 0.01)
    expected = super(OnPolicyStepper, plain).step(samples(), number, 0.01)
    assert (report.loss, report.figures["own_answers"]) == (
        expected.loss,
        0.0,
    ) and "answer_tokens" not in report.figures
    drawing = next(n for n in range(1, 100) if stepper.draws(n))
    told = stepper.step(samples(), drawing, 0.01)
    assert (
        told.figures["own_answers"] == 1.0
        and 1 <= told.figures["answer_tokens"] <= 6
        and 0 <= told.figures["finished"] <= 1
    )
    assert told.applied


def test_a_student_comes_closer_to_its_teacher_on_its_own_texts() -> None:
    stepper = made(on_policy=1.0, divergence="reverse")
    losses = [stepper.step(samples() * 4, number, 0.01).loss for number in range(1, 41)]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])
