"""`sweep.json`: what a sweep searches, and for every trial its settings, how it ended and what it
measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunewright.commands import sweep_spaces as spaces_
from tunewright.commands.sweep_spaces import Space
from tunewright.core.errors import UsageError
from tunewright.core.files import write_json

RECORD, RUNS = "sweep.json", "trials"
ENDED = ("done", "pruned", "failed", "refused")


@dataclass
class Trial:
    """One trial. `value` is what is compared; lower is better unless the sweep says `higher`."""

    number: int
    params: dict[str, Any]
    status: str = "running"
    """running, done, pruned (stopped early as worse than the median), failed, refused (settings
    that do not go together)."""
    value: float | None = None
    steps: int = 0
    seconds: float = 0.0
    measured: dict[str, float] = field(default_factory=dict)
    """Step -> the held-out loss there."""
    reason: str = ""
    problem: dict[str, Any] | None = None


@dataclass
class Sweep:
    """A sweep as its folder holds it."""

    out: Path
    given: dict[str, Any]
    """The run file with fixed words, by dotted key."""
    spaces: list[Space]
    trials_wanted: int
    sampler: str
    seed: int
    prune: bool
    metric: str = ""
    """A held-out figure to compare by; the held-out loss where it is empty."""
    higher: bool = False
    minutes: float | None = None
    samples: int | None = None
    """Samples that every trial learns from, where minutes were given."""
    trials: list[Trial] = field(default_factory=list)

    def write(self) -> None:
        """Keep the record. Raises OSError."""
        told = {name: getattr(self, name) for name in KEPT}
        told["spaces"] = {space.key: spaces_.as_dict(space) for space in self.spaces}
        told["trials"] = [asdict(trial) for trial in self.trials]
        best = self.best
        told["best"] = None if best is None else best.number
        write_json(self.out / RECORD, told)

    @classmethod
    def read(cls, out: Path) -> Sweep:
        """Raises UsageError for a folder that is no sweep."""
        try:
            found = json.loads((out / RECORD).read_text(encoding="utf-8"))
            spaces = [spaces_.of_dict(key, one) for key, one in found["spaces"].items()]
            trials = [Trial(**one) for one in found["trials"]]
            return cls(out, spaces=spaces, trials=trials, **{name: found[name] for name in KEPT})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UsageError.of("E-SWEEP-06", str(out), folder=out) from error

    @property
    def best(self) -> Trial | None:
        """The best trial that was finished; the earlier one of two that are equal."""
        done = [t for t in self.trials if t.status == "done" and t.value is not None]
        sign = -1 if self.higher else 1
        return min(done, key=lambda t: (sign * (t.value or 0.0), t.number), default=None)

    def folder(self, trial: Trial) -> Path:
        """The run folder of a trial."""
        return self.out / RUNS / f"{trial.number + 1:02d}"


KEPT = (
    "given",
    "trials_wanted",
    "sampler",
    "seed",
    "prune",
    "metric",
    "higher",
    "minutes",
    "samples",
)
