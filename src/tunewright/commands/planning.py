"""`tunewright plan`, and the estimate at the end of `train --dry-run`: the story of a run, stopped
before its weights are read, with what it will need said in full."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tunewright.advise import among, changes, devices, fit, memory, speed
from tunewright.advise.devices import Device
from tunewright.advise.question import GUESSED_TOKENS
from tunewright.core.config import BaseConfig
from tunewright.core.errors import ModelError, Problem, UsageError, raise_all
from tunewright.core.files import readable_size
from tunewright.core.machine import available_bytes, available_processors
from tunewright.core.registry import AXES, methods
from tunewright.core.runfile import ParsedRun, kind_of, objective_of
from tunewright.core.telling import Once, Tell
from tunewright.core.words import say
from tunewright.data import describe
from tunewright.engine import placement
from tunewright.engine.placement import World
from tunewright.engine.schedule import total_steps
from tunewright.models.limits import ANSWER_TOKENS
from tunewright.models.shape import trainable_parameters
from tunewright.run import decided
from tunewright.run.prepare import Begun, begin, complete
from tunewright.sources import find, vet

MADE_UP, ANY_MODEL = "made-up rows", "any model"
"""What stands for data that is not read, and for a model that is not looked for."""
TABLE_SIZES = (0, 1, 2, 5, 8, 9, 11, 12)
"""Which shapes of `changes.LADDER` are columns of the table."""
SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([bBmM])\s*$")
FITS_ON = 6
"""Devices that are named as large enough: the smallest."""


@dataclass(frozen=True)
class Wish:
    """What a person asks besides the run file."""

    device: Device | None = None
    """Another machine than this one."""
    memory: int | None = None
    """Bytes that it has, where that is told."""
    price: float | None = None
    """Of a kilowatt-hour, in whatever money."""
    watts: float | None = None
    rows: int | None = None
    tokens: int | None = None
    """Rows of made-up data, and tokens of each: no data is read then."""
    shape: fit.ModelShape | None = None
    """A model that is known by its size only: none is looked for."""
    devices: int | None = None
    """So many of it share each step; None: as `engine.processes` says."""
    out_matters: bool = False
    """A run folder that is taken is refused."""
    try_blocks: bool = True
    """Measure on a few blocks of the model, where that is not known yet; takes some seconds."""

    def without_data(self) -> Wish:
        """The same for rows that are made up."""
        return replace(self, rows=self.rows or 1000, tokens=self.tokens or 512)


@dataclass(frozen=True)
class Judged:
    """An estimate, the memory it is held against, and what is missing for the run."""

    found: fit.Estimate
    available: int
    missing: list[str]
    where: str


def judge(parsed: ParsedRun, tell: Tell, wish: Wish | None = None) -> tuple[Judged, Begun | None]:
    """Check a run, show its data and estimate what it needs. Raises UsageError for everything
    `train` would refuse but for what cannot fit.

    With only a config.json at hand nothing loads torch. What cannot fit by its count alone is not
    tried on this machine.
    """
    wish = wish or Wish()
    # The model is looked for twice: without its weights and, where they are here, with them.
    tell = Once(tell)
    made_up = wish.tokens is not None
    begun = None if made_up else begin(parsed, out_matters=wish.out_matters)
    config = parsed.config if begun is None else begun.config
    shape, missing = wish.shape, list[str]()
    if shape is None:
        source = find.resolve(config.model, report=tell.line, weights=False)
        raise_all(vet.problems_of(source.folder, weights=False), ModelError)
        shape = fit.shape_of(source.folder)
        missing = fit.what_is_missing(source.folder, shape)
    for line in missing:
        tell.line(line)
    where = "" if wish.device is None else wish.device.name
    quick = _counted(parsed if begun is None else begun.continued.parsed, begun, shape, wish)
    available = _available(quick.question.device, wish)
    if begun is None or wish.shape is not None or missing or quick.needed_bytes > 1.5 * available:
        if begun is not None:
            tell.line(describe(begun.rows.report, colour=tell.colour))
        return Judged(quick, available, missing, where), begun
    found = _of_plan(begun, wish, tell)
    return Judged(found, _available(found.question.device, wish), missing, where), begun


def _available(device: str, wish: Wish) -> int:
    if wish.memory is not None:
        return wish.memory
    if wish.device is not None:
        return wish.device.usable_bytes
    return available_bytes(device)


def _of_plan(begun: Begun, wish: Wish, tell: Tell) -> fit.Estimate:
    """The estimate of a run whose weights are here."""
    elsewhere = wish.device is not None
    plan = complete(begun, tell, is_light=elsewhere or not wish.try_blocks)
    if wish.device is not None:
        world = _world_of(plan.config.engine, wish.device, wish.devices)
        available = _available(world.device, wish)
        return plan.estimate(world, wish.device.rates(), here=False, available=available)
    if not wish.try_blocks:
        rows = plan.data.train, plan.data.report
        world = placement.start(plan.config.engine, rows, will_compute=False)
        world = _shared(world, plan.config.engine, wish.devices)
        decided.say_where(world, tell)
        rates = speed.kept_rates(plan.shape, world)
        return plan.estimate(world, rates, available=_available(world.device, wish))
    world = _shared(decided.place(plan), plan.config.engine, wish.devices)
    decided.say_where(world, tell)
    tell.start(say("plan.trying"))
    rates, available = speed.measured_rates(plan.shape, world), _available(world.device, wish)
    found = plan.estimate(world, rates, try_blocks=True, available=available)
    tell.finish()
    return found


def _shared(world: World, engine: Any, devices: int | None) -> World:
    """The same for the processes that a person asks for."""
    asked = engine.processes if devices is None else devices
    world.processes = 1 if asked == "auto" else int(asked)
    world.parallel = engine.parallel if world.processes > 1 else "none"
    return world


def _world_of(engine: Any, device: Device, count: int | None = None) -> World:
    """Where and how a run would compute on a machine that is not here."""
    rows = placement.GPU_ROWS if engine.rows_per_pass == "auto" else engine.rows_per_pass
    dtype = device.dtype if engine.dtype == "auto" else engine.dtype
    name = "cuda:0" if device.device == "cuda" else device.device
    return _unread(name, dtype, rows, engine, count)


def _unread(device: str, dtype: str, rows: int, engine: Any, count: int | None) -> World:
    world = World(
        device, dtype, available_processors(), rows, engine.recompute, offload=engine.offload
    )
    return _shared(world, engine, count)


def _counted(
    parsed: ParsedRun, begun: Begun | None, shape: fit.ModelShape, wish: Wish
) -> fit.Estimate:
    """The estimate of a run of whose model only the configuration is known; what is `auto` is taken
    as it mostly becomes."""
    config, engine = parsed.config, parsed.config.engine
    if begun is None:
        rows, tokens = wish.rows or 1000, wish.tokens or GUESSED_TOKENS
        facts = fit.SampleFacts(rows, rows * tokens, rows * tokens // 2, tokens)
    else:
        facts = fit.SampleFacts.of(begun.rows.report)
    if wish.device is not None:
        world = _world_of(engine, wish.device, wish.devices)
    else:
        per_pass = placement.CPU_ROWS if engine.rows_per_pass == "auto" else engine.rows_per_pass
        dtype = "bfloat16" if engine.dtype == "auto" else engine.dtype
        device = "cpu" if engine.device == "auto" else engine.device
        world = _unread(device, dtype, per_pass, engine, wish.devices)
    found = fit.of_run(
        config,
        objective_of(config),
        shape,
        facts,
        steps=total_steps(engine, facts.samples),
        dtype=world.dtype,
        device=world.device,
        rows_per_pass=world.rows_per_pass,
        answer_tokens=ANSWER_TOKENS,
        rates=wish.device.rates() if wish.device is not None else None,
        here=wish.device is None,
        processes=world.processes,
        parallel=world.parallel,
    )
    available = _available(found.question.device, wish)
    if world.parallel == "auto":
        found = fit.among_processes(found, world, available)
    room, _ = fit.room_for(found, engine.recompute, engine.offload, available)
    return fit.with_room(found, room)


# ---- the plan


@dataclass(frozen=True)
class Planned:
    """What a run will need, as plain values and as sentences; `problems` where it does not fit."""

    figures: dict[str, Any]
    lines: list[str]
    problems: list[Problem]


def plan(parsed: ParsedRun, wish: Wish | None = None, *, tell: Tell | None = None) -> Planned:
    """What a run will need, here or on another machine. Raises UsageError for everything `train`
    would refuse but for what cannot fit."""
    tell, wish = tell or Tell(), wish or Wish()
    judged, _ = judge(parsed, tell, wish)
    found, asked = judged.found, judged.found.question
    trouble = fit.problems(found, judged.available)
    result = figures(judged)
    result |= {
        "fits": not trouble,
        "problems": [one.as_dict() for one in trouble],
        "ways": [way.as_dict() for way in _ways(judged)],
        "fits_on": fits_on(parsed, found),
        "tokens": _tokens(found),
        "checkpoints": _checkpoints(found),
        "electricity": _electricity(found, wish),
        "device_name": judged.where or None,
        "trainable_parameters": asked.trainable,
    }
    lines = fit.describe(found, judged.available, judged.where)
    return Planned(result, [*lines, *_more_lines(result, found)], trouble)


def figures(judged: Judged) -> dict[str, Any]:
    """What `train --dry-run --json` gives."""
    found, asked = judged.found, judged.found.question
    return {
        "missing": judged.missing,
        "steps": found.steps,
        "samples": asked.facts.samples,
        "peak_memory_bytes": found.peak_bytes,
        "needed_memory_bytes": found.needed_bytes,
        "available_memory_bytes": judged.available,
        "parts": found.parts,
        "train_seconds": found.seconds,
        "train_seconds_range": found.seconds_range,
        "measure_seconds": found.measure_seconds,
        "seconds": found.by_part(),
        "wall_seconds": found.wall_seconds,
        "tried_blocks": asked.trial.blocks if asked.trial is not None else None,
        "learnt_from_runs": asked.learnt.runs if asked.learnt is not None else 0,
        "dtype": asked.dtype,
        "device": asked.device,
        "parameters": asked.shape.parameters,
        "rows_per_pass": asked.rows_per_pass,
        "pass_rows": found.rows,
        "processes": asked.processes,
        "parallel": asked.parallel,
        "sent_bytes_per_step": among.sent_bytes(asked),
    }


def _ways(judged: Judged) -> list[changes.Way]:
    """What would make a run fit that does not, or that is tight."""
    if judged.found.needed_bytes <= fit.comfortable(judged.found.question, judged.available):
        return []
    return fit.ways_to_fit(judged.found, judged.available)


def fits_on(parsed: ParsedRun, found: fit.Estimate) -> list[str]:
    """Names of the smallest known devices that hold the run as it is."""
    engine, names = parsed.config.engine, []
    for device in devices.all_devices():
        world = _world_of(engine, device)
        asked = replace(
            found.question,
            device=world.device,
            dtype=world.dtype,
            rows_per_pass=world.rows_per_pass,
            # Elsewhere is the same memory where processor and GPU share it.
            offload=found.question.offload if world.device.startswith("cuda") else "none",
            trial=None,
            counted=None,
        )
        if fit.needed(asked) <= fit.comfortable(asked, device.usable_bytes):
            names.append(device.name)
    return names[:FITS_ON]


def _tokens(found: fit.Estimate) -> dict[str, int]:
    asked = found.question
    rows = asked.step_rows * found.steps
    return {"computed": rows, "learnt": round(rows * asked.label_share)}


def _checkpoints(found: fit.Estimate) -> dict[str, int]:
    """Checkpoints that are written, bytes of each, and bytes that stay in the run folder: the last
    two, the best one, and what was trained."""
    asked = found.question
    each = memory.checkpoint_bytes(asked.work)
    kept = min(3, asked.saves)
    final = memory.saved_bytes(asked.grown, asked.work)
    return {"written": asked.saves, "bytes": each, "kept_bytes": kept * each + final}


def _electricity(found: fit.Estimate, wish: Wish) -> dict[str, float] | None:
    watts = wish.watts or (wish.device.watts if wish.device is not None else None)
    if found.wall_seconds is None or watts is None:
        return None
    kwh = watts / 1000 * found.wall_seconds / 3600
    cost = {} if wish.price is None else {"cost": kwh * wish.price}
    return {"watts": watts, "kwh": kwh, **cost}


def _more_lines(result: dict[str, Any], found: fit.Estimate) -> Iterator[str]:
    tokens, kept = result["tokens"], result["checkpoints"]
    yield say(
        "plan.tokens",
        computed=f"{tokens['computed']:,}",
        learnt=f"{tokens['learnt']:,}",
        steps=f"{found.steps:,}",
        batch=found.question.batch_size,
    )
    yield say(
        "plan.disk",
        count=kept["written"],
        each=readable_size(kept["bytes"]),
        kept=readable_size(kept["kept_bytes"]),
    )
    power = result["electricity"]
    if power is not None:
        yield say("plan.power", kwh=f"{power['kwh']:.3g}", watts=f"{power['watts']:g}")
        if "cost" in power:
            yield say("plan.cost", cost=f"{power['cost']:.3g}")
    if result["fits_on"]:
        yield say("plan.fits_on", names=", ".join(result["fits_on"]))
    elif not result["fits"]:
        yield say("plan.fits_nowhere")
    least = None if result["fits"] or result["ways"] else fit.leanest(found)
    if least is not None:
        yield say(
            "plan.least",
            memory=readable_size(least.needed_bytes),
            settings=" ".join(least.settings),
        )


# ---- the table


def table(parsed: ParsedRun, wish: Wish | None = None) -> dict[str, Any]:
    """Peak memory of every method on models of several sizes, with the rest of the run as it is.
    Nothing is read but the run file, and its data where it has any."""
    wish = wish or Wish()
    config = parsed.config
    begun = None if wish.tokens is not None else begin(parsed, out_matters=False)
    sizes = [changes.ladder()[n] for n in TABLE_SIZES]
    rows: list[dict[str, Any]] = []
    available = None
    for name, method, base in _table_methods():
        asked = config.model_copy(update={"method": method, "base": base or config.base})
        cells = []
        for shape in sizes:
            found = _counted(replace(parsed, config=asked), begun, shape, wish)
            available = _available(found.question.device, wish)
            trained = trainable_parameters(shape, method)
            cells.append(
                {
                    "parameters": shape.parameters,
                    "trainable_parameters": trained,
                    "needed_memory_bytes": found.needed_bytes,
                    "fits": found.needed_bytes <= available,
                }
            )
        rows.append({"method": name, "cells": cells})
    rows.sort(key=lambda row: row["cells"][-1]["needed_memory_bytes"])
    where = wish.device.name if wish.device is not None else None
    return {"available_memory_bytes": available, "device_name": where, "rows": rows}


def _table_methods() -> Iterator[tuple[str, Any, BaseConfig | None]]:
    """(name, settings, how its base is held) of every method that needs no settings of its own."""
    for name in methods.names():
        entry = methods.get(name)
        if entry is None or not entry.has_defaults:
            continue
        yield name, entry.config(), None
        if name == "lora":
            yield "lora + base.bits=8", entry.config(), BaseConfig(bits=8)
            yield "lora + base.bits=4", entry.config(), BaseConfig(bits=4)


def table_lines(result: dict[str, Any]) -> list[str]:
    """The table for people: GiB, with a mark behind what does not fit."""
    rows = result["rows"]
    heads = [f"{changes.billions(c['parameters'])}B" for c in rows[0]["cells"]]
    wide = max(len(row["method"]) for row in rows)
    lines = [say("plan.table", have=readable_size(result["available_memory_bytes"]))]
    lines.append(" " * wide + "".join(f"{head:>10}" for head in heads))
    for row in rows:
        cells = [
            f"{c['needed_memory_bytes'] / 2**30:.1f}{' ' if c['fits'] else '✗'}"
            for c in row["cells"]
        ]
        lines.append(f"{row['method']:<{wide}}" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def kinds_of(parsed: ParsedRun) -> dict[str, str]:
    """The kind of each axis of a run."""
    return {axis: kind_of(getattr(parsed.config, axis)) for axis in AXES}


def require(judged: Judged) -> None:
    """Raise UsageError (E-FIT-01) where the run does not fit."""
    raise_all(fit.problems(judged.found, judged.available), UsageError)


def shape_of_size(text: str) -> fit.ModelShape:
    """The shape of a common model of about so many weights: `7B`, `1.8b`, `350M`. Raises UsageError
    (E-FIT-06)."""
    found = SIZE.match(text)
    wanted = float(found.group(1)) * (1e6 if found.group(2).lower() == "m" else 1e9) if found else 0
    if not wanted > 0:
        raise UsageError.of("E-FIT-06", "--size", text=text)
    return min(changes.ladder(), key=lambda s: abs(math.log(s.parameters / wanted)))
