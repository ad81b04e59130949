"""Hidden states below what trains are computed once: same loss, same gradient, fewer blocks run,
and nothing kept that could be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.config import EngineConfig
from tunewright.core.registry import methods
from tunewright.core.telling import Quiet
from tunewright.core.types import Branch, Sample
from tunewright.engine import activation_cache
from tunewright.engine.activation_cache import install, lowest_trained
from tunewright.engine.step import held_out_loss
from tunewright.models import anatomy

FAMILIES = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "phi3",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "phi",
]


def blocks_changed(family: str) -> dict[str, Any]:
    return {} if family.startswith("gemma") else {"num_hidden_layers": 4}


def freezing(
    family: str = "llama",
    layout: str = "tree",
    dtype: str = "float32",
    rows: int = 1 << 30,
    kind: str = "freeze",
    **settings: Any,
) -> Any:
    model = tiny.make_model(family, dtype, **blocks_changed(family))
    entry = methods.get(kind)
    assert entry is not None
    attached = entry.function(
        entry.config(**(settings or ({"blocks": 1} if kind == "freeze" else {}))),
        model,
        anatomy.of(model),
        "tiny",
    )
    return tiny.make_stepper(model, attached, layout, rows_per_pass=rows)


def samples() -> list[Sample]:
    return tiny.dialogues() + tiny.pairs() + tiny.duplicates()


def cached(
    stepper: Any, limit: Any = "auto", epochs: float = 3, sets: list[list[Sample]] | None = None
) -> Any:
    stepper.resolved = install(
        stepper.policy,
        EngineConfig(activation_cache=limit),
        sets or [samples()],
        epochs,
        "cpu",
        Quiet(),
    )
    return stepper


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], most: float) -> bool:
    return (
        all(float((a[n] - b[n]).norm()) <= most * float(b[n].norm()) for n in b)
        and a.keys() == b.keys()
    )


@pytest.mark.wide("llama", "gemma3_text-tree", "gpt2-padded")
@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_those_without_the_cache(family: str, layout: str) -> None:
    """The first look fills it, the second reads from it, and the second is cut into other passes."""
    plain, ours = freezing(family, layout), cached(freezing(family, layout))
    assert ours.policy.cache is not None
    loss, gradients = plain.gradients(samples()).loss, tiny.gradients(plain.attached)
    for rows in (1 << 30, 50, 1):
        ours.rows_per_pass = rows
        assert ours.gradients(samples()).loss == pytest.approx(loss, abs=1e-6, rel=1e-6)
        assert close(tiny.gradients(ours.attached), gradients, 1e-5)
    assert (
        ours.policy.cache.misses
        == len({activation_cache.key_of(b) for s in samples() for b in s.branches}) - 1
    )  # one was the probe


def test_whole_runs_agree_to_the_rounding_of_float32() -> None:
    losses = []
    for stepper in (freezing(rows=60), cached(freezing(rows=60))):
        losses.append([stepper.step(samples(), number, 1e-3).loss for number in range(1, 7)])
    assert losses[0][-1] < 0.97 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_in_half_precision_the_gap_is_rounding() -> None:
    gaps = []
    exact = freezing().gradients(samples()).loss
    for stepper in (freezing(dtype="bfloat16"), cached(freezing(dtype="bfloat16"))):
        gaps.append(abs(stepper.gradients(samples()).loss - exact))
    assert gaps[1] <= 2 * gaps[0] + 1e-3


def test_blocks_below_run_once_for_each_branch_and_never_in_later_passes() -> None:
    stepper = cached(freezing())
    blocks, ran = stepper.policy.cache.blocks, [0, 0, 0, 0]
    for i, block in enumerate(blocks):
        own = block.forward

        def counted(*given: Any, i: int = i, own: Any = own, **named: Any) -> Any:
            ran[i] += 1
            return own(*given, **named)

        block.forward = counted
    stepper.step(samples(), 1, 1e-3)
    first = list(ran)
    stepper.step(samples(), 2, 1e-3)
    assert first[0] == first[1] == first[2] == stepper.policy.cache.misses > 0
    assert [after - before for after, before in zip(ran, first, strict=True)] == [0, 0, 0, 1]


def test_autograd_holds_nothing_below() -> None:
    stepper = cached(freezing())
    seen: list[bool] = []
    hook = stepper.policy.cache.blocks[3].register_forward_pre_hook(
        lambda module, given, named: seen.append(
            (given[0] if given else named["hidden_states"]).requires_grad
        ),
        with_kwargs=True,
    )
    stepper.gradients(samples())
    hook.remove()
    assert set(seen) == {False}
    frozen = [
        p
        for n, p in stepper.policy.causal[0].named_parameters()
        if n not in stepper.attached.parameters
    ]
    assert all(p.grad is None for p in frozen)


@pytest.mark.parametrize(
    ("kind", "settings", "lowest"),
    [
        ("freeze", {"blocks": 2}, 2),
        ("freeze", {"targets": ["head"]}, 3),
        ("freeze", {"patterns": ["model.norm.weight"]}, 3),
        (
            "lora",
            {
                "rank": 2,
                "targets": ["model.layers.2.mlp.up_proj", "model.layers.3.self_attn.q_proj"],
            },
            2,
        ),
        ("lora", {"rank": 2}, 0),
        ("embeddings", {}, 0),
        ("norms", {}, 0),
        ("full", {}, 0),
    ],
)
def test_the_lowest_block_is_asked_of_autograd(
    kind: str, settings: dict[str, Any], lowest: int
) -> None:
    stepper = freezing(kind=kind, **settings)
    assert lowest_trained(stepper.policy) == (lowest, False)
    cached(stepper)
    assert (stepper.policy.cache is not None) == (lowest > 0)


def test_lora_in_the_upper_blocks_is_served_with_its_dropout() -> None:
    settings = {"rank": 2, "targets": ["model.layers.3.mlp.up_proj"], "dropout": 0.5}
    losses = []
    for use in (False, True):
        torch.manual_seed(0)
        stepper = freezing(kind="lora", **settings)
        tiny.randomise(stepper.attached)
        if use:
            cached(stepper)
            assert stepper.policy.cache.block == 3
        losses.append([stepper.step(samples(), number, 1e-3).loss for number in (1, 2, 3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_rows_do_not_depend_on_what_they_were_computed_with() -> None:
    """The property that makes a resumed run exact: a store that starts empty in the middle gives
    the same bits."""
    runs = []
    for skipped in (0, 3):
        stepper = cached(freezing(rows=60))
        order = samples()
        for number in range(1, 6):
            part = order[number % 3 :: 2]
            if number > skipped:
                stepper.gradients(part)
                runs.append((number, tiny.gradients(stepper.attached)))
    first = dict(runs[:5])
    for number, gradients in runs[5:]:
        assert all(torch.equal(gradients[n], first[number][n]) for n in gradients)


def test_a_run_resumed_in_a_later_epoch_ends_with_the_same_bits(tmp_path: Path) -> None:
    from tunewright.core.signals import StopFlag
    from tunewright.engine.loop import Loop
    from tunewright.engine.schedule import make_schedule
    from tunewright.record import checkpoint
    from tunewright.record.events import EventLog

    def loop(place: Path) -> Any:
        place.mkdir()
        engine = EngineConfig(steps=8, batch_size=4, save_every=5)
        stepper = cached(freezing(rows=60), sets=[tiny.dialogues()])
        schedule = make_schedule(engine, 8, 1e-2)
        return Loop(
            stepper,
            schedule,
            tiny.dialogues(),
            [],
            engine,
            place,
            EventLog(place / "e.jsonl"),
            Quiet(),
            StopFlag(),
            "cpu",
        )

    straight, resumed = loop(tmp_path / "a"), loop(tmp_path / "b")
    straight.learn()
    found = checkpoint.load_step(straight.checkpoints, 5)
    assert found is not None
    resumed.restore(found)
    resumed.learn()
    a, b = tiny.trained(straight.stepper.attached), tiny.trained(resumed.stepper.attached)
    assert all(torch.equal(a[n], b[n]) for n in a)
    for one in (straight, resumed):
        one.log.close()


def test_measuring_uses_it_and_gets_the_same_loss() -> None:
    plain, ours = freezing(), cached(freezing())
    for _ in range(2):
        found = held_out_loss(ours.policy, ours.objective, tiny.dialogues(), 60)
        assert found == pytest.approx(
            held_out_loss(plain.policy, plain.objective, tiny.dialogues(), 60), rel=1e-6
        )
    assert ours.policy.cache.hits >= 8


def test_the_base_behind_a_switched_off_method_is_served_by_the_same_rows() -> None:
    plain, ours = freezing(), cached(freezing())
    for stepper in (plain, ours):
        stepper.step(samples(), 1, 1e-2)
    with plain.attached.disabled(), ours.attached.disabled(), torch.no_grad():
        a, b = plain.policy(samples()).logprob, ours.policy(samples()).logprob
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_computed_without_it_and_said() -> None:
    class Heard(Quiet):
        lines: list[str] = []

        def line(self, text: str) -> None:
            self.lines.append(text)

    tell, stepper = Heard(), freezing()
    needed = (
        sum(
            max(b.learnt)
            for b in {activation_cache.key_of(b): b for s in samples() for b in s.branches}.values()
        )
        * 48
        * 4
    )
    off, reason = install(
        stepper.policy, EngineConfig(activation_cache=needed - 1), [samples()], 3, "cpu", tell
    )
    assert off == "off" and stepper.policy.cache is None and tell.lines == [reason]
    on, _ = install(
        stepper.policy, EngineConfig(activation_cache=needed), [samples()], 3, "cpu", tell
    )
    assert on == needed and stepper.policy.cache is not None
    stepper.gradients(samples())
    assert stepper.policy.cache.kept_bytes == needed


def test_a_full_store_goes_on_computing_the_same_rows() -> None:
    stepper = cached(freezing())
    wanted = stepper.gradients(samples()).loss
    small = cached(freezing())
    small.policy.cache.limit_bytes, small.policy.cache.kept, small.policy.cache.kept_bytes = (
        5000,
        {},
        0,
    )
    assert [small.gradients(samples()).loss for _ in range(2)] == [wanted, wanted]
    assert small.policy.cache.kept_bytes <= 5000


@pytest.mark.parametrize(
    ("engine", "epochs", "sets"),
    [
        ({"activation_cache": "off"}, 3, [tiny.dialogues()]),
        ({"neftune": 5.0}, 3, [tiny.dialogues()]),
        ({}, 1, [tiny.dialogues()]),
        ({}, 3, [[Sample([Branch([3, 4, 5], [], [])], 0)]]),
    ],
)
def test_it_stays_off_where_it_would_be_wrong_or_useless(
    engine: dict[str, Any], epochs: float, sets: list[list[Sample]]
) -> None:
    stepper = freezing()
    off, reason = install(stepper.policy, EngineConfig(**engine), sets, epochs, "cpu", Quiet())
    assert off == "off" and reason and stepper.policy.cache is None


def test_a_model_that_cannot_start_in_the_middle_is_found_out_before_the_first_step() -> None:
    """A block that takes something from below past the residual stream, as some families do."""
    stepper = freezing()
    blocks = stepper.policy.causal[0].model.layers
    passed_on: list[torch.Tensor] = []
    first, last = blocks[0].forward, blocks[3].forward

    def remember(x: torch.Tensor, *given: Any, **named: Any) -> Any:
        passed_on[:] = [x]
        return first(x, *given, **named)

    def add(x: torch.Tensor, *given: Any, **named: Any) -> Any:
        return last(x + passed_on.pop() if passed_on else x, *given, **named)

    blocks[0].forward, blocks[3].forward = remember, add
    off, reason = install(stepper.policy, EngineConfig(), [tiny.dialogues()], 3, "cpu", Quiet())
    assert off == "off" and "middle" in reason and stepper.policy.cache is None


def test_a_block_that_is_thawed_later_ends_its_use() -> None:
    stepper = cached(freezing())
    stepper.gradients(samples())
    assert stepper.policy.cache is not None
    stepper.policy.causal[0].model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    stepper.gradients(samples())
    assert stepper.policy.cache is None
    assert stepper.policy.causal[0].model.layers[0].mlp.up_proj.weight.grad is not None


def test_positions_belong_to_the_key() -> None:
    plain = Branch([3, 4, 5, 6], [3], [1.0])
    moved = Branch([3, 4, 5, 6], [3], [1.0], positions=[7, 8, 9, 10])
    longer = Branch([3, 4, 5, 6, 9], [4], [1.0])
    same = Branch(
        [3, 4, 5, 9], [2, 3], [1.0, 0.5]
    )  # its last token is predicted and never computed
    keys = [activation_cache.key_of(b) for b in (plain, moved, longer, same)]
    assert len(set(keys[:3])) == 3 and keys[3] == keys[0]
    stepper, reference = cached(freezing()), freezing()
    both = [Sample([plain], 0), Sample([moved], 1)]
    for _ in range(2):
        assert stepper.gradients(both).loss == pytest.approx(
            reference.gradients(both).loss, rel=1e-6
        )
