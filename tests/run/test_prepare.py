"""A run before its weights are read: what was judged once is not judged again, unless anything that
decides it has changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import story
from helpers.telling import Lines

from tunewright.commands.dry_run import dry_run
from tunewright.core.errors import ModelError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.models import load
from tunewright.run import prepare
from tunewright.sources import fingerprint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def judged(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose configuration Transformers read, one entry each time."""
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "SMALLEST_BYTES", 0)
    found: list[Path] = []
    real = load.load_config
    monkeypatch.setattr(
        load, "load_config", lambda folder, *more: found.append(folder) or real(folder, *more)
    )
    return found


def checked(model: Path, tmp_path: Path, **keys: Any) -> dict[str, Any]:
    rows = story.rows_file(tmp_path / "rows.json")
    given = {
        "model": str(model),
        "data.train": str(rows),
        "engine.dtype": "float32",
        "engine.threads": 1,
        **keys,
    }
    return dry_run(parse_run(given, {}), tell=Quiet())


def test_a_method_that_fitted_is_not_tried_on_the_same_configuration_again(
    model: Path, tmp_path: Path, judged: list[Path]
) -> None:
    first, again = checked(model, tmp_path), checked(model, tmp_path)
    assert len(judged) == 1
    assert {k: first[k] for k in ("steps", "samples", "parts")} == {
        k: again[k] for k in ("steps", "samples", "parts")
    }
    checked(model, tmp_path, **{"method.rank": 4})
    assert len(judged) == 2


def test_a_changed_configuration_is_judged_again(
    model: Path, tmp_path: Path, judged: list[Path]
) -> None:
    checked(model, tmp_path)
    path = model / "config.json"
    before = path.read_text(encoding="utf-8")
    try:
        changed = json.loads(before) | {"max_position_embeddings": 128}
        path.write_text(json.dumps(changed), encoding="utf-8")
        checked(model, tmp_path)
    finally:
        path.write_text(before, encoding="utf-8")
    assert len(judged) == 2


def test_other_versions_judge_again(
    model: Path, tmp_path: Path, judged: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked(model, tmp_path)
    monkeypatch.setattr(prepare, "judged_by", lambda: {"transformers": "6.0"})
    checked(model, tmp_path)
    assert len(judged) == 2


def test_what_was_refused_is_refused_each_time(
    model: Path, tmp_path: Path, judged: list[Path]
) -> None:
    for _ in range(2):
        with pytest.raises(ModelError):
            checked(model, tmp_path, **{"method.targets": ["no_such_part"]})
    assert len(judged) == 2


def test_of_the_smallest_models_nothing_is_kept(
    model: Path, tmp_path: Path, judged: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "SMALLEST_BYTES", 16 << 20)
    for _ in range(2):
        checked(model, tmp_path)
    assert len(judged) == 2
    assert not (tmp_path / "cache" / "found" / "fits").exists()


CHILD = """
import sys
from tunewright.commands.dry_run import dry_run
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.sources import fingerprint
fingerprint.SMALLEST_BYTES = 0
keys = {"model": sys.argv[1], "data.train": sys.argv[2], "engine.dtype": "float32"}
dry_run(parse_run(keys, {}), tell=Quiet())
print("transformers" in sys.modules, "peft" in sys.modules)
"""


@pytest.mark.slow
def test_a_second_dry_run_loads_no_transformers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    rows = story.rows_file(tmp_path / "rows.json")
    words = [sys.executable, "-c", CHILD, str(model), str(rows)]
    told = [
        subprocess.run(words, capture_output=True, text=True, check=True).stdout for _ in range(2)
    ]
    assert told == ["True True\n", "False False\n"]


def test_a_dry_run_says_the_seconds_of_the_parts(model: Path, tmp_path: Path) -> None:
    rows, lines = story.rows_file(tmp_path / "rows.json"), Lines()
    found = dry_run(parse_run({"model": str(model), "data.train": str(rows)}, {}), tell=lines)
    assert set(found["seconds"]) == {"load", "ask", "train", "evaluate", "checkpoint"}
    assert found["seconds"]["train"] == found["train_seconds"]
    assert sum(line.startswith("besides: about ") for line in lines.said) == 1
