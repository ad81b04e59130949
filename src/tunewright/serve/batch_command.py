"""`tunewright batch` from its arguments to its last line."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunewright.core import machine, signals
from tunewright.core.errors import UsageError, problem
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.serve import batching
from tunewright.serve.asking import Limits
from tunewright.serve.pool import Pool
from tunewright.sources.fingerprint import fingerprint


def batch(
    target: str,
    prompts: Path,
    out: Path,
    tell: Tell,
    settings: dict[str, Any],
    *,
    schema: Path | None = None,
    at_once: int = 64,
    dtype: str | None = None,
    think: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Answer every row of `prompts` into `out`; `settings` are those of rows that bring none.

    Returns how many rows there were, were answered before, failed, and the tokens and seconds.
    Raises DataError for rows that ask nothing, UsageError for what does not go together, and what
    opening the model raises.
    """
    defaults = dict(settings)
    if schema is not None:
        defaults["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": _schema(schema)},
        }
    if out.resolve() == prompts.resolve():
        raise UsageError(problem("E-BATCH-03", str(out)))
    batching.read_rows(prompts, defaults, "")  # what is wrong is said before a weight is read
    machine.keep_few_kernels()
    with signals.watching() as stop:
        served = Pool(tell, dtype=dtype, think=think).open(target)
        rows = batching.read_rows(prompts, defaults, _about(served))
        began = time.monotonic()
        limits = Limits(rows=at_once)
        stop.deferred = True  # between two answers, so that no line is cut
        done = batching.run(served, rows, out, tell, limits=limits, overwrite=overwrite, stop=stop)
    done.seconds = round(time.monotonic() - began, 3)
    fields: dict[str, Any] = {
        "rows": f"{done.rows:,}",
        "tokens": f"{done.tokens:,}",
        "rate": f"{done.tokens / max(done.seconds, 1e-9):.1f}",
        "out": out,
    }
    tell.line(say("batch.done", **fields))
    if done.failed:
        tell.line(say("batch.failed", failed=done.failed, out=out))
    return asdict(done)


def _about(served: Any) -> str:
    """Everything of the model that decides its answers."""
    target, world = served.opened.target, served.opened.world
    adapter = "" if target.adapter is None else fingerprint(target.adapter)
    parts = [fingerprint(target.source.folder), adapter, world.dtype, str(target.think)]
    parts += [str(target.thinking.arguments)] if target.thinking.arguments else []
    return " ".join([*parts, str(target.system)])


def _schema(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(problem("E-BATCH-05", str(path), reason=str(error))) from error
    if not isinstance(found, dict):
        raise UsageError(problem("E-BATCH-05", str(path), reason=type(found).__name__))
    return found
