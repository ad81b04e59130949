"""DeepSpeed and FSDP settings of other systems: what each stage and switch became here.

ZeRO stage 0 is whole copies; stages 1 and 2 divide optimiser state and gradients, which is shares
here where whole copies do not fit (`auto`); stage 3 divides the weights as well (`fsdp`). Offload
to the host is `engine.offload_shares`. Buckets, overlap and prefetch are the library's own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tunewright.importing.sheet import CHANGED, LOST, NOT_NEEDED, Sheet

STAGES = {0: "ddp", 1: "auto", 2: "auto", 3: "fsdp"}
STRATEGIES = {
    "full_shard": ("fsdp", False),
    "shard_grad_op": ("auto", False),
    "hybrid_shard": ("fsdp", True),
    "hybrid_shard_zero2": ("fsdp", True),
    "no_shard": ("ddp", False),
}
"""(`engine.parallel`, `engine.hybrid`) of FSDP's strategies."""
STAGE_IN_NAME = re.compile(r"z(?:ero)?[_-]?([0-3])")


def take(sheet: Sheet, devices: int, beside: Path | None = None) -> None:
    """Answer `deepspeed`, `fsdp` and their kin. With one device nothing is shared, and none of them
    is needed. `beside` is the folder of the file."""
    if devices > 1:
        sheet.run["engine.processes"] = devices
    _deepspeed(sheet, devices, beside)
    _fsdp(sheet, devices)
    if sheet.has("ddp_timeout"):
        sheet.answer("ddp_timeout", NOT_NEEDED, why="heartbeats")


def _deepspeed(sheet: Sheet, devices: int, beside: Path | None) -> None:
    keys = [key for key in sheet.given if key.split(".")[0] == "deepspeed"]
    if not keys:
        return
    settings = _settings(sheet, keys, beside)
    if not sheet.is_on(keys[0]) and not settings:
        _all(sheet, keys, NOT_NEEDED, "off")
        return
    if devices == 1:
        _all(sheet, keys, NOT_NEEDED, "one_process")
        return
    stage = _stage(sheet, settings, keys)
    if stage is None:
        _all(sheet, keys, LOST, "no_stage")
        return
    ours: dict[str, Any] = {} if STAGES[stage] == "auto" else {"engine.parallel": STAGES[stage]}
    if stage == 3 and _offloads(settings):
        ours["engine.offload_shares"] = True
    for key in keys:
        sheet.answer(key, CHANGED, ours, f"zero_{stage}")


def _settings(sheet: Sheet, keys: list[str], beside: Path | None) -> dict[str, Any]:
    """The DeepSpeed configuration, written out or in the file that is named, with dotted keys."""
    written = {key.partition(".")[2]: sheet.given[key] for key in keys if "." in key}
    named = sheet.get("deepspeed")
    if not isinstance(named, str) or beside is None:
        return written
    for path in (beside / named, Path(named)):
        try:
            return {**_flat(json.loads(path.read_text(encoding="utf-8"))), **written}
        except (OSError, ValueError):
            continue
    return written


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _stage(sheet: Sheet, settings: dict[str, Any], keys: list[str]) -> int | None:
    said = settings.get("zero_optimization.stage")
    if isinstance(said, int) and said in STAGES:
        return said
    if settings and said is None and any(key.startswith("zero_optimization") for key in settings):
        return None
    found = STAGE_IN_NAME.search(Path(str(sheet.get(keys[0], ""))).stem.lower())
    return int(found[1]) if found else None


def _offloads(settings: dict[str, Any]) -> bool:
    return any(
        settings.get(f"zero_optimization.offload_{what}.device") not in (None, "none")
        for what in ("param", "optimizer")
    )


def _fsdp(sheet: Sheet, devices: int) -> None:
    names = ("fsdp", "fsdp_config", "fsdp_version")
    keys = [key for key in sheet.given if key.split(".")[0] in names]
    if not keys:
        return
    words = _words(sheet.get("fsdp", ""))
    on = bool(words - {"false"}) or any(key.startswith("fsdp_config") for key in keys)
    if not on or devices == 1:
        _all(sheet, keys, NOT_NEEDED, "one_process" if on else "off")
        return
    for key in keys:
        if key.startswith("fsdp_config."):
            name = key.partition(".")[2].removeprefix("fsdp_")
            if name in ("sharding_strategy", "reshard_after_forward"):
                words |= _words(sheet.get(key, ""))
            if name in ("offload_params", "cpu_offload") and sheet.is_on(key):
                words.add("offload")
    strategy = next((one for one in STRATEGIES if one in words), "full_shard")
    parallel, hybrid = STRATEGIES[strategy]
    ours: dict[str, Any] = {} if parallel == "auto" else {"engine.parallel": parallel}
    if hybrid:
        ours["engine.hybrid"] = True
    if "offload" in words and parallel == "fsdp":
        ours["engine.offload_shares"] = True
    for key in keys:
        sheet.answer(key, CHANGED, ours, "fsdp", strategy=strategy)


def _words(value: Any) -> set[str]:
    parts = value if isinstance(value, list) else re.split(r"[\s,]+", str(value))
    return {str(part).strip().lower() for part in parts if str(part).strip()}


def _all(sheet: Sheet, keys: list[str], fate: str, why: str) -> None:
    for key in keys:
        sheet.answer(key, fate, why=why)
