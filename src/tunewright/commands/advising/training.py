"""The short LoRA of an advice: a run like any other, in a folder of its own, sized by the minutes
that are there.

Its steps follow from the number of rows and from `--minutes` alone, so that the same command trains
the same model; only where this machine is too slow for them they are fewer, and that is said.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.commands.advising.rows import Rows, write_rows
from tunewright.core.files import write_text
from tunewright.core.runfile import ParsedRun, parse_run, value_text
from tunewright.core.telling import Relay, Tell

STEPS_PER_MINUTE = 10
"""Of the whole budget: 60 steps in six minutes."""
EPOCHS = 8
"""More teaches a short training to repeat its rows."""
BATCH = 8
LEAST_STEPS = 15
STEPS = (15, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 1920)
"""Numbers of steps that are taken: they lie so far apart that a noisy clock seldom decides."""
SLACK = 1.3
"""A training that others disturb takes so much longer than was estimated."""


@dataclass(frozen=True)
class Planned:
    """A short training before it begins."""

    parsed: ParsedRun
    out: Path
    steps: int
    wanted: int
    seconds: float
    """Estimated."""


def wanted_steps(rows: int, minutes: float) -> int:
    """Steps that suit the rows and the minutes."""
    most = min(EPOCHS * -(-rows // BATCH), round(STEPS_PER_MINUTE * minutes))
    return _at_most(max(LEAST_STEPS, most))


def _at_most(steps: float) -> int:
    return max((one for one in STEPS if one <= steps), default=0)


def plan_training(
    folder: Path, key: str, model: str, rows: Rows, *, minutes: float, seconds: float, seed: int,
    dtype: str | None,
) -> Planned:  # fmt: skip
    """The run file of the training that fits in `seconds`, and its estimate. A training that began
    under the same key goes on as it was. Steps are 0 where not even `LEAST_STEPS` fit."""
    out = folder / f"lora-{key[:8]}"
    data = folder / "train.jsonl"
    if not data.is_file():
        write_rows(data, rows.train)
    wanted = wanted_steps(len(rows.train), minutes)
    if (out / "run.yaml").is_file():
        from tunewright.record import folder as run_folder

        steps = int(run_folder.read_run(out).get("engine.steps") or wanted)
        return Planned(_parsed(model, data, out, steps, seed, dtype), out, steps, wanted, 0.0)
    loading, step = estimate(_parsed(model, data, out, wanted, seed, dtype))
    affordable = (seconds / SLACK - loading) / max(step, 1e-9)
    steps = wanted if affordable >= wanted else _at_most(affordable)
    parsed = _parsed(model, data, out, max(steps, LEAST_STEPS), seed, dtype)
    write_text(folder / "lora.yaml", _yaml(parsed.given))
    return Planned(parsed, out, steps, wanted, loading + step * max(steps, LEAST_STEPS))


def _parsed(
    model: str, data: Path, out: Path, steps: int, seed: int, dtype: str | None
) -> ParsedRun:
    given: dict[str, Any] = {
        "model": model,
        "data.train": str(data),
        "data.held_out": 0,
        "data.accept": ["empty", "dropped", "too_long"],
        "method.kind": "lora",
        "method.rank": 16,
        "engine.steps": steps,
        "engine.batch_size": BATCH,
        "engine.seed": seed,
        "engine.save_every": None,
        "probes": 0,
        "out": str(out),
    }
    if dtype is not None:
        given["engine.dtype"] = dtype
    return parse_run(given, dict.fromkeys(given, "advise"))


def _yaml(given: dict[str, Any]) -> str:
    """The same as a file that `tunewright train` takes."""
    lines = []
    section = ""
    for key, value in given.items():
        first, _, rest = key.partition(".")
        if rest and first != section:
            lines.append(f"{first}:")
        section = first if rest else ""
        lines.append(f"{'  ' if rest else ''}{rest or first}: {value_text(value)}")
    return "\n".join(lines) + "\n"


def estimate(parsed: ParsedRun) -> tuple[float, float]:
    """Seconds of the run beside its steps, and of one step, as a dry run estimates them."""
    from tunewright.advise.speed import measured_rates
    from tunewright.core.telling import Quiet
    from tunewright.run import decided
    from tunewright.run.prepare import prepare

    plan = prepare(parsed, Quiet(), out_matters=False)
    world = decided.place(plan)
    found = plan.estimate(world, measured_rates(plan.shape, world)).by_part()
    learning = found.pop("train", 0.0)
    return sum(found.values()), learning / (plan.config.engine.steps or 1)


class Indented(Relay):
    """A training's progress, without its lines: the advice speaks for itself."""

    def __init__(self, inner: Tell, what: str):
        super().__init__(inner)
        self.what = what

    def line(self, text: str) -> None:
        """Nothing: the run's own lines are in its folder."""

    def start(self, what: str) -> None:
        """Under the advice's name for it."""
        self.inner.start(self.what)

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        """The same with the note of the run."""
        self.inner.progress(self.what, done, total, note)


def train(planned: Planned, tell: Tell) -> float:
    """Do the training, or take it up again where it was interrupted; the seconds that it took in
    all. Raises what a training raises."""
    from tunewright.record import folder as run_folder
    from tunewright.story import resume_run
    from tunewright.story import train as start

    began = time.perf_counter()
    if (planned.out / "run.yaml").is_file():
        summary = run_folder.read_summary(planned.out)
        if summary.get("status") != "done":
            resume_run(planned.out, tell=tell)
    else:
        start(planned.parsed, tell=tell)
    note = planned.out / "advised.json"
    spent = time.perf_counter() - began
    try:
        before = float(json.loads(note.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        before = 0.0
    total = before + (spent if spent > 1 or not before else 0.0)
    write_text(note, json.dumps({"seconds": round(total, 2)}) + "\n")
    return total
