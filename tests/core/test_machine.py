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
