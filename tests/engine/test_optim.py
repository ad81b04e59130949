"""The update rules: which parameters meet which rule, what each of them computes, and that a
resumed run goes on with the same bits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.config import EngineConfig
from tunewright.core.runfile import parse_run
from tunewright.engine.optim import JoinedOptimizer, make_optimizer
from tunewright.engine.state import load_optimizer_tensors, optimizer_tensors

RATE = 1e-2
RULES = ["adamw", "adafactor", "muon", "adamw_8bit", "lion", "adamw_schedule_free", "adam_mini"]


def needs(rule: str) -> None:
    if rule == "adamw_8bit":
        pytest.importorskip("bitsandbytes")


def lora_plus() -> tuple[Any, Any]:
    """LoRA whose B learns 16 times as fast."""
    model = tiny.make_model("llama")
    torch.manual_seed(0)
    attached = tiny.attach_lora(model, rank=4)
    attached.rate_factors = {n: 16.0 for n in attached.parameters if ".lora_B." in n}
    return model, attached


def whole() -> tuple[Any, Any]:
    model = tiny.make_model("gemma2")
    return model, tiny.attach_all(model)


@pytest.mark.wide("lora_plus-adamw", "whole-muon", "whole-adamw_schedule_free")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", [lora_plus, whole])
def test_a_resumed_run_goes_on_with_the_same_bits(rule: str, make: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    needs(rule)
    model, attached = make()
    stepper = tiny.make_stepper(model, attached, optimizer=rule)
    for number in (1, 2, 3):
        assert stepper.step(tiny.dialogues(), number, RATE).applied
    named = [(n, p) for n, p in attached.model.named_parameters() if n in attached.parameters]
    stored, weights = optimizer_tensors(stepper.optimizer, named), tiny.trained(attached)
    save_file({k: t.contiguous().clone() for k, t in stored.items()}, tmp_path / "o.safetensors")
    for number in (4, 5):
        stepper.step(tiny.dialogues(), number, RATE / 2)
    wanted = tiny.trained(attached)

    model, attached = make()
    stepper = tiny.make_stepper(model, attached, optimizer=rule)
    named = [(n, p) for n, p in attached.model.named_parameters() if n in attached.parameters]
    with torch.no_grad():
        for name, p in named:
            p.copy_(weights[name])
    load_optimizer_tensors(stepper.optimizer, named, load_file(tmp_path / "o.safetensors"))
    for number in (4, 5):
        stepper.step(tiny.dialogues(), number, RATE / 2)
    found = tiny.trained(attached)
    assert [n for n in wanted if not torch.equal(found[n], wanted[n])] == []


@pytest.mark.wide("adamw", "muon")
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_lowers_the_loss_at_the_rate_that_suits_adamw(rule: str) -> None:
    needs(rule)
    model, attached = whole()
    stepper = tiny.make_stepper(model, attached, optimizer=rule)
    losses = [stepper.step(tiny.dialogues(), number, 3e-3).loss for number in range(1, 16)]
    assert losses[-1] < 0.7 * losses[0]


def test_muon_turns_matrices_inside_blocks_and_leaves_tables_and_vectors_to_adamw() -> None:
    for family in ("llama", "gpt2"):
        model = tiny.make_model(family)
        attached = tiny.attach_all(model)
        optimizer: Any = tiny.make_stepper(model, attached, optimizer="muon").optimizer
        assert isinstance(optimizer, JoinedOptimizer)
        names = {id(p): n for n, p in model.named_parameters()}
        rules = {
            names[id(p)]: type(part).__name__
            for part in optimizer.parts
            for group in part.param_groups
            for p in group["params"]
        }
        tables = ("embed_tokens", "lm_head", "wte", "wpe")
        assert rules == {
            n: "Muon" if p.ndim == 2 and not any(t in n for t in tables) else "AdamW"
            for n, p in model.named_parameters()
        }


def test_an_update_of_muon_is_an_orthogonal_matrix_of_adamws_size() -> None:
    """Jordan et al. 2024: the momentum's singular values all become about 1; five Newton-Schulz
    steps bring them between 0.7 and 1.2."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(24, 40))
    before = p.detach().clone()
    optimizer = make_optimizer(EngineConfig(optimizer="muon"), [("block.weight", p)])
    for group in optimizer.param_groups:
        group["lr"] = RATE
    p.grad = torch.randn(24, 40) * torch.logspace(0, -2, 24)[:, None]
    optimizer.step()
    singular = torch.linalg.svdvals((before - p.detach()) / RATE) / (0.2 * math.sqrt(40))
    assert float(singular.min()) > 0.4 and float(singular.max()) < 1.4
    assert float(torch.linalg.svdvals(p.grad).max() / torch.linalg.svdvals(p.grad).min()) > 20


def test_adafactor_is_the_papers_algorithm_at_the_given_rate() -> None:
    """Shazeer and Stern 2018, algorithm 4 without a relative step: written with loops."""
    torch.manual_seed(0)
    W, gradients = torch.randn(4, 6), [torch.randn(4, 6) for _ in range(3)]
    p = torch.nn.Parameter(W.clone())
    optimizer = make_optimizer(EngineConfig(optimizer="adafactor"), [("w", p)])
    rows, columns, want = [0.0] * 4, [0.0] * 6, W.double().clone()
    for t, G in enumerate(gradients, 1):
        for group in optimizer.param_groups:
            group["lr"] = RATE
        p.grad = G.clone()
        optimizer.step()
        decay = 1 - t**-0.8
        square = G.double() ** 2 + 1e-30
        rows = [decay * r + (1 - decay) * float(square[i].mean()) for i, r in enumerate(rows)]
        columns = [
            decay * c + (1 - decay) * float(square[:, j].mean()) for j, c in enumerate(columns)
        ]
        mean = sum(rows) / len(rows)
        update = torch.tensor(
            [
                [float(G[i, j]) / math.sqrt(rows[i] * columns[j] / mean) for j in range(6)]
                for i in range(4)
            ],
            dtype=torch.float64,
        )
        update /= max(1.0, float(update.norm()) / math.sqrt(24))
        want -= RATE * update
    torch.testing.assert_close(p.detach().double(), want, rtol=1e-5, atol=1e-6)
    state = optimizer.state[p]
    assert sum(v.numel() for v in state.values() if isinstance(v, torch.Tensor)) <= 4 + 6 + 1


@pytest.mark.parametrize("rule", ["adamw", "adafactor", "muon"])
def test_parameters_with_a_factor_move_that_many_times_as_far(rule: str) -> None:
    torch.manual_seed(0)
    a, b = (torch.nn.Parameter(torch.zeros(6, 6)) for _ in range(2))
    optimizer = make_optimizer(EngineConfig(optimizer=rule), [("a", a), ("b", b)], {"b": 16.0})
    for group in optimizer.param_groups:
        group["lr"] = 1e-4 * group["rate_factor"]
    a.grad = torch.randn(6, 6)
    b.grad = a.grad.clone()
    optimizer.step()
    torch.testing.assert_close(b.detach() / a.detach(), torch.full((6, 6), 16.0), rtol=1e-5, atol=0)


def test_vectors_do_not_decay_and_matrices_do() -> None:
    for rule in ("adamw", "adafactor", "muon"):
        matrix, vector = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4))
        optimizer = make_optimizer(
            EngineConfig(optimizer=rule, weight_decay=0.5), [("m", matrix), ("v", vector)]
        )
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        matrix.grad, vector.grad = torch.zeros(4, 4), torch.zeros(4)
        optimizer.step()
        torch.testing.assert_close(matrix.detach(), torch.full((4, 4), 0.95))
        assert torch.equal(vector.detach(), torch.ones(4))


def problems(method: str = "lora", **engine: Any) -> list[str]:
    from tunewright.core import compat

    given = {"model": "m", "data.train": "d.json", "method.kind": method} | {
        f"engine.{key}": value for key, value in engine.items()
    }
    return [
        p.code for p in compat.problems(parse_run(given, dict.fromkeys(given, "run.yaml")).config)
    ]


def test_an_optimiser_that_would_do_nothing_or_is_not_installed_is_refused_before_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert problems("galore", optimizer="muon") == ["E-METHOD-07"]
    assert problems("galore") == []
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert problems(optimizer="adamw_8bit") == ["E-METHOD-08"]


def test_the_cache_key_takes_yamls_off_and_numbers_and_nothing_else() -> None:
    assert [
        EngineConfig(activation_cache=v).activation_cache for v in (False, "off", "auto", 1000)
    ] == ["off", "off", "auto", 1000]
    for wrong in (True, 0, -1, "much"):
        with pytest.raises(ValueError, match="activation_cache"):
            EngineConfig(activation_cache=wrong)


# NEFTune.


def noisy(
    layout: str = "tree", rows: int = 1 << 30, dtype: str = "float64", strength: float | None = 5.0
) -> Any:
    model = tiny.make_model("llama", dtype)
    torch.manual_seed(0)
    attached = tiny.attach_lora(model)
    attached.model.to(getattr(torch, dtype))
    tiny.randomise(attached)
    stepper = tiny.make_stepper(model, attached, layout, rows_per_pass=rows)
    stepper.neftune, stepper.number = strength, 3
    return stepper


def flat(stepper: Any) -> torch.Tensor:
    return torch.cat([g.flatten() for _, g in sorted(tiny.gradients(stepper.attached).items())])


def test_noise_is_the_same_in_both_layouts_and_however_a_step_is_cut() -> None:
    found = []
    for layout, rows in (
        ("tree", 1 << 30),
        ("tree", 40),
        ("tree", 1),
        ("padded", 1 << 30),
        ("padded", 1),
    ):
        stepper = noisy(layout, rows)
        report = stepper.gradients(tiny.dialogues() + tiny.duplicates()[:3])
        found.append((report.loss, flat(stepper)))
    plain = noisy(strength=None)
    loss = plain.gradients(tiny.dialogues() + tiny.duplicates()[:3]).loss
    assert abs(found[0][0] - loss) > 1e-4
    for other in found[1:]:
        assert other[0] == pytest.approx(found[0][0], rel=1e-10)
        # Norms narrow to float32 inside, which leaves about 1e-7.
        assert float((other[1] - found[0][1]).norm() / found[0][1].norm()) <= 1e-6


def test_noise_has_the_papers_size_and_every_row_of_a_sample_its_own() -> None:
    from tunewright.engine.neftune import Noise
    from tunewright.engine.tree import build_tree

    samples = tiny.system_prompt()
    noise = Noise.of_step(samples, 5.0, 4096, seed=0, step=1)
    tree = build_tree(samples)
    rows = noise.rows(tree, True)
    first = samples[0].branches[0]
    bound = 5.0 / math.sqrt(len(first.tokens) * 4096)
    # The first sample of the step owns the rows that all share; the others own what comes after the
    # fork, with their own length.
    assert rows[:20].abs().max() <= bound and rows[:20].abs().max() > 0.99 * bound
    assert float(rows[:20].std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    for sample, start in zip(
        samples, [i for i in range(tree.num_rows) if tree.depth[i] == 20], strict=False
    ):
        del sample
        assert not torch.equal(rows[start], rows[0])
    longest = max(s.branches[0].tokens.__len__() for s in samples)
    sizes = {
        round(float(rows[i].abs().max()) * math.sqrt(4096) / 5.0, 2)
        for i in range(20, tree.num_rows)
    }
    assert sizes == {
        round(1 / math.sqrt(len(s.branches[0].tokens)), 2) for s in samples
    } and longest > len(first.tokens)


def test_noise_differs_by_step_and_seed_and_is_nothing_else_s_draw() -> None:
    from tunewright.engine.neftune import Noise
    from tunewright.engine.tree import build_tree

    samples = tiny.dialogues()
    tree = build_tree(samples)
    draws = [
        Noise.of_step(samples, 5.0, 16, seed, step).rows(tree, True)
        for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])


def test_noise_is_on_while_learning_only() -> None:
    from tunewright.engine.step import held_out_loss

    stepper, plain = noisy(), noisy(strength=None)
    assert stepper.step(tiny.dialogues(), 1, 0.0).applied
    with torch.no_grad():
        assert torch.equal(
            stepper.policy(tiny.dialogues()).logprob, plain.policy(tiny.dialogues()).logprob
        )
    assert held_out_loss(stepper.policy, stepper.objective, tiny.dialogues(), 50) == held_out_loss(
        plain.policy, plain.objective, tiny.dialogues(), 50
    )


@pytest.mark.slow
def test_a_run_with_noise_is_told_apart_and_resumes_exactly(tmp_path: Path) -> None:
    from tunewright.core.signals import StopFlag
    from tunewright.core.telling import Quiet
    from tunewright.engine.loop import Loop
    from tunewright.engine.schedule import make_schedule
    from tunewright.record import checkpoint
    from tunewright.record.events import EventLog

    def loop(place: Path, strength: float | None) -> Any:
        place.mkdir()
        engine = EngineConfig(steps=6, batch_size=4, save_every=3)
        samples = tiny.dialogues()
        log = EventLog(place / "events.jsonl")
        stepper = noisy(dtype="float32", strength=strength)
        return Loop(
            stepper,
            make_schedule(engine, len(samples), 1e-2),
            samples,
            [],
            engine,
            place,
            log,
            Quiet(),
            StopFlag(),
            "cpu",
        )

    loops = [loop(tmp_path / "a", 5.0), loop(tmp_path / "b", 5.0), loop(tmp_path / "c", None)]
    loops[0].learn()
    found = checkpoint.load_step(loops[0].checkpoints, 3)
    assert found is not None
    loops[1].restore(found)
    loops[1].learn()
    loops[2].learn()
    weights = [tiny.trained(one.stepper.attached) for one in loops]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert any(not torch.equal(weights[0][n], weights[2][n]) for n in weights[0])
    for one in loops:
        one.log.close()
    assert json.loads((tmp_path / "a/events.jsonl").read_text().splitlines()[0])["event"] == "step"


@pytest.mark.parametrize("kind", ["reward", "process_reward"])
def test_noise_also_reaches_what_a_score_head_reads_alike_in_both_layouts_and_cuts(
    kind: str,
) -> None:
    def samples() -> list[Any]:
        made = tiny.pairs()
        for sample in made:
            for branch, role in zip(sample.branches, ("chosen", "rejected"), strict=True):
                branch.role = role
            if kind == "process_reward":
                del sample.branches[1:]
                last = len(sample.branches[0].tokens)
                sample.facts["steps"] = [[last - 3, 1], [last, 0]]
        return made

    found = []
    for layout, rows, strength in (
        ("tree", 1 << 30, 5.0),
        ("tree", 1, 5.0),
        ("padded", 1 << 30, 5.0),
        ("padded", 1, 5.0),
        ("tree", 1 << 30, None),
    ):
        _, attached, stepper = tiny.make_scorer(kind, "llama", layout, rows)
        stepper.neftune, stepper.number = strength, 3
        loss = stepper.gradients(samples()).loss
        found.append(
            (loss, torch.cat([g.flatten() for _, g in sorted(tiny.gradients(attached).items())]))
        )
    *noisy_ones, plain = found
    assert abs(noisy_ones[0][0] - plain[0]) > 1e-4
    for other in noisy_ones[1:]:
        assert other[0] == pytest.approx(noisy_ones[0][0], rel=1e-5)  # float32
        assert float((other[1] - noisy_ones[0][1]).norm() / noisy_ones[0][1].norm()) <= 1e-4


def test_moments_are_those_that_are_given() -> None:
    """Beside PyTorch's own AdamW with the same factors, step by step."""
    torch.manual_seed(0)
    start = torch.randn(4, 3)
    mine, plain = (torch.nn.Parameter(start.clone()) for _ in range(2))
    engine = EngineConfig(betas=[0.8, 0.95], epsilon=1e-3)
    ours = make_optimizer(engine, [("w", mine)])
    usual = torch.optim.AdamW([plain], lr=RATE, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.0)
    for group in ours.param_groups:
        group["lr"] = RATE
    for number in range(4):
        gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
        for p, optimizer in ((mine, ours), (plain, usual)):
            p.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(mine, plain)
    assert not torch.equal(mine, start)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"engine.decay": 0.2}, "engine.decay"),
        ({"engine.cycles": 2, "engine.schedule": "linear"}, "engine.cycles"),
        ({"engine.power": 2.0}, "engine.power"),
        ({"engine.least_rate": 0.1, "engine.schedule": "constant"}, "engine.least_rate"),
        ({"engine.betas": [0.9, 0.95], "engine.optimizer": "adafactor"}, "engine.betas"),
        ({"engine.epsilon": 1e-6, "method.kind": "galore"}, "engine.epsilon"),
        ({"engine.epsilon": 1e-6, "engine.optimizer": "lion"}, "engine.epsilon"),
        ({"engine.rates": {"embedding": 0.1}, "method.kind": "apollo"}, "engine.rates"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(more: dict[str, Any], key: str) -> None:
    from tunewright.core.compat import problems

    keys = {"model": "m", "data.train": "d.json", "method.kind": "lora", **more}
    found = problems(parse_run(keys, {}).config)
    assert [(p.code, p.where) for p in found] == [("E-COMPAT-12", key)]


def test_a_rate_that_destroys_the_model_is_refused() -> None:
    from tunewright.core.compat import problems

    def found(rate: float) -> list[tuple[str, str]]:
        keys = {"model": "m", "data.train": "d.json", "engine.learning_rate": rate}
        return [(p.code, p.where) for p in problems(parse_run(keys, {}).config)]

    assert found(10) == [("E-COMPAT-13", "engine.learning_rate")]
    assert found(0.3) == []
