"""Any method goes with any objective unless this file says why not; all reasons at once, before anything is loaded."""

from __future__ import annotations

from tunewright.core.config import RunConfig
from tunewright.core.errors import Problem, problem


def problems(run: RunConfig) -> list[Problem]:
    """Everything in a run that cannot go together."""
    found: list[Problem] = []
    if run.base.bits is not None:
        found.append(problem("E-COMPAT-02", "base.bits"))
    rate = run.engine.learning_rate
    if rate != "auto" and rate <= 0:
        found.append(problem("E-COMPAT-03", "engine.learning_rate", value=rate))
    return found
