"""What this machine has, and how a process keeps the memory it freed."""

from __future__ import annotations

import os

import pytest

from tunewright.core import machine


def test_keeping_freed_memory_says_whether_it_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "win32")
    assert machine.keep_freed_memory() is False


def test_fewer_compiled_products_are_kept_unless_the_user_said_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "1")
    del os.environ[name]
    machine.keep_freed_memory()
    assert os.environ[name] == str(machine.KERNELS)
    monkeypatch.setenv(name, "64")
    machine.keep_freed_memory()
    assert os.environ[name] == "64"


@pytest.mark.skipif(not machine.live_bytes(), reason="the system does not say")
def test_what_was_freed_does_not_live_and_what_is_held_does() -> None:
    import torch

    before = machine.live_bytes()
    held = torch.ones(5, 2**20)  # 20 MiB
    assert machine.live_bytes() - before == pytest.approx(held.nbytes, rel=0.05)
    del held
    assert abs(machine.live_bytes() - before) < 2**20
