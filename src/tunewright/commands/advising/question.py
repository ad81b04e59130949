"""What a person asked `advise`, and what is wrong with it before anything is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tunewright.advise.decide import Changes
from tunewright.core.errors import UsageError, problem
from tunewright.record.folder import stem_of


@dataclass(frozen=True)
class Question:
    """What a person asked `advise`."""

    model: str
    data: str
    docs: Path | None = None
    tables: Path | None = None
    minutes: float = 6.0
    seed: int = 0
    changes: Changes | None = None
    users: int | None = None
    held_out: int | None = None
    columns: dict[str, str] = field(default_factory=dict)
    data_format: str = "auto"
    system: str | None = None
    dtype: str | None = None
    everything: bool = False
    """Measure every way, also where the answer is clear already."""


def default_out(data: str) -> Path:
    """`runs/advise-<data>`: the same for the same data, so that what is measured is found."""
    return Path("runs", f"advise-{stem_of(data, 'data')}")


def require_sensible(question: Question, out: Path) -> None:
    wrong = [
        name
        for name, is_wrong in (
            ("--minutes", not 0 < question.minutes < 10_000),
            ("--users", question.users is not None and question.users < 1),
            ("--rows", question.held_out is not None and question.held_out < 4),
            ("--changes", question.changes not in (None, "often", "rarely")),
        )
        if is_wrong
    ]
    if wrong:
        raise UsageError(problem("E-ADVISE-06", ", ".join(wrong)))
    if out.exists() and not (out.is_dir() and (is_advice(out) or not any(out.iterdir()))):
        raise UsageError(problem("E-ADVISE-04", str(out)))


def is_advice(folder: Path) -> bool:
    """Whether a folder is one of ours."""
    return (folder / "advise.json").is_file()
