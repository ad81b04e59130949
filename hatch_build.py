"""Builds the page of Tunewright Studio when the package is built.

`page/` (Svelte, Vite) becomes `src/tunewright/studio/page/`, which git does not hold, and the wheel
and the sdist do. It is built when it is missing or older than its sources. An sdist brings it
along, so that a machine without Node makes a whole wheel of it. Without Node and without a page the
build goes on and says what is missing: everything but the page works.

TUNEWRIGHT_PAGE=skip leaves it as it is; TUNEWRIGHT_PAGE=require makes a missing page an error, as a
release wants it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NO_SOURCES = ("node_modules", "dist")


class PageHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs before the files of a wheel or an sdist are collected."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page where it is needed and can be built."""
        root, wish = Path(self.root), os.environ.get("TUNEWRIGHT_PAGE", "")
        built = root / "src" / "tunewright" / "studio" / "page" / "index.html"
        reason = "" if wish == "skip" else build(root / "page", built)
        if reason and wish == "require":
            raise RuntimeError(f"the page of Tunewright Studio was not built: {reason}")
        if reason:
            old = " (an older one goes into the package)" if built.is_file() else ""
            self._say(f"the page of Tunewright Studio was not built{old}: {reason}")
        elif not built.is_file():
            self._say("without the page of Tunewright Studio: everything else works")

    def _say(self, text: str) -> None:
        self.app.display_warning(text)


def build(sources: Path, built: Path) -> str:
    """Make the page if it is missing or old; why it could not be made, or nothing."""
    if not (sources / "package.json").is_file():
        return "" if built.is_file() else "its sources are not here"
    if built.is_file() and newest(sources) <= built.stat().st_mtime:
        return ""
    npm = shutil.which("npm")
    if npm is None:
        return "npm was not found; install Node 20.19 or newer and build again"
    for command in (["ci", "--no-audit", "--no-fund"], ["run", "build"]):
        # Standard output belongs to whoever asked for the build.
        done = subprocess.run([npm, *command], cwd=sources, stdout=sys.stderr, check=False)
        if done.returncode:
            return f"`npm {command[0]}` ended with {done.returncode}"
    return "" if built.is_file() else "npm made no index.html"


def newest(sources: Path) -> float:
    """When a source of the page was last changed."""
    return max((path.stat().st_mtime for path in files(sources)), default=0.0)


def files(folder: Path) -> Iterator[Path]:
    """The sources: everything but what npm put there."""
    for path in folder.iterdir():
        if path.is_dir():
            if path.name not in NO_SOURCES:
                yield from files(path)
        else:
            yield path
