"""DeepSpeed and FSDP settings of other systems become ours, and each says what it became."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunewright.core import compat
from tunewright.core.runfile import parse_run
from tunewright.importing import translate

THEIRS = {
    "model_name_or_path": "m",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "full",
    "dataset": "rows.json",
    "template": "qwen",
    "output_dir": "out",
}


def made(place: Path, devices: int, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    path = place / "theirs.yaml"
    path.write_text(yaml.safe_dump({**THEIRS, **more}), encoding="utf-8")
    found = translate(path, devices)
    return found.run["engine"], {line.key: line for line in found.lines}


@pytest.mark.parametrize(("stage", "parallel"), [(0, "ddp"), (1, None), (2, None), (3, "fsdp")])
def test_every_zero_stage_becomes_what_it_divides(
    tmp_path: Path, stage: int, parallel: str | None
) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    engine, lines = made(tmp_path, 4, deepspeed="ds.json")
    assert engine["processes"] == 4
    assert engine.get("parallel") == parallel
    assert lines["deepspeed"].fate == "changed" and f"ZeRO {stage}" in lines["deepspeed"].why


def test_a_stage_is_read_from_the_name_of_a_file_that_is_not_here(tmp_path: Path) -> None:
    engine, _ = made(tmp_path, 2, deepspeed="examples/deepspeed/ds_z3_offload_config.json")
    assert engine["parallel"] == "fsdp"
    _, lines = made(tmp_path, 2, deepspeed="somewhere/else.json")
    assert lines["deepspeed"].fate == "lost"


def test_offload_and_hybrid_sharding_are_kept(tmp_path: Path) -> None:
    zero = {"stage": 3, "offload_param": {"device": "cpu"}}
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero}))
    assert made(tmp_path, 2, deepspeed="ds.json")[0]["offload_shares"] is True
    engine, lines = made(tmp_path, 16, fsdp=["hybrid_shard", "auto_wrap"])
    assert engine["parallel"] == "fsdp" and engine["hybrid"] is True
    assert "hybrid_shard" in lines["fsdp"].why
    engine, _ = made(tmp_path, 2, fsdp="full_shard auto_wrap offload")
    assert engine["offload_shares"] is True


def test_for_one_device_nothing_is_shared_and_the_run_is_valid(tmp_path: Path) -> None:
    for more in ({"deepspeed": "ds_z3_config.json"}, {"fsdp": "full_shard"}):
        engine, lines = made(tmp_path, 1, **more)
        assert "parallel" not in engine and "processes" not in engine
        assert lines[next(iter(more))].fate == "not_needed"
    engine, _ = made(tmp_path, 2, fsdp="full_shard")
    keys = {f"engine.{k}": v for k, v in engine.items()}
    parsed = parse_run({"model": "m", "data.train": "rows.json", "method.kind": "full", **keys}, {})
    assert [p for p in compat.problems(parsed.config) if p.code.startswith("E-DIST")] == []
