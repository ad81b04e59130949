"""What `auto` becomes, and that it becomes the same each time on one machine."""

from __future__ import annotations

import pytest
import torch

from tunewright.core.config import EngineConfig
from tunewright.engine import placement


@pytest.mark.parametrize(("reported", "name"), [({"avx512_bf16": True}, "avx512_bf16"), ({"avx512_bf16": True, "amx_bf16": True}, "amx_bf16")])
def test_with_instructions_for_it_a_processor_computes_in_bfloat16_and_no_clock_is_asked(
    monkeypatch: pytest.MonkeyPatch, reported: dict[str, bool], name: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: reported, raising=False)
    monkeypatch.setattr(placement, "bfloat16_speedup", lambda: pytest.fail("a clock decided"))
    world = placement.start(EngineConfig(device="cpu", threads=1))
    assert world.dtype == "bfloat16" and name in world.reasons["engine.dtype"]


@pytest.mark.parametrize(("ratio", "dtype"), [(0.4, "float32"), (1.1, "float32"), (1.6, "bfloat16")])
@pytest.mark.parametrize("reported", [{}, {"avx512_bf16": False, "cpu_name": "x"}, None])
def test_otherwise_the_measured_ratio_decides(monkeypatch: pytest.MonkeyPatch, reported: dict[str, bool] | None, ratio: float, dtype: str) -> None:
    if reported is None:  # a torch without the report
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: reported, raising=False)
    monkeypatch.setattr(placement, "bfloat16_speedup", lambda: ratio)
    world = placement.start(EngineConfig(device="cpu", threads=1))
    assert world.dtype == dtype and f"{ratio:.1f}" in world.reasons["engine.dtype"]


def test_what_is_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_choose_dtype", lambda device: pytest.fail("measured"))
    assert placement.start(EngineConfig(device="cpu", threads=1, dtype="float32")).dtype == "float32"


def test_the_clock_itself_gives_a_ratio() -> None:
    assert 0.05 < placement.bfloat16_speedup() < 50
