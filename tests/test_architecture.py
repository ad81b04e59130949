"""Seven floors: imports only go down, rooms on one floor do not know each other, and heavy
libraries load where they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from house import HEAVY, House, attaching, faults

import tunewright

SOURCE = Path(tunewright.__file__).parent


def test_imports_only_go_down_and_heavy_libraries_load_late() -> None:
    assert faults(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("core/bad.py", "from tunewright.models import load", "upward"),
        ("core/bad.py", "def f():\n    import tunewright.engine.step", "upward"),
        ("data/bad.py", "from tunewright.methods.peft import fuse", "sideways"),
        ("data/bad.py", "from ..methods import lora", "sideways"),
        ("report/bad.py", "from tunewright import serve", "sideways"),
        ("story.py", "from tunewright import cli", "upward"),
        ("story.py", "import tunewright.api", "sideways"),
        ("methods/bad.py", "import torch", "heavy"),
        (
            "cli.py",
            "try:\n    from transformers import AutoModel\nexcept ImportError:\n    pass",
            "heavy",
        ),
        ("attic/bad.py", "import tunewright.core", "no floor"),
    ],
)
def test_the_checker_finds_a_planted_fault(tmp_path: Path, file: str, text: str, word: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text, encoding="utf-8")
    (found,) = faults(tmp_path)
    assert word in found
    assert file in found


def test_the_checker_finds_a_planted_cycle_and_lets_a_late_import_pass(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "a.py").write_text("from tunewright.core.b import x", encoding="utf-8")
    (tmp_path / "core" / "b.py").write_text("from tunewright.core import a", encoding="utf-8")
    assert [f.split(":")[0] for f in faults(tmp_path)] == ["import cycle"]
    (tmp_path / "core" / "b.py").write_text(
        "def f():\n    from tunewright.core import a", encoding="utf-8"
    )
    assert faults(tmp_path) == []
    (tmp_path / "core" / "c.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n    from tunewright.models import load",
        encoding="utf-8",
    )
    assert faults(tmp_path) == []


def test_one_file_puts_methods_on_models() -> None:
    assert attaching(House.at(SOURCE)) == ["engine/opening.py"]


def test_the_checker_finds_whoever_puts_a_method_on_a_model(tmp_path: Path) -> None:
    new = "entry = methods.get(kind)\nentry.function(config, model, card, base)"
    for file, text in {
        "story.py": "put_on(model, folder)",
        "bench/a.py": new,
        "bench/b.py": "methods.get(kind).function(config, model, card, base)",
        "data/c.py": "entry = formats.get(kind)\nentry.function(value, origin, columns)",
        "methods/d.py": new,
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    assert attaching(House.at(tmp_path)) == ["bench/a.py", "bench/b.py", "story.py"]


@pytest.mark.parametrize(
    "program", ["import tunewright", "import tunewright.story", "import sys; sys.argv = ['tunewright', '--help']; import runpy; runpy.run_module('tunewright', run_name='__main__')"],
)  # fmt: skip
def test_nothing_heavy_is_loaded_to_import_the_package_or_to_print_its_help(program: str) -> None:
    check = f"import atexit, sys\natexit.register(lambda: print('HEAVY', sorted({HEAVY!r} & set(sys.modules))))\n{program}\n"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout
