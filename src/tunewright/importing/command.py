"""The training command of another tool, taken out of a shell script or a line.

Understood: lines joined by a backslash, comments, `NAME=value` lines and `$NAME` in what follows,
settings before a command (`NPROC_PER_NODE=2 swift sft ...`), and launchers around it (`accelerate
launch`, `torchrun`, `python -m`). Nothing is run.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.errors import ConfigError, problem
from tunewright.core.runfile import flatten, parse_value

PROGRAMS = {
    "swift": "ms-swift",
    "megatron": "ms-swift",
    "trl": "TRL",
    "tune": "torchtune",
    "llamafactory-cli": "LLaMA-Factory",
    "lmf": "LLaMA-Factory",
    "axolotl": "Axolotl",
}
"""The name of a program -> the tool it belongs to."""
SCRIPTS = (
    (re.compile(r"swift[./]cli[./](sft|rlhf|pt)\b"), "ms-swift"),
    (re.compile(r"trl[./]scripts[./](sft|dpo|kto|grpo|rloo|reward|orpo|cpo|online_dpo)\b"), "TRL"),
    (re.compile(r"axolotl\.cli\.(train)\b"), "Axolotl"),
    (re.compile(r"llamafactory[./]launcher|src/train\.py"), "LLaMA-Factory"),
)
"""What a launcher is given in place of a program; the group is the verb."""
ASSIGNED = re.compile(r"^(?:export\s+)?([A-Za-z_]\w*)=(\S*|'[^']*'|\"[^\"]*\")\s*$")
VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)(?::?-([^}]*))?\}?")
DEVICES = re.compile(r"\b(?:NPROC_PER_NODE|nproc_per_node|num_processes)[= ](\d+)")


@dataclass
class Command:
    """A training command: the tool, its verb (`sft`, `dpo`; of torchtune the recipe), the run file
    that it names, and the dotted keys that it gives itself."""

    system: str
    program: str
    verb: str
    file: str | None = None
    given: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    devices: int | None = None
    """Processes that it starts, where it says so."""


def find(text: str, name: str) -> Command | None:
    """The first training command in a script or line called `name`; None where there is none.
    Raises ConfigError (E-KEY-10) for one whose quotes do not close."""
    values: dict[str, str] = {}
    for number, line in _lines(text):
        assigned = ASSIGNED.match(line.strip())
        if assigned:
            values[assigned[1]] = _filled(assigned[2].strip("'\""), values)
            continue
        if not any(word in line for word in (*PROGRAMS, "launch", "torchrun", "python")):
            continue
        place = f"{name}, line {number}"
        try:
            # Comments are left in: a `#` inside a word is part of it, as in `rows.jsonl#500`.
            words = shlex.split(_filled(line, values))
        except ValueError as e:
            raise ConfigError(problem("E-KEY-10", place, cause=str(e))) from e
        made = _command(words, place)
        if made is not None:
            count = DEVICES.search(line)
            made.devices = int(count[1]) if count else None
            return made
    return None


def _lines(text: str) -> list[tuple[int, str]]:
    """(number of the first, text) of the lines, joined where one goes on in the next: after a
    backslash, or `^` or a backtick, as in the shells of Windows."""
    found: list[tuple[int, str]] = []
    open_since, held = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.rstrip()
        if not held and (not bare or bare.lstrip().startswith("#")):
            continue
        open_since = open_since if held else number
        if bare.endswith(("\\", "^", "`")):
            held += bare[:-1] + " "
            continue
        found.append((open_since, held + bare))
        held = ""
    return [*found, (open_since, held)] if held else found


def _filled(text: str, values: dict[str, str]) -> str:
    """Variables replaced by what the script gave them; others stay."""

    def value(match: re.Match[str]) -> str:
        return values.get(match[1], match[2] if match[2] is not None else match[0])

    return VARIABLE.sub(value, text)


def _command(words: list[str], place: str) -> Command | None:
    for i, word in enumerate(words):
        system = PROGRAMS.get(Path(word).name)
        if system is not None:
            return _of(system, Path(word).name, words[i + 1 :], place)
        for pattern, name in SCRIPTS:
            script = pattern.search(word)
            if script:
                verb = script[1] if script.groups() else "train"
                return _of(name, Path(word).name, [verb, *words[i + 1 :]], place)
    return None


def _of(system: str, program: str, words: list[str], place: str) -> Command | None:
    """The command of a tool from the words after its name; None for a verb that does not train."""
    verbs = {
        "ms-swift": ("sft", "rlhf", "pt"),
        "TRL": ("sft", "dpo", "kto", "grpo", "rloo", "reward", "orpo", "cpo", "online_dpo"),
        "torchtune": ("run",),
        "LLaMA-Factory": ("train",),
        "Axolotl": ("train",),
    }[system]
    if not words or words[0] not in verbs:
        return None
    verb, rest = words[0], words[1:]
    if system == "torchtune":
        # Launcher options stand before the recipe.
        at = next(
            (i for i, w in enumerate(rest) if re.search(r"_(single_device|distributed)", w)), 0
        )
        verb, rest = (rest[at], rest[at + 1 :]) if rest else ("", [])
    made = Command(system, program, Path(verb).stem)
    _read(made, rest, place)
    return made


def _read(made: Command, words: list[str], place: str) -> None:
    """Options (`--name value ...`, `--name=value`), `key=value` words and a run file."""
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if word.startswith("--"):
            key, equals, text = word[2:].partition("=")
            values = [text] if equals else []
            if key == "config" and not equals and i < len(words):
                values, i = [words[i]], i + 1
            while not equals and key != "config" and i < len(words) and not _is_option(words[i]):
                values.append(words[i])
                i += 1
            _give(made, key.replace("-", "_"), values, place)
        elif re.match(r"^[\w.\-]+=", word):
            key, _, text = word.partition("=")
            _give(made, key, [text], place)
        elif word in ("&&", ";", "|", "&", ">", "2>&1") or word.startswith((">", "#")):
            break
        elif word.endswith((".yaml", ".yml", ".json")):
            made.file = word


def _is_option(word: str) -> bool:
    return word.startswith(("--", "#")) or word in ("&&", ";", "|", "&", ">", "2>&1")


def _give(made: Command, key: str, words: list[str], place: str) -> None:
    if key == "config" and words:
        made.file = words[0]
        return
    values = [parse_value(word) for word in words]
    value: Any = True if not values else values[0] if len(values) == 1 else values
    for inner, one in flatten(value, key).items():
        made.given[inner], made.where[inner] = one, place
