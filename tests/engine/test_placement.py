"""What `auto` becomes, and that it becomes the same each time on one machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tunewright.core.config import EngineConfig
from tunewright.core.types import Branch, Sample
from tunewright.engine import placement
from tunewright.engine.tree import build_tree, largest_sample


@pytest.fixture(autouse=True)
def nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found out about this processor before is not what these tests ask."""
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("reported", "name"),
    [({"avx512_bf16": True}, "avx512_bf16"), ({"avx512_bf16": True, "amx_bf16": True}, "amx_bf16")],
)
def test_with_instructions_for_it_a_processor_computes_in_bfloat16_and_no_clock_is_asked(
    monkeypatch: pytest.MonkeyPatch, reported: dict[str, bool], name: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: reported, raising=False)
    monkeypatch.setattr(placement, "bfloat16_speedup", lambda: pytest.fail("a clock decided"))
    world = placement.start(EngineConfig(device="cpu", threads=1))
    assert world.dtype == "bfloat16" and name in world.reasons["engine.dtype"]


@pytest.mark.parametrize(
    ("ratio", "dtype"), [(0.4, "float32"), (1.1, "float32"), (1.6, "bfloat16")]
)
@pytest.mark.parametrize("reported", [{}, {"avx512_bf16": False, "cpu_name": "x"}, None])
def test_otherwise_the_measured_ratio_decides(
    monkeypatch: pytest.MonkeyPatch, reported: dict[str, bool] | None, ratio: float, dtype: str
) -> None:
    if reported is None:  # a torch without the report
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: reported, raising=False)
    monkeypatch.setattr(placement, "bfloat16_speedup", lambda: ratio)
    world = placement.start(EngineConfig(device="cpu", threads=1))
    assert world.dtype == dtype and f"{ratio:.1f}" in world.reasons["engine.dtype"]


def test_the_ratio_is_measured_once_for_a_processor_and_a_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "bfloat16_instructions", lambda: None)
    monkeypatch.setattr(placement, "bfloat16_speedup", lambda: 1.6)
    first = placement.start(EngineConfig(device="cpu", threads=1))
    monkeypatch.setattr(placement, "bfloat16_speedup", lambda: pytest.fail("measured again"))
    again = placement.start(EngineConfig(device="cpu", threads=1))
    assert first.dtype == again.dtype == "bfloat16" and first.reasons == again.reasons
    monkeypatch.setattr(placement, "bfloat16_speedup", lambda: 0.5)
    monkeypatch.setattr(placement, "processor_flags", lambda: "another")
    assert placement.start(EngineConfig(device="cpu", threads=1)).dtype == "float32"


def test_a_torch_for_the_cpu_need_not_be_loaded_to_know_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    placement.start(EngineConfig(threads=1, dtype="float32"))
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now raises
    monkeypatch.setattr(placement, "version", lambda name: "2.13.0+cpu")
    world = placement.start(EngineConfig(threads=1, dtype="float32"), will_compute=False)
    assert (world.device, world.threads) == ("cpu", 1)
    monkeypatch.setattr(placement, "version", lambda name: "2.13.0")
    with pytest.raises(ImportError):
        placement.start(EngineConfig(threads=1, dtype="float32"), will_compute=False)


def test_what_is_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_choose_dtype", lambda device: pytest.fail("measured"))
    assert (
        placement.start(EngineConfig(device="cpu", threads=1, dtype="float32")).dtype == "float32"
    )


def test_the_clock_itself_gives_a_ratio() -> None:
    assert 0.05 < placement.bfloat16_speedup() < 50


def pair(prompt: int, *answers: int) -> Sample:
    """A prompt and answers that differ from their first token on, all learnt."""
    branches = []
    for k, length in enumerate(answers):
        learnt = list(range(prompt, prompt + length))
        branches.append(Branch([7] * prompt + [100 + k] * length, learnt, [1.0] * length))
    return Sample(branches, 0)


@pytest.mark.parametrize(
    ("samples", "report", "rows"),
    [
        ([pair(10, 5, 5)], {"length_percentiles": {"max": 15}}, 1024),
        (
            [pair(10, 5, 5), pair(600, 700, 300), pair(10, 5)],
            {"length_percentiles": {"max": 1300}},
            600 + 699 + 299,
        ),
        ([pair(3000, 2000, 2000)], {"length_percentiles": {"max": 5000}}, 4096),
        ([pair(10, 5)], {"length_percentiles": {"max": 1500}}, 1500),
        ([pair(10, 5)], {"length_percentiles": {"max": 9000}, "packed": {"tokens": 1024}}, 1024),
    ],
)
def test_a_pass_may_be_as_large_as_the_largest_sample(
    samples: list[Sample], report: dict[str, object], rows: int
) -> None:
    world = placement.start(
        EngineConfig(device="cpu", threads=1, dtype="float32"), (samples, report)
    )
    assert world.rows_per_pass == rows and (
        f"{rows} token rows" in world.reasons["engine.rows_per_pass"]
    )
    if len(samples[0].branches) > 1:
        assert largest_sample(samples, report, 1 << 30) == max(
            build_tree([s]).num_rows for s in samples
        )
    asked = placement.start(
        EngineConfig(device="cpu", threads=1, dtype="float32", rows_per_pass=64), (samples, report)
    )
    assert asked.rows_per_pass == 64
