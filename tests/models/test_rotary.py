"""Scaled positions are those of Transformers, in every command that a run meets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story

from tunewright.core.config import BaseConfig, RotaryConfig
from tunewright.core.errors import CompatError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.engine import opening
from tunewright.export import merge
from tunewright.models import load, rotary
from tunewright.story import resume_run, train

CONTEXT = 64
LONG = list(range(5, 5 + 40)) * 3
"""120 tokens: nearly twice the context."""
YARN = {"kind": "yarn", "factor": 4}
pytestmark = pytest.mark.filterwarnings("ignore:.*rope:UserWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(
        tmp_path_factory.mktemp("base"), max_position_embeddings=CONTEXT, initializer_range=0.2
    )


def theirs(folder: Path, parameters: dict[str, Any], context: int) -> Any:
    """The model of plain Transformers under these parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters = {**config.rope_parameters, **parameters}
    config.max_position_embeddings = context
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any, ids: list[int] = LONG) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


SCALED: list[tuple[dict[str, Any], dict[str, Any], int]] = [
    ({"kind": "linear", "factor": 2}, {"rope_type": "linear", "factor": 2.0}, 128),
    ({"kind": "dynamic", "factor": 2}, {"rope_type": "dynamic", "factor": 2.0}, 64),
    (
        {"kind": "yarn", "factor": 4},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        256,
    ),
    (
        {"kind": "yarn", "factor": 2, "original": 32, "beta_fast": 16, "attention_factor": 1.1},
        {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 16,
            "attention_factor": 1.1,
        },
        64,
    ),
    (
        {"kind": "llama3", "factor": 2},
        {
            "rope_type": "llama3",
            "factor": 2.0,
            "original_max_position_embeddings": 64,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        128,
    ),
]


@pytest.mark.parametrize(("ours", "parameters", "context"), SCALED)
def test_a_scaled_model_computes_what_transformers_computes(
    base: Path, ours: dict[str, Any], parameters: dict[str, Any], context: int
) -> None:
    said: list[str] = []
    held = BaseConfig(rotary=RotaryConfig(**ours))
    model = load.load_model(base, dtype="float32", base=held, notes=said)
    found = logits(model)
    assert gap(found, logits(theirs(base, parameters, context))) < 1e-6
    assert gap(found, logits(load.load_model(base, dtype="float32"))) > 1e-3
    original = ours.get("original", CONTEXT)
    assert load.context_of(model.config) == original * ours["factor"]
    assert any(f"{original:,} -> {original * ours['factor']:,}" in line for line in said)


def run(base: Path, out: Path, **more: Any) -> Any:
    words = " ".join(["sun", "and", "sea"] * 8)
    rows = out.parent / f"{out.name}.json"
    pairs = [{"instruction": f"say it {i}", "output": f"{words} {i}"} for i in range(6)]
    rows.write_text(json.dumps(pairs), encoding="utf-8")
    given = {
        "model": str(base), "data.train": str(rows), "data.held_out": 0, "out": str(out),
        "probes": 1, "forgetting": "off", "engine.threads": 1, "engine.dtype": "float32",
        "engine.steps": 4, "engine.batch_size": 2, "engine.learning_rate": 2e-2,
        "engine.save_every": 2, "method.kind": "lora", "method.rank": 4, **more,
    }  # fmt: skip
    return train(parse_run(given, dict.fromkeys(given, "test")), tell=Quiet()).folder


def test_an_adapter_keeps_the_scaling_of_its_base(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    done = run(base, tmp_path / "run", **{"base.rotary": YARN})
    assert rotary.read(done / "adapter") == RotaryConfig(**YARN)
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}
    plain = PeftModel.from_pretrained(theirs(base, scaled, 4 * CONTEXT), done / "adapter").eval()
    wanted = logits(plain)
    for name in (done, done / "adapter"):
        opened = opening.open_target(str(name), Quiet(), dtype="float32")
        assert gap(logits(opened.model), wanted) < 1e-5
        assert load.context_of(opening.read_config(opened.target)) == 4 * CONTEXT
    verdict = merge.merge_run(done, tmp_path / "merged", tell=Quiet())
    assert verdict["verdict"] in ("agrees", "equal")
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert gap(logits(merged.eval()), wanted) < 1e-4
    assert merged.config.max_position_embeddings == 4 * CONTEXT


def test_a_whole_model_carries_it_in_its_configuration(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    done = run_full(base, tmp_path / "run")
    assert not (done / "model" / rotary.FILE).exists()
    stated = json.loads((done / "model" / "config.json").read_text())
    assert stated["rope_parameters"]["rope_type"] == "yarn"
    whole = AutoModelForCausalLM.from_pretrained(done / "model", dtype=torch.float32).eval()
    opened = opening.open_target(str(done), Quiet())
    assert gap(logits(opened.model), logits(whole)) < 1e-5
    assert load.context_of(opening.read_config(opened.target)) == 4 * CONTEXT


def run_full(base: Path, out: Path) -> Any:
    rows = out.parent / "full.json"
    pairs = [{"instruction": f"say it {i}", "output": f"sun and sea {i}"} for i in range(6)]
    rows.write_text(json.dumps(pairs), encoding="utf-8")
    given = {
        "model": str(base), "data.train": str(rows), "data.held_out": 0, "out": str(out),
        "probes": 1, "forgetting": "off", "engine.threads": 1, "engine.dtype": "float32",
        "engine.steps": 2, "engine.batch_size": 2, "method.kind": "full", "base.rotary": YARN,
    }  # fmt: skip
    return train(parse_run(given, dict.fromkeys(given, "test")), tell=Quiet()).folder


def test_training_goes_on_with_the_scaling_of_the_adapter(base: Path, tmp_path: Path) -> None:
    first = run(base, tmp_path / "one", **{"base.rotary": YARN})
    on = {"adapter": str(first / "adapter")}
    second = run(base, tmp_path / "two", **on)
    assert rotary.read(second / "adapter") == RotaryConfig(**YARN)
    with pytest.raises(CompatError) as caught:
        run(base, tmp_path / "three", **on, **{"base.rotary": {"kind": "linear", "factor": 2}})
    assert caught.value.problems[0].code == "E-KEY-07"


def test_the_factor_follows_from_the_longest_row(base: Path, tmp_path: Path) -> None:
    config = load.load_config(base)
    auto = RotaryConfig(kind="yarn")
    made, why = rotary.settled(auto, config, 150)
    assert made is not None and made.factor == 3 and "150" in why
    assert rotary.settled(auto, config, CONTEXT)[0] is None
    with pytest.raises(CompatError) as caught:
        rotary.settled(auto, config, None)
    assert caught.value.problems[0].code == "E-KEY-11"
    done = run(
        base, tmp_path / "run", **{"base.rotary": {"kind": "linear"}, "data.max_tokens": 200}
    )
    assert rotary.read(done / "adapter") == RotaryConfig(kind="linear", factor=4)


def test_a_resumed_run_ends_with_the_same_bits(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    whole = run(base, tmp_path / "one", **{"base.rotary": YARN})
    half = run(base, tmp_path / "two", **{"base.rotary": YARN})
    for left in sorted((half / "checkpoints").iterdir())[1:]:
        shutil.rmtree(left)
    (half / "summary.json").unlink()
    again = resume_run(half, tell=Quiet()).folder
    files = [load_file(one / "adapter" / "adapter_model.safetensors") for one in (whole, again)]
    assert all(torch.equal(files[0][n], files[1][n]) for n in files[0])


def test_adapters_of_other_positions_are_not_combined(base: Path, tmp_path: Path) -> None:
    from tunewright.export import combine

    one = run(base, tmp_path / "one", **{"base.rotary": YARN, "engine.steps": 1})
    same = run(base, tmp_path / "same", **{"base.rotary": YARN, "engine.steps": 1})
    linear = {"base.rotary": {"kind": "linear", "factor": 2}, "engine.steps": 1}
    other = run(base, tmp_path / "other", **linear)
    with pytest.raises(CompatError) as caught:
        combine.combine([str(one), str(other)], tmp_path / "no", weights=[0.5, 0.5])
    assert caught.value.problems[0].code == "E-KEY-06"
    combine.combine([str(one), str(same)], tmp_path / "both", weights=[0.5, 0.5])
    assert rotary.read(tmp_path / "both") == RotaryConfig(**YARN)


def test_a_model_without_rotary_positions_is_refused() -> None:
    from transformers import GPT2Config

    with pytest.raises(CompatError) as caught:
        rotary.scale(GPT2Config(), RotaryConfig(**YARN))
    assert caught.value.problems[0].code == "E-KEY-05"
