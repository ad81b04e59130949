"""Transformers' table of names: read once for what is installed, and the same as Transformers'
own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunewright.core import findings, lazy_names

CHILD = """
import sys, json
if sys.argv[1] == "ours":
    import tunewright
from transformers.utils import import_utils
import transformers.models
table = import_utils.define_import_structure(transformers.models.__file__)
print(json.dumps({
    ",".join(sorted(needs)): {module: sorted(names) for module, names in held.items()}
    for needs, held in table.items()
}))
"""


def child(way: str, cache: Path) -> Any:
    env = {**os.environ, "TUNEWRIGHT_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, way], capture_output=True, text=True, env=env, check=True
    )
    return json.loads(done.stdout)


def test_the_kept_table_is_transformers_own(tmp_path: Path) -> None:
    own = child("theirs", tmp_path)
    assert child("ours", tmp_path) == own  # worked out and kept
    assert len(list((tmp_path / "found" / "names").glob("*.json"))) == 2
    assert child("ours", tmp_path) == own  # as it was kept
    assert sum(map(len, own.values())) > 1000


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "transformers"
    (made / "models").mkdir(parents=True)
    return made


class Own:
    """Transformers' function, counted."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, module_path: Any, prefix: str | None = None) -> lazy_names.Table:
        self.calls.append((Path(module_path).name, prefix))
        return {frozenset({"torch"}): {"llama.modeling_llama": {"B", "A"}}, frozenset(): {}}


def test_the_table_is_worked_out_once_for_each_key(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, version = Own(), ["5.1"]
    monkeypatch.setattr(lazy_names, "_key", lambda package, prefix: [prefix, version[0]])
    define = lazy_names.remembering(own, package)
    expected = own(package / "models")
    own.calls.clear()
    assert define(package / "models") == define(package / "models") == expected
    assert own.calls == [("models", None)]
    define(package / "models", prefix="models")
    version[0] = "5.2"
    define(package / "models")
    assert own.calls == [("models", None), ("models", "models"), ("models", None)]


@pytest.mark.parametrize("value", [[["torch"]], [[1, {}]], [[["torch"], {"a": 3}]], "text", 7])
def test_a_table_that_cannot_be_read_is_worked_out_again(
    package: Path, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    own = Own()
    monkeypatch.setattr(lazy_names, "_key", lambda package, prefix: "key")
    findings.keep("names", "key", value)
    define = lazy_names.remembering(own, package)
    assert define(package / "models") == own(package / "models")


def test_single_models_and_checkouts_are_left_to_transformers(package: Path) -> None:
    own = Own()
    define = lazy_names.remembering(own, package)  # not where Transformers is installed
    for _ in range(2):
        define(package / "models")
        define(package / "models" / "llama" / "__init__.py")
    assert len(own.calls) == 4
    assert lazy_names._key(package, None) is None


def test_what_is_installed_has_a_key_that_tells_its_version_and_its_installation() -> None:
    import transformers

    key = lazy_names._key(Path(transformers.__file__).parent, "models")
    assert key is not None
    assert key["version"] == transformers.__version__
    assert key["installed"][0] > 0


def test_nothing_is_installed_twice_or_too_late() -> None:
    before = list(sys.meta_path)
    lazy_names.install()  # Transformers is here already
    assert sys.meta_path == before
