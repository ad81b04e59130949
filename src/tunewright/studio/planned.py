"""The desk's view of a run before it starts: does it fit, how long will it take, what is wrong with
its settings, and the command and file that say the same.

The figures are those of `tunewright plan` without its trial passes, so that a form gets an answer
while it is filled in; what earlier plans and runs measured on this machine is used where it is
kept.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tunewright.core.errors import ConfigError, TunewrightError
from tunewright.core.run_text import command_of, ordered, yaml_of
from tunewright.core.runfile import flatten, parse_run, parse_value, read_yaml
from tunewright.core.telling import Quiet
from tunewright.core.words import say
from tunewright.studio.lines import Args, Request
from tunewright.studio.schema import comments

LONGEST_YAML = 1_000_000


class Plan(Args):
    """The settings of a form, by dotted key, and whether a few blocks of the model may be tried."""

    config: dict[str, Any]
    measure: bool = False


def plan(request: Request) -> dict[str, Any]:
    """What a run will need. Wrong settings come back as `problems`, without `fits` and figures;
    command and file are given all the same."""
    from tunewright.commands import planning

    asked = request.read(Plan)
    given = without_gaps(asked.config)
    written = {"command": command_of(given), "yaml": yaml_of(given, comments(given))}
    try:
        parsed = parse_run(dict(given), {key: key for key in given})
        found = planning.plan(parsed, planning.Wish(try_blocks=asked.measure), tell=_Lines(request))
    except TunewrightError as error:
        return {"problems": [one.as_dict() for one in error.problems], **written}
    return {**_figures(found), **written}


def without_gaps(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of a form that were filled in, those of nested sections dotted."""
    flat = flatten(config)
    flat.pop("", None)
    return {key: value for key, value in flat.items() if value is not None and value != ""}


class _Lines(Quiet):
    """Notes while a plan is made become events; a request that nobody waits for stops there."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request

    def line(self, text: str) -> None:
        """A finished line."""
        self.request.check()
        self.request.event("note", text=text)


def _figures(found: Any) -> dict[str, Any]:
    figures = found.figures
    low, high = figures["train_seconds_range"] or (None, None)
    beside = 0.0
    if figures["wall_seconds"] is not None and figures["train_seconds"] is not None:
        beside = figures["wall_seconds"] - figures["train_seconds"]
    return {
        "fits": figures["fits"],
        "memory_bytes": figures["needed_memory_bytes"],
        "peak_bytes": figures["peak_memory_bytes"],
        "available_bytes": figures["available_memory_bytes"],
        "by_part": {name: size for name, size in figures["parts"].items() if size},
        "part_titles": {
            name: say(f"fit.part.{name}") for name, size in figures["parts"].items() if size
        },
        "seconds": figures["wall_seconds"],
        "seconds_low": None if low is None else low + beside,
        "seconds_high": None if high is None else high + beside,
        "seconds_by_part": figures["seconds"],
        "disk_bytes": figures["checkpoints"]["kept_bytes"],
        "steps": figures["steps"],
        "rows": figures["samples"],
        "tokens": figures["tokens"],
        "trainable_parameters": figures["trainable_parameters"],
        "parameters": figures["parameters"],
        "device": figures["device"],
        "dtype": figures["dtype"],
        "measured": _measured(figures),
        "missing": figures["missing"],
        "lines": [line.strip() for line in found.lines],
        "problems": figures["problems"],
        "changes": _changes(found),
    }


def _measured(figures: dict[str, Any]) -> str:
    """What the time rests on, in a word for a machine: `runs`, `trial`, `rate` or `nothing`."""
    if figures["wall_seconds"] is None:
        return "nothing"
    if figures["tried_blocks"]:
        return "trial"
    return "runs" if figures["learnt_from_runs"] else "rate"


def _changes(found: Any) -> list[dict[str, Any]]:
    """What would make the run fit, as settings that a button can fill in."""
    seconds, out = found.figures["wall_seconds"], []
    for way in found.figures["ways"]:
        settings = {}
        for word in way["settings"]:
            key, _, value = word.partition("=")
            settings[key] = parse_value(value)
        key = next(iter(settings))
        notes = say("fit.way.join").join(say(f"fit.way.{name}") for name in way["changes"])
        out.append(
            {
                "key": key,
                "value": settings[key],
                "settings": settings,
                "text": notes,
                "memory_bytes": way["needed_memory_bytes"],
                "seconds": None if seconds is None else seconds * way["time_factor"],
            }
        )
    return out


# ---- a run file that was pasted


class Pasted(Args):
    """The text of a run file: ours, LLaMA-Factory's or Axolotl's."""

    yaml: str


def plan_yaml(request: Request) -> dict[str, Any]:
    """The settings of a pasted run file by dotted key. Raises ConfigError for text that is no run
    file of a known kind; wrong settings come back as `problems` beside what was read."""
    from tunewright.importing import translate

    asked = request.read(Pasted)
    if len(asked.yaml) > LONGEST_YAML:
        raise ConfigError.of("E-STUDIO-34", "yaml", most=f"{LONGEST_YAML:,}")
    with tempfile.TemporaryDirectory(prefix="tunewright-") as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(asked.yaml, encoding="utf-8")
        given, where = read_yaml(file)
        if _is_ours(given):
            return {"config": _own(given), "problems": _wrong(given, where), "system": None}
        made = translate(file)
    return {
        "config": ordered(flatten(made.run)),
        "problems": [one.as_dict() for one in made.problems],
        "system": made.system,
        "keys": [line.as_dict() for line in made.lines],
        "lines": made.describe(),
    }


def _is_ours(given: dict[str, Any]) -> bool:
    """Whether keys are those of our own run files: a model, and data or a method by our names."""
    sections = {key.partition(".")[0] for key in given}
    return (
        bool({"model", "data"} & sections)
        and "model_name_or_path" not in given
        and (
            bool(sections & {"method", "objective", "engine", "probes"})
            or "data.train" in given
            or isinstance(given.get("data"), str)
        )
    )


def _own(given: dict[str, Any]) -> dict[str, Any]:
    return ordered({key: value for key, value in given.items() if value is not None})


def _wrong(given: dict[str, Any], where: dict[str, str]) -> list[dict[str, Any]]:
    try:
        parse_run(dict(given), where)
    except ConfigError as error:
        return [one.as_dict() for one in error.problems]
    return []


# ---- a model by its name


class Named(Args):
    """A model as a run file names it."""

    model: str


def check_model(request: Request) -> dict[str, Any]:
    """What is known of a model from its small files; hubs are asked for these alone. Raises
    ModelError for one that is not there or cannot be used."""
    from tunewright.advise import fit
    from tunewright.core.errors import ModelError, raise_all
    from tunewright.models.load import is_scorer
    from tunewright.sources import find, headers, vet
    from tunewright.text.chat_kind import kind_of_model
    from tunewright.text.tokenizer import load_light

    asked = request.read(Named)
    source = find.resolve(asked.model, report=_Lines(request).line, weights=False)
    raise_all(vet.problems_of(source.folder, weights=False), ModelError)
    shape = fit.shape_of(source.folder)
    missing = fit.what_is_missing(source.folder, shape)
    files, _ = headers.weight_files(source.folder)
    try:
        chat = kind_of_model(source.folder, load_light(source.folder)[0])
        is_chat, reason = chat.is_chat, chat.reason
    except TunewrightError as error:
        is_chat, reason = False, error.problems[0].what()
    return {
        "id": asked.model,
        "label": asked.model,
        "where": {"pypi": "known", "hub": "cache", "modelscope": "cache"}.get(
            source.kind, "folder"
        ),
        "folder": str(source.folder),
        "bytes": shape.file_bytes,
        "parameters": shape.parameters,
        "family": shape.family,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "context": shape.context or None,
        "chat": is_chat,
        "chat_reason": reason,
        "judge": is_scorer(source.folder),
        "local": bool(files),
        "licence": None,
        "missing": missing,
        "note": source.note,
    }
