"""A contract put to a model, and the files that are left: for the command, after a training and
after an export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.config import RunConfig
from tunewright.core.errors import (
    CompatError,
    ConfigError,
    TrainingError,
    TunewrightError,
    UsageError,
    problem,
)
from tunewright.core.files import write_json, write_text
from tunewright.core.runfile import objective_of
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.record import folder as run_folder
from tunewright.record.events import plain
from tunewright.report import gate_review, html

if TYPE_CHECKING:
    from tunewright.run.evidence import Finished
    from tunewright.run.prepare import Plan

FIGURES, REVIEW, JUNIT = "gate.json", "gate.md", "gate.junit.xml"


def gate(
    contract: Path,
    target: Any,
    *,
    against: Any = None,
    base: str | None = None,
    out: Path | None = None,
    junit: Path | None = None,
    dtype: str | None = None,
    think: bool | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Put the contract in the file `contract` to `target` and return the verdict
    (`evaluate.gate.gate`). `out` gets the figures, the review and the JUnit file; `junit` is a
    further place for the last. `base` is the run whose base is compared with where nobody names
    another model. Raises what reading, opening and asking raise."""
    from tunewright.evaluate import contract_reading
    from tunewright.evaluate.gate import gate as put

    tell = tell or Tell()
    read = contract_reading.load(contract)
    _make_room(out, junit)
    result = put(
        read,
        target,
        against=against,
        base=base,
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


# ---- a run that names a contract


def require(config: RunConfig) -> None:
    """Look at the contract that a run names before anything is trained. Raises ConfigError and
    DataError for one that is wrong, CompatError for a run that gives numbers (E-GATE-16)."""
    if config.gate is None:
        return
    if "score" in objective_of(config).heads:
        raise CompatError(problem("E-GATE-16", "gate", file=config.gate))
    from tunewright.evaluate import contract_reading
    from tunewright.evaluate.gate import tasks_of

    path = Path(config.gate)
    tasks_of(contract_reading.load(path), path.parent, config.data.system)


def after_training(plan: Plan, finished: Finished, tell: Tell) -> Finished:
    """Put the contract of a run to what it left; the verdict goes to its folder, its summary and
    its last lines. What cannot be asked fails the gate and leaves the run as it is."""
    config = plan.config
    if config.gate is None or finished.summary.get("status") != "done":
        return finished
    tell.line(say("gate.begins", contract=config.gate))
    verdict = _of_run(Path(config.gate), finished.folder, tell)
    finished.summary["gate"] = verdict
    write_json(finished.folder / "summary.json", plain(finished.summary))
    html.write_report(finished.folder)  # the verdict stands in it
    return finished


def _of_run(contract: Path, folder: Path, tell: Tell) -> dict[str, Any]:
    """The verdict as the summary keeps it."""
    short: dict[str, Any] = {"contract": str(contract)}
    try:
        found = gate(contract, str(folder), out=folder, tell=tell)
    except TunewrightError as e:
        tell.line(say("gate.not_asked", folder=folder, cause=e.problems[0].line()))
        return {**short, "passed": False, "problem": e.problems[0].line()}
    for line in gate_review.lines(found):
        tell.line(line)
    if not found["passed"]:
        tell.line(say("gate.run_stays", folder=folder, review=folder / REVIEW))
    kept = ("passed", "failed", "undecided", "error_rate", "seconds")
    return {**short, **{key: found[key] for key in kept}}


def has_failed(summary: dict[str, Any]) -> bool:
    """Whether the gate of a run failed, by its summary; not where none was named."""
    verdict = summary.get("gate")
    return isinstance(verdict, dict) and not verdict.get("passed")


def require_passed(summary: dict[str, Any], folder: Path) -> None:
    """Raise TrainingError (E-GATE-15) where the gate of a stage failed: what follows would start
    from a model that nobody wants."""
    if has_failed(summary):
        verdict = summary["gate"]
        names = ", ".join(verdict.get("failed") or []) or verdict.get("problem", "-")
        raise TrainingError(problem("E-GATE-15", str(folder), names=names))


def after_export(run: Path, out: Path, tell: Tell | None = None) -> dict[str, Any] | None:
    """Put the contract that a run names to what was exported from it, compared as the run was with
    its base. None where it names none. The verdict's files lie beside the exported folder, in
    `<out>-gate`, because the folder itself is for other programs."""
    try:
        settings = run_folder.read_run(run)
    except ConfigError:
        return None  # an adapter without a run
    named = settings.get("gate")
    if not named:
        return None
    tell, place = tell or Tell(), out.with_name(f"{out.name}-gate")
    tell.line(say("gate.begins", contract=named))
    found = gate(Path(named), str(out), base=str(run), out=place, tell=tell)
    for line in gate_review.lines(found):
        tell.line(line)
    return found
