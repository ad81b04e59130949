"""`tunewright train --dry-run`: every check, the data report and an estimate, and nothing written
or downloaded but small files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.advise import fit
from tunewright.core import compat
from tunewright.core.errors import CompatError, ModelError, UsageError, raise_all
from tunewright.core.machine import available_bytes
from tunewright.core.registry import AXES
from tunewright.core.runfile import ParsedRun, kind_of
from tunewright.core.telling import Once, Tell
from tunewright.core.words import say
from tunewright.data import describe, inspect
from tunewright.engine import placement
from tunewright.engine.schedule import total_steps
from tunewright.methods import continuing
from tunewright.record import folder
from tunewright.sources import find, vet
from tunewright.story import prepare


def dry_run(parsed: ParsedRun, *, tell: Tell | None = None) -> dict[str, Any]:
    """Check a run, show its data and estimate its memory and time. Raises UsageError for everything
    `train` would refuse, also for what cannot fit.

    With only a config.json at hand it says what is missing and what would fit, without loading
    torch.
    """
    tell = Once(
        tell or Tell()
    )  # the model is looked for twice: without its weights and, where they are here, with them
    config = continuing.resolve(parsed).parsed.config
    raise_all(compat.problems(config), CompatError)
    folder.require_free(
        Path(config.out) if config.out else folder.default_out(config, kind_of(config.method))
    )
    bare = inspect(config.data, None, needs_tokens=False, wants=compat.wanted_rows(config))
    raise_all(compat.row_problems(config, bare.report["kinds"]), CompatError)
    source = find.resolve(config.model, report=tell.line, weights=False)
    raise_all(vet.problems_of(source.folder, weights=False), ModelError)
    shape = fit.shape_of(source.folder)
    missing = fit.what_is_missing(source.folder, shape)
    for line in missing:
        tell.line(line)
    if missing:
        tell.line(describe(bare.report, colour=tell.colour))
        dtype: str = config.engine.dtype if config.engine.dtype != "auto" else "bfloat16"
        device = config.engine.device if config.engine.device != "auto" else "cpu"
        rows = (
            config.engine.rows_per_pass
            if config.engine.rows_per_pass != "auto"
            else placement.CPU_ROWS
        )
        rate: float | None = None
        facts, layout = fit.SampleFacts.of(bare.report), "tree"
    else:
        prepared = prepare(parsed, tell)
        from tunewright.advise.speed import measured_rate

        world = placement.start(config.engine, (prepared.data.train, prepared.data.report))
        dtype, device, rows = world.dtype, world.device, world.rows_per_pass
        layout = "padded" if config.engine.layout == "padded" else "tree"
        facts = fit.SampleFacts.of(prepared.data.report, prepared.data.train, layout)
        rate = measured_rate(shape, dtype=dtype, device=device, threads=world.threads)
        tell.line(
            say(
                "train.where",
                device=device,
                device_why=world.reasons["engine.device"],
                dtype=dtype,
                dtype_why=world.reasons.get("engine.dtype", say("placement.asked")),
            )
        )
    steps = total_steps(config.engine, facts.samples)
    found = fit.of_run(
        config,
        shape,
        facts,
        steps=steps,
        dtype=dtype,
        device=device,
        rows_per_pass=rows,
        layout=layout,
        flops_per_second=rate,
    )
    available = available_bytes(device)
    for line in fit.describe(found, available):
        tell.line(line)
    raise_all(fit.problems(found, available), UsageError)
    tell.line(say("train.dry_run_done"))
    return {
        "missing": missing,
        "steps": steps,
        "samples": facts.samples,
        "peak_memory_bytes": found.peak_bytes,
        "needed_memory_bytes": found.needed_bytes,
        "available_memory_bytes": available,
        "parts": found.parts,
        "train_seconds": found.seconds,
        "train_seconds_range": found.seconds_range,
        "measure_seconds": found.measure_seconds,
        "dtype": dtype,
        "device": device,
        "parameters": shape.parameters,
        "kinds": {axis: kind_of(getattr(config, axis)) for axis in AXES},
    }
