"""A tiny base whose answers are kept between runs, for the tests of what a run asks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import story

from tunewright.sources import fingerprint


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and `rows.json`; nobody writes into it."""
    place = tmp_path_factory.mktemp("made")
    story.model_folder(place / "base", initializer_range=0.2, tie_word_embeddings=False)
    story.rows_file(place / "rows.json", 8)
    return place


@pytest.fixture
def base(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model about which answers are kept, small as it is, in a cache of its own."""
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "SMALLEST_BYTES", 0)
    shutil.copytree(made / "base", tmp_path / "base")
    shutil.copy(made / "rows.json", tmp_path / "rows.json")
    return tmp_path / "base"
