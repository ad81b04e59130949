"""The words of an estimate: what a run needs and how long it takes, that it does not fit and what
would, what its model's folder lacks."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunewright.advise import among, changes
from tunewright.advise.estimate import Estimate, comfortable, needed
from tunewright.advise.would_fit import largest_fitting, ways_to_fit
from tunewright.core.errors import Problem, UsageError, problem
from tunewright.core.files import readable_size
from tunewright.core.telling import duration
from tunewright.core.words import say
from tunewright.models.shape import ModelShape
from tunewright.sources import headers


def describe(found: Estimate, available: int | None = None, where: str = "") -> list[str]:
    """Lines for the dry run and the plan, in the reader's language. `where` names the machine that
    has `available` bytes, if it is not this one."""
    shown = say("fit.join").join(
        f"{say(f'fit.part.{name}')} {readable_size(size)}"
        for name, size in found.parts.items()
        if size
    )
    asked = found.question
    lines = []
    if asked.processes > 1:
        sent = readable_size(among.sent_bytes(asked))
        lines.append(
            say("fit.processes", count=asked.processes, parallel=asked.parallel, sent=sent)
        )
    lines += [say("fit.memory", peak=readable_size(found.peak_bytes), parts=shown)]
    if available is not None:
        share = found.needed_bytes / available
        tight = found.needed_bytes > comfortable(found.question, available)
        key = "fit.too_big" if share > 1 else "fit.tight" if tight else "fit.fits"
        lines.append(
            say(
                key,
                where=where or say("fit.here"),
                needed=readable_size(found.needed_bytes),
                have=readable_size(available),
                share=f"{share:.0%}",
            )
        )
        if tight:
            lines += [f"  {line}" for line in what_fits(found, available)]
    if found.seconds is not None and found.seconds_range is not None:
        lines += _times(found, found.seconds, found.seconds_range)
    return lines + [f"  {reason}" for reason in found.reasons]


def _times(found: Estimate, seconds: float, spread: tuple[float, float]) -> list[str]:
    low, high = spread
    measure, wide = found.measure_seconds or 0.0, high / seconds if seconds else 1.0
    times = {
        "time": seconds + measure,
        "low": low + measure / wide,
        "high": high + measure * wide,
        "measure": measure,
    }
    beside = {
        "load": found.load_seconds,
        "ask": found.ask_seconds or 0.0,
        "save": found.save_seconds,
        "whole": found.wall_seconds or 0.0,
    }
    return [
        say("fit.time", **{n: duration(value) for n, value in times.items()}, steps=found.steps),
        say(
            "fit.time_beside",
            **{n: duration(value) for n, value in beside.items()},
            probes=found.question.probes,
        ),
    ]


def what_fits(found: Estimate, available: int) -> list[str]:
    """Sentences for what to change so that the run fits, what costs least first."""
    tries = [one.sentence() for one in ways_to_fit(found, available)]
    smaller = largest_fitting(found, available)
    if smaller is not None:
        held = readable_size(needed(found.question, shape=smaller))
        size = changes.billions(smaller.parameters)
        tries.append(say("fit.try.model", size=size, memory=held))
    return tries or [say("fit.try.nothing")]


def problems(found: Estimate, available: int) -> list[Problem]:
    """E-FIT-01 when the run needs more memory than there is, with what would fit; else nothing."""
    if found.needed_bytes <= available:
        return []
    joined = say("fit.join").join(what_fits(found, available))
    return [
        problem(
            "E-FIT-01",
            "",
            needed=readable_size(found.needed_bytes),
            have=readable_size(available),
            tries=joined,
        )
    ]


def require(found: Estimate, available: int) -> None:
    """Raise UsageError (E-FIT-01) when the run cannot fit."""
    trouble = problems(found, available)
    if trouble:
        raise UsageError(trouble)


def what_is_missing(folder: Path, shape: ModelShape) -> list[str]:
    """Sentences for what a folder lacks before it can be trained on: weights (and their size),
    tokenizer, room on the disk for the download."""
    folder = Path(folder)
    lines = []
    files, _ = headers.weight_files(folder)
    if not files:
        lines.append(
            say(
                "fit.missing.weights",
                size=readable_size(shape.file_bytes),
                billions=changes.billions(shape.parameters),
            )
        )
        free = shutil.disk_usage(folder).free
        if free < shape.file_bytes:
            lines.append(
                say(
                    "fit.missing.disk",
                    free=readable_size(free),
                    size=readable_size(shape.file_bytes),
                )
            )
    if not any(
        (folder / name).is_file()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    ):
        lines.append(say("fit.missing.tokenizer"))
    return lines
