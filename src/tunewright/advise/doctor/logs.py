"""How another tool's training went, from the logs that it left beside the weights.

`trainer_state.json` is Transformers' (TRL, LLaMA-Factory, Axolotl, Unsloth, ms-swift use it),
`trainer_log.jsonl` LLaMA-Factory's; besides, any small JSON, JSON lines or CSV file whose records
have a `loss`. Never raises for what is in a file: a file that cannot be read counts as none.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunewright.advise.doctor.facts import Course

MOST_BYTES = 64 << 20
NAMES = ("loss", "train_loss", "training_loss", "train/loss")
HELD = ("eval_loss", "val_loss", "valid_loss", "validation_loss", "eval/loss")
RATES = ("learning_rate", "lr", "train/learning_rate")
NORMS = ("grad_norm", "gradient_norm", "train/grad_norm")
STEPS = ("step", "current_steps", "global_step", "iteration", "iter")


def course_of(folder: Path) -> tuple[Course | None, str]:
    """How the training of `folder` went, and the file that says so; (None, "") where none does."""
    for path in _candidates(folder):
        records, state = _records(path)
        course = _course(records, state)
        if course is not None:
            return course, str(path)
    return None, ""


def _candidates(folder: Path) -> Iterable[Path]:
    """Files that may be logs, the surest first: of the folder, of its newest checkpoint, of the
    folder that it is a checkpoint of."""
    checkpoints = sorted(
        (path for path in folder.glob("checkpoint-*") if path.is_dir()), key=_number, reverse=True
    )
    places = [folder, *checkpoints[:1]]
    if re.fullmatch(r"checkpoint-\d+|final.*|adapter|model", folder.resolve().name):
        places.append(folder.resolve().parent)
    for place in places:
        yield from (place / name for name in ("trainer_state.json", "trainer_log.jsonl"))
    for place in places:
        others = [*place.glob("*log*.json*"), *place.glob("*loss*.json*"), *place.glob("*.csv")]
        yield from sorted(path for path in others if path.name != "trainer_log.jsonl")


def _number(path: Path) -> int:
    found = re.search(r"(\d+)$", path.name)
    return int(found[1]) if found else 0


def _records(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records of a file, and the object that holds them."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return [], {}
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            return [dict(row) for row in csv.DictReader(io.StringIO(text))], {}
        if path.suffix == ".jsonl":
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
            return [one for one in found if isinstance(one, dict)], {}
        told = json.loads(text)
    except (OSError, ValueError, RecursionError, csv.Error):
        return [], {}
    if isinstance(told, dict):
        for name in ("log_history", "history", "logs"):
            if isinstance(told.get(name), list):
                return [one for one in told[name] if isinstance(one, dict)], told
        if isinstance(told.get("losses") or told.get("loss"), list):
            return [{"loss": loss} for loss in told.get("losses") or told["loss"]], told
        return [], {}
    if isinstance(told, list):
        if all(isinstance(one, int | float) for one in told):
            return [{"loss": loss} for loss in told], {}
        return [one for one in told if isinstance(one, dict)], {}
    return [], {}


def _course(records: list[dict[str, Any]], state: dict[str, Any]) -> Course | None:
    losses: list[float] = []
    rates: list[float] = []
    norms: list[float] = []
    held: list[tuple[int, float]] = []
    last = 0
    keys = {key for record in records for key in record}
    for record in records:
        step = _first(record, STEPS)
        last = int(step) if step is not None and math.isfinite(step) else last
        loss, measured = _first(record, NAMES), _first(record, HELD)
        if measured is not None:
            held.append((last, measured))
        is_summary = "train_runtime" in record or "train_samples_per_second" in record
        if loss is None or is_summary:
            continue
        losses.append(loss)
        for name, into in ((RATES, rates), (NORMS, norms)):
            value = _first(record, name)
            if value is not None:
                into.append(value)
    if not losses:
        return None
    steps = state.get("global_step")
    best = state.get("best_metric")
    # Transformers notes the best one in any case; only the last one is sure to be what was saved.
    kept = held[-1][1] if held and held[-1][1] == best else None
    return Course(
        objective="dpo" if any(key.startswith("rewards/") for key in keys) else "",
        losses=losses,
        rates=rates,
        norms=norms,
        steps=steps if isinstance(steps, int) and steps else max(last, len(losses)),
        held=held,
        held_kept=kept,
        rewarded=bool(keys & {"reward", "reward_std", "objective/scores"}),
    )


def _first(record: dict[str, Any], names: Iterable[str]) -> float | None:
    for name in names:
        value = record.get(name)
        if isinstance(value, bool) or value is None:
            continue
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            continue
    return None
