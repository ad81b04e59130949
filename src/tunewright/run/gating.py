"""A contract put to a model, and the files that are left: for the command, after a training and
after an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.core.errors import UsageError, problem
from tunewright.core.files import write_json, write_text
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.report import gate_review

FIGURES, REVIEW, JUNIT = "gate.json", "gate.md", "gate.junit.xml"


def gate(
    contract: Path,
    target: Any,
    *,
    against: Any = None,
    out: Path | None = None,
    junit: Path | None = None,
    dtype: str | None = None,
    think: bool | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Put the contract in the file `contract` to `target` and return the verdict
    (`evaluate.gate.gate`). `out` gets the figures, the review and the JUnit file; `junit` is a
    further place for the last. Raises what reading, opening and asking raise."""
    from tunewright.evaluate import contract as contracts
    from tunewright.evaluate.gate import gate as put

    tell = tell or Tell()
    read = contracts.load(contract)
    _make_room(out, junit)
    result = put(
        read,
        target,
        against=against,
        folder=contract.parent,
        name=contract.name,
        dtype=dtype,
        think=think,
        tell=tell,
    )
    leave(result, out, junit)
    if out is not None:
        tell.line(say("gate.written", folder=out))
    return result


def _make_room(out: Path | None, junit: Path | None) -> None:
    """Folders are made before models are opened, so that no verdict is lost."""
    for folder in (out, junit.parent if junit is not None else None):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UsageError(problem("E-EVAL-44", str(folder), cause=e)) from e


def leave(result: dict[str, Any], out: Path | None, junit: Path | None = None) -> None:
    """Write the files of a verdict."""
    if out is not None:
        write_json(out / FIGURES, result)
        write_text(out / REVIEW, gate_review.review(result))
        write_text(out / JUNIT, gate_review.junit(result))
    if junit is not None:
        write_text(junit, gate_review.junit(result))
