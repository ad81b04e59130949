"""From a foreign file to a run file, and the list of what became of each key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import ConfigError, Problem, problem
from tunewright.core.files import write_text
from tunewright.core.runfile import flatten, parse_run, read_yaml
from tunewright.core.words import say
from tunewright.importing import axolotl, command, llama_factory, processes, swift, torchtune, trl
from tunewright.importing.sheet import DEFAULT, EMPTY, LOST, Line, Sheet

SYSTEMS = (llama_factory, axolotl, swift, trl, torchtune)
BY_NAME = {module.NAME: module for module in SYSTEMS}
YAML = (".yaml", ".yml", ".json")
ORDER = ("model", "adapter", "data", "base", "method", "objective", "engine", "out")


@dataclass
class Imported:
    """A foreign file as a run. `problems` say why this version would not start it; empty for a run
    that loads."""

    source: str
    system: str
    lines: list[Line]
    run: dict[str, Any]
    problems: list[Problem]

    def yaml(self) -> str:
        """The run file as text, with where it came from and what could not be kept."""
        import yaml

        lost = [
            f"#   {line.key}: {line.value}  ({line.why})"
            for line in self.lines
            if line.fate == LOST
        ]
        head = [
            f"# {say('import.head', file=self.source, system=self.system)}",
            *([f"# {say('import.head_lost')}"] if lost else []),
        ]
        body = yaml.safe_dump(
            self.run, sort_keys=False, allow_unicode=True, width=150, default_flow_style=None
        )
        return "\n".join(" ".join(line.split("\n")) for line in [*head, *lost]) + "\n" + str(body)

    def describe(self) -> list[str]:
        """One line a key, for a terminal."""
        out = [
            say(
                "import.system",
                file=self.source,
                system=self.system,
                count=sum(line.fate != DEFAULT for line in self.lines),
            )
        ]
        for line in self.lines:
            if line.fate == EMPTY:
                continue
            ours = ", ".join(f"{key}: {_shown(value)}" for key, value in line.ours.items())
            reason = f"  ({line.why})" if line.why else ""
            out.append(
                f"{say(f'import.fate.{line.fate}')}  {line.key}: {_shown(line.value)}"
                + (f" -> {ours}" if ours else "")
                + reason
            )
        empty = [line.key for line in self.lines if line.fate == EMPTY]
        if empty:
            out.append(f"{say('import.fate.empty')}  {', '.join(empty)}")
        return out + [f"! {p.line()}" for p in self.problems]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        keys = [line.as_dict() for line in self.lines]
        return {
            "source": self.source,
            "system": self.system,
            "keys": keys,
            "run": self.run,
            "problems": [p.as_dict() for p in self.problems],
        }


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"[{', '.join(map(_shown, value))}]" if isinstance(value, list) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def translate(source: Path | str, devices: int = 1) -> Imported:
    """The run that a file or command of another tool describes, and one line for every key of it.

    `source` is a run file, a script that holds a training command, or the command itself. `devices`
    is the number of processors it was meant for: their batch is per device. Raises ConfigError for
    a file that cannot be read, that is of no tool that is known, or that is one of our own.
    """
    path = Path(source)
    asked = _command(source)
    if asked is None:
        given, where = read_yaml(path)
        module = _told(given, path)
        return _answered(module, given, where, path.name, devices, "", path.parent)
    given, where = {}, {}
    shown = path.name if path.is_file() else f"{asked.program} {asked.verb}"
    if asked.file is not None:
        named = _named(asked.file, path)
        if named is None:
            raise ConfigError.of("E-KEY-12", shown, file=shown, named=asked.file)
        given, where = read_yaml(named)
    given, where = {**given, **asked.given}, {**where, **asked.where}
    count = asked.devices if devices == 1 and asked.devices else devices
    return _answered(BY_NAME[asked.system], given, where, shown, count, asked.verb)


def _command(source: Path | str) -> command.Command | None:
    """The training command that `source` is or holds; None for a run file."""
    path, text = Path(source), str(source)
    if not path.is_file():
        return command.find(text, "command") if " " in text.strip() else None
    if path.suffix.lower() in YAML:
        return None
    try:
        return command.find(path.read_text(encoding="utf-8-sig"), path.name)
    except UnicodeDecodeError as e:
        raise ConfigError.of("E-CONFIG-02", path.name, cause=e) from e


def _named(file: str, beside: Path) -> Path | None:
    """The run file that a command names: where it stands, or beside the script."""
    places = [Path(file), beside.parent / file if beside.is_file() else Path(file)]
    return next((place for place in places if place.is_file()), None)


def _told(given: dict[str, Any], path: Path) -> Any:
    """The tool whose keys a run file has. Raises ConfigError where that is none."""
    tops = {key.split(".")[0] for key in given}
    scores = {module: len(module.OWN & tops) for module in SYSTEMS}
    best = max(scores, key=lambda module: scores[module])
    if "model" in given and any(key.startswith("data") for key in given) and scores[best] < 2:
        raise ConfigError.of("E-CONFIG-41", str(path), file=path.name)
    if scores[best] < 2 or list(scores.values()).count(scores[best]) > 1:
        raise ConfigError.of(
            "E-CONFIG-40", str(path), file=path.name, found=", ".join(list(given)[:12])
        )
    if best is llama_factory and "export_dir" in given and "dataset" not in given:
        raise ConfigError.of("E-CONFIG-42", str(path), file=path.name)
    return best


def _answered(
    module: Any,
    given: dict[str, Any],
    where: dict[str, str],
    shown: str,
    devices: int,
    verb: str,
    folder: Path | None = None,
) -> Imported:
    """The keys of one tool, answered. `folder`: where files lie that the keys name."""
    sheet = Sheet(module.NAME, _whole(given), where)
    with_verb = module not in (llama_factory, axolotl)
    module.translate(sheet, devices, *([verb] if with_verb else []))
    processes.take(sheet, devices, folder)  # the same settings in all of them
    lines = sheet.finish()
    return Imported(shown, module.NAME, lines, _nested(sheet.run), _problems(sheet, shown))


def _whole(given: dict[str, Any]) -> dict[str, Any]:
    """Foreign keys; nested ones stay dotted, for each needs an answer of its own."""
    return {str(key): value for key, value in given.items()}


def _problems(sheet: Sheet, name: str) -> list[Problem]:
    places = {ours: line.where for line in sheet.lines.values() for ours in line.ours}
    try:
        parse_run(dict(sheet.run), {key: places.get(key, name) for key in sheet.run})
    except ConfigError as error:
        return error.problems
    return []


def _nested(run: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for first in ORDER:
        for key in sorted(
            (k for k in run if k.split(".")[0] == first), key=lambda k: not k.endswith(".kind")
        ):
            section, dot, name = key.partition(".")
            if dot:
                out.setdefault(section, {})[name] = run[key]
            else:
                out[section] = run[key]
    assert flatten(out) == run  # nothing of the run is lost on the way to the file
    return out


def write(made: Imported, out: Path, force: bool = False) -> None:
    """Put the run file down. Raises ConfigError, with nothing written, where it would not load or
    `out` is there already."""
    if made.problems:
        raise ConfigError(
            [problem("E-CONFIG-44", str(out), count=len(made.problems)), *made.problems]
        )
    if out.exists() and (not force or out.is_dir()):
        raise ConfigError.of("E-CONFIG-43", str(out), file=str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, made.yaml())
