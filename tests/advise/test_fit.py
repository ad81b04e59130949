"""The estimate against independent counts: Transformers for weights, PEFT for what trains, autograd
for what is kept, PyTorch for operations."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import causal, tiny

from tunewright.advise import changes, fit, memory, speed
from tunewright.advise.question import GUESSED_TOKENS
from tunewright.core.config import DataConfig, RunConfig
from tunewright.core.errors import UsageError
from tunewright.core.registry import objectives
from tunewright.core.runfile import objective_of, parse_run
from tunewright.core.types import Objective
from tunewright.methods.lora import LoraConfig
from tunewright.models.shape import ModelShape, roles_of, trainable_parameters

LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672,
    "vocab_size": 128256, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "max_position_embeddings": 131072,
}  # fmt: skip
FACTS = fit.SampleFacts(samples=540, rows_per_epoch=17_000, label_rows_per_epoch=8300, longest=67)
GiB = 2**30


def sft() -> Objective:
    entry = objectives.get("sft")
    assert entry is not None
    found: Objective = entry.function(entry.config())
    return found


RATES = speed.Rates(1e11, 1e10)


def asked(shape: ModelShape, **changes: Any) -> fit.Estimate:
    method = changes.pop("method", LoraConfig())
    given: dict[str, Any] = {
        "rows_per_pass": 1024, "facts": FACTS, "steps": 100, "batch_size": 16, "dtype": "bfloat16", "method": method,
        "trainable": trainable_parameters(shape, method), **changes,
    }  # fmt: skip
    return fit.estimate(fit.Question(shape=shape, **given))


@pytest.fixture(scope="module")
def big() -> ModelShape:
    return ModelShape.from_config(LLAMA_70B)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "phi3", "gpt2", "gemma2"])
def test_weights_are_those_of_transformers(family: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = tiny.make_config(family, hidden_size=256, intermediate_size=640)
    with torch.device("meta"):
        real = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    raw = json.loads(config.to_json_string(use_diff=False))
    # Norms inside attention, positions and biases of some families are not counted: a few per cent
    # of a model this small.
    assert ModelShape.from_config(raw).parameters == pytest.approx(
        real, rel=0.05 if family == "gpt2" else 0.01
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize(
    "targets", [["linear"], ["attention"], ["mlp"], ["mlp.down", "attention.output"]]
)
def test_what_trains_is_what_peft_makes(family: str, targets: list[str]) -> None:
    config = tiny.make_config(family)
    attached = tiny.attach_lora(tiny.make_model(family), targets, rank=3)
    shape = ModelShape.from_config(json.loads(config.to_json_string(use_diff=False)))
    assert trainable_parameters(shape, LoraConfig(rank=3, targets=targets)) == sum(
        t.numel() for t in tiny.trained(attached).values()
    )


def test_module_names_select_roles(big: ModelShape) -> None:
    assert roles_of(big, ["q_proj", "v_proj"]) == ["attention.query", "attention.value"]
    assert trainable_parameters(big, object()) == big.parameters


def _samples(count: int, length: int) -> list[Any]:
    import random

    draw = random.Random(0)
    return [tiny.single(tiny.words(draw, length), [(length // 2, length)], i) for i in range(count)]


SMALL = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _small(targets: list[str], dtype: str = "float32") -> tuple[Any, ModelShape, Any]:
    model = tiny.make_model("llama", dtype, **SMALL)
    attached = tiny.attach_lora(model, targets, rank=4)
    shape = ModelShape.from_config({"model_type": "llama", "vocab_size": tiny.VOCABULARY, **SMALL})
    return tiny.make_stepper(model, attached), shape, attached


@pytest.mark.parametrize("targets", [["linear"], ["attention.query", "attention.value"]])
def test_the_bytes_of_a_row_are_those_that_autograd_keeps(targets: list[str]) -> None:
    import torch

    stepper, shape, attached = _small(targets)
    weights = {p.untyped_storage().data_ptr() for p in attached.model.parameters()}

    def kept_bytes(samples: list[Any]) -> int:
        storages: dict[int, tuple[int, Any]] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            if t.untyped_storage().data_ptr() not in weights:
                storages[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            stepper.policy.model.train()
            output = stepper.policy(samples)
        found = sum(size for size, _ in storages.values())
        del output
        return found

    # The difference of two batches leaves out what does not grow with the rows.
    few, many = kept_bytes(_samples(4, 40)), kept_bytes(_samples(12, 40))
    work = memory.Work(0, 8 * 39, 8 * 20, 40, "float32", targets=tuple(targets), rank=4)
    assert memory.row_bytes(shape, work) == pytest.approx((many - few) / (8 * 39), rel=0.12)


def test_operations_are_those_that_pytorch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    stepper, shape, attached = _small(["linear"])
    samples = _samples(8, 40)
    with FlopCounterMode(display=False) as counter:
        stepper.gradients(samples)
    trainable = sum(t.numel() for t in tiny.trained(attached).values())
    ours = speed.run_flops(
        shape,
        rows=8 * 39,
        label_rows=8 * 20,
        trainable=trainable,
        frozen=True,
        mean_keys=39,
        unread=1 - 20 / 39,
    )
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_a_config_alone_is_judged_without_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    program = f"""
import sys
from pathlib import Path
from tunewright.advise import fit
from tunewright.methods.lora import LoraConfig
shape = fit.shape_of(Path({str(tmp_path)!r}))
facts = fit.SampleFacts(540, 17000, 8300, 67)
found = fit.estimate(fit.Question(shape=shape, trainable=fit.trainable_parameters(shape, LoraConfig()), rows_per_pass=1024, facts=facts, steps=10, batch_size=16,
                     dtype="bfloat16", method=LoraConfig()))
print(*fit.what_is_missing(Path({str(tmp_path)!r}), shape), *fit.describe(found, 24 * 2**30), sep="\\n")
assert "torch" not in sys.modules
fit.require(found, 24 * 2**30)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "missing: the weights (71 billion parameters, 131.4 GiB to download)" in done.stdout, (
        done.stderr
    )
    assert "missing: the tokenizer" in done.stdout and "does not fit" in done.stdout
    assert "E-FIT-01" in done.stderr and "a model of up to 8.0 billion parameters" in done.stderr


def test_a_run_that_cannot_fit_is_refused_with_what_would(big: ModelShape) -> None:
    found = asked(big)
    with pytest.raises(UsageError) as refused:
        fit.require(found, 24 * GiB)
    problem = refused.value.problems[0]
    assert (
        problem.code == "E-FIT-01"
        and "131" not in problem.what()
        and problem.fields["have"] == "24.0 GiB"
    )
    fit.require(found, 200 * GiB)


def test_what_is_proposed_does_fit(big: ModelShape) -> None:
    for available in (4 * GiB, 8 * GiB, 24 * GiB, 80 * GiB):
        smaller = fit.largest_fitting(asked(big), available)
        assert smaller is not None and asked(smaller).needed_bytes <= available
    assert fit.largest_fitting(asked(big), GiB // 2) is None
    assert fit.what_fits(asked(big), GiB // 2) == ["a machine with more memory, or a GPU"]


def test_fewer_rows_a_pass_are_proposed_where_they_help() -> None:
    shape = changes.ladder()[1]
    facts = fit.SampleFacts(1000, 400_000, 200_000, 500)
    large = asked(shape, rows_per_pass=8192, facts=facts, batch_size=32)
    available = int(0.7 * large.needed_bytes)
    tries = fit.what_fits(large, available)
    assert tries[0].startswith("engine.rows_per_pass=")
    rows = int(tries[0].split("=")[1].split()[0])
    fit.require(asked(shape, rows_per_pass=rows, facts=facts, batch_size=32), available)
    # One long sample cannot be cut: blocks are computed again, or rows are shorter.
    long = fit.SampleFacts(10, 80_000, 40_000, 8000)
    tries = fit.what_fits(
        asked(shape, facts=long), int(0.5 * asked(shape, facts=long).needed_bytes)
    )
    assert tries[0].startswith("engine.recompute=")
    assert any(one.startswith("data.max_tokens=") for one in tries)


def test_more_of_anything_needs_more() -> None:
    shape = changes.ladder()[0]
    base = asked(shape, rates=RATES)
    assert asked(shape, dtype="float32").needed_bytes > base.needed_bytes
    assert asked(shape, rows_per_pass=128).needed_bytes < base.needed_bytes
    assert asked(shape, method=LoraConfig(rank=64)).needed_bytes > base.needed_bytes
    assert asked(shape, probes=100).needed_bytes > base.needed_bytes
    assert asked(shape, device="cuda:0").peak_bytes < base.peak_bytes
    assert asked(shape, steps=200, rates=RATES).seconds == pytest.approx(
        2 * (base.seconds or 0), rel=1e-3
    )
    assert sum(base.parts.values()) == base.peak_bytes
    assert asked(shape).seconds is None


@pytest.mark.parametrize(
    ("settings", "peak_mib", "seconds"),
    [
        # Measured on SmolLM2-135M with the demo's 540 rows on one thread; docs/fit.md says how.
        # (settings, rate of the probe), peak, seconds
        ({"steps": 8, "probes": 152, "rates": speed.Rates(187e9, 1e10)}, 1918, 17.2),
        (
            {
                "steps": 3,
                "probes": 2,
                "batch_size": 32,
                "rows_per_pass": 256,
                "dtype": "float32",
                "rates": speed.Rates(95e9, 1e10),
            },
            1449,
            25.7,
        ),
        (
            {
                "steps": 2,
                "probes": 2,
                "batch_size": 64,
                "rows_per_pass": 2048,
                "method": LoraConfig(rank=64),
                "rates": speed.Rates(190e9, 1e10),
            },
            2974,
            20.3,
        ),
    ],
)
def test_measured_runs_are_met(settings: dict[str, Any], peak_mib: float, seconds: float) -> None:
    names = (
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    config = dict(zip(names, (576, 30, 1536, 9, 3, 49_152), strict=True))
    shape = ModelShape.from_config(
        {"model_type": "llama", "tie_word_embeddings": True, "torch_dtype": "float32", **config},
        538_060_032,
    )
    report = {
        "tokens_total": 30_401, "learnt_tokens": 8348, "train": 540, "shared_prefix": {"rows_physical_estimate": 15_816},
        "length_percentiles": {"max": 67},
    }  # fmt: skip
    found = asked(shape, facts=fit.SampleFacts.of(report), **settings)
    assert found.peak_bytes / 2**20 == pytest.approx(peak_mib, rel=0.1)
    assert found.seconds == pytest.approx(seconds, rel=0.25)


def test_the_probe_takes_a_moment_and_leaves_the_threads_alone() -> None:
    import torch

    threads = torch.get_num_threads()
    assert speed.PROBE_SECONDS <= 0.2  # after which no other product is begun
    rate = speed.measured_rate(changes.ladder()[0], dtype="float32", device="cpu", threads=1)
    assert 1e8 < rate < 1e14 and torch.get_num_threads() == threads


MAMBA_130M = {
    "model_type": "mamba",
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "intermediate_size": 1536,
    "state_size": 16,
    "vocab_size": 50280,
    "tie_word_embeddings": True,
}


def test_a_state_space_has_no_heads_and_is_counted_all_the_same() -> None:
    shape = ModelShape.from_config(MAMBA_130M)
    # state-spaces/mamba-130m-hf has 129,135,360 weights; the thin products of a block are left out.
    assert 0.9 < shape.parameters / 129_135_360 < 1.0
    expanded = {key: value for key, value in MAMBA_130M.items() if key != "intermediate_size"}
    wide = ModelShape.from_config(
        {**expanded, "model_type": "mamba2", "expand": 2, "num_heads": 24}
    )
    assert wide.matrices == shape.matrices and wide.heads == 24


def test_sizes_are_found_under_the_names_of_decoders_and_hybrids() -> None:
    bart = {
        "model_type": "bart", "d_model": 64, "decoder_layers": 3, "decoder_attention_heads": 4,
        "decoder_ffn_dim": 96, "vocab_size": 320,
    }  # fmt: skip
    shape = ModelShape.from_config(bart)
    assert (shape.layers, shape.heads, shape.inner) == (3, 4, 96)
    listed = {**LLAMA_70B, "num_hidden_layers": None, "hybrid_override_pattern": "M-M*-"}
    assert ModelShape.from_config(listed).layers == 5
    assert ModelShape.from_config({**LLAMA_70B, "num_attention_heads": None}).heads == 128
    with pytest.raises(UsageError, match="num_attention_heads"):
        ModelShape.from_config({**LLAMA_70B, "num_attention_heads": "64"})


@pytest.mark.slow
def test_every_family_that_is_listed_has_sizes_that_can_be_read() -> None:
    """Otherwise `train` would refuse what docs/models.md says it trains."""
    for kind in causal.types():
        if kind not in causal.CANNOT:
            config = json.loads(causal.config_of(kind).to_json_string(use_diff=True))
            assert ModelShape.from_config(config).layers > 0, kind


@pytest.mark.parametrize(
    "config",
    [
        {},
        {**LLAMA_70B, "hidden_size": 0},
        {**LLAMA_70B, "num_hidden_layers": "80"},
        {**LLAMA_70B, "vocab_size": 10**12},
    ],
)
def test_a_config_without_believable_sizes_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="E-FIT-02"):
        ModelShape.from_config(config)


def test_experts_are_held_but_not_all_computed() -> None:
    config = {
        **LLAMA_70B,
        "model_type": "mixtral",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
        "vocab_size": 32000,
    }
    shape = ModelShape.from_config(
        {**config, "num_attention_heads": 32, "num_local_experts": 8, "num_experts_per_tok": 2}
    )
    assert 46e9 < shape.parameters < 47.5e9  # Mixtral-8x7B: 46.7 billion, 12.9 of them for a token
    assert 12e9 < shape.active_weights + 2 * shape.head_weights < 13.5e9
    assert not any(role.startswith("mlp") for role in roles_of(shape, ["linear"]))


def test_a_run_file_gives_the_same_estimate(big: ModelShape) -> None:
    config = RunConfig(model="m", data=DataConfig(train="d"), method=LoraConfig())
    found = fit.of_run(
        config, sft(), big, FACTS, steps=100, dtype="bfloat16", device="cpu", rows_per_pass=1024
    )
    assert found.peak_bytes == asked(big).peak_bytes


def test_a_teacher_is_held_and_read_and_a_judge_only_where_it_cannot_share_the_base(
    big: ModelShape, tmp_path: Path
) -> None:
    tiny_config = {
        **LLAMA_70B,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
    }
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(LLAMA_70B))
    small, keys = ModelShape.from_config(tiny_config), {"model": "m", "data.train": "d"}

    def found(**more: Any) -> fit.Estimate:
        given = {**keys, **more}
        config = parse_run(given, dict.fromkeys(given, "test")).config
        return fit.of_run(
            config,
            objective_of(config),
            small,
            FACTS,
            steps=100,
            dtype="bfloat16",
            device="cpu",
            rows_per_pass=1024,
            rates=RATES,
        )

    alone, taught = (
        found(),
        found(**{"objective.kind": "distill", "objective.teacher": str(tmp_path / "teacher")}),
    )
    assert (
        taught.parts["beside"] == 2 * big.parameters
        and taught.needed_bytes - alone.needed_bytes == 2 * big.parameters
    )
    assert (
        taught.seconds is not None
        and alone.seconds is not None
        and taught.seconds > 50 * alone.seconds
    )
    assert any("70.5" in reason for reason in taught.reasons)
    own = found(
        **{
            "objective.kind": "gkd",
            "objective.teacher": str(tmp_path / "teacher"),
            "objective.on_policy": 1.0,
        }
    )
    assert own.parts["beside"] == 2 * big.parameters and own.flops > taught.flops
    assert (
        found(
            **{"objective.kind": "distill", "objective.teacher": str(tmp_path / "nothing")}
        ).parts["beside"]
        == 0
    )  # refused elsewhere
    pairs = found(**{"objective.kind": "dpo"})
    assert (
        1.05 < pairs.flops / found(**{"objective.kind": "orpo"}).flops < 1.6
    )  # the values at step 0


def test_data_without_tokens_is_guessed() -> None:
    facts = fit.SampleFacts.of({"tokens_total": None, "learnt_tokens": None, "train": 10})
    assert (facts.samples, facts.longest) == (10, GUESSED_TOKENS)


def test_every_part_has_a_name_in_both_languages(
    big: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lang in ("en", "zh"):
        monkeypatch.setenv("TUNEWRIGHT_LANG", lang)
        shown = "\n".join(fit.describe(asked(big, rates=RATES), 8 * GiB))
        assert not re.search(r"fit\.[a-z]|[{}]", shown)


def test_the_parts_of_a_run_have_their_seconds_where_they_can_be_told() -> None:
    shape = changes.ladder()[0]
    bare = asked(shape)
    assert set(bare.by_part()) == {"load", "checkpoint"}
    timed = asked(shape, rates=RATES, answer_tokens=100, measured_rows=32.0)
    assert set(timed.by_part()) == {"load", "ask", "train", "evaluate", "checkpoint"}
    read = 2 * (shape.active_weights + shape.head_weights)  # bytes in bfloat16
    assert timed.ask_seconds == pytest.approx(2 * 100 * read / (0.4 * 1e10))
    assert asked(shape, rates=RATES, answer_tokens=100, probes=0).ask_seconds == 0
    assert asked(changes.ladder()[3], rates=RATES).load_seconds > 2 * timed.load_seconds
    lines = "\n".join(fit.describe(timed))
    assert "besides: about 0:0" in lines
    assert "for asking 5 questions before and after" in lines


def test_a_reading_rate_is_measured() -> None:
    assert 1e8 < speed.measured_reading("cpu") < 1e13


def test_rows_that_may_be_left_out_are_asked_no_longer_than_is_allowed() -> None:
    shape = changes.ladder()[3]
    own = asked(shape, rates=RATES, answer_tokens=500)
    rows = asked(shape, rates=RATES, answer_tokens=500, may_leave_out=True)
    assert own.ask_seconds is not None and own.seconds is not None
    assert rows.ask_seconds == max(20.0, 0.1 * own.seconds) < own.ask_seconds


@pytest.mark.parametrize("kind", ["galore", "apollo", "apollo_mini"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_moments_of_low_rank_optimisers_are_those_they_keep(kind: str, family: str) -> None:
    from tunewright.core.config import EngineConfig
    from tunewright.core.registry import methods
    from tunewright.engine.optim import optimizer_for
    from tunewright.models import anatomy

    entry = methods.get(kind)
    assert entry is not None
    config = entry.config(**({} if kind == "apollo_mini" else {"rank": 4}))
    model = tiny.make_model(family, **SMALL)
    attached = entry.function(config, model, anatomy.of(model), "base")
    optimizer = optimizer_for(EngineConfig(), attached, model)
    for p in model.parameters():
        p.grad = p.detach().clone()
    optimizer.step()
    kept = sum(
        t.numel()
        for state in optimizer.state.values()
        for name, t in state.items()
        if hasattr(t, "numel") and t.numel() > 1 and name not in ("window", "projection")
    )
    raw = json.loads(tiny.make_config(family, **SMALL).to_json_string(use_diff=False))
    shape = ModelShape.from_config(raw)
    assert config.moment_numbers(shape) == pytest.approx(kept, rel=0.03)
