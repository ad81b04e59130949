"""Every part of `benchmarks/gpu.py` runs here on tiny shapes, so that on a GPU only speed is new."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_script"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_part_gives_its_figures(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Peers in this process: what they print is what the child would.
    monkeypatch.setattr(gpu, "peer", gpu.plain)
    bench = gpu.Bench("cpu", True, time.perf_counter() + 600)
    written: list[str] = []
    found = gpu.run(bench, lambda part: written.append(json.dumps(part)))
    assert len(written) == len(found["seconds"])
    broken = {
        k: v for k, v in found.items() if isinstance(v, dict) and v.keys() & {"error", "skipped"}
    }
    assert not broken
    assert all(one["passed"] for one in found["certificate"].values())
    shapes = list(gpu.SHAPES)
    for shape in shapes:
        for kind in ("chat", "shared", "long"):
            ours, sdpa = found[f"{shape} lora {kind}"], found[f"{shape} peft-sdpa {kind}"]
            packed, quantised = found[f"{shape} peft-flash {kind}"], found[f"{shape} qlora {kind}"]
            # The same rows; what is computed of them differs.
            assert ours["steps"] >= 1 and ours["attention"] == quantised["attention"] == "flex"
            assert packed["physical_tokens_per_second"] == packed["logical_tokens_per_second"]
            assert sdpa["physical_tokens_per_second"] >= sdpa["logical_tokens_per_second"]
            if kind == "shared":
                assert ours["logical_tokens_per_second"] > 3 * ours["physical_tokens_per_second"]
            assert ours["estimated_peak_bytes"] > 0
        assert found[f"{shape} dpo"]["pairs_per_second"] > 0
        assert found[f"{shape} grpo update"]["steps"] >= 1


def test_time_that_is_up_is_written_down(gpu: Any) -> None:
    found = gpu.run(gpu.Bench("cpu", True, time.perf_counter() - 1), lambda part: None)
    assert all(
        v == {"skipped": "no time left"}
        for v in found.values()
        if isinstance(v, dict) and v.get("skipped")
    )
    assert found["certificate"] == {"skipped": "no time left"} and "seconds" not in found
