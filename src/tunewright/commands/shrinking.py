"""A model brought to a size that is asked for: blocks dropped, healed if asked, matrices quantised,
and what each step cost in loss.

Quantising costs least, so it goes first in the plan: as many matrices as needed leave 16 bits for 8
and then 4, those first whose rounding error is smallest beside what they compute. Only below the
size of all matrices in 4 bits are blocks dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from tunewright.commands import healing
from tunewright.core import publish
from tunewright.core.errors import UsageError
from tunewright.core.files import readable_size
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.export import prune, quantize
from tunewright.export.folder import require_free
from tunewright.export.gptq import Grid, to_nearest
from tunewright.export.quant_types import FORMATS
from tunewright.export.tuned import Tuned
from tunewright.models import anatomy, load

SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(k|M|G)i?B?\s*", re.IGNORECASE)
UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
NEAR = 0.03
"""How far the size may be from what was asked for, as a share of it."""
MOST_DROPPED = 0.5
NAMED_BYTES = {True: 400, False: 120}
"""What the names of a matrix take in the file: packed in three tensors, or plain."""


@dataclass
class Plan:
    """How the size is reached."""

    dropped: int
    bits: dict[str, int]
    """Module -> 16, 8 or 4."""
    num_bytes: float


def bytes_of(size: str) -> float:
    """`400MB` in bytes, decimal. Raises UsageError."""
    found = SIZE.fullmatch(size)
    if not found or not float(found[1]):
        raise UsageError.of("E-EXPORT-65", "--to", size=size)
    return float(found[1]) * UNITS[found[2].lower()]


def shrink_to(
    run: Path | str,
    out: Path,
    *,
    to: str,
    heal: float | None = None,
    data: str | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Write what `run` names to `out` with weights of the size `to`; returns the record.

    Raises UsageError for a size that cannot be reached, naming the nearest that can, and what
    pruning, healing and quantising raise; `out` exists afterwards only if this returns.
    """
    tell, out = tell or Tell(), Path(out)
    require_free(out)
    wanted = bytes_of(to)
    tuned = quantize.prepare(run, data, tell)
    plan = planned(tuned, wanted)
    steps: list[dict[str, Any]] = []
    with publish.scratch(out, "shrinking") as place:
        what: Tuned = tuned
        if plan.dropped:
            given: dict[str, Any] = {
                "way": "blocks",
                "blocks": plan.dropped,
                "data": data,
                "tell": tell,
            }
            pruned = place / "pruned"
            made = (
                prune.prune(run, pruned, **given)
                if heal is None
                else healing.prune_and_heal(run, pruned, minutes=heal, **given)
            )
            steps += _steps_of(made)
            what = quantize.prepare(pruned, None, tell)
            settings = {k: v for k, v in tuned.target.settings.items() if k.startswith("data.")}
            what.target = replace(what.target, settings=settings)
        job = quantize.Quantising(what, out, FORMATS["int4"], tell)
        job.wider = {n: bits for n, bits in plan.bits.items() if bits != 4}
        counts = {k: sum(b == bits for b in plan.bits.values()) for k, bits in COUNTED.items()}
        sizes = {"size": readable_size(_plain_bytes(tuned)), "wanted": to}
        shown: dict[str, Any] = {**sizes, "blocks": plan.dropped, **counts}
        tell.line(say("shrink.plan", **shown))
        job.more = {
            "exported": "shrink",
            "asked_bytes": wanted,
            "steps": steps,
            "plan": {"dropped": plan.dropped, **counts},
        }
        return {"folder": str(out), "asked": to, **job.do()}


COUNTED = {"wide": 16, "eight": 8, "four": 4}


def _plain_bytes(tuned: Tuned) -> float:
    return 2.0 * load.parameter_count(tuned.base)


def _steps_of(made: dict[str, Any]) -> list[dict[str, Any]]:
    """What dropping, and healing, cost."""
    loss = made["loss"] or {"run": None, "exported": None}
    dropped = loss.get("pruned", loss["exported"])
    gone = ", ".join(map(str, made["blocks_removed"]))
    steps = [{"step": "drop", "what": gone, "before": loss["run"], "after": dropped}]
    if "healing_minutes" in made:
        what = made["healing_minutes"]
        steps.append({"step": "heal", "what": what, "before": dropped, "after": loss["exported"]})
    return steps


def planned(tuned: Tuned, wanted: float) -> Plan:
    """Bits of every matrix and how many blocks go. Raises UsageError for a size out of reach."""
    model: Any = load.load_model(
        tuned.trained if tuned.whole else tuned.base, dtype="float32", base=tuned.held
    )
    found = anatomy.of(model)
    sizes = {n: prod(model.get_submodule(n).weight.shape) for n in _fitting(model, found.linear)}
    total = _plain_bytes(tuned)
    blocks = len(found.blocks)
    each = sum(p.numel() for p in model.get_submodule(found.blocks[0]).parameters())
    least = _bytes(total, sizes, dict.fromkeys(sizes, 4))
    # The rest of a dropped block is in 4 bits, too.
    per_block = 2 * each - sum(
        (2 - Grid(4, quantize.GROUP).bits_per_weight / 8) * n
        for name, n in sizes.items()
        if name.startswith(f"{found.blocks[0]}.")
    )
    most_dropped = int(MOST_DROPPED * blocks)
    floor = least - most_dropped * per_block
    if wanted > total or wanted * (1 + NEAR) < floor:
        nearest = total if wanted > total else floor
        shown = {"there": readable_size(total), "nearest": readable_size(nearest)}
        raise UsageError.of("E-EXPORT-66", "--to", wanted=readable_size(wanted), **shown)
    dropped = 0
    while least - dropped * per_block > wanted and dropped < most_dropped:
        dropped += 1
    left = {
        name: size
        for name, size in sizes.items()
        if not any(name.startswith(f"{b}.") for b in found.blocks[blocks - dropped :])
    }
    plain = total - 2 * each * dropped
    return _with_bits(dropped, plain, left, wanted, _harm(model, left))


def _fitting(model: Any, names: list[str]) -> list[str]:
    """Matrices that a grid fits on."""
    import torch

    return [
        name
        for name in names
        if isinstance(module := model.get_submodule(name), torch.nn.Linear)
        and module.in_features % quantize.GROUP == 0
    ]


def _bytes(plain: float, sizes: dict[str, int], bits: dict[str, int]) -> float:
    saved = 0.0
    for name, size in sizes.items():
        saved -= NAMED_BYTES[bits[name] != quantize.WIDE]
        if bits[name] != quantize.WIDE:
            saved += size * (2 - Grid(bits[name], quantize.GROUP).bits_per_weight / 8)
    return plain - saved


def _harm(model: Any, sizes: dict[str, int]) -> dict[str, float]:
    """Share of each matrix's squares that rounding to 4 bits takes."""
    grid = Grid(4, quantize.GROUP)
    found = {}
    for name in sizes:
        weight = model.get_submodule(name).weight.data
        wrong = float((weight - to_nearest(weight, grid).weight).square().sum())
        found[name] = wrong / max(float(weight.square().sum()), 1e-30)
    return found


def _with_bits(
    dropped: int, plain: float, sizes: dict[str, int], wanted: float, harm: dict[str, float]
) -> Plan:
    """The widest bits that stay at or under the size: all start in 16, the least harmed go to 8,
    then to 4."""
    bits = dict.fromkeys(sizes, quantize.WIDE)
    order = sorted(sizes, key=lambda name: harm[name])
    best = Plan(dropped, dict(bits), _bytes(plain, sizes, bits))
    for lower in (8, 4):
        for name in order:
            if best.num_bytes <= wanted:
                return best
            bits[name] = lower
            best = Plan(dropped, dict(bits), _bytes(plain, sizes, bits))
    return best


def lines(record: dict[str, Any]) -> list[str]:
    """The record for a terminal."""
    size = readable_size(record["weight_bytes"])
    said = [say("shrink.reached", out=record["folder"], size=size, wanted=record["asked"])]
    loss = record["loss"] or {"run": None, "exported": None}
    last = {"step": "quantise", "what": record["bits_per_weight"]}
    last |= {"before": loss["run"], "after": loss["exported"]}
    for step in [*record["steps"], last]:
        if step["before"] is None:
            said.append(say("shrink.step.unmeasured"))
            continue
        figures = {"before": f"{step['before']:.4f}", "after": f"{step['after']:.4f}"}
        said.append(say(f"shrink.step.{step['step']}", what=step["what"], **figures))
    return [*said, *record["notes"], *record["warnings"]]
