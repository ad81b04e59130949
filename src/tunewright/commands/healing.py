"""Prune, train what is left for some minutes on the same rows, and publish the healed folder.

The pruned folder, the run that heals it and the merged result lie in a hidden folder beside OUT
until the last is proven; only it gets the name. The loss is measured on the same held-out rows
before, after pruning and after healing, none of which the healing learns from.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tunewright import story
from tunewright.core import publish
from tunewright.core.errors import UsageError
from tunewright.core.files import write_json
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.export import card, prune
from tunewright.export.folder import appearing, require_free
from tunewright.export.merge import merge_run
from tunewright.export.proof import RECORD
from tunewright.export.quantize import prepare
from tunewright.export.tuned import Tuned

PROBE_STEPS = 3
"""Steps of a first run that tells how long one takes."""
MOST_STEPS = 100_000


def prune_and_heal(
    run: Path | str, out: Path, *, minutes: float, tell: Tell | None = None, **given: Any
) -> dict[str, Any]:
    """`prune` with `given`, then heal for `minutes`, and write the result to `out`.

    Raises what pruning, training and merging raise; `out` exists afterwards only if this returns.
    """
    tell, out = tell or Tell(), Path(out)
    require_free(out)
    if not minutes > 0:
        raise UsageError.of("E-EXPORT-64", "--heal", minutes=minutes)
    tuned = prepare(run, given.get("data"), tell)
    if not tuned.target.settings.get("data.train"):
        raise UsageError.of("E-EXPORT-62", str(run), way=given.get("way"))
    with publish.scratch(out, "healing") as place:
        record = prune.prune(run, place / "pruned", tell=tell, **given)
        steps = heal(tuned, place / "pruned", place, minutes, tell)
        merge_run(place / "run", place / "merged", dtype=record["dtype"], tell=tell)
        record |= healed(tuned, record, place / "merged")
        record |= {"healing_minutes": minutes, "healing_steps": steps}
        with appearing(out, "healing") as folder:
            shutil.copytree(place / "merged", folder, dirs_exist_ok=True)
            (folder / "merge.json").unlink(missing_ok=True)
            record.pop("folder")
            write_json(folder / RECORD, record)
            card.write(folder, tuned, record)
    return {"folder": str(out), **record}


def heal(tuned: Tuned, model: Path, place: Path, minutes: float, tell: Tell) -> int:
    """Train `model` for about `minutes` on the rows of `tuned`; the run lies in `place`/run.
    Returns the number of steps."""
    probe = _run(tuned, model, place / "probe", PROBE_STEPS, tell)
    seconds = probe["train_seconds"] / PROBE_STEPS
    steps = min(MOST_STEPS, max(PROBE_STEPS, int(60 * minutes / max(seconds, 1e-3))))
    tell.line(say("prune.healing", minutes=f"{minutes:g}", steps=steps))
    _run(tuned, model, place / "run", steps, tell)
    return steps


def _run(tuned: Tuned, model: Path, out: Path, steps: int, tell: Tell) -> dict[str, Any]:
    """One run on the rows of `tuned`, split as they were; its summary."""
    settings = tuned.target.settings
    given = {k: v for k, v in settings.items() if k.startswith("data.") and v is not None}
    given |= {
        "model": str(model),
        "method.kind": "lora",
        "method.rank": 32,
        "objective.kind": "sft",
        "data.good_only": settings.get("objective.kind") not in (None, "sft"),
        "engine.steps": steps,
        "engine.seed": int(settings.get("engine.seed") or 0),
        "probes": 0,
        "forgetting": "off",
        "out": str(out),
    }
    return story.train(parse_run(given, dict.fromkeys(given, "--heal")), tell=tell).summary


def healed(tuned: Tuned, record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the healing gave: the proof's figures of the merged folder, and the share of the lost
    loss that came back."""
    found = prune.measured(tuned, folder)
    loss = record["loss"]
    if not loss or found is None:
        return {}
    lost = loss["exported"] - loss["run"]
    back = (loss["exported"] - found) / lost if lost > 0 else None
    proof = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return {
        "loss": {**loss, "pruned": loss["exported"], "exported": found},
        "recovered": None if back is None else round(back, 4),
        "healed_top1_agreement_of_merge": proof.get("top1_agreement"),
    }


def lines(record: dict[str, Any]) -> list[str]:
    """The record for a terminal."""
    said = prune.lines(record)
    if record.get("recovered") is not None:
        figures = {
            "pruned": f"{record['loss']['pruned']:.4f}",
            "minutes": record["healing_minutes"],
        }
        share = f"{100 * record['recovered']:.0f}"
        said.insert(-1, say("prune.healed", share=share, **figures))
    return said
