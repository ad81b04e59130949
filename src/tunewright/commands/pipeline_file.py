"""A pipeline file: runs that follow one another, each a named stage with the keys of a run; keys at
the top are shared by all.

Later layers win: the file's shared keys, the stage's own, `key=value` from the command line for all
stages, and `stages.NAME.key=value` for one. Where a layer names another kind of method or
objective, the keys of the earlier kind do not come with it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tunewright.core.errors import ConfigError, Problem, problem, raise_all
from tunewright.core.registry import AXES
from tunewright.core.runfile import (
    DEFAULT_KINDS,
    Loader,
    flatten,
    lines_of_keys,
    parse_value,
    read_yaml,
    value_text,
)
from tunewright.core.words import say

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
PREFIX = "stages"
REFERENCE = "stage:"
MOST_STAGES = 99


@dataclass
class Layer:
    """Dotted keys with the place each came from."""

    given: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, place: str) -> None:
        """One key; a bare section in its long form, so that layers meet under the same names."""
        if key == "data" and isinstance(value, str | list):
            key = "data.train"
        elif key in AXES and isinstance(value, str):
            key = f"{key}.kind"
        self.given[key], self.where[key] = value, place


@dataclass
class Stage:
    """One stage as written: its own keys, not yet those it shares."""

    name: str
    own: Layer
    words: Layer = field(default_factory=Layer)
    """What the command line says for this stage alone."""


@dataclass
class PipelineFile:
    """A pipeline file with the command line's words."""

    shared: Layer
    stages: list[Stage]
    words: Layer = field(default_factory=Layer)
    """What the command line says for all stages."""
    out: str | None = None

    def merged(self, stage: Stage) -> tuple[Layer, set[str]]:
        """All keys of a stage, and those that were given for it alone."""
        made = Layer()
        for layer in (self.shared, stage.own, self.words, stage.words):
            for axis, default in DEFAULT_KINDS.items():
                kind = layer.given.get(f"{axis}.kind")
                if kind is not None and kind != made.given.get(f"{axis}.kind", default):
                    for key in [key for key in made.given if key.startswith(f"{axis}.")]:
                        del made.given[key], made.where[key]
            made.given |= layer.given
            made.where |= layer.where
        return made, {*stage.own.given, *stage.words.given}


def is_pipeline(path: Path) -> bool:
    """Whether a file is YAML with a key `stages`. Says nothing about files that cannot be read:
    whoever opens them will."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=Loader)  # noqa: S506 - a SafeLoader with other number rules
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and PREFIX in content


def read_pipeline(
    path: Path, words: list[str] | None = None, flags: dict[str, Any] | None = None
) -> PipelineFile:
    """The stages of a file, with words and flags of the command line. Raises ConfigError with
    everything that is wrong about their form."""
    given, where = read_yaml(path)
    items = given.pop(PREFIX, None)
    shared = Layer()
    for key, value in given.items():
        shared.put(key, value, where.get(key, ""))
    problems: list[Problem] = []
    stages = _stages(path, items, where.get(PREFIX, path.name), problems)
    made = PipelineFile(shared, stages, out=shared.given.pop("out", None))
    for key, value in (flags or {}).items():
        if key == "out" and value is not None:
            made.out = value
        elif value is not None:
            made.words.put(key, value, "command line")
    for word in words or []:
        _take_word(made, word, problems)
    raise_all(problems, ConfigError)
    return made


def _stages(path: Path, items: Any, place: str, problems: list[Problem]) -> list[Stage]:
    if not isinstance(items, list) or not items or len(items) > MOST_STAGES:
        problems.append(
            problem("E-PIPE-01", place, fault=say("pipeline.fault.list", most=MOST_STAGES))
        )
        return []
    nodes = _nodes(path)
    stages: list[Stage] = []
    for number, (item, node) in enumerate(zip(items, nodes, strict=True), 1):
        lines, twice = lines_of_keys(node)
        here = f"{path.name}, line {node.start_mark.line + 1}"
        problems += [Problem(p.code, f"{path.name}, {p.where}", p.fields) for p in twice]
        if not isinstance(item, dict):
            problems.append(
                problem("E-PIPE-01", here, fault=say("pipeline.fault.mapping", number=number))
            )
            continue
        name = item.get("name")
        if (
            not isinstance(name, str)
            or not NAME.fullmatch(name)
            or name in [stage.name for stage in stages]
        ):
            problems.append(problem("E-PIPE-02", here, name=name, number=number))
            continue
        own = Layer()
        for key, value in flatten({k: v for k, v in item.items() if k != "name"}).items():
            own.put(key, value, f"{path.name}, line {lines.get(key, node.start_mark.line + 1)}")
        if "out" in own.given:
            problems.append(problem("E-PIPE-13", own.where["out"], stage=name))
        stages.append(Stage(name, own))
    return stages


def _nodes(path: Path) -> list[yaml.Node]:
    """The nodes of the stages, for their lines."""
    root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=Loader)
    assert isinstance(root, yaml.MappingNode)
    found = next(value for key, value in root.value if key.value == PREFIX)
    return list(found.value)


def _take_word(made: PipelineFile, word: str, problems: list[Problem]) -> None:
    """One `key=value` of the command line, into the layer it speaks about."""
    key, equals, text = word.partition("=")
    key = key.strip()
    if not equals or not key:
        problems.append(problem("E-CONFIG-15", "command line", word=word))
        return
    layer = made.words
    if key == PREFIX or key.startswith(f"{PREFIX}."):
        _, name, key = (*key.split(".", 2), "", "")[:3]
        names = [stage.name for stage in made.stages]
        if name not in names or not key:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            problems.append(
                problem(
                    "E-PIPE-14",
                    "command line",
                    word=word,
                    known=", ".join(names),
                    example=close[0] if close else "NAME",
                )
            )
            return
        layer = made.stages[names.index(name)].words
        if key == "out":
            problems.append(problem("E-PIPE-13", "command line", stage=name))
            return
    for inner, value in flatten(parse_value(text), key).items():
        if inner == "out":
            made.out = value
        else:
            layer.put(inner, value, "command line")


def write_text_of(stages: list[tuple[str, Layer]]) -> str:
    """The pipeline as a file that `read_pipeline` reads again: every key of every stage, with where
    it came from behind it."""
    lines = [f"{PREFIX}:"]
    for name, layer in stages:
        lines.append(f"  - name: {name}")
        sections: dict[str, list[str]] = {}
        for key, value in layer.given.items():
            section, _, inner = key.partition(".")
            shown = value_text(value)
            place = " ".join(layer.where.get(key, "").split())
            sections.setdefault(section, []).append(
                (f"      {inner}" if inner else f"    {section}")
                + f": {shown}"
                + (f"  # {place}" if place else "")
            )
        for section, inner_lines in sections.items():
            lines += (
                [f"    {section}:", *inner_lines]
                if inner_lines[0].startswith("      ")
                else inner_lines
            )
    return "\n".join(lines) + "\n"
