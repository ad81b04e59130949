"""What a person says about trackers, and the problems in it: `track: [tensorboard, {kind: wandb}]`.

Nothing leaves the machine unless `online: true` stands there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tunewright.core.config import Section
from tunewright.core.errors import Problem, problem
from tunewright.core.refusals import reason_of
from tunewright.core.registry import Entry, trackers

EXTRA = "track"


class TrackerSettings(Section):
    """What every tracker can be told."""

    name: str | None = None
    """How the run is called there. Default: the name of its folder."""
    folder: str | None = None
    """Where the tracker's own files go. Default: `track/<kind>` in the run folder."""


class ProjectSettings(TrackerSettings):
    """A tracker that keeps runs in projects, and may have a server."""

    project: str = "tunewright"
    """The project that the run belongs to."""
    online: bool = False
    """Send to the tracker's server, with the account or address that its library knows. Default:
    only files on this machine, which its own command can send later."""


@dataclass(frozen=True)
class Chosen:
    """One tracker of a run, with its settings."""

    entry: Entry[Any]
    settings: Any

    @property
    def kind(self) -> str:
        """Its name in the run file."""
        return self.entry.name

    @property
    def missing(self) -> list[str]:
        """The modules that it needs and that are not installed."""
        return [name for name in self.entry.facts.get("needs", ()) if not _is_there(name)]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def chosen(given: Iterable[Any]) -> list[Chosen]:
    """The trackers of a checked `track`; what is wrong is left out (`problems` says it)."""
    found, _ = _read(given)
    return found


def problems(given: Iterable[Any], where: str = "track") -> list[Problem]:
    """Everything that is wrong with `track`."""
    _, wrong = _read(given, where)
    return wrong


def _read(given: Iterable[Any], where: str = "track") -> tuple[list[Chosen], list[Problem]]:
    found: list[Chosen] = []
    wrong: list[Problem] = []
    for number, one in enumerate(given):
        place = f"{where}[{number}]"
        fields = dict(one) if isinstance(one, dict) else {"kind": one}
        kind = fields.pop("kind", None)
        entry = trackers.get(kind) if isinstance(kind, str) else None
        if entry is None:
            guess = trackers.guess(str(kind)) or ""
            known = ", ".join(trackers.names())
            wrong.append(problem("E-TRACK-02", place, kind=kind, known=known, guess=guess))
            continue
        if any(kind == other.kind for other in found):
            wrong.append(problem("E-TRACK-03", place, kind=kind))
            continue
        try:
            found.append(Chosen(entry, entry.config(**fields)))
        except ValidationError as error:
            known = ", ".join(entry.config.model_fields)  # type: ignore[attr-defined]
            for item in error.errors():
                key = ".".join(str(part) for part in item["loc"]) or str(kind)
                wrong.append(
                    problem(
                        "E-TRACK-04",
                        f"{place}.{key}",
                        kind=kind,
                        field=key,
                        reason=reason_of(item),
                        known=known,
                    )
                )
    return found, wrong
