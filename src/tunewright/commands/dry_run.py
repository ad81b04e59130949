"""`tunewright train --dry-run`: every check, the data report and an estimate, and nothing written
or downloaded but small files. The story of a run, stopped before its weights are read."""

from __future__ import annotations

from typing import Any

from tunewright.advise import fit
from tunewright.commands import planning
from tunewright.core.runfile import ParsedRun
from tunewright.core.telling import Tell
from tunewright.core.words import say


def dry_run(parsed: ParsedRun, *, tell: Tell | None = None) -> dict[str, Any]:
    """Check a run, show its data and estimate its memory and time. Raises UsageError for everything
    `train` would refuse, also for what cannot fit.

    With only a config.json at hand it says what is missing and what would fit, without loading
    torch.
    """
    tell = tell or Tell()
    judged, begun = planning.judge(parsed, tell, planning.Wish(try_blocks=False, out_matters=True))
    for line in fit.describe(judged.found, judged.available):
        tell.line(line)
    planning.require(judged)
    tell.line(say("train.dry_run_done"))
    kinds = planning.kinds_of(parsed if begun is None else begun.continued.parsed)
    return planning.figures(judged) | {"kinds": kinds}
