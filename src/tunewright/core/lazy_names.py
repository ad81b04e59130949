"""Transformers' table of names, kept between starts.

Since 5.x `import transformers` reads the source of each of its 3,300 modules, twice, to learn which
name lies where: about a second of every command. The table is a function of the installed files
alone, so it is kept under their version, and under the size and time of the list of files that the
installer wrote. A checkout that somebody works on has no such list that would change with it: there
nothing is kept. Where anything is not as expected, Transformers does as it always did.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

LIBRARY, MODULE, FUNCTION = (
    "transformers",
    "transformers.utils.import_utils",
    "define_import_structure",
)
Table = dict[frozenset[str], dict[str, set[str]]]
"""Libraries that are needed -> module -> names in it."""


def install() -> None:
    """Let the table be looked up when Transformers is first imported; nothing is imported now."""
    here = any(isinstance(finder, _Finder) for finder in sys.meta_path)
    if LIBRARY not in sys.modules and not here:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, once, where everybody finds it, and has it read by `_Loader`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Reads the module as it is and puts a memory before its one slow function."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        own = getattr(module, FUNCTION, None)
        if callable(own):
            setattr(module, FUNCTION, remembering(own, Path(self.path).parents[1]))


def remembering(own: Callable[..., Table], package: Path) -> Callable[..., Table]:
    """`own`, Transformers' function, with a memory for the table of all its models."""
    from tunewright.core import findings  # this module is part of every start, that one is not

    models = (package / "models", package / "models" / "__init__.py")

    def define_import_structure(module_path: Any, prefix: str | None = None) -> Table:
        key = _key(package, prefix) if Path(module_path) in models else None
        if key is None:
            return own(module_path, prefix=prefix)
        with contextlib.suppress(TypeError, ValueError, AttributeError):
            stored = findings.read("names", key)
            if stored:
                return {
                    frozenset(needs): {module: set(names) for module, names in held.items()}
                    for needs, held in stored
                }
        table = own(module_path, prefix=prefix)
        with contextlib.suppress(TypeError, ValueError):
            value = [
                [sorted(needs), {module: sorted(names) for module, names in held.items()}]
                for needs, held in table.items()
            ]
            findings.keep("names", key, value)
        return table

    return define_import_structure


def _key(package: Path, prefix: str | None) -> dict[str, Any] | None:
    """Everything that decides the table; None where the files may change under the same key."""
    import importlib.metadata

    try:
        found = importlib.metadata.distribution(LIBRARY)
        if Path(str(found.locate_file(LIBRARY))).resolve() != package.resolve():
            return None
        written = next(file for file in found.files or () if file.name == "RECORD")
        stat = Path(str(found.locate_file(written))).stat()
    except (importlib.metadata.PackageNotFoundError, OSError, StopIteration):
        return None
    return {
        "prefix": prefix,
        "package": str(package),
        "version": found.version,
        "installed": [stat.st_size, stat.st_mtime_ns],
        "python": platform.python_version(),
    }
