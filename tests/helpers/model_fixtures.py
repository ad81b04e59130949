"""Fixtures of this room: a whole tiny model in a folder, and a cache of its own for every test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.building import make_model, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def built_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(built_folder: Path, tmp_path: Path) -> Path:
    """A whole tiny model that a test may spoil."""
    return Path(shutil.copytree(built_folder, tmp_path / "tiny-llama"))


@pytest.fixture
def edit(folder: Path) -> Callable[..., Path]:
    """Change keys of a JSON file of the tiny model: `edit("config.json", auto_map={...})`; None
    removes a key."""

    def change(name: str = "config.json", **keys: Any) -> Path:
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        content = {k: v for k, v in {**content, **keys}.items() if v is not None}
        path.write_text(json.dumps(content), encoding="utf-8")
        return folder

    return change


@pytest.fixture(autouse=True)
def _own_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """No test sees the user's cache or language; real-model tests keep the cache, so that a model
    is converted once."""
    monkeypatch.setenv("TUNEWRIGHT_LANG", "en")
    if "real_model" not in request.keywords:
        monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
