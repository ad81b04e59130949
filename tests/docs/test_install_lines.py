"""What a page or a message tells people to install can be installed: every extra that is named
exists, and brings what it is named for."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = {
    re.match(r"[\w.-]+", line)[0].lower()
    for line in [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
}  # type: ignore[index]
PLACES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "recipes/**/*",
        "benchmarks/**/*",
        "src/**/*.py",
        "src/**/*.json",
        "src/**/*.en",
        "src/**/*.zh",
    )
    for path in ROOT.glob(pattern)
    if path.is_file()
    and path.suffix in (".md", ".py", ".json", ".yaml", ".ipynb", ".en", ".zh", ".sh")
)
INSTALL = re.compile(r"pip3? install(?:\s+-[\w-]+)*\s+(\\?[\"'])?([A-Za-z.][\w.-]*)")
"""The first thing that a line installs, which is all that a line here installs."""
EXTRA = re.compile(r"(?:tunewright|(?<![\w\])])\.)\[([\w, -]+)\]")


def texts(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return "\n".join(map(str, json.loads(text).values())) if "locales" in path.parts else text


def extras_in(path: Path) -> set[str]:
    """Names in brackets behind `tunewright` or a dot, in lines that speak of installing."""
    lines = (line for line in texts(path).split("\n") if "pip" in line)
    return {
        name.strip()
        for line in lines
        for found in EXTRA.finditer(line)
        for name in found[1].split(",")
    }


def test_the_lines_are_found() -> None:
    named = {name for path in PLACES for name in extras_in(path)}
    assert {"hub", "quant", "test"} <= named
    assert len([path for path in PLACES if INSTALL.search(texts(path))]) > 8


@pytest.mark.parametrize(
    "path",
    [path for path in PLACES if extras_in(path)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_extra_that_is_named_exists(path: Path) -> None:
    assert extras_in(path) <= set(EXTRAS)


@pytest.mark.parametrize(
    "path",
    [path for path in PLACES if INSTALL.search(texts(path))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_package_that_is_named_is_this_one_or_one_that_it_needs(path: Path) -> None:
    for found in INSTALL.finditer(texts(path)):
        assert found[2].strip(".-").lower() in NEEDED | {"tunewright", ""}, found[0]


def test_extras_bring_what_messages_name_them_for() -> None:
    named = (
        ("quant", "bitsandbytes"),
        ("hub", "modelscope"),
        ("hub", "datasets"),
        ("remote", "s3fs"),
    )
    for extra, package in named:
        assert any(line.startswith(package) for line in EXTRAS[extra])
