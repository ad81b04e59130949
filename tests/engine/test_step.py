"""One optimiser step: its loss is Transformers' own, it cannot be broken by how it is cut, and what
is not finite is never applied."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.types import Attached, Branch, Origin, Sample
from tunewright.engine.step import Stepper, held_out_loss

RATE = 1e-2


def ready(
    dtype: str = "float32",
    family: str = "llama",
    seed: int = 0,
    lora: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Stepper, Attached]:
    model = tiny.make_model(family, dtype)
    torch.manual_seed(seed)
    attached = tiny.attach_lora(model, **(lora or {}))
    if dtype == "float64":
        attached.model.double()
    tiny.randomise(attached, seed)
    return tiny.make_stepper(model, attached, **settings), attached


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def flat(tensors: dict[str, Any]) -> torch.Tensor:
    return torch.cat([t.double().flatten() for _, t in sorted(tensors.items())])


def gap(a: dict[str, Any], b: dict[str, Any]) -> float:
    return float((flat(a) - flat(b)).norm() / flat(b).norm())


def stock(stepper: Stepper) -> Any:
    """The same model with the classes' own forwards and a stock attention."""
    model = stepper.policy.model
    for module in model.modules():
        module.__dict__.pop("forward", None)
    stepper.policy.causal[0].set_attn_implementation("sdpa")
    return model


def scalar_reference(model: Any, samples: list[Sample]) -> torch.Tensor:
    """sum_l w_l * -log p(token_l) / sum_l w_l, written with loops."""
    total, weights = torch.zeros(()), 0.0
    for sample in samples:
        for b in sample.branches:
            logits = model(input_ids=torch.tensor([b.tokens])).logits[0]
            for i, weight in zip(b.learnt, b.weights, strict=True):
                z = logits[i - 1]
                total = total - weight * (
                    z[b.tokens[i]] - torch.log(torch.exp(z - z.max()).sum()) - z.max()
                )
                weights += weight
    return total / weights


def weighted() -> list[Sample]:
    """Weights by token and by row; two rows are equal but for their weights, and one token is
    learnt twice with different weights."""
    samples = tiny.dialogues()[:4]
    for k, s in enumerate(samples):
        s.branches[0].weights = [
            0.1 + 0.3 * ((i + k) % 4) for i in range(len(s.branches[0].learnt))
        ]
    twin = samples[0].branches[0]
    return [
        *samples,
        Sample([Branch(list(twin.tokens), list(twin.learnt), [3.0] * len(twin.learnt))], 9),
    ]


@pytest.mark.parametrize("rows", [1 << 30, 60, 1])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_loss_and_gradient_of_a_step_are_those_of_transformers_own_loss(
    rows: int, layout: str
) -> None:
    stepper, attached = ready(rows_per_pass=rows, layout=layout)
    samples = tiny.dialogues() + tiny.system_prompt() + tiny.duplicates()
    report = stepper.gradients(samples)
    ours = tiny.gradients(attached)
    learnt = sum(len(s.branches[0].learnt) for s in samples)
    model, loss = stock(stepper), 0.0
    for s in samples:
        b = s.branches[0]
        labels = torch.tensor([[t if i in b.learnt else -100 for i, t in enumerate(b.tokens)]])
        out = model(input_ids=torch.tensor([b.tokens]), labels=labels, num_items_in_batch=learnt)
        out.loss.backward()
        loss += float(out.loss.detach())
    assert abs(report.loss - loss) <= 1e-5 * loss
    assert gap(ours, tiny.gradients(attached)) <= 1e-5
    assert report.label_tokens == learnt
    assert report.logical_tokens == sum(len(s.branches[0].tokens) for s in samples)


@pytest.mark.parametrize("rows", [1 << 30, 40, 1])
def test_weights_by_token_and_row_equal_a_slow_scalar_reference(rows: int) -> None:
    stepper, attached = ready(rows_per_pass=rows)
    report = stepper.gradients(weighted())
    ours = tiny.gradients(attached)
    loss = scalar_reference(stock(stepper), weighted())
    loss.backward()
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert gap(ours, tiny.gradients(attached)) <= 1e-5


def test_a_token_of_weight_zero_is_context_only() -> None:
    stepper, attached = ready("float64")
    with_zero = tiny.nothing_shared()[:2]
    with_zero[0].branches[0].weights[1] = 0.0
    first = stepper.gradients(with_zero)
    ours = tiny.gradients(attached)
    without = tiny.nothing_shared()[:2]
    b = without[0].branches[0]
    del b.learnt[1], b.weights[1]
    assert first.loss == pytest.approx(stepper.gradients(without).loss, rel=1e-12)
    assert gap(ours, tiny.gradients(attached)) <= 1e-12


def test_the_number_of_passes_does_not_change_the_update() -> None:
    after, passes = [], []
    for rows in (1 << 30, 100, 30):
        stepper, attached = ready("float64", rows_per_pass=rows, clip=0.5)
        report = stepper.step(tiny.dialogues() + tiny.pairs(), 1, RATE)
        assert report.applied
        after.append(tiny.trained(attached))
        passes.append(report.passes)
    assert passes[0] == 1 and passes[1] >= 2 and passes[2] >= 5
    # AdamW divides by the gradient's own size, so rounding shows in the update; norms narrow to
    # float32 inside, which leaves about 1e-8.
    assert gap(after[1], after[0]) <= 1e-7
    assert gap(after[2], after[0]) <= 1e-7


@pytest.mark.parametrize("largest", [1e-3, 1e6, None])
def test_clipping_equals_torchs(largest: float | None) -> None:
    stepper, attached = ready(clip=largest)
    mirror, theirs = ready(clip=None)
    report = stepper.step(tiny.dialogues(), 1, RATE)
    mirror.gradients(tiny.dialogues())
    parameters = mirror.parameters()
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if largest is None else largest)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    optimizer.step()
    assert report.gradient_norm == pytest.approx(float(norm), rel=1e-6)
    assert gap(tiny.trained(attached), tiny.trained(theirs)) <= 1e-7


def test_a_step_leaves_no_gradient_behind_and_every_adapter_weight_moves() -> None:
    stepper, attached = ready()
    before = tiny.trained(attached)
    assert stepper.step(tiny.dialogues(), 1, RATE).applied
    assert tiny.gradients(attached) == {}
    after = tiny.trained(attached)
    assert all(not torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("rows", [1 << 30, 1])
def test_a_loss_that_is_not_finite_changes_no_weight_and_names_the_rows(rows: int) -> None:
    stepper, attached = ready(rows_per_pass=rows)
    samples = tiny.dialogues()
    with torch.no_grad():
        stepper.policy.causal[0].get_input_embeddings().weight[
            samples[-1].branches[0].tokens[-2]
        ] = math.nan
    before = tiny.trained(attached)
    report = stepper.step(samples, 1, RATE)
    assert not report.applied
    assert report.where == "loss"
    assert report.rows == [f"rows.jsonl:{i + 1}" for i in range(8)]
    assert same(before, tiny.trained(attached))
    assert tiny.gradients(attached) == {}
    assert not stepper.optimizer.state


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_no_weight_and_is_named(bad: float) -> None:
    stepper, attached = ready(clip=1.0)
    name = attached.parameters[3]
    handle = dict(attached.model.named_parameters())[name].register_hook(lambda g: g * bad)
    before = tiny.trained(attached)
    report = stepper.step(tiny.dialogues(), 1, RATE)
    assert (report.applied, report.where) == (False, name)
    assert same(before, tiny.trained(attached))
    assert tiny.gradients(attached) == {}
    handle.remove()
    assert stepper.step(tiny.dialogues(), 2, RATE).applied


@pytest.mark.parametrize("rate", [1e39, 1e300])
def test_an_absurd_rate_changes_no_weight(rate: float) -> None:
    stepper, attached = ready()
    before = tiny.trained(attached)
    report = stepper.step(tiny.dialogues(), 1, rate)
    assert (report.applied, report.where) == (False, "update")
    assert same(before, tiny.trained(attached))


def test_what_a_method_does_after_an_update_happens_only_after_one() -> None:
    stepper, attached = ready()
    seen: list[Any] = []
    attached.after_update = lambda number: seen.append(
        (number, len([p for p in stepper.parameters() if p.grad is not None]))
    )
    stepper.step(tiny.dialogues(), 7, RATE)
    assert seen == [(7, len(stepper.parameters()))]
    handle = stepper.parameters()[0].register_hook(lambda g: g * math.nan)
    stepper.step(tiny.dialogues(), 8, RATE)
    assert len(seen) == 1
    handle.remove()


@pytest.mark.parametrize("rows", [1 << 30, 30, 1])
def test_a_penalty_counts_once_a_step_however_the_step_is_cut(rows: int) -> None:
    stepper, attached = ready("float64", rows_per_pass=rows)
    plain = stepper.gradients(tiny.dialogues())
    without = tiny.gradients(attached)
    p = dict(attached.model.named_parameters())[attached.parameters[0]]
    attached.penalties = lambda: {"decay": ((p**2).sum(), 0.5)}
    report = stepper.gradients(tiny.dialogues())
    with_penalty = tiny.gradients(attached)
    assert report.terms == {
        "sft": pytest.approx(plain.loss),
        "decay": pytest.approx(float(0.5 * (p.detach() ** 2).sum())),
    }
    assert report.loss == pytest.approx(plain.loss + float(0.5 * (p.detach() ** 2).sum()))
    torch.testing.assert_close(
        with_penalty[attached.parameters[0]], without[attached.parameters[0]] + p.detach()
    )


def test_a_step_in_which_nothing_has_weight_teaches_nothing() -> None:
    stepper, attached = ready()
    samples = tiny.nothing_shared()
    for s in samples:
        s.branches[0].weights = [0.0] * len(s.branches[0].learnt)
    report = stepper.gradients(samples)
    assert (report.loss, report.terms) == (0.0, {})
    assert tiny.gradients(attached) == {}


# float16: its gradients vanish below 6e-8, so the loss is scaled up and the gradient down again.


@pytest.mark.parametrize("scale", [2.0, 4096.0])
def test_a_scaled_loss_gives_the_same_update(scale: float) -> None:
    plain, one = ready("float64", clip=0.1)
    scaled, other = ready("float64", clip=0.1)
    scaled.loss_scale = scale
    a, b = plain.step(tiny.dialogues(), 1, RATE), scaled.step(tiny.dialogues(), 1, RATE)
    assert a.loss == b.loss
    assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-12)
    assert gap(tiny.trained(one), tiny.trained(other)) <= 1e-12


def test_an_overflow_of_the_scaled_gradient_halves_the_scale_and_skips_the_step() -> None:
    stepper, attached = ready()
    stepper.loss_scale = 4096.0
    handle = stepper.parameters()[0].register_hook(lambda g: torch.full_like(g, math.inf))
    before = tiny.trained(attached)
    assert not stepper.step(tiny.dialogues(), 1, RATE).applied
    handle.remove()
    assert stepper.loss_scale == 2048.0
    assert same(before, tiny.trained(attached))
    assert stepper.step(tiny.dialogues(), 2, RATE).applied
    assert stepper.loss_scale == 2048.0


@pytest.mark.parametrize(("dtype", "most"), [("float16", 0.02), ("bfloat16", 0.1)])
def test_half_precision_comes_close_to_float32(dtype: str, most: float) -> None:
    # float16 has 11 bits and bfloat16 8: relative errors of 5e-4 and 4e-3 for each of some tens of
    # roundings in a row.
    gradients = {}
    for name in (dtype, "float32"):
        model = tiny.make_model("llama", name, initializer_range=0.1)
        torch.manual_seed(0)
        attached = tiny.attach_lora(model)
        assert {p.dtype for p in attached.model.parameters() if p.requires_grad} == {torch.float32}
        tiny.randomise(attached)
        stepper = tiny.make_stepper(model, attached)
        stepper.loss_scale = 4096.0 if name == "float16" else 1.0
        report = stepper.gradients(tiny.dialogues())
        assert math.isfinite(report.loss)
        gradients[name] = {n: g / stepper.loss_scale for n, g in tiny.gradients(attached).items()}
    assert gap(gradients[dtype], gradients["float32"]) <= most


# Dropout.


def dropped(stepper: Stepper, attached: Attached, number: int) -> dict[str, Any]:
    from tunewright.core.seeds import stream_seed

    torch.manual_seed(stream_seed(stepper.seed, "dropout", number))
    stepper.gradients(tiny.dialogues())
    return tiny.gradients(attached)


def test_dropout_of_an_adapter_works_while_training_and_only_then() -> None:
    stepper, attached = ready(lora={"dropout": 0.5})
    plain, other = ready()
    plain.gradients(tiny.dialogues())
    reference = tiny.gradients(other)
    # Answering and measuring leave a model in eval mode; so does loading.
    attached.model.eval()
    loss = held_out_loss(stepper.policy, stepper.objective, tiny.dialogues(), 1 << 30)
    assert loss == pytest.approx(
        held_out_loss(plain.policy, plain.objective, tiny.dialogues(), 1 << 30), rel=1e-6
    )
    first = dropped(stepper, attached, 1)
    assert gap(first, reference) > 0.1
    assert same(first, dropped(stepper, attached, 1))
    assert not same(first, dropped(stepper, attached, 2))


# The held-out loss.


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_the_held_out_loss_is_divided_once_and_leaves_no_gradient(layout: str) -> None:
    values = set()
    for rows in (1 << 30, 40, 1):
        stepper, attached = ready("float64", layout=layout)
        values.add(round(held_out_loss(stepper.policy, stepper.objective, weighted(), rows), 12))
        assert tiny.gradients(attached) == {}
    assert len(values) == 1
    assert values.pop() == pytest.approx(
        float(scalar_reference(stock(stepper), weighted()).detach()), rel=1e-6
    )


def test_the_held_out_loss_of_nothing_is_no_number_and_a_stop_is_heard() -> None:
    stepper, _ = ready()
    assert math.isnan(held_out_loss(stepper.policy, stepper.objective, [], 10))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        held_out_loss(stepper.policy, stepper.objective, tiny.dialogues(), 10, stop)


def test_origins_are_named_only_where_there_are_any() -> None:
    stepper, _ = ready()
    sample = Sample([Branch([3, 4, 5], [1, 2], [math.nan, 1.0])], 0, Origin("a.json", 7, 2))
    other = Sample([Branch([3, 4, 6], [2], [1.0])], 1)
    report = stepper.step([sample, other], 1, RATE)
    assert not report.applied
    assert report.rows == ["a.json:7"]
