"""What finished runs took beside what was estimated for them: the next estimate on this machine is
corrected by it.

One small file for each machine and set of library versions (`core/findings.py`) holds the latest
runs: what kind of run it was, and for each part of its time and for its memory the figure that was
estimated without any correction, and the one that was measured. A part is corrected by the runs
that are most like the one asked about: the same model, method, objective and dtype; else all runs
here. A part that was made beside other programs, or was estimated from what was measured beside
them, teaches no time: only that there was such a run is kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunewright.core import findings
from tunewright.core.machine import fingerprint, versions

MOST_RUNS = 48
LATEST = 3
"""Runs like this one that are looked at: the newest."""
LEAST_OTHERS = 3
"""Runs of another kind that must agree before they correct anything."""
MOST = 4.0
"""A part is corrected by at most this factor: more is another machine, or an accident."""
LIKE = ("model", "method", "objective", "dtype", "threads", "by")
SHORT_SECONDS = 0.3
"""Parts of a run that took less say nothing about others."""


@dataclass(frozen=True)
class Kind:
    """What decides how a run compares with its estimate. `by`: how its time was estimated, "trial"
    or "count"."""

    model: str
    method: str
    objective: str
    dtype: str
    threads: int
    by: str


@dataclass(frozen=True)
class Learnt:
    """Factors for the seconds of each part, and for the peak memory; how many runs they rest on."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: float = 1.0
    runs: int = 0
    alike: bool = False
    """The runs were like this one."""
    disturbed: int = 0
    """Runs like this one whose training teaches nothing, as other programs held the processors."""

    def of(self, part: str) -> float:
        """The factor of a part of the time."""
        return self.seconds.get(part, 1.0)


def about(kind: Kind, device: str) -> Learnt:
    """What is known for a run of this kind on this machine."""
    runs = _runs(device)
    alike = [run for run in runs if all(run["kind"].get(k) == getattr(kind, k) for k in LIKE)]
    parts = {part for run in runs for part in run["measured"]}
    factors = {}
    for part in parts:
        others = runs if part != "train" else [r for r in runs if r["kind"].get("by") == kind.by]
        # How long loading takes depends on the machine and the size, hardly on the kind of the run.
        least = 1 if part == "load" else LEAST_OTHERS
        factor = _factor(alike, part, 1) or _factor(others, part, least)
        if factor is not None:
            factors[part] = factor
    memory = _factor(alike, "memory", 1)
    disturbed = sum("train" in run["disturbed"] for run in alike)
    taught = len(alike) or len(runs)
    return Learnt(factors, memory or 1.0, taught, bool(alike), disturbed)


def remember(
    kind: Kind,
    device: str,
    estimated: Mapping[str, float],
    measured: Mapping[str, float],
    disturbed: Collection[str] = (),
) -> None:
    """Keep what a finished run took. Both map parts of the time to seconds, and `memory` to bytes;
    `estimated` holds the figures before any correction. What the parts in `disturbed` took says
    nothing: other programs held the processors while they ran, or when they were estimated."""
    both = {
        part: [estimated[part], measured[part]]
        for part in measured
        if estimated.get(part, 0) > 0
        and part not in disturbed
        and (part == "memory" or measured[part] >= SHORT_SECONDS)
    }
    if not both:
        return
    run = {
        "kind": vars(kind),
        "disturbed": sorted(disturbed),
        "estimated": {part: e for part, (e, _) in both.items()},
        "measured": {part: m for part, (_, m) in both.items()},
    }
    findings.keep("runs", _key(device), [*_runs(device), run][-MOST_RUNS:])


def _runs(device: str) -> list[dict[str, Any]]:
    found = findings.read("runs", _key(device))
    # What was kept before it was known who held the processors may be wrong by any factor.
    return [run for run in found if "disturbed" in run] if isinstance(found, list) else []


def _key(device: str) -> dict[str, Any]:
    return {"machine": fingerprint(), "device": device, "versions": versions()}


def _factor(runs: Sequence[Mapping[str, Any]], part: str, least: int) -> float | None:
    """The median of measured over estimated of the newest runs that have the part."""
    ratios = [
        run["measured"][part] / run["estimated"][part] for run in runs if part in run["measured"]
    ]
    if len(ratios) < least:
        return None
    newest = ratios[-LATEST:] if least == 1 else ratios[-3 * LATEST :]
    return min(MOST, max(1 / MOST, statistics.median(newest)))
