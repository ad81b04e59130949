"""The plan of the house: which folder stands on which floor, what breaks it, and figures of its
shape.

    python tools/house.py                    # the figures of this checkout
    python tools/house.py --beside OTHER     # beside those of another checkout
    python tools/house.py --faults           # every import that goes up, sideways or round
    python tools/house.py --picture docs     # draw docs/house.svg from the imports

Imports are counted wherever they stand: at the top of a file or in a function. What stands under
TYPE_CHECKING is not run, so it is no edge.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import textwrap
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parents[1]
PACKAGE = "tunewright"

FLOORS: list[tuple[str, ...]] = [
    ("core",),
    ("record", "sources"),
    ("text",),
    ("models",),
    ("data", "methods", "objectives", "rewards"),
    ("engine",),
    ("advise", "evaluate", "export", "serve", "report", "track"),
    ("run",),
    ("story",),
    ("api", "bench", "commands", "course", "importing"),
    ("studio",),
    ("cli", "__main__"),
]
"""From the ground up. A room may import from the floors below it and from itself; rooms of one
floor do not know each other."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {
    "PIL",
    "accelerate",
    "comet_ml",
    "datasets",
    "fastapi",
    "gguf",
    "huggingface_hub",
    "mcp",
    "mlflow",
    "modelscope",
    "numpy",
    "optuna",
    "peft",
    "resvg_py",
    "safetensors",
    "swanlab",
    "tensorboard",
    "tokenizers",
    "torch",
    "trackio",
    "transformers",
    "wandb",
}
LIGHT = {
    "__init__",
    "__main__",
    "advise",
    "api",
    "bench",
    "cli",
    "commands",
    "core",
    "data",
    "importing",
    "methods",
    "objectives",
    "record",
    "report",
    "rewards",
    "run",
    "story",
    "track",
}
"""Rooms that load nothing heavy when they are imported: `--help` and `data check` start at once."""
LONG_FUNCTION_LINES = 60
WIDTH, HEIGHT, GAP, TOP = 1000, 74, 112, 56
"""Of the picture, in its own units."""
COLUMNS = 100


@dataclass(frozen=True)
class Import:
    """One imported name: where it stands, what it names, and whether it runs when the file is
    imported."""

    file: Path
    line: int
    name: str
    at_top: bool


@dataclass
class House:
    """A package as its files and imports show it."""

    root: Path
    files: dict[str, Path] = field(default_factory=dict)
    """Dotted module name -> file."""
    trees: dict[str, ast.Module] = field(default_factory=dict)

    @classmethod
    def at(cls, root: Path) -> House:
        """The package whose folder is `root`."""
        house = cls(root)
        for path in sorted(root.rglob("*.py")):
            parts = [PACKAGE, *path.relative_to(root).with_suffix("").parts]
            name = ".".join(parts).removesuffix(".__init__")
            house.files[name] = path
            house.trees[name] = _parsed(path, path.stat().st_mtime_ns)
        return house

    def room(self, module: str) -> str:
        """The first part of a module's name below the package: `core`, `story`, `__init__`."""
        parts = module.split(".")
        return parts[1] if len(parts) > 1 else "__init__"

    def imports(self, module: str) -> list[Import]:
        """Every import of a module, relative ones resolved."""
        path = self.files[module]
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        return [
            Import(path, line, name, top)
            for name, line, top in _imports(path, path.stat().st_mtime_ns, package)
        ]

    def target(self, name: str) -> str | None:
        """The module of this package that `from module import name` reads, if it is one of this
        package."""
        while name:
            if name in self.files:
                return name
            name = name.rpartition(".")[0]
        return None

    def only_late(self) -> set[str]:
        """Modules that another one imports, and only in functions: layers of a method, for instance.
        They are loaded with torch or not at all."""
        found: dict[str, set[bool]] = {}
        for module in self.files:
            for one in self.imports(module):
                target = self.target(one.name) if one.name.startswith(PACKAGE) else None
                if target is not None and target != module:
                    found.setdefault(target, set()).add(one.at_top)
        return {name for name, ways in found.items() if ways == {False}}

    def edges(self) -> dict[str, set[str]]:
        """Module -> modules of this package that it imports, wherever the imports stand."""
        found: dict[str, set[str]] = {name: set() for name in self.files}
        for module in self.files:
            for one in self.imports(module):
                target = self.target(one.name) if one.name.startswith(PACKAGE) else None
                if target is not None and target not in (module, PACKAGE):
                    found[module].add(target)
        return found


@cache
def _parsed(path: Path, changed: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imports(path: Path, changed: int, package: str) -> list[tuple[str, int, bool]]:
    """The name, line and place (at the top?) of every import of a file. Several rules ask for them,
    and walking through all trees takes a second."""

    def walk(node: ast.AST, top: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - child.level + 1]) if child.level else ""
                module = ".".join(part for part in (base, child.module or "") if part)
                yield from ((f"{module}.{alias.name}", child.lineno, top) for alias in child.names)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, top and not inside)

    return list(walk(_parsed(path, changed), True))


def faults(root: Path) -> list[str]:
    """Everything in the package at `root` that breaks the plan, one line each."""
    house = House.at(root)
    found: list[str] = []
    late = house.only_late()
    for module in house.files:
        room = house.room(module)
        for one in house.imports(module):
            place = f"{one.file.relative_to(root)}:{one.line} imports {one.name}"
            heavy = one.at_top and one.name.split(".")[0] in HEAVY
            if heavy and room in LIGHT and module not in late:
                found.append(f"{place}: heavy at module level")
            if not one.name.startswith(f"{PACKAGE}.") or room == "__init__":
                continue
            if room not in FLOOR:
                found.append(f"{place}: the room {room} stands on no floor")
                continue
            there = one.name.split(".")[1]
            if (
                there in FLOOR
                and there != room
                and FLOOR[there] >= FLOOR[room]
                and (room, there) != ("__main__", "cli")
            ):
                found.append(f"{place}: {'upward' if FLOOR[there] > FLOOR[room] else 'sideways'}")
    return found + [
        f"import cycle: {' -> '.join([*cycle, cycle[0]])}" for cycle in cycles(house.edges())
    ]


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The sets of modules that import each other in a circle (Tarjan's strongly connected
    components), each sorted."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for target in sorted(edges.get(node, ())):
            if target not in number:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], number[target])
        if low[node] == number[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(edges):
        if node not in number:
            visit(node)
    return found


# ---- figures


def tokens_of(source: str) -> int:
    """Tokens that say something: no comments, line ends, indents; a docstring or other string is
    one."""
    silent = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
    return sum(
        one.type not in silent for one in tokenize.generate_tokens(io.StringIO(source).readline)
    )


def functions(house: House) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """(module, node, dedented source) of every function and method."""
    for module, tree in house.trees.items():
        lines = house.files[module].read_text(encoding="utf-8").split("\n")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                part = lines[node.lineno - 1 : node.end_lineno]
                yield module, node, "\n".join(line[node.col_offset :] for line in part)


def any_in_signatures(house: House, room: str) -> int:
    """How often `Any` stands in the signatures of functions of a room."""
    count = 0
    for module, node, _ in functions(house):
        if house.room(module) == room:
            args = [
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            ]
            notes = [arg.annotation for arg in args if arg is not None] + [node.returns]
            count += sum(
                isinstance(n, ast.Name) and n.id == "Any"
                for note in notes
                if note
                for n in ast.walk(note)
            )
    return count


def attaching(house: House) -> list[str]:
    """Files outside methods/ that put a method on a model: they call `put_on`, or the function of
    an entry that they got from the registry of methods (`entry = methods.get(...)`, in whatever
    function)."""
    found = set()
    for module, tree in house.trees.items():
        if house.room(module) == "methods":
            continue
        entries = {
            target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and "methods.get(" in ast.unparse(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name, _, last = ast.unparse(node.func).rpartition(".")
            calls_entry = last == "function" and (name in entries or "methods.get(" in name)
            # An entry of another registry may have the same name; only a method is given a model.
            if last == "put_on" or (calls_entry and len(node.args) >= 3):
                found.add(str(house.files[module].relative_to(house.root)))
    return sorted(found)


def figures(root: Path) -> dict[str, str]:
    """The shape of the package at `root`, in words and numbers."""
    house = House.at(root)
    text = {name: path.read_text(encoding="utf-8") for name, path in house.files.items()}
    lines = [line for one in text.values() for line in one.splitlines()]
    sized = [
        (node.end_lineno - node.lineno + 1, f"{m}.{node.name}") for m, node, _ in functions(house)
    ]  # type: ignore[operator]
    largest = max(
        ((tokens_of(source), f"{m}.{node.name}") for m, node, source in functions(house)),
        default=(0, ""),
    )
    late: Counter[str] = Counter()
    names: defaultdict[str, set[tuple[int, str]]] = defaultdict(set)
    for module in house.files:
        for one in house.imports(module):
            if not one.at_top and one.name.startswith(f"{PACKAGE}."):
                names[module].add((one.line, one.name.rpartition(".")[0]))
    for module, found in names.items():
        late[house.room(module)] += len(found)
    code = sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))
    round_ = cycles(house.edges())
    return {
        "files": f"{len(house.files)}",
        "lines": f"{len(lines):,}",
        "lines over 100 columns": f"{sum(len(line) > COLUMNS for line in lines) / max(len(lines), 1):.1%}",
        "tokens a line of code": f"{sum(map(tokens_of, text.values())) / max(code, 1):.1f}",
        "import cycles, all imports": f"{len(round_)} ({', '.join(str(len(one)) for one in round_)})"
        if round_
        else "0",
        "functions over 60 lines": f"{sum(size > LONG_FUNCTION_LINES for size, _ in sized)}",
        "largest function, tokens": f"{largest[0]} ({largest[1].removeprefix(PACKAGE + '.')})",
        "Any in signatures of methods/": f"{any_in_signatures(house, 'methods')}",
        "files that put a method on a model": ", ".join(attaching(house)),
        "late internal imports": f"{sum(late.values())} ({', '.join(f'{k} {v}' for k, v in sorted(late.items()))})",
    }


# ---- picture


def picture(root: Path) -> str:
    """The floors as SVG: each room with its question, and an arrow to each room that it imports.
    An arrow that follows from two others is left out."""
    house = House.at(root)
    edges: dict[str, set[str]] = {}
    for module, targets in house.edges().items():
        here = house.room(module)
        edges.setdefault(here, set()).update(house.room(t) for t in targets)
    for here in edges:
        edges[here].discard(here)
    below = {room: _reached(room, edges) for room in edges}
    shown = [[r for r in rooms if r in edges and r != "__main__"] for rooms in FLOORS]
    at: dict[str, tuple[int, int]] = {}
    for number, rooms in enumerate(shown):
        for i, room in enumerate(rooms):
            at[room] = (
                WIDTH * (2 * i + 1) // (2 * len(rooms)),
                TOP + GAP * (len(shown) - 1 - number),
            )
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {2 * TOP + GAP * (len(shown) - 1)}" '
        'font-family="sans-serif">',
        "<title>The floors of the house: imports only go down</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for here in sorted(at):
        for there in sorted(edges[here]):
            implied = any(there in below[other] for other in edges[here] if other != there)
            if there in at and not implied:
                (x1, y1), (x2, y2) = at[here], at[there]
                out.append(
                    f'<line x1="{x1}" y1="{y1 + HEIGHT // 2}" x2="{x2}" y2="{y2 - HEIGHT // 2}" '
                    'stroke="#8aa1b8" stroke-width="1.5"/>'
                )
    for room, (x, y) in at.items():
        width = min(WIDTH // max(len(rooms) for rooms in shown if room in rooms) - 12, 330)
        out.append(
            f'<rect x="{x - width // 2}" y="{y - HEIGHT // 2}" width="{width}" height="{HEIGHT}" rx="6" '
            'fill="#eef3f8" stroke="#35516e"/>'
            f'<text x="{x}" y="{y - 16}" text-anchor="middle" font-size="15" font-weight="bold">{room}</text>'
        )
        for line, words in enumerate(textwrap.wrap(_question(house, room), width // 7)[:4]):
            out.append(
                f'<text x="{x}" y="{y + 2 * (line > 9) + 14 * line}" text-anchor="middle" font-size="11" '
                f'fill="#333333">{escape(words)}</text>'
            )
    return "\n".join([*out, "</svg>"]) + "\n"


def _reached(room: str, edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(edges.get(room, ()))
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += edges.get(one, ())
    return found


def _question(house: House, room: str) -> str:
    """The first sentence of a room's docstring."""
    text = ast.get_docstring(house.trees[f"{PACKAGE}.{room}"]) or ""
    return text.split("\n\n")[0].split(". ")[0].replace("\n", " ").rstrip(".")


def main(argv: list[str]) -> int:
    """Print or draw what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--at", type=Path, default=HERE, help="the checkout to look at")
    parser.add_argument(
        "--beside", type=Path, help="another checkout, shown in a column of its own"
    )
    parser.add_argument(
        "--faults", action="store_true", help="print what breaks the plan; exit 1 if anything does"
    )
    parser.add_argument("--picture", type=Path, metavar="FOLDER", help="write house.svg there")
    asked = parser.parse_args(argv)
    root = asked.at / "src" / PACKAGE
    if asked.faults:
        found = faults(root)
        print("\n".join(found) or "no faults")
        return 1 if found else 0
    if asked.picture:
        path = asked.picture / "house.svg"
        path.write_text(picture(root), encoding="utf-8")
        print(path)
        return 0
    here = figures(root)
    there = figures(asked.beside / "src" / PACKAGE) if asked.beside else {}
    for name, value in here.items():
        print(f"{name:36} {f'{there[name]}  ->  ' if there else ''}{value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
