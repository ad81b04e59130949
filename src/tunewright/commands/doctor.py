"""`tunewright doctor`: why a training did not learn, or learnt too much, from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tunewright.advise.doctor.judging import examine
from tunewright.core.errors import UsageError
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.record.diagnosis import Examination
from tunewright.run import examining


def diagnose(
    target: str,
    *,
    model: str | None = None,
    data: str | None = None,
    rows: int | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    data_format: str = "auto",
    columns: dict[str, str] | None = None,
    data_dir: str | None = None,
    tell: Tell | None = None,
) -> Examination:
    """Examine a run of ours, a PEFT adapter or a whole fine-tuned model.

    `model` is what it was trained from, `data` rows that it was trained on: with them both models
    read up to `rows` rows. Nothing is written. Raises UsageError for what cannot be opened or read.
    """
    tell, folder = tell or Tell(), Path(target)
    if rows is not None and rows < 1:
        raise UsageError.of("E-EVAL-05", "--rows")
    if folder.is_file() and folder.name == "run.yaml":
        folder = folder.parent
    how: dict[str, Any] = {
        "device": device,
        "threads": threads,
        "format": data_format,
        "columns": columns or {},
        "dir": data_dir,
    }
    if not (folder / "run.yaml").is_file():
        from tunewright.advise.doctor import foreign

        facts = foreign.facts_of(target, model, data, tell, rows=rows or foreign.ROWS, **how)
        if data is None:
            tell.line(say("doctor.no_data"))
        return examine(facts)
    if model is not None:
        tell.line(say("doctor.model_of_run", model=model))
    facts = examining.later(examining.facts_of(folder, examining.known_again(folder)), folder)
    if data is not None:
        from tunewright.advise.doctor import foreign
        from tunewright.engine import opening

        tuned = opening.find(str(folder), tell)
        base = opening.find(str(folder), tell, base=True)
        pair = foreign.Pair(tuned, base, facts.weights)
        how |= examining.reading_of(folder, data, how)
        facts = foreign.with_probe(facts, pair, data, tell, rows=rows or foreign.ROWS, **how)
    return examine(facts)
