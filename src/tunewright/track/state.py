"""`track/<kind>.json` in the run folder: how far a tracker was told, and how that ended.

A tracker takes nothing back, so a figure counts as told before it is told: after a crash in between
the tracker's own files are asked where they can be, and otherwise a few steps may be missing, but
none stands there twice.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.files import write_json
from tunewright.track.reading import Told

FOLDER = "track"


@dataclass
class State:
    """One tracker of one run."""

    kind: str
    status: str = "starting"
    """starting, following, done, failed."""
    told: Told = field(default_factory=Told)
    unsure: bool = False
    """It is being told something."""
    closed: bool = False
    """The end of the run was told: answers, pictures, summary."""
    opened: int = 0
    """How often its library was opened for this run."""
    times: int = 0
    """How often all was told anew."""
    settings: dict[str, Any] = field(default_factory=dict)
    """As it was last chosen."""
    view: str = ""
    problem: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        """The last step that was told; -1 before the first."""
        return max(self.told.figures.values(), default=-1)

    def forget(self) -> State:
        """A state in which nothing was told, for a new entry in the tracker."""
        return State(self.kind, times=self.times + 1)

    @classmethod
    def read(cls, run: Path, kind: str) -> State:
        """As it stands in the run folder; a new one where nothing can be read."""
        try:
            found = json.loads(path_of(run, kind).read_text(encoding="utf-8"))
            told = found.pop("told")
            figures = {str(name): int(step) for name, step in told["figures"].items()}
            known = {name: found[name] for name in found if name in cls.__dataclass_fields__}
            return cls(**{**known, "kind": kind, "told": Told(figures, int(told["answers"]))})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls(kind)

    def write(self, run: Path) -> None:
        """Keep it. Raises OSError."""
        write_json(path_of(run, self.kind), asdict(self))


def path_of(run: Path, kind: str) -> Path:
    """Where the state of a tracker lies."""
    return run / FOLDER / f"{kind}.json"


def log_of(run: Path, kind: str) -> Path:
    """Where what a tracker's library prints goes."""
    return run / FOLDER / f"{kind}.log"
