"""Seven floors: imports only go down, rooms on one floor do not know each other, and heavy
libraries load where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunewright

SOURCE = Path(tunewright.__file__).parent
FLOORS = {
    0: {"core"}, 1: {"models"}, 2: {"data", "methods", "objectives", "rewards"}, 3: {"engine"}, 4: {"advise", "evaluate", "export", "serve", "report"},
    5: {"probes", "story", "bench", "bench_methods", "dry_run", "demo", "api", "pipeline", "importing"}, 6: {"cli", "studio", "__main__"},
}  # fmt: skip
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
ORDER = [
    "probes",
    "story",
    "bench",
    "dry_run",
    "pipeline",
    "demo",
    "api",
]  # single files of one floor: each may know the ones before it
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "gguf",
    "modelscope",
    "accelerate",
    "safetensors",
    "datasets",
    "huggingface_hub",
    "tokenizers",
    "numpy",
    "fastapi",
}
LIGHT_ROOMS = {
    "core",
    "data",
    "importing",
    "methods",
    "objectives",
    "rewards",
    "probes",
    "story",
    "bench",
    "bench_methods",
    "dry_run",
    "pipeline",
    "demo",
    "api",
    "cli",
    "advise",
    "report",
    "__init__",
    "__main__",
}


def room_of(path: Path, root: Path) -> str:
    """The first part of a module below the package: `core`, `story`, `__init__`."""
    return path.relative_to(root).with_suffix("").parts[0]


def imports(tree: ast.AST, package: str) -> Iterator[tuple[str, int, bool]]:
    """(full dotted name, line, at module level) of every import, in function bodies too; relative
    ones resolved; not under TYPE_CHECKING."""

    def walk(node: ast.AST, top: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = (
                    ".".join(package.split(".")[: len(package.split(".")) - child.level + 1])
                    if child.level
                    else ""
                )
                module = ".".join(part for part in (base, child.module or "") if part)
                yield from ((f"{module}.{alias.name}", child.lineno, top) for alias in child.names)
            else:
                yield from walk(
                    child,
                    top
                    and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda),
                )

    return walk(tree, True)


def faults(root: Path) -> list[str]:
    """Everything in the package at `root` that breaks the plan of the house."""
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    files = {
        path: ".".join(["tunewright", *path.relative_to(root).with_suffix("").parts]).removesuffix(
            ".__init__"
        )
        for path in root.rglob("*.py")
    }
    for path, module in files.items():
        room = room_of(path, root)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for name, line, top in imports(ast.parse(path.read_text(encoding="utf-8")), package):
            place = f"{path.relative_to(root)}:{line} imports {name}"
            if top and room in LIGHT_ROOMS and name.split(".")[0] in HEAVY:
                found.append(f"{place}: heavy at module level")
            if not name.startswith("tunewright.") or room == "__init__":
                continue
            there = name.split(".")[1]
            if room not in FLOOR:
                found.append(f"{place}: the room {room} stands on no floor")
            elif there in FLOOR and there != room:
                both = room in ORDER and there in ORDER and ORDER.index(there) < ORDER.index(room)
                if (
                    FLOOR[there] >= FLOOR[room]
                    and not both
                    and not (room == "__main__" and there == "cli")
                ):
                    found.append(
                        f"{place}: {'upward' if FLOOR[there] > FLOOR[room] else 'sideways'}"
                    )
            if top:
                target = name if name in files.values() else name.rpartition(".")[0]
                if target in files.values() and target != module:
                    graph.setdefault(module, set()).add(target)
    return found + [f"import cycle: {' -> '.join(cycle)}" for cycle in cycles(graph)]


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One cycle for every module that imports itself through others at module level. A package that
    only gathers its modules is no cycle."""
    found: list[list[str]] = []
    for start in graph:
        stack = [[start]]
        seen: set[str] = set()
        while stack:
            path = stack.pop()
            for target in graph.get(path[-1], ()):
                if target == start and start == min(path):
                    found.append([*path, start])
                elif target not in seen and target != start:
                    seen.add(target)
                    stack.append([*path, target])
    return found


def test_imports_only_go_down_and_heavy_libraries_load_late() -> None:
    assert faults(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("core/bad.py", "from tunewright.models import load", "upward"),
        ("core/bad.py", "def f():\n    import tunewright.engine.step", "upward"),
        ("data/bad.py", "from tunewright.methods.lora import fuse", "sideways"),
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
