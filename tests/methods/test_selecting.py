"""Methods that train weights of the model itself: which ones, what is lost in half precision
(nothing), what is saved."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.core.types import Attached
from tunewright.methods.saved import put_on
from tunewright.models import anatomy
from tunewright.models.load import load_model

IDS = torch.tensor([[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3]])


def put(kind: str, model: Any, **settings: Any) -> Attached:
    entry = methods.get(kind)
    assert entry is not None
    attached = entry.function(entry.config(**settings), model, anatomy.of(model), "tiny")
    assert isinstance(attached, Attached)
    return attached


def logits(model: Any) -> torch.Tensor:
    model.set_attn_implementation("sdpa")
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def train(model: Any, attached: Attached, steps: int = 3, rate: float = 1e-2) -> None:
    stepper = tiny.make_stepper(model, attached)
    for number in range(1, steps + 1):
        assert stepper.step(tiny.dialogues(), number, rate).applied


def four_blocks(**changes: Any) -> Any:
    return tiny.make_model("llama", num_hidden_layers=4, **changes)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, lambda n: n.startswith(("model.layers.2.", "model.layers.3."))),
        ({"blocks": 1}, lambda n: n.startswith("model.layers.3.")),
        ({"targets": "mlp.down"}, lambda n: n.endswith("down_proj.weight")),
        (
            {"blocks": 2, "targets": ["attention"]},
            lambda n: n.startswith(("model.layers.2.self_attn", "model.layers.3.self_attn")),
        ),
        (
            {"blocks": 1, "targets": ["attention.query", "head"]},
            lambda n: n in ("model.layers.3.self_attn.q_proj.weight", "lm_head.weight"),
        ),
        (
            {"blocks": 1, "targets": ["self_attn", "input_layernorm"]},
            lambda n: n.startswith(("model.layers.3.self_attn", "model.layers.3.input")),
        ),
        (
            {"patterns": "model.layers.[01].mlp.*"},
            lambda n: n.startswith(("model.layers.0.mlp", "model.layers.1.mlp")),
        ),
        (
            {"blocks": 1, "patterns": ["model.norm.weight"]},
            lambda n: n.startswith("model.layers.3.") or n == "model.norm.weight",
        ),
    ],
)
def test_freeze_lets_exactly_the_chosen_weights_train(
    settings: dict[str, Any], wanted: Any
) -> None:
    model = four_blocks()
    attached = put("freeze", model, **settings)
    assert attached.parameters == [n for n, _ in model.named_parameters() if wanted(n)]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == attached.parameters


@pytest.mark.parametrize(
    ("kind", "settings", "code"),
    [
        ("freeze", {"blocks": 5}, "E-METHOD-02"),
        ("freeze", {"patterns": ["model.layers.9*"]}, "E-METHOD-03"),
        ("freeze", {"targets": ["model.layers.0.mlp.up_proj"], "blocks": 1}, "E-METHOD-04"),
        ("freeze", {"targets": ["attention.qkv"]}, "E-MODEL-37"),
        ("bitfit", {}, "E-METHOD-01"),
        ("galore", {"rank": 49}, "E-METHOD-09"),
        ("apollo", {"rank": 49}, "E-METHOD-09"),
    ],
)
def test_what_the_model_does_not_have_is_refused_with_what_to_use(
    kind: str, settings: dict[str, Any], code: str
) -> None:
    with pytest.raises(TunewrightError) as caught:
        put(kind, four_blocks(), **settings)
    assert [p.code for p in caught.value.problems] == [code]
    assert caught.value.problems[0].remedy()


def test_bitfit_names_its_substitutes_and_the_roles_that_have_biases() -> None:
    with pytest.raises(TunewrightError, match=r"kind: norms.*kind: lora"):
        put("bitfit", tiny.make_model("llama"))
    with pytest.raises(TunewrightError) as caught:
        put("bitfit", tiny.make_model("qwen2"), targets=["mlp"])
    assert caught.value.problems[0].code == "E-METHOD-05"
    assert "attention.query" in str(caught.value)


def test_bitfit_trains_attentions_biases_on_qwen2_and_learns() -> None:
    model = tiny.make_model("qwen2")
    attached = put("bitfit", model)
    assert {n.rpartition("self_attn.")[2] for n in attached.parameters} == {
        "q_proj.bias",
        "k_proj.bias",
        "v_proj.bias",
    }
    stepper = tiny.make_stepper(model, attached)
    losses = [stepper.step(tiny.dialogues(), number, 5e-2).loss for number in range(1, 13)]
    assert losses[-1] < 0.9 * losses[0]
    only_query = put("bitfit", tiny.make_model("qwen2"), targets="attention.query")
    assert all(n.endswith("q_proj.bias") for n in only_query.parameters)


@pytest.mark.parametrize(
    ("tied", "head", "count"),
    [(True, False, 1), (True, True, 1), (False, False, 1), (False, True, 2)],
)
def test_a_tied_embedding_stays_one_matrix_through_training_saving_and_loading(
    tied: bool, head: bool, count: int, tmp_path: Path
) -> None:
    tiny.save_folder(tmp_path / "base", tie_word_embeddings=tied)
    model = load_model(tmp_path / "base", dtype="float32")
    attached = put("embeddings", model, head=head)
    assert len(attached.parameters) == count
    before = model.get_output_embeddings().weight.detach().clone()
    train(model, attached)
    tuned = logits(model)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert torch.equal(model.get_output_embeddings().weight, before) == (not tied and not head)
    attached.save(tmp_path / "saved")
    fresh = load_model(tmp_path / "base", dtype="float32")
    put_on(fresh, tmp_path / "saved")
    assert (fresh.get_output_embeddings().weight is fresh.get_input_embeddings().weight) == tied
    assert torch.equal(logits(fresh), tuned)


# Half precision.


@pytest.mark.parametrize("kind", ["full", "freeze", "norms", "embeddings"])
def test_gradients_in_bfloat16_are_those_of_the_plain_bfloat16_model(kind: str) -> None:
    """Oracle: the same model with its weights in bfloat16 requiring a gradient, no masters. One use
    of each weight: the same bits."""
    plain = tiny.make_model("llama", "bfloat16")
    reference = tiny.attach_all(plain)
    tiny.make_stepper(plain, reference, "padded").gradients(tiny.dialogues())
    wanted = tiny.gradients(reference)
    model = tiny.make_model("llama", "bfloat16")
    attached = put(kind, model)
    assert {p.dtype for n, p in model.named_parameters() if n in attached.parameters} == {
        torch.float32
    }
    tiny.make_stepper(model, attached, "padded").gradients(tiny.dialogues())
    found = tiny.gradients(attached)
    assert sorted(found) == sorted(attached.parameters)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        # A trainable head meets its rows in another order of sums than a frozen one; bfloat16 has 8
        # bits.
        assert float((gradient - wanted[name].float()).norm()) <= 2**-6 * float(
            wanted[name].float().norm()
        ), name


def test_updates_too_small_for_bfloat16_are_not_lost() -> None:
    """Twenty moves of 2e-4 on weights near 1: each is a twentieth of bfloat16's last digit there,
    together they are a digit."""
    model, plain = (tiny.make_model("llama", "bfloat16") for _ in range(2))
    before = logits(model)
    attached = put("norms", model)
    train(model, attached, steps=20, rate=2e-4)
    assert not torch.equal(logits(model), before)
    lost = tiny.attach_all(plain)
    for name, p in plain.named_parameters():
        p.requires_grad_("norm" in name)
    lost.parameters = [n for n, p in plain.named_parameters() if p.requires_grad]
    train(plain, lost, steps=20, rate=2e-4)
    stuck = [
        bool(torch.equal(p, q))
        for (_, p), (_, q) in zip(
            plain.named_parameters(),
            tiny.make_model("llama", "bfloat16").named_parameters(),
            strict=True,
        )
    ]
    norms = dict(model.named_parameters())
    moved = [
        float((norms[n].detach() - p.float()).abs().max())
        for n, p in tiny.make_model("llama", "bfloat16").named_parameters()
        if "norm" in n
    ]
    assert all(stuck)  # the oracle: without masters not one weight of the whole model moves
    assert min(moved) > 5e-4


@pytest.mark.parametrize("kind", ["full", "freeze", "galore", "apollo"])
def test_in_bfloat16_a_resumed_run_goes_on_with_the_same_bits(kind: str) -> None:
    from tunewright.engine.state import load_optimizer_tensors, optimizer_tensors

    def start() -> tuple[Any, Any, list[Any]]:
        model = tiny.make_model("llama", "bfloat16")
        attached = put(
            kind,
            model,
            **(
                {"rank": 4, "refresh": 2}
                if kind in ("galore", "apollo")
                else {"blocks": 1}
                if kind == "freeze"
                else {}
            ),
        )
        stepper = tiny.make_stepper(model, attached)
        return (
            stepper,
            attached,
            [(n, p) for n, p in model.named_parameters() if n in attached.parameters],
        )

    stepper, attached, named = start()
    for number in (1, 2, 3):
        stepper.step(tiny.dialogues(), number, 1e-3)
    weights, state = (
        tiny.trained(attached),
        {k: t.clone() for k, t in optimizer_tensors(stepper.optimizer, named).items()},
    )
    for number in (4, 5):
        stepper.step(tiny.dialogues(), number, 1e-3)
    wanted = tiny.trained(attached)
    stepper, attached, named = start()
    with torch.no_grad():
        for name, p in named:
            p.copy_(weights[name])
    load_optimizer_tensors(stepper.optimizer, named, state)
    for number in (4, 5):
        stepper.step(tiny.dialogues(), number, 1e-3)
    found = tiny.trained(attached)
    assert all(torch.equal(found[n], wanted[n]) for n in wanted) and not torch.equal(
        found[attached.parameters[0]], weights[attached.parameters[0]]
    )


def test_in_float32_nothing_is_wrapped() -> None:
    model = tiny.make_model("llama")
    put("full", model)
    assert not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_saved_model_is_the_run_in_plain_transformers_with_the_bases_own_configuration(
    dtype: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    original = tiny.make_model("llama", attention_dropout=0.1, tie_word_embeddings=True)
    original.config.attention_dropout = 0.1
    original.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "eos_token_id": [2, 7]})
    )
    model = load_model(tmp_path / "base", dtype=dtype)
    assert model.config.attention_dropout == 0
    attached = put("full", model)
    train(model, attached)
    tuned = logits(model)
    attached.save(tmp_path / "model")
    assert {p.dtype for p in model.parameters()} == {
        torch.float32
    }  # saving in half precision leaves the masters as they are
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.dtype == getattr(torch, dtype) and torch.equal(logits(loaded), tuned)
    assert loaded.config.attention_dropout == 0.1 and loaded.config.tie_word_embeddings
    assert GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == [2, 7]
    assert json.loads((tmp_path / "model/generation_config.json").read_text())["temperature"] == 0.6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_looking_at_the_base_between_forward_and_backward_changes_no_gradient(dtype: str) -> None:
    """A reference model in the middle of a step: preference objectives do just that."""
    gradients = []
    for look in (False, True):
        model = tiny.make_model("llama", dtype)
        base = logits(model)
        attached = put("freeze", model, blocks=1)
        train(model, attached)
        stepper = tiny.make_stepper(model, attached, "padded")
        output = stepper.policy(tiny.dialogues())
        if look:
            assert attached.disabled is not None
            with attached.disabled():
                assert torch.equal(logits(model), base)
        output.logprob.sum().backward()
        gradients.append(tiny.gradients(attached))
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0]) and gradients[0]


def test_a_part_goes_on_training_from_where_it_was_saved_and_still_knows_its_base(
    tmp_path: Path,
) -> None:
    tiny.save_folder(tmp_path / "base")
    model = load_model(tmp_path / "base", dtype="bfloat16")
    base, attached = logits(model), put("freeze", model, blocks=1)
    train(model, attached)
    attached.save(tmp_path / "saved")
    again = load_model(tmp_path / "base", dtype="bfloat16")
    put_again = put_on(again, tmp_path / "saved", base_path="elsewhere", trainable=True)
    assert torch.equal(logits(again), logits(model))
    assert all(
        torch.equal(tiny.trained(put_again)[n], p) for n, p in tiny.trained(attached).items()
    )
    train(again, put_again, steps=1)
    assert put_again.disabled is not None
    with put_again.disabled():
        assert torch.equal(logits(again), base)
    put_again.save(tmp_path / "more")
    described = json.loads((tmp_path / "more/tunewright_method.json").read_text())
    assert described == {
        "kind": "freeze",
        "config": {"blocks": 1, "targets": [], "patterns": []},
        "base_model_name_or_path": "elsewhere",
    }


def test_weights_of_another_base_are_refused(tmp_path: Path) -> None:
    put("norms", tiny.make_model("llama")).save(tmp_path)
    for wrong in (tiny.make_model("llama", hidden_size=32), tiny.make_model("gpt2")):
        with pytest.raises(TunewrightError) as caught:
            put_on(wrong, tmp_path)
        assert caught.value.problems[0].code == "E-METHOD-42"


@pytest.mark.parametrize(
    "kind", ["full", "freeze", "bitfit", "norms", "embeddings", "galore", "apollo"]
)
def test_the_estimate_before_loading_knows_how_much_of_the_base_trains(kind: str) -> None:
    from tunewright.models.shape import ModelShape, rank_of, trainable_parameters

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 320}
    model = tiny.make_model("qwen2", **sizes)
    entry = methods.get(kind)
    assert entry is not None
    settings = {"rank": 4} if kind in ("galore", "apollo") else {}
    attached = put(kind, model, **settings)
    real = sum(p.numel() for n, p in model.named_parameters() if n in attached.parameters)
    estimate = trainable_parameters(
        ModelShape.from_config(model.config.to_dict()), entry.config(**settings)
    )
    assert 0.9 * real <= estimate <= 3 * real
    assert rank_of(entry.config(**settings)) is None


# GaLore.


def slow_galore(
    weights: list[list[float]],
    gradients: list[Any],
    rank: int,
    refresh: int,
    scale: float,
    rate: float,
) -> Any:
    """The paper's algorithm 2 with loops, in double precision, for a matrix with no more rows than
    columns."""
    W = torch.tensor(weights, dtype=torch.float64)
    m, n = W.shape
    first, second = [[0.0] * n for _ in range(rank)], [[0.0] * n for _ in range(rank)]
    for t, gradient in enumerate(gradients):
        G = gradient.double()
        if t % refresh == 0:
            P = torch.linalg.svd(G).U[:, :rank]
        for i in range(rank):
            for j in range(n):
                r = sum(float(P[k, i] * G[k, j]) for k in range(m))
                first[i][j] = 0.9 * first[i][j] + 0.1 * r
                second[i][j] = 0.999 * second[i][j] + 0.001 * r * r
        for k in range(m):
            for j in range(n):
                move = 0.0
                for i in range(rank):
                    size = (second[i][j] / (1 - 0.999 ** (t + 1))) ** 0.5
                    move += float(P[k, i]) * (first[i][j] / (1 - 0.9 ** (t + 1))) / (size + 1e-8)
                W[k, j] -= rate * scale * move
    return W


@pytest.mark.parametrize("wide", [True, False])
def test_galore_is_the_papers_algorithm(wide: bool) -> None:
    from tunewright.methods.galore import galore_adamw

    torch.manual_seed(0)
    start, gradients = torch.randn(5, 9), [torch.randn(5, 9) for _ in range(5)]
    p = torch.nn.Parameter((start if wide else start.t()).clone())
    optimizer = galore_adamw()([{"params": [p], "rank": 3, "refresh": 5, "scale": 0.5}])
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for gradient in gradients:
        p.grad = gradient if wide else gradient.t().contiguous()
        optimizer.step()
    wanted = slow_galore(start.tolist(), gradients, 3, 5, 0.5, 0.1)
    found = p.detach() if wide else p.detach().t()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    assert optimizer.state[p]["exp_avg"].numel() == 3 * 9


# APOLLO.


def slow_apollo(
    weights: Any,
    gradients: list[Any],
    sketches: list[Any],
    scale: float,
    rate: float,
    limit: float,
    tensor: bool,
) -> Any:
    """The paper's algorithm 1 with loops, in double precision, for a matrix with no more rows than
    columns."""
    W = weights.double().clone()
    (m, n), rank = W.shape, len(sketches[0])
    first, second = [[0.0] * n for _ in range(rank)], [[0.0] * n for _ in range(rank)]
    last = None
    for t, (gradient, P) in enumerate(zip(gradients, sketches, strict=True)):
        G, P = gradient.double(), P.double()
        R = [
            [sum(float(P[i, k] * G[k, j]) for k in range(m)) for j in range(n)] for i in range(rank)
        ]
        N = [[0.0] * n for _ in range(rank)]
        for i in range(rank):
            for j in range(n):
                first[i][j] = 0.9 * first[i][j] + 0.1 * R[i][j]
                second[i][j] = 0.999 * second[i][j] + 0.001 * R[i][j] ** 2
                N[i][j] = (first[i][j] / (1 - 0.9 ** (t + 1))) / (
                    (second[i][j] / (1 - 0.999 ** (t + 1))) ** 0.5 + 1e-8
                )
        lengths = lambda table, j: sum(table[i][j] ** 2 for i in range(rank)) ** 0.5  # noqa: E731
        whole = lambda table: sum(v**2 for row in table for v in row) ** 0.5  # noqa: E731
        U = torch.stack(
            [
                G[:, j] * (whole(N) / whole(R) if tensor else lengths(N, j) / lengths(R, j))
                for j in range(n)
            ],
            1,
        )
        length = float(U.norm())
        if last is not None and length > limit * last:
            U, length = U * limit * last / length, limit * last
        last = length
        W -= rate * scale * U
    return W


@pytest.mark.parametrize("tensor", [True, False])
@pytest.mark.parametrize("wide", [True, False])
def test_apollo_is_the_papers_algorithm(wide: bool, tensor: bool) -> None:
    from tunewright.methods.apollo import apollo_adamw, sketch

    torch.manual_seed(0)
    start, gradients = torch.randn(5, 9), [torch.randn(5, 9) * (1 + 2 * (t == 2)) for t in range(5)]
    p = torch.nn.Parameter((start if wide else start.t()).clone())
    options = {
        "rank": 3,
        "refresh": 2,
        "scale": 0.5,
        "limit": 1.01,
        "scaling": "tensor" if tensor else "channel",
    }
    optimizer = apollo_adamw()([{"params": [p], **options}])
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for gradient in gradients:
        p.grad = gradient if wide else gradient.t().contiguous()
        optimizer.step()
    sketches = [sketch(3, 5, 0, 0, t // 2) for t in range(5)]
    assert torch.equal(sketches[0], sketches[1]) and not torch.equal(sketches[1], sketches[2])
    assert float(torch.stack([sketch(64, 200, 0, 0, i) for i in range(4)]).var()) == pytest.approx(
        1 / 64, rel=0.05
    )
    wanted = slow_apollo(start, gradients, sketches, 0.5, 0.1, 1.01, tensor)
    found = p.detach() if wide else p.detach().t()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    assert optimizer.state[p]["exp_avg"].numel() == 3 * 9


def test_galores_window_is_chosen_anew_after_refresh_updates_and_not_before() -> None:
    from tunewright.methods.galore import galore_adamw, window

    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(6, 8))
    optimizer = galore_adamw()([{"params": [p], "rank": 2, "refresh": 3}])
    windows = []
    for _ in range(7):
        p.grad = torch.randn(6, 8)
        optimizer.step()
        windows.append(optimizer.state[p]["window"].clone())
    same = [torch.equal(a, b) for a, b in pairwise(windows)]
    assert same == [True, True, False, True, True, False]
    G = torch.randn(6, 8)
    left, right = torch.linalg.svd(G).U[:, :2], torch.linalg.svd(G).Vh[:2].t()
    for found, wanted in ((window(G, 2, True), left), (window(G, 2, False), right)):
        torch.testing.assert_close((found.t() @ wanted).abs(), torch.eye(2), atol=1e-4, rtol=0)


def test_what_galore_does_not_see_through_a_window_learns_with_adamw() -> None:
    model, other = tiny.make_model("llama"), tiny.make_model("llama")
    attached, reference = (
        put("galore", model, rank=4, targets=["attention.query"]),
        put("full", other),
    )
    train(model, attached, steps=1, rate=1e-3)
    train(other, reference, steps=1, rate=1e-3)
    ours, theirs = tiny.trained(attached), tiny.trained(reference)
    for name in ours:
        close = torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-6)
        assert close == ("q_proj" not in name), name


def test_galore_and_apollo_keep_less_state_than_adamw() -> None:
    def numbers(kind: str, **settings: Any) -> int:
        model = tiny.make_model("llama")
        attached = put(kind, model, **settings)
        stepper = tiny.make_stepper(model, attached)
        stepper.step(tiny.dialogues(), 1, 1e-3)
        blocks = {id(p) for n, p in model.named_parameters() if "_proj" in n}
        return sum(
            v.numel()
            for p, state in stepper.optimizer.state.items()
            if id(p) in blocks
            for v in state.values()
            if isinstance(v, torch.Tensor)
        )

    assert numbers("galore", rank=4) < 0.15 * numbers("full")
    assert numbers("apollo", rank=4) < 0.1 * numbers("full")
    assert numbers("apollo_mini") < 0.025 * numbers("full")
