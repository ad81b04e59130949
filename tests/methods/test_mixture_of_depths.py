"""Mixture of depths: the paper's routing row by row, causal when it writes, the same for any
padding, one routing for measuring and answering."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.errors import CompatError, ModelError
from tunewright.core.registry import methods
from tunewright.methods.depth_routing import agreement, largest
from tunewright.methods.mixture_of_depths import MixtureOfDepthsConfig, routed_places
from tunewright.methods.saved import put_on
from tunewright.models import anatomy

IDS = [[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3], [6, 6, 44, 100, 2, 1, 19, 55, 21, 60, 200]]


def made(
    family: str = "llama",
    dtype: str = "float32",
    blocks: int = 4,
    noise: float = 0.1,
    **config: Any,
) -> Any:
    model = tiny.make_model(
        family, dtype, **({"num_hidden_layers": blocks} if family != "gpt2" else {})
    )
    model.set_attn_implementation("sdpa")
    entry = methods.get("mixture_of_depths")
    assert entry is not None
    torch.manual_seed(0)
    attached = entry.function(
        entry.config(**{"ramp": 0, "ends": 0, **config}), model, anatomy.of(model), "tiny"
    )
    routers = [n for n in attached.parameters if "depth_router" in n]
    with torch.no_grad():
        for name in routers:
            p = model.get_parameter(name)
            p.add_(
                torch.randn(
                    p.shape, generator=torch.Generator().manual_seed(len(name)), dtype=p.dtype
                )
                * noise
            )
    return attached


def logits(model: Any, ids: Any = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), use_cache=False).logits


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reference(
    attached: Any, learning: bool, capacity: float, ids: list[int]
) -> tuple[torch.Tensor, list[float]]:
    """(logits (T, V), the predictor's cross-entropies) of one text: rows one after the other, the
    picked ones through the block's own parts."""
    model = attached.model
    own = {n: p.detach().double() for n, p in model.named_parameters()}
    plain = tiny.make_model("llama", "float64", num_hidden_layers=len(model.model.layers))
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.copy_(own[name])
    T, losses = len(ids), []
    with torch.no_grad():
        x = plain.model.embed_tokens(torch.tensor([ids]))
        turned = plain.model.rotary_emb(x, torch.arange(T)[None])
        for i, block in enumerate(plain.model.layers):
            rows = list(range(T))
            r = [1.0] * T
            if i % 2 == 1:
                part = {
                    n.rsplit(".", 1)[1]: p
                    for n, p in own.items()
                    if n.startswith(f"model.layers.{i}.depth_router.")
                }
                guess = []
                for t in range(T):
                    row = x[0, t].tolist()
                    rms = math.sqrt(math.fsum(v * v for v in row) / len(row) + 1e-6)
                    n = [v / rms for v in row]
                    r[t] = 1 + math.fsum(a * b for a, b in zip(part["w"].tolist(), n, strict=True))
                    inner = [
                        max(0.0, math.fsum(a * b for a, b in zip(u, n, strict=True)) + c)
                        for u, c in zip(part["inner"].tolist(), part["bias"].tolist(), strict=True)
                    ]
                    guess.append(
                        math.fsum(a * b for a, b in zip(part["out"].tolist(), inner, strict=True))
                        + float(part["slope"]) * (r[t] - 1.0)
                        + float(part["offset"])
                    )
                best = [0, *sorted(range(1, T), key=lambda t: -r[t])][: math.ceil(capacity * T)]
                losses += [
                    -math.log(sigmoid(g) if t in best else 1 - sigmoid(g))
                    for t, g in enumerate(guess)
                    if t > 0
                ]
                rows = (
                    sorted(best)
                    if learning
                    else [t for t in range(T) if t == 0 or sigmoid(guess[t]) > 0.5]
                )
            if not rows:
                continue
            h = x[:, rows]
            seen = torch.full((1, 1, len(rows), len(rows)), -math.inf, dtype=torch.float64).triu(1)
            angles = (turned[0][:, rows], turned[1][:, rows])
            a = (
                h
                + block.self_attn(
                    block.input_layernorm(h), position_embeddings=angles, attention_mask=seen
                )[0]
            )
            f = a + block.mlp(block.post_attention_layernorm(a)) - h
            for place, t in enumerate(rows):
                x[0, t] = x[0, t] + r[t] * f[0, place]
        return plain.lm_head(plain.model.norm(x))[0], losses


@pytest.mark.parametrize("capacity", [0.125, 0.5, 1.0])
@pytest.mark.parametrize("learning", [True, False])
def test_the_logits_and_the_predictors_loss_are_those_of_the_papers_equations(
    learning: bool, capacity: float
) -> None:
    attached = made("llama", "float64", capacity=capacity)
    model = attached.model.train(learning)
    with torch.set_grad_enabled(learning):
        ours = model(input_ids=torch.tensor([IDS[0]]), use_cache=False).logits[0].detach()
    wanted, losses = reference(attached, learning, capacity, IDS[0])
    # Rotary tables are float32 in Transformers whatever the model computes in.
    assert float((ours - wanted).abs().max() / wanted.abs().max()) < 1e-6
    terms = attached.penalties()
    if not learning:
        assert terms == {}
        return
    total, coefficient = terms["predictor"]
    assert float(total.detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-7)
    assert coefficient == 0.01


@pytest.mark.parametrize(
    ("capacity", "rows", "picked"),
    [(0.5, 11, 6), (0.125, 11, 2), (0.1, 30, 3), (0.3, 10, 3), (1.0, 7, 7), (0.01, 4, 1)],
)
def test_a_sample_picks_its_share_of_rows_rounded_up_and_never_a_padded_one(
    capacity: float, rows: int, picked: int
) -> None:
    r = torch.randn(3, rows + 5, generator=torch.Generator().manual_seed(0))
    there = torch.zeros(3, rows + 5, dtype=torch.bool)
    there[:, 2 : 2 + rows] = True
    found = largest(r, there, capacity)
    assert found.sum(-1).tolist() == [picked] * 3
    assert not bool((found & ~there).any())
    assert bool(found[:, 2].all())  # the first row that is there
    there[:, 2] = found[:, 2] = False
    for weights, chosen, exists in zip(r, found, there, strict=True):
        assert (
            float(weights[chosen].min()) >= float(weights[exists & ~chosen].max())
            if 1 < picked < rows
            else True
        )


def test_when_it_answers_no_row_depends_on_a_later_one_and_when_it_learns_it_does() -> None:
    model = made(blocks=4).model.eval()
    changed = [*IDS[0][:6], 77, 78, 79, 80, 81]
    assert torch.allclose(
        logits(model, [changed])[0, :6], logits(model, [IDS[0]])[0, :6], atol=1e-5
    )
    model.train()
    learning = [
        model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :6].detach()
        for ids in (changed, IDS[0])
    ]
    assert not torch.allclose(*learning, atol=1e-3)


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_padding_changes_nothing(family: str, side: str, learning: bool) -> None:
    model = made(family).model.train(learning)
    short, room = IDS[0][:7], [0] * 4
    ids = torch.tensor([room + short if side == "left" else short + room, IDS[1]])
    real = torch.tensor([[0] * 4 + [1] * 7 if side == "left" else [1] * 7 + [0] * 4, [1] * 11])
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    with torch.set_grad_enabled(learning):
        both = (
            model(input_ids=ids, attention_mask=real, position_ids=positions, use_cache=False)
            .logits[0]
            .detach()
        )
        alone = model(input_ids=torch.tensor([short]), use_cache=False).logits[0].detach()
    assert torch.allclose(both[real[0].bool()], alone, atol=1e-4)


def test_how_a_step_is_cut_into_passes_does_not_change_its_gradient() -> None:
    found = []
    for rows in (1 << 30, 30):
        attached = made("llama", "float64")
        report = tiny.make_stepper(
            attached.model, attached, "padded", rows_per_pass=rows
        ).gradients(tiny.dialogues())
        found.append(
            (
                report.passes,
                torch.cat([g.flatten() for g in tiny.gradients(attached).values()]),
                report.terms["predictor"],
            )
        )
    assert found[0][0] < found[1][0]
    assert float((found[0][1] - found[1][1]).norm() / found[0][1].norm()) < 1e-6
    assert found[0][2] == pytest.approx(found[1][2], rel=1e-9)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_writing_with_the_cache_says_what_reading_all_at_once_says_for_many_texts_of_many_lengths(
    family: str,
) -> None:
    model = made(family, capacity=0.5).model.eval()
    texts = [IDS[0], IDS[1][:4], IDS[0][2:9]]
    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(t)) + t for t in texts])
    mask = torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for t in texts])
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    for text, row in zip(texts, out.tolist(), strict=True):
        written = row[longest:]
        for n in range(len(written)):
            scores = logits(model, [text + written[:n]])[0, -1]
            assert float(scores.max() - scores[written[n]]) < 1e-3


def test_the_largest_are_picked_until_the_share_of_steps_that_was_asked_for_and_a_resume_knows() -> (
    None
):
    attached = made("llama", settle=0.5)
    attached.begin(4)
    routing = attached.model.depth_routing
    for number, settled in ((1, False), (2, True), (3, True)):
        attached.after_update(number)
        assert routing.settled is settled
    again = made("llama", settle=0.5)
    again.begin(4)
    again.load_state(attached.state())
    assert again.model.depth_routing.settled
    never = made("llama", settle=1)
    never.begin(4)
    never.after_update(4)
    assert not never.model.depth_routing.settled
    picked = []
    for settled in (False, True):
        routing.settled, routing.record = settled, []
        attached.model.train()(input_ids=torch.tensor(IDS), use_cache=False)
        picked.append(torch.stack(routing.record))
    assert picked[0].sum(-1).unique().tolist() == [6]
    assert not torch.equal(*picked)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_with_a_ramp_it_starts_as_the_base_and_the_capacity_falls_to_what_was_asked_for(
    family: str,
) -> None:
    attached = made(family, noise=0.0, ramp=0.5, capacity=0.25)
    model = attached.model
    with attached.disabled():
        base = logits(model.eval())
    assert torch.allclose(logits(model), base, atol=1e-5)
    attached.begin(8)
    stepper, picked = tiny.make_stepper(model, attached, "padded"), []
    sample = tiny.single([n % 90 + 3 for n in range(41)], [(1, 41)], 0)
    for number in range(1, 9):
        routing = model.depth_routing
        routing.record = []
        stepper.step([sample], number, 1e-3)
        picked.append(torch.stack(routing.record).sum(-1).float().mean().item())
        routing.record = None
    assert picked[0] == 41 or picked[0] == 40  # the last token is read by no other
    assert picked[3] > 0.3 * 41
    assert sorted(picked[:4], reverse=True) == picked[:4]
    assert model.depth_routing.capacity == 0.25


def test_a_resume_in_the_middle_of_the_ramp_has_the_same_capacity_and_edges() -> None:
    attached = made("llama", ramp=0.5)
    attached.begin(8)
    stepper = tiny.make_stepper(attached.model, attached, "padded")
    for number in (1, 2):
        stepper.step(tiny.dialogues(), number, 1e-3)
    again = made("llama", ramp=0.5)
    again.begin(8)
    again.load_state(json.loads(json.dumps(attached.state())))
    assert again.model.depth_routing.capacity == attached.model.depth_routing.capacity == 0.75
    edges = attached.state()["edges"]
    assert set(edges) == {"model.layers.1", "model.layers.3"}
    assert -1.0 not in edges.values()
    assert again.state() == attached.state()


def test_the_ends_of_the_model_compute_every_token() -> None:
    attached = made("llama", blocks=10, ends=0.2)
    assert sorted({int(n.split(".")[2]) for n in attached.parameters if "depth_router" in n}) == [
        2,
        4,
        6,
    ]
    assert [*routed_places(MixtureOfDepthsConfig(), 30)] == [*range(3, 27, 2)]
    assert [*routed_places(MixtureOfDepthsConfig(every=1, ends=0), 4)] == [1, 2, 3]


def test_the_predictor_learns_from_its_own_term_and_nothing_else_does() -> None:
    attached = made("llama")
    model = attached.model.train()
    model(input_ids=torch.tensor(IDS), use_cache=False)
    total, coefficient = attached.penalties()["predictor"]
    (total * coefficient).backward()
    moved = {
        n.rsplit(".", 1)[1]
        for n, p in model.named_parameters()
        if p.grad is not None and float(p.grad.abs().max()) > 0
    }
    assert moved == {"inner", "bias", "out", "slope", "offset"}


@pytest.mark.wide("0.4")
@pytest.mark.parametrize("ramp", [0, 0.4])
def test_after_training_learning_and_writing_route_at_least_95_of_100_tokens_alike_also_on_texts_not_trained_on(
    ramp: float,
) -> None:
    attached = made("llama", blocks=4, noise=0 if ramp else 0.02, capacity=0.5, ramp=ramp)
    model = attached.model
    draw = random.Random(0)

    def texts(count: int) -> list[Any]:
        """A little language: each token decides most of the next, so there is something to learn
        and something to route by."""
        out = []
        for i in range(count):
            tokens = [draw.randrange(3, 60)]
            while len(tokens) < 24:
                tokens.append(
                    (tokens[-1] * 7 + 3) % 57 + 3 if draw.random() < 0.9 else draw.randrange(3, 60)
                )
            out.append(tiny.single(tokens, [(1, 24)], i))
        return out

    attached.begin(120)
    stepper = tiny.make_stepper(model, attached, "padded", clip=1.0)
    losses = [
        stepper.step(texts(16), number, 1e-3 * min(1.0, 2 - 2 * number / 120)).terms["sft"]
        for number in range(1, 121)
    ]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    unseen = torch.tensor([s.branches[0].tokens for s in texts(40)])
    share = agreement(model, unseen)
    assert share >= 0.95, share
    print(
        f"agreement {share:.4f} on unseen texts; the predictor itself: {attached.state()['agreement'][-1]:.4f} of the largest in the last step"
    )
    assert (
        sum(attached.state()["agreement"]) / 50 > 0.8
    )  # the predictor knows the largest, too: it was not settled on anything else
    with torch.no_grad():
        model.depth_routing.record = []
        model.eval()(input_ids=unseen, use_cache=False)
        picked = torch.stack(model.depth_routing.record).float().mean()
    assert 0.4 < float(picked) < 0.6  # as many as it learnt with, not all or none


@pytest.mark.parametrize(("train", "inside"), [("router", 0), ("blocks", 2), ("model", 4)])
def test_what_trains_is_what_was_asked_for(train: str, inside: int) -> None:
    attached = made("llama", blocks=4, train=train)
    blocks = {
        n.split(".")[2]
        for n in attached.parameters
        if n.startswith("model.layers.") and "depth_router" not in n
    }
    assert len(blocks) == inside
    assert ("lm_head.weight" in attached.parameters) == (train == "model")
    assert {n.split(".")[2] for n in attached.parameters if "depth_router" in n} == {"1", "3"}
    factors = {n for n, factor in attached.rate_factors.items() if factor == 20.0}
    assert factors == {n for n in attached.parameters if "depth_router" in n}


def test_half_precision_models_are_routed_in_float32_and_trained_blocks_keep_float32_weights() -> (
    None
):
    attached = made("llama", "bfloat16")
    named = dict(attached.model.named_parameters())
    assert {named[n].dtype for n in attached.parameters} == {torch.float32}
    assert logits(attached.model.eval()).dtype == torch.bfloat16


def test_the_saved_folder_says_how_well_the_predictor_agrees_and_opens_on_the_base(
    tmp_path: Path,
) -> None:
    attached = made("llama", blocks=2, noise=0.0)
    stepper = tiny.make_stepper(attached.model, attached, "padded")
    for number in range(1, 4):
        stepper.step(tiny.dialogues(), number, 1e-3)
    attached.save(tmp_path)
    described = json.loads((tmp_path / "tunewright_method.json").read_text(encoding="utf-8"))
    assert described["kind"] == "mixture_of_depths"
    assert 0.0 < described["predictor_agreement"] <= 1.0
    opened = put_on(tiny.make_model("llama"), tmp_path)
    assert opened.state()["edges"] == attached.state()["edges"]
    assert torch.equal(logits(opened.model), logits(attached.model.eval()))
    with pytest.raises(ModelError, match="E-METHOD-42"):
        put_on(tiny.make_model("llama", num_hidden_layers=4), tmp_path)
    with pytest.raises(ModelError, match="E-METHOD-46"):
        put_on(tiny.make_model("gemma2"), tmp_path)
    (tmp_path / "tunewright_method.json").write_text(
        json.dumps({**described, "edges": {}}), encoding="utf-8"
    )
    with pytest.raises(ModelError, match="E-METHOD-41"):
        put_on(tiny.make_model("llama"), tmp_path)


@pytest.mark.parametrize(
    ("family", "changes"), [("mistral", {}), ("gemma2", {}), ("llama", {"num_hidden_layers": 1})]
)
def test_windows_mixed_blocks_and_single_blocks_are_refused(
    family: str, changes: dict[str, Any]
) -> None:
    model = tiny.make_model(family, **changes)
    entry = methods.get("mixture_of_depths")
    assert entry is not None
    with pytest.raises(CompatError, match="E-METHOD-46"):
        entry.function(entry.config(), model, anatomy.of(model), "tiny")


def test_the_estimate_counts_what_trains() -> None:
    from tunewright.models.shape import ModelShape

    entry = methods.get("mixture_of_depths")
    assert entry is not None
    for config in ({}, {"train": "router"}, {"train": "model"}, {"every": 1, "train": "router"}):
        attached = made("llama", blocks=4, **config)
        shape = ModelShape.from_config(
            tiny.make_model("llama", num_hidden_layers=4).config.to_dict()
        )
        assert entry.config(**config).trainable_numbers(shape) == sum(
            attached.model.get_parameter(n).numel() for n in attached.parameters
        )
