"""Methods that PEFT has: PEFT's own gradients, PEFT's own files, and one clear message for what
cannot be."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.bench.certificate import distance, full_width
from tunewright.core.errors import CompatError, ConfigError, TunewrightError
from tunewright.core.registry import methods
from tunewright.core.types import Attached
from tunewright.methods.saved import put_on
from tunewright.models import anatomy

IDS = torch.tensor(
    [[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3], [6, 6, 44, 100, 2, 1, 19, 55, 21, 60, 200]]
)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4}, "rslora": {"rank": 4}, "dora": {"rank": 4}, "lora_plus": {"rank": 4}, "pissa": {"rank": 4}, "olora": {"rank": 4},
    "loha": {"rank": 4}, "lokr": {"rank": 2}, "adalora": {"rank": 4}, "ia3": {}, "vera": {"rank": 16}, "oft": {"block_size": 8},
    "peft": {"type": "HRA", "options": {"r": 4}}, "prompt_tuning": {"num_tokens": 6}, "p_tuning": {"num_tokens": 6},
    "prefix_tuning": {"num_tokens": 6}, "p_tuning_v2": {"num_tokens": 6},
}  # fmt: skip


def put(kind: str, model: Any, **settings: Any) -> Attached:
    entry = methods.get(kind)
    assert entry is not None
    torch.manual_seed(7)
    attached = entry.function(entry.config(**settings), model, anatomy.of(model), "tiny")
    if attached.begin:
        attached.begin(20)
    assert isinstance(attached, Attached)
    return attached


def refused(kind: str, family: str = "llama", **settings: Any) -> str:
    with pytest.raises(TunewrightError) as caught:
        put(kind, tiny.make_model(family), **settings)
    (found,) = caught.value.problems
    return found.code


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits[:, -IDS.shape[1] :]


def close(a: torch.Tensor, b: torch.Tensor, share: float) -> bool:
    return float((a - b).abs().max()) <= share * float(b.abs().max())


def plain_peft(attached: Attached) -> None:
    """Take away everything of this package: the forward of PEFT's and Transformers' classes is what
    remains."""
    for module in attached.model.modules():
        module.__dict__.pop("forward", None)


def padded_batch(samples: list[Any]) -> dict[str, torch.Tensor]:
    """One padded batch with labels, as a Trainer makes it."""
    branches = [b for s in samples for b in s.branches]
    longest = max(len(b.tokens) for b in branches)
    ids, mask, labels = (
        torch.zeros(len(branches), longest, dtype=torch.long),
        torch.zeros(len(branches), longest, dtype=torch.long),
        torch.full((len(branches), longest), -100),
    )
    for i, b in enumerate(branches):
        ids[i, : len(b.tokens)] = torch.tensor(b.tokens)
        mask[i, : len(b.tokens)] = 1
        labels[i, b.learnt] = torch.tensor([b.tokens[n] for n in b.learnt])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("layout", ["padded", "tree"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_gradients_are_those_of_pefts_own_model_on_a_padded_batch(kind: str, layout: str) -> None:
    """PEFT's model with its own forward and Transformers' own loss is the oracle; AdaLoRA's penalty
    is part of PEFT's loss and of our terms.

    float64 for every tensor: the algebra; float32 for the gradient as a whole: what a run computes.
    """
    for dtype, limit in ((torch.float64, 1e-7), (torch.float32, 1e-5)):
        ours, theirs = both_gradients(kind, layout, dtype)
        assert ours.keys() == theirs.keys()
        if dtype is torch.float64:
            assert {
                name: gap for name in theirs if (gap := distance(ours[name], theirs[name])) > limit
            } == {}
        assert distance(flat(ours), flat(theirs)) <= limit


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def both_gradients(
    kind: str, layout: str, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    samples = tiny.dialogues() + tiny.pairs()
    model = tiny.make_model("qwen2")
    attached = put(kind, model, **KINDS[kind])
    tiny.randomise(attached)
    attached.model.to(dtype)
    with full_width() if dtype is torch.float64 else contextlib.nullcontext():
        tiny.make_stepper(model, attached, layout).gradients(samples)
        ours = tiny.gradients(attached)
        plain_peft(attached)
        model.set_attn_implementation("sdpa")
        attached.model(**padded_batch(samples), use_cache=False).loss.backward()
    theirs = tiny.gradients(attached)
    assert set(theirs) == set(attached.parameters)
    return ours, theirs


@pytest.mark.parametrize("how", ["pissa", "olora"])
def test_a_start_kept_beside_the_weights_is_pefts_own_start_taken_out_of_them(how: str) -> None:
    """PEFT's model, which changes W, gives the same outputs and the same gradients of A and B."""
    import peft

    samples = tiny.dialogues()
    model = tiny.make_model("llama")
    attached = put(how, model, rank=4)
    tiny.make_stepper(model, attached).gradients(samples)
    ours = tiny.gradients(attached)
    plain = tiny.make_model("llama")
    torch.manual_seed(7)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=4,
        init_lora_weights=how,
        target_modules=list(attached.model.peft_config["default"].target_modules),
    )
    wrapped = peft.get_peft_model(plain, settings)
    assert not torch.equal(
        plain.model.layers[0].self_attn.q_proj.base_layer.weight,
        tiny.make_model("llama").model.layers[0].self_attn.q_proj.weight,
    )
    wrapped(**padded_batch(samples), use_cache=False).loss.backward()
    for name, p in wrapped.named_parameters():
        if p.requires_grad:
            mine = ours[name.replace(".weight", ".trained")]
            assert float((mine - p.grad).norm()) <= 2e-5 * float(p.grad.norm()), name


@pytest.mark.parametrize("kind", list(KINDS))
def test_peft_alone_loads_the_saved_folder_with_the_same_logits(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    attached = put(kind, tiny.make_model("llama"), **KINDS[kind])
    tiny.randomise(attached)
    attached.save(tmp_path)
    ours = logits(attached.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = PeftModel.from_pretrained(tiny.make_model("llama"), tmp_path)
    assert close(logits(plain), ours, 1e-5)
    assert not close(ours, logits(tiny.make_model("llama")), 1e-3)
    assert (
        json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
        == "tiny"
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_can_start_from_the_saved_folder_of_any_type(kind: str, tmp_path: Path) -> None:
    attached = put(kind, tiny.make_model("llama"), **KINDS[kind])
    tiny.randomise(attached)
    attached.save(tmp_path / "first")
    model = tiny.make_model("llama")
    again = put_on(model, tmp_path / "first", base_path="tiny", trainable=True)
    assert close(logits(again.model), logits(attached.model), 1e-5)
    assert again.parameters
    assert again.learning_rate > 0
    assert (again.merge is None) == (attached.merge is None) == bool(again.merge_reason)
    stepper = tiny.make_stepper(model, again)
    losses = [stepper.step(tiny.dialogues(), n, 3e-3).loss for n in range(1, 6)]
    assert losses[-1] < losses[0]
    again.save(tmp_path / "second")
    assert close(
        logits(put_on(tiny.make_model("llama"), tmp_path / "second").model),
        logits_stock(model, again),
        1e-5,
    )


def logits_stock(model: Any, attached: Attached) -> torch.Tensor:
    model.set_attn_implementation("sdpa")
    return logits(attached.model)


@pytest.mark.parametrize(
    "kind",
    [k for k in KINDS if k not in ("prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2")],
)
def test_what_trains_is_float32_on_a_half_precision_base_and_the_base_is_not_rounded_again(
    kind: str,
) -> None:
    before = {n: p.clone() for n, p in tiny.make_model("llama", "bfloat16").named_parameters()}
    model = tiny.make_model("llama", "bfloat16")
    attached = put(kind, model, **KINDS[kind])
    assert {p.dtype for p in attached.model.parameters() if p.requires_grad} == {torch.float32}
    tiny.make_stepper(model, attached, "padded").gradients(tiny.dialogues())
    assert any(g.abs().sum() > 0 for g in tiny.gradients(attached).values())
    after = {
        n.replace("base_model.model.", "").replace(".base_layer", ""): p
        for n, p in attached.model.named_parameters()
    }
    assert all(torch.equal(after[n], p) for n, p in before.items())


@pytest.mark.parametrize(
    "kind",
    [
        "ia3",
        "vera",
        "oft",
        "prompt_tuning",
        "p_tuning",
        "prefix_tuning",
        "p_tuning_v2",
        "lora",
        "pissa",
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_estimate_before_loading_counts_what_really_trains(kind: str, family: str) -> None:
    from tunewright.models.shape import ModelShape, trainable_parameters

    if (kind, family) == ("oft", "gpt2"):
        return  # refused there
    shape = ModelShape.from_config(tiny.make_config(family).to_dict())
    entry = methods.get(kind)
    assert entry is not None
    settings = [KINDS[kind]] + (
        [{"encoder": "lstm", "encoder_size": 16}] if kind == "p_tuning" else []
    )
    for chosen in settings:
        attached = put(kind, tiny.make_model(family), **chosen)
        assert trainable_parameters(shape, entry.config(**chosen)) == sum(
            p.numel() for p in attached.model.parameters() if p.requires_grad
        )


@pytest.mark.parametrize("kind", list(KINDS))
def test_on_a_half_precision_base_the_reloaded_adapter_answers_bit_for_bit_as_the_trained_one(
    kind: str, tmp_path: Path
) -> None:
    attached = put(kind, tiny.make_model("llama", "bfloat16"), **KINDS[kind])
    assert attached.parameters == put(kind, tiny.make_model("llama"), **KINDS[kind]).parameters
    tiny.randomise(attached)
    attached.save(tmp_path)
    again = put_on(tiny.make_model("llama", "bfloat16"), tmp_path)
    assert torch.equal(logits(again.model), logits(attached.model))


# LoRA's options.


def test_options_of_lora_are_the_kinds_of_the_same_name() -> None:
    for kind in ("rslora", "dora", "pissa", "olora"):
        alpha = {"alpha": 8.0}
        one, other = (
            put(kind, tiny.make_model("llama"), rank=4, **alpha),
            put("lora", tiny.make_model("llama"), rank=4, **{kind: True}, **alpha),
        )
        assert one.parameters == other.parameters
        assert all(
            torch.equal(a, b)
            for a, b in zip(tiny.trained(one).values(), tiny.trained(other).values(), strict=True)
        )
        samples = tiny.dialogues()
        tiny.randomise(one)
        tiny.randomise(other)
        losses = [
            tiny.make_stepper(a.model.get_base_model(), a).gradients(samples).loss
            for a in (one, other)
        ]
        assert losses[0] == losses[1]


def test_a_fast_start_is_near_the_exact_one() -> None:
    exact, fast = (
        put("pissa", tiny.make_model("llama"), rank=4, pissa_niter=n) for n in (None, 16)
    )
    for name in exact.parameters:
        if "lora_A" in name:
            A, B = (tiny.trained(exact)[n] for n in (name, name.replace("lora_A", "lora_B")))
            a, b = (tiny.trained(fast)[n] for n in (name, name.replace("lora_A", "lora_B")))
            weight = (
                tiny.make_model("llama")
                .get_submodule(name.split("base_model.model.")[1].split(".lora_A")[0])
                .weight
            )
            left = [float(torch.linalg.matrix_norm(weight - product)) for product in (b @ a, B @ A)]
            assert left[1] <= left[0] <= 1.02 * left[1]


def test_options_that_exclude_one_another_or_do_nothing_are_refused() -> None:
    config = methods.get("lora").config  # type: ignore[union-attr]
    for wrong in (
        {"pissa": True, "olora": True},
        {"pissa": True, "dora": True},
        {"pissa_niter": 4},
    ):
        with pytest.raises(ValueError, match="choose one|no effect"):
            config(**wrong)


@pytest.mark.parametrize(("layers", "blocks"), [([0], {"0"}), (-1, {"1"}), ([0, -1], {"0", "1"})])
def test_layers_choose_blocks(layers: Any, blocks: set[str]) -> None:
    attached = put("lora", tiny.make_model("llama"), rank=4, layers=layers)
    assert {name.split(".layers.")[1].split(".")[0] for name in attached.parameters} == blocks


def test_blocks_that_do_not_exist_and_ranks_above_every_matrix_are_refused() -> None:
    assert refused("lora", layers=[2]) == "E-METHOD-28"
    assert refused("lora", layers=[0], targets=["head"]) == "E-METHOD-28"
    for kind in ("lora", "dora", "pissa", "loha", "lokr", "adalora"):
        assert refused(kind, rank=49) == "E-METHOD-20"  # no matrix has a smaller side above 48
    assert refused("eva", rank=25) == "E-METHOD-20"  # keys are 48 x 24
    assert put("lora", tiny.make_model("llama"), rank=24).notes == []
    assert refused("lora", targets=["embedding"], rank=49) == "E-METHOD-20"


@pytest.mark.parametrize(
    "kind", ["lora", "rslora", "dora", "lora_plus", "pissa", "olora", "loha", "adalora", "lokr"]
)
def test_a_rank_above_some_layers_is_lowered_there_said_and_plain_peft_opens_what_is_saved(
    kind: str, tmp_path: Path
) -> None:
    import peft

    attached = put(kind, tiny.make_model("llama"), rank=32)  # keys and values are 48 x 24
    if kind != "lokr":  # its factors are small already
        assert (
            len(attached.notes) == 1
            and "k_proj" in attached.notes[0]
            and "4 of the 14" in attached.notes[0]
        )
    shapes = {
        name.split(".")[-4]: tuple(p.shape)
        for name, p in attached.model.named_parameters()
        if name.endswith("lora_A.default.weight")
    }
    if kind in ("lora", "rslora", "dora", "lora_plus"):
        assert (
            shapes["k_proj"] == (24, 48)
            and shapes["v_proj"] == (24, 48)
            and shapes["q_proj"] == (32, 48)
        )
        layers = [m for m in attached.model.modules() if "default" in getattr(m, "lora_A", {})]
        assert (
            len({round(m.scaling["default"], 6) for m in layers}) == 1
        )  # at the strength of all others
    tiny.randomise(attached)
    ids = torch.tensor([[5, 9, 17, 33, 4]])
    with torch.no_grad():
        here = attached.model.eval()(input_ids=ids).logits
        attached.save(tmp_path)
        there = (
            peft.PeftModel.from_pretrained(tiny.make_model("llama"), str(tmp_path))
            .eval()(input_ids=ids)
            .logits
        )
        plain = tiny.make_model("llama")(input_ids=ids).logits
    assert float((here - there).abs().max()) <= 2e-5 * float(
        here.abs().max()
    ) and not torch.allclose(here, plain, atol=1e-3)


def test_lora_plus_moves_b_faster_by_its_ratio() -> None:
    """AdamW's first step moves every weight by the rate of its group, whatever the gradient."""
    model = tiny.make_model("llama")
    attached = put("lora_plus", model, rank=4, ratio=8.0)
    tiny.randomise(attached)
    before = tiny.trained(attached)
    assert tiny.make_stepper(model, attached).step(tiny.dialogues(), 1, 1e-3).applied
    moved = {n: float((p - before[n]).abs().median()) for n, p in tiny.trained(attached).items()}
    assert all(abs(m - (8e-3 if "lora_B" in n else 1e-3)) < 1e-4 for n, m in moved.items())


# AdaLoRA.


def test_adalora_lets_ranks_fall_to_the_mean_that_was_asked_for() -> None:
    model = tiny.make_model("llama")
    attached = put("adalora", model, rank=2, start_rank=4, wait=0.1, settle=0.3, every=1)
    assert attached.begin is not None
    attached.begin(20)
    stepper = tiny.make_stepper(model, attached)
    alive = []
    for number in range(1, 21):
        report = stepper.step(tiny.dialogues()[:3], number, 5e-3)
        assert set(report.terms) == {"sft", "orthogonality"}
        alive.append(
            sum(int((p != 0).sum()) for n, p in attached.model.named_parameters() if "lora_E" in n)
        )
    layers = sum("lora_E" in n for n in attached.parameters)
    assert alive[1] == 4 * layers
    assert alive[-1] == 2 * layers
    assert alive[3:] == sorted(alive[3:], reverse=True)


def test_adalora_s_penalty_is_zero_for_orthonormal_directions_only() -> None:
    from tunewright.methods.adalora import orthogonality

    eye = torch.eye(5)[:3]
    (none, weight), (some, _) = (
        orthogonality([("x.lora_A.default", eye), ("x.lora_B.default", eye.T)], 0.5),
        orthogonality([("x.lora_A.default", 2 * eye)], 0.5),
    )
    assert (float(none), weight, float(some)) == (0.0, 0.5, pytest.approx(3 * 3**0.5))


def test_adalora_refuses_a_schedule_without_room() -> None:
    config = methods.get("adalora").config  # type: ignore[union-attr]
    for wrong in ({"wait": 0.6, "settle": 0.5}, {"rank": 8, "start_rank": 4}):
        with pytest.raises(ValueError, match="validation error"):
            config(**wrong)


# Any PEFT type by its name.

TYPES = {
    "LORA": {"r": 4}, "BOFT": {"boft_block_size": 8}, "HRA": {"r": 4}, "FOURIERFT": {"n_frequency": 20}, "LN_TUNING": {"target_modules": ["norm"]},
    "OFT": {"oft_block_size": 8}, "IA3": {"feedforward_modules": []}, "SHIRA": {"r": 2}, "RANDLORA": {"r": 4}, "MISS": {"r": 4}, "C3A": {"block_size": 8},
    "VBLORA": {"num_vectors": 8, "vector_length": 8, "topk": 2, "r": 2}, "ROAD": {"group_size": 8}, "DELORA": {"r": 4}, "TRAINABLE_TOKENS": {"token_indices": [5, 6], "target_modules": ["embed_tokens"]},
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10}, "PROMPT_TUNING": {"num_virtual_tokens": 4}, "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of PEFT's SHiRA
@pytest.mark.parametrize("name", list(TYPES))
def test_any_peft_type_trains_by_its_own_name_and_loads_again(name: str, tmp_path: Path) -> None:
    model = tiny.make_model(
        "llama", **({"intermediate_size": 48, "num_key_value_heads": 4} if name == "C3A" else {})
    )
    base = logits(model)
    attached = put(
        "peft",
        model,
        type=name,
        options=TYPES[name],
        **({"targets": ["attention.query", "attention.value"]} if name != "LN_TUNING" else {}),
    )
    stepper = tiny.make_stepper(model, attached)
    losses = [stepper.step(tiny.dialogues(), n, 1e-2).loss for n in range(1, 6)]
    assert losses[-1] < losses[0]
    tuned = logits_stock(model, attached)
    attached.save(tmp_path)
    fresh = tiny.make_model(
        "llama", **({"intermediate_size": 48, "num_key_value_heads": 4} if name == "C3A" else {})
    )
    assert close(logits(put_on(fresh, tmp_path).model), tuned, 1e-5)
    assert attached.disabled is not None
    with attached.disabled():
        assert torch.equal(logits(attached.model), base)


def test_unknown_types_and_options_are_refused_with_a_guess() -> None:
    for settings, code, guess in (
        ({"type": "LORAA"}, "E-METHOD-22", "LORA"),
        ({"type": "lora", "options": {"alpa": 3}}, "E-METHOD-23", "lora_alpha"),
        ({"type": "lora", "options": {"task_type": "X"}}, "E-METHOD-26", None),
        ({"type": "poly"}, "E-METHOD-25", None),
    ):
        with pytest.raises((ConfigError, CompatError)) as caught:
            put("peft", tiny.make_model("llama"), **settings)
        (found,) = caught.value.problems
        assert found.code == code
        assert guess is None or found.fields["guess"] == guess
    assert refused("peft", type="VBLORA", options={"vector_length": 7}) == "E-METHOD-24"


def test_options_with_several_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        put("peft", tiny.make_model("llama"), type="LORA", options={"rank": 3, "alpha": 4})
    assert [p.fields["option"] for p in caught.value.problems] == ["rank", "alpha"]


def test_an_adapter_that_trains_the_bases_own_biases_cannot_be_switched_off_and_says_so() -> None:
    attached = put("peft", tiny.make_model("qwen2"), type="LORA", options={"r": 2, "bias": "all"})
    assert attached.disabled is None
    assert "bias" in attached.disabled_reason
