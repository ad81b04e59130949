"""What a model says that answers with a number: opened once, every branch of every sample scored,
not finite numbers refused."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.core.errors import UsageError, problem
from tunewright.core.machine import keep_freed_memory
from tunewright.core.types import Sample
from tunewright.engine import opening


@dataclass(frozen=True)
class Scored:
    """Scores of a data set, and with what they were computed."""

    by_sample: dict[int, list[float]]
    """Index of a sample -> the score of each of its branches."""
    about: dict[str, Any]
    """`device`, `dtype` and `layout`."""
    loaded: float
    """`time.perf_counter()` when the model was open."""

    def result(
        self, found: opening.Target, data: Any, name: str, started: float, **what: Any
    ) -> dict[str, Any]:
        """What `tunewright evaluate` gives: the figures `what`, and what every evaluation tells."""
        seconds = {"total": time.perf_counter() - started, "load": self.loaded - started}
        return {
            "target": found.name,
            "data": name,
            "data_report": data.report,
            **what,
            "warnings": [],
            **self.about,
            "seconds": seconds,
        }


def scores(
    found: opening.Target,
    samples: Sequence[Sample],
    name: str,
    *,
    dtype: str | None,
    device: str,
    threads: Any,
) -> Scored:
    """Score every branch of `samples` with the run `found`.

    Raises UsageError (E-EVAL-04) for a score that is no finite number; `name` is the data's, for
    the message.
    """
    keep_freed_memory()
    world = opening.world_of(found, dtype, device, threads)
    layout = str(found.settings.get("engine.layout", "padded"))
    policy = opening.to_score(found, layout, world)
    loaded = time.perf_counter()
    by_sample = {
        sample.index: score.tolist()
        for sample, score in policy.scores(list(samples), world.rows_per_pass)
    }
    if not all(math.isfinite(score) for one in by_sample.values() for score in one):
        raise UsageError(problem("E-EVAL-04", name, value="nan"))
    return Scored(
        by_sample, {"device": world.device, "dtype": world.dtype, "layout": layout}, loaded
    )
