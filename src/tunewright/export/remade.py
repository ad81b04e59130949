"""A folder whose weights were changed on purpose: opened afresh, is it what was written, and what
did the change cost?

It is compared with what was computed before it was written, which it must equal, and with the run,
which says what rounding or leaving out has cost. Serves what makes a model smaller.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import first_line
from tunewright.core.telling import silent
from tunewright.core.words import say
from tunewright.export.folder import ExportError
from tunewright.export.proof import (
    Asked,
    Logits,
    differences,
    load_plain,
    logits_of,
    losses,
    replies_of,
    require_same_asking,
    score_of,
)
from tunewright.export.tuned import Tuned


@dataclass(frozen=True)
class Bounds:
    """What is asked of a folder: shares of positions with the same most likely token."""

    name: str
    same: float
    """At least this share as in the weights that were written."""
    least: float = 0.0
    """At least this share as in the run; below it the result is no use."""
    expected: float = 0.0
    """Below this share somebody should know."""
    beside_base: float = 1.0
    """It is refused as the untuned base where its divergence from that is less than this share of
    the divergence from the run."""


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """The libraries' bars, warnings and hints are for those who call them."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with silent(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def prove(
    tuned: Tuned,
    out: Path,
    folder: Path,
    asked: Asked,
    written: Logits,
    *,
    bounds: Bounds,
    runner: str,
    dtype: str,
    ready: Callable[[Any], Any],
) -> dict[str, Any]:
    """What the record says of `folder`, which will be `out`. `written` is what was computed before
    it was written; `ready` makes the model that Transformers opened ready to compute. Raises
    ExportError where the folder is not that, or no use."""
    renderer, where = tuned.renderer, str(out)
    warnings = require_same_asking(out, folder, renderer, asked.questions)
    try:
        with hushed():
            model = ready(load_plain(folder, dtype))
            said = logits_of(model, asked.prompts, folder / ".asked/file")
    except ExportError:
        raise
    except Exception as e:
        raise ExportError.of("E-EXPORT-37", where, runner=runner, cause=first_line(e)) from e
    against = differences(written, said) if said.is_finite else {"top1_agreement": 0.0}
    if against["top1_agreement"] < bounds.same:
        share = _percent(against["top1_agreement"]) if said.is_finite else say("export.not_finite")
        figures = {"share": share, "least": f"{100 * bounds.same:.0f}"}
        raise ExportError.of("E-EXPORT-35", where, runner=runner, **figures)
    found = differences(asked.run, said)
    base = _against_base(asked, said, found, bounds, where)
    if found["top1_agreement"] < bounds.least:
        figures = {"share": _percent(found["top1_agreement"]), "least": f"{100 * bounds.least:.0f}"}
        raise ExportError.of("E-EXPORT-52", where, type=bounds.name, **figures)
    with hushed():
        replies, _ = replies_of(model, None, renderer, asked.questions)
    assert asked.replies is not None
    score = score_of(asked.questions, asked.replies, replies)
    return {
        **found,
        "against_written_weights": against,
        "change_alone": differences(asked.run, written),
        "against_base": base,
        "bounds": {
            "least_top1_against_written_weights": bounds.same,
            "least_top1": bounds.least,
            "expected_top1": bounds.expected,
        },
        "loss": losses(asked, said),
        "answers": score,
        "positions": asked.prompts.positions,
        "prompts": len(asked.prompts.ids),
        "prompts_from": asked.prompts.kind,
        "held_out_prompts": asked.prompts.held_out,
        "weight_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "warnings": [*warnings, *_warnings(bounds, found, score, asked)],
    }


def _against_base(
    asked: Asked, said: Logits, found: dict[str, float], bounds: Bounds, where: str
) -> dict[str, float] | None:
    """How far it is from the untuned base. Raises ExportError where it is the base."""
    if asked.untouched is None:
        return None
    base = differences(asked.untouched, said)
    if base["divergence_nats"] <= bounds.beside_base * found["divergence_nats"]:
        nats = {k: f"{v['divergence_nats']:.2g}" for k, v in (("base", base), ("run", found))}
        raise ExportError.of("E-EXPORT-36", where, **nats)
    return base


def _warnings(
    bounds: Bounds, found: dict[str, float], score: dict[str, Any], asked: Asked
) -> Iterator[str]:
    if found["top1_agreement"] < bounds.expected:
        share = f"{100 * (1 - found['top1_agreement']):.0f}"
        key = "quantize.warning.rounding8" if bounds.name == "int8" else "quantize.warning.rounding"
        yield say(key, type=bounds.name, share=share)
    if asked.untouched is not None:
        moved = differences(asked.untouched, asked.run)["divergence_nats"]
        if found["divergence_nats"] > moved:
            nats = {"rounding": f"{found['divergence_nats']:.2g}", "training": f"{moved:.2g}"}
            yield say("quantize.warning.swallowed", type=bounds.name, **nats)
    if score["stopped"] < score["stopped_in_run"]:
        figures = {"run": score["stopped_in_run"], "exported": score["stopped"]}
        yield say("gguf.warning.stops", **figures)


def lines_of_loss(loss: dict[str, Any] | None) -> list[str]:
    """Loss before and after for a terminal, with the rise in percent."""
    if loss is None:
        return [say("quantize.no_loss")]
    rise = 100 * (loss["exported"] / loss["run"] - 1) if loss["run"] else 0.0
    which = "held_out" if loss["held_out_prompts"] else "learnt"
    figures = {"run": f"{loss['run']:.4f}", "exported": f"{loss['exported']:.4f}"}
    return [say(f"quantize.loss.{which}", **figures, rise=f"{rise:+.1f}")]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
