"""A quantised base: the numbers of the papers and of bitsandbytes, gradients through it, methods on
it, bytes in memory, runs with it."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.config import BaseConfig
from tunewright.core.registry import methods
from tunewright.models import anatomy, quantised
from tunewright.models.quantised import (
    BLOCK,
    NF4,
    QuantLinear,
    dynamic_levels,
    keep_base,
    parameter_count,
    quantise_model,
)

TYPES = ["nf4", "int4", "int8"]
IDS = [[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3], [6, 6, 44, 100, 2, 1, 19, 55, 21, 60, 200]]


def weight_of(
    rows: int = 40, width: int = 128, dtype: torch.dtype = torch.float32, seed: int = 0
) -> torch.Tensor:
    return (torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 0.05).to(
        dtype
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS), use_cache=False).logits


def quantised_model(family: str = "llama", number_type: str = "nf4", dtype: str = "float32") -> Any:
    model = tiny.make_model(family, dtype)
    assert quantise_model(model, number_type) > 0
    return model


def attach(kind: str, model: Any, **config: Any) -> Any:
    entry = methods.get(kind)
    assert entry is not None
    torch.manual_seed(0)
    attached = entry.function(entry.config(**config), model, anatomy.of(model), "tiny")
    keep_base(attached, model)
    if attached.begin:
        attached.begin(10)
    return attached


def test_the_16_levels_are_the_quantiles_of_the_paper() -> None:
    """Appendix E: quantiles of a normal distribution, 8 below zero and 9 from zero on, scaled to
    -1..1. 0.9677083 is the paper's offset."""
    offset = 0.9677083
    ppf = NormalDist().inv_cdf
    upper = [ppf(offset + (0.5 - offset) * i / 8) for i in range(8)]
    lower = [-ppf(offset + (0.5 - offset) * i / 7) for i in range(7)]
    wanted = sorted([*upper, 0.0, *lower])
    wanted = [v / max(wanted) for v in wanted]
    assert len(NF4) == 16
    assert pytest.approx(wanted, abs=1e-6) == NF4


def test_the_8_bit_levels_are_256_in_seven_decades() -> None:
    levels = dynamic_levels()
    assert len(levels) == 256 == len(set(levels.tolist()))
    assert float(levels[-1]) == 1.0
    decades = [
        int(((levels > 10.0 ** (d - 7)) & (levels < 10.0 ** (d - 6))).sum()) for d in range(7)
    ]
    assert decades == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", [(6, 128), (5, 96), (3, 50), (1, 7)])
def test_nf4_is_the_nearest_level_times_the_largest_of_a_block_computed_number_by_number(
    shape: tuple[int, int], double: bool, size: int
) -> None:
    weight = weight_of(*shape)
    flat = weight.flatten().tolist()
    blocks = [flat[i : i + size] for i in range(0, len(flat), size)]
    scales = [max(map(abs, block)) for block in blocks]
    if double:
        mean = math.fsum(scales) / len(scales)
        peak = max(abs(s - mean) for s in scales) or 1.0
        levels = dynamic_levels().tolist()
        scales = [
            min(levels, key=lambda level, s=s: abs((s - mean) / peak - level)) * peak + mean
            for s in scales
        ]  # type: ignore[misc]
    wanted = []
    for block, scale in zip(blocks, scales, strict=True):
        largest = max(map(abs, block))
        wanted += [min(NF4, key=lambda level, v=v: abs(v / largest - level)) * scale for v in block]  # type: ignore[misc]
    found = QuantLinear(weight, None, "nf4", double, size).weight.flatten()
    assert torch.allclose(found, torch.tensor(wanted), atol=1e-6)


def test_int8_and_int4_err_by_at_most_half_a_step() -> None:
    weight = weight_of(30, 192)
    eight = QuantLinear(weight, None, "int8")
    assert bool(
        ((eight.weight - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127 * 0.5001).all()
    )
    four = QuantLinear(weight, None, "int4")
    groups = weight.view(-1, BLOCK)
    step = (groups.amax(1) - groups.amin(1)) / 15
    # Half a step, and what half precision takes from scale and start.
    assert bool(((four.weight - weight).abs().view(-1, BLOCK) <= 0.53 * step[:, None]).all())


@pytest.mark.parametrize(
    ("base", "bits"),
    [({"bits": 4}, 4.51), ({"bits": 4, "block": 64}, 4.127), ({"bits": 4, "block": 32, "double": False}, 5.0), ({"bits": 4, "type": "int4"}, 4.5), ({"bits": 8}, 8.0)],
)  # fmt: skip
def test_bytes_are_what_the_config_says(base: dict[str, Any], bits: float) -> None:
    config = BaseConfig(**base)
    assert config.number_type is not None
    layer = QuantLinear(
        weight_of(256, 512, torch.bfloat16), None, config.number_type, config.double, config.block
    )
    assert config.bits_per_weight == pytest.approx(bits, rel=0.002)
    assert layer.num_bytes * 8 / (256 * 512) == pytest.approx(bits, rel=0.01)


@pytest.mark.parametrize("number_type", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_and_its_gradient_are_those_of_the_wide_weight(
    number_type: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, bias = weight_of(40, 96, dtype), torch.randn(40).to(dtype)
    layer = QuantLinear(weight, bias, number_type)
    found = []
    for numbers in (1 << 24, 96 * 7):  # all rows at once, and seven at a time
        monkeypatch.setattr(quantised, "WIDE_NUMBERS", numbers)
        monkeypatch.setattr(quantised, "CHUNK", BLOCK * 3)
        x = (
            torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(1))
            .to(dtype)
            .requires_grad_()
        )
        y = layer(x)
        toward = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        (y * toward).sum().backward()
        found.append((y.detach(), x.grad))
    x = x.detach().requires_grad_()
    wanted = torch.nn.functional.linear(x, layer.weight, bias)
    (wanted * toward).sum().backward()
    wanted = wanted.detach()
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for y, gradient in found:
        assert gradient is not None and x.grad is not None
        assert float((y - wanted).norm() / wanted.norm()) < tolerance
        assert float((gradient - x.grad).norm() / x.grad.norm()) < tolerance


def test_the_backward_pass_keeps_no_wide_weight() -> None:
    layer = QuantLinear(weight_of(64, 64), None)
    kept: list[int] = []
    x = torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        layer(x).sum().backward()
    assert max(kept, default=0) < 64 * 64


@pytest.mark.parametrize("number_type", TYPES)
def test_measuring_and_generating_between_two_steps_change_no_gradient(number_type: str) -> None:
    """bitsandbytes 0.50 repacks a 4-bit layer in eval mode on some processors, after which its
    gradient is another one."""
    model = quantised_model("llama", number_type, "bfloat16")
    attached = attach("lora", model, rank=3)
    tiny.randomise(attached)
    stepper = tiny.make_stepper(model, attached)
    stepper.gradients(tiny.dialogues())
    before = tiny.gradients(attached)
    model.set_attn_implementation("sdpa")
    model.eval()
    ids = torch.tensor(IDS)
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
        )
    model.set_attn_implementation("tunewright_tree")
    stepper.gradients(tiny.dialogues())
    after = tiny.gradients(attached)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_scales_stay_as_they_are_when_the_model_changes_its_number_type() -> None:
    layer = QuantLinear(weight_of(), torch.zeros(40), "nf4", double=False)
    before = layer.scales.clone()
    moved = copy.deepcopy(layer).to(torch.bfloat16)
    assert moved.scales.dtype == torch.float32
    assert torch.equal(moved.scales, before)
    assert moved.weight.dtype == torch.bfloat16
    assert torch.equal(moved.weight, layer.weight.to(torch.bfloat16))


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2", "gpt2"])
def test_every_matrix_of_the_blocks_is_quantised_and_nothing_else(family: str) -> None:
    plain = tiny.make_model(family)
    count = sum(p.numel() for p in plain.parameters())
    model = quantised_model(family, "int8")
    layers = [n for n, m in model.named_modules() if isinstance(m, QuantLinear)]
    assert sorted(layers) == sorted(anatomy.of(plain).linear)
    assert not isinstance(model.get_output_embeddings(), QuantLinear)
    assert parameter_count(model) == count
    assert float((logits(model) - logits(plain)).norm() / logits(plain).norm()) < 0.1


APART = {"loftq", "new_tokens"}
"""`loftq` reads the unquantised weights from the model's folder and `new_tokens` needs words: both
have tests of their own."""
ON_QUANTISED = [
    e.name for e in methods if e.facts.get("on_quantised") is True and e.name not in APART
]


@pytest.mark.wide("lora", "prefix_tuning", "houlsby", "dora")
@pytest.mark.parametrize("kind", ON_QUANTISED)
def test_a_method_that_says_it_stands_on_a_quantised_base_does(kind: str) -> None:
    """Learns, leaves the integers alone, switches off to the quantised base bit for bit, agrees in
    both layouts, and is not folded in."""
    config = {"diff_pruning": {"target": 0.2}}.get(kind, {})
    base = logits(quantised_model())
    gradients = []
    for layout in ("padded", "tree"):
        model = quantised_model()
        attached = attach(kind, model, **config)
        tiny.randomise(attached)
        tiny.make_stepper(model, attached, layout).gradients(tiny.dialogues())
        gradients.append(tiny.gradients(attached))
        if attached.needs.layout == "padded":
            break
    assert sorted(gradients[0]) == sorted(attached.parameters)
    for name, g in gradients[-1].items():
        assert float((g - gradients[0][name]).norm() / gradients[0][name].norm()) <= 1e-5, name

    model = quantised_model()
    before = {
        n: b.clone()
        for n, m in model.named_modules()
        if isinstance(m, QuantLinear)
        for n, b in m.named_buffers(prefix=n)
    }
    attached = attach(kind, model, **config)
    stepper = tiny.make_stepper(
        model, attached, "tree" if attached.needs.layout == "any" else "padded"
    )
    first = stepper.step(tiny.dialogues(), 1, 1e-2).loss
    for number in range(2, 8):
        last = stepper.step(tiny.dialogues(), number, 1e-2).loss
    assert last < first
    model.set_attn_implementation("sdpa")
    attached.model.eval()
    after = {
        n: b
        for n, m in model.named_modules()
        if isinstance(m, QuantLinear)
        for n, b in m.named_buffers(prefix=n)
    }
    now = {
        n.replace("base_model.model.", "").replace(".base_layer", ""): b for n, b in after.items()
    }
    assert all(torch.equal(before[n], now[n]) for n in before)
    if attached.disabled is not None:
        with attached.disabled():
            assert torch.equal(logits(attached.model), base)
    assert attached.merge is None
    assert attached.merge_reason


MEMORY = """
import gc, sys, torch
torch.set_num_threads(1)
from transformers import LlamaConfig, LlamaForCausalLM
from tunewright.core.machine import keep_freed_memory, return_freed_memory
from tunewright.models.quantised import quantise_model
keep_freed_memory()

def resident():
    gc.collect()
    return_freed_memory()
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) * 1024

config = LlamaConfig(vocab_size=64, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=8)
torch.set_default_dtype(torch.bfloat16)
for number_type in sys.argv[1:]:  # tables and imports are there before anything is measured
    quantise_model(LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)), number_type, block=16)
for number_type in sys.argv[1:]:
    model = None
    start = resident()
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-0.1, 0.1)
    linear = sum(m.weight.numel() * 2 for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n)
    wide = resident() - start
    quantise_model(model, number_type, block=16)
    print(linear, wide, resident() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="resident memory is read from /proc"
)
def test_four_bit_matrices_take_at_most_three_tenths_of_their_bfloat16_bytes_in_resident_memory() -> (
    None
):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, "nf4", "int4"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    for line in done.stdout.splitlines():
        linear, wide, after = map(int, line.split())
        print(
            f"linear {linear / 2**20:.1f} MiB in bfloat16, resident {after / 2**20:.1f} MiB: {after / linear:.3f}"
        )
        assert wide == pytest.approx(linear, rel=0.05)  # the measurement sees the wide weights
        assert after <= 0.30 * linear


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_numbers_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    """Integers equal; wide weights equal bit for bit. Widths are multiples of 64: its CPU kernel
    (0.50.2) makes others wide wrongly."""
    F = pytest.importorskip("bitsandbytes").functional
    weight = weight_of(512, 576, dtype)
    codes, state = F.quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    ours = QuantLinear(weight, None, "nf4", double=False)
    assert torch.equal(ours.codes, codes.flatten())
    assert torch.equal(ours.weight, F.dequantize_4bit(codes, state))

    codes, state = F.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    ours = QuantLinear(weight, None, "nf4", double=True)
    assert torch.equal(ours.codes, codes.flatten())
    assert torch.equal(dynamic_levels(), state.state2.code)
    apart = (ours.scale_codes.int() - state.absmax.flatten().int()).abs()
    # Its search for the nearest 8-bit level sometimes takes the neighbour; ours takes the nearest.
    assert int(apart.max()) <= 1
    assert float((apart > 0).float().mean()) < 0.005
    ours.scale_codes = state.absmax.flatten()
    assert torch.equal(ours.weight, F.dequantize_4bit(codes, state))

    eight, rows, _ = F.int8_vectorwise_quant(weight.half())
    ours = QuantLinear(weight.half(), None, "int8")
    assert torch.equal(ours.scales, rows / 127)
    # A product that ends on a half is rounded up here and down there.
    assert int((ours.codes.int() - eight.int()).abs().max()) <= 1
    assert float((ours.codes != eight).float().mean()) < 0.002


def test_nothing_of_bitsandbytes_or_a_hub_is_imported() -> None:
    program = "import sys; import tunewright.models.quantised; print(sorted(m for m in sys.modules if m.split('.')[0] in ('bitsandbytes', 'torchao', 'kernels')))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("base", "method", "codes"),
    [
        ({"bits": 4}, "lora", []), ({"bits": 4, "type": "int4"}, "houlsby", []), ({"bits": 8}, "diff_pruning", []), ({}, "full", []),
        ({"bits": 8, "type": "nf4"}, "lora", ["E-METHOD-45"]), ({"bits": 4, "type": "int8"}, "full", ["E-METHOD-45", "E-COMPAT-02"]), ({"bits": 4}, "full", ["E-COMPAT-02"]),
    ],
)  # fmt: skip
def test_a_run_whose_base_and_method_do_not_go_together_is_refused_before_loading(
    base: dict[str, Any], method: str, codes: list[str]
) -> None:
    from tunewright.core import compat
    from tunewright.core.runfile import parse_run

    given = {
        "model": "m",
        "data.train": "d.json",
        "method.kind": method,
        **{f"base.{k}": v for k, v in base.items()},
    }
    found = compat.problems(parse_run(given, dict.fromkeys(given, "test")).config)
    assert [p.code for p in found] == codes
    assert all(p.what() and p.remedy() for p in found)


def test_the_estimate_knows_the_bits_of_the_base() -> None:
    from tunewright.advise import fit
    from tunewright.models.shape import ModelShape

    config = {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32,
              "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True}  # fmt: skip
    shape = ModelShape.from_config(config)
    facts = fit.SampleFacts(100, 20_000, 10_000, 300)
    settings: dict[str, Any] = {
        "trainable": 10**7,
        "rows_per_pass": 1024,
        "facts": facts,
        "steps": 10,
        "batch_size": 4,
        "dtype": "bfloat16",
    }
    plain, four = (
        fit.estimate(fit.Question(shape=shape, base_bits=bits, **settings))
        for bits in (None, 4.127)
    )
    saved = plain.parts["weights"] - four.parts["weights"]
    wanted = shape.block_weights * (2 - 4.127 / 8)
    assert saved == pytest.approx(
        wanted - 2 * (1 << 24), rel=0.01
    )  # one matrix is wide while it is used
    assert four.needed_bytes < plain.needed_bytes


def test_a_run_with_a_quantised_base_is_reloaded_chatted_with_and_merged_as_it_was_trained(
    tmp_path: Path,
) -> None:
    from helpers.story import model_folder, rows_file, tunewright, words

    model, data, run = (
        model_folder(tmp_path / "m"),
        rows_file(tmp_path / "rows.json"),
        tmp_path / "run",
    )
    done = tunewright(*words(model, data, run, "base.bits=4", "method.rank=4"))
    assert done.returncode == 0, done.stderr
    assert "nf4" in done.stderr
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (gap,) = [e["largest_logit_difference"] for e in events if e["event"] == "reloaded"]
    assert gap <= 1e-5
    summary = json.loads((run / "summary.json").read_text())
    plain = sum(p.numel() for p in _plain(model).parameters())
    assert summary["total_parameters"] == plain + summary["trainable_parameters"]

    from tunewright.core.telling import Quiet
    from tunewright.engine.opening import open_target

    opened = open_target(str(run), Quiet())
    assert quantised.is_quantised(opened.causal)
    assert opened.attached is not None and opened.attached.merge is None
    merged = tunewright("export", "merge", str(run), str(tmp_path / "out"))
    assert merged.returncode == 0, merged.stderr
    assert "4-bit" in merged.stderr
    assert "full-precision" in merged.stderr


def _plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)
