"""The floors of the house: imports only go down, rooms on one floor do not know each other, no files
import each other in a circle, and heavy libraries load where they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from house import FLOORS, HEAVY, House, attaching, faults, picture

import tunewright

SOURCE = Path(tunewright.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"


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
        ("story.py", "import tunewright.api", "upward"),
        ("api.py", "def f():\n    from tunewright.commands import demo", "sideways"),
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


def plant(root: Path, **files: str) -> None:
    (root / "core").mkdir(exist_ok=True)
    for name, text in files.items():
        (root / "core" / f"{name}.py").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "late", ["from tunewright.core import a", "def f():\n    from tunewright.core import a"]
)
def test_the_checker_finds_a_planted_cycle_wherever_the_imports_stand(
    tmp_path: Path, late: str
) -> None:
    plant(tmp_path, a="from tunewright.core.b import x", b=late)
    assert faults(tmp_path) == [
        "import cycle: tunewright.core.a -> tunewright.core.b -> tunewright.core.a"
    ]


def test_what_only_the_type_checker_reads_is_no_import(tmp_path: Path) -> None:
    names = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
    plant(tmp_path, a=names + "    from tunewright.models import load")
    assert faults(tmp_path) == []


def test_a_file_that_only_functions_import_may_load_torch_at_its_top(tmp_path: Path) -> None:
    plant(tmp_path, layers="import torch", a="def f():\n    from tunewright.core import layers")
    assert faults(tmp_path) == []
    plant(tmp_path, b="from tunewright.core import layers")
    assert faults(tmp_path) == ["core/layers.py:1 imports torch: heavy at module level"]


def test_one_file_puts_methods_on_models() -> None:
    assert attaching(House.at(SOURCE)) == ["engine/loaded.py"]


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


def test_the_picture_of_the_floors_is_that_of_the_code() -> None:
    drawn = (DOCS / "house.svg").read_text(encoding="utf-8")
    assert drawn == picture(SOURCE), "run: python tools/house.py --picture docs"


def test_contributing_names_every_room() -> None:
    text = (DOCS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {room for rooms in FLOORS for room in rooms} - {"__main__"}
    assert sorted(room for room in rooms if room not in text) == []


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
