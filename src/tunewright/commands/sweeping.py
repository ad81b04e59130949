"""A sweep: the same run with other settings, trial after trial, as Optuna proposes them.

`sweep.json` in the sweep's folder is the truth: what is searched, and for every trial its settings,
how it ended and what it measured. Optuna is asked anew for every trial, with the finished ones told
to it in order and a seed made of the sweep's seed and the trial's number. So what a trial gets
depends on nothing that a kill could take away: a sweep that was killed goes on exactly, the trial
that was running by that run's own resume.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunewright import story
from tunewright.commands import sweep_spaces as spaces_
from tunewright.commands.sweep_record import ENDED, RECORD, Sweep, Trial
from tunewright.commands.sweep_search import Pruner, propose
from tunewright.core import publish
from tunewright.core.errors import Interrupted, TunewrightError, UsageError, problem_of
from tunewright.core.files import read_json_objects, write_text
from tunewright.core.run_text import yaml_of
from tunewright.core.runfile import load_run, parse_run, value_text
from tunewright.core.telling import Tell, duration
from tunewright.core.words import say
from tunewright.record import folder as run_folder
from tunewright.report.sweep import write_sweep_report
from tunewright.run import launching

BEST = "best.yaml"
SAMPLERS = ("auto", "grid", "tpe", "random")
DEFAULT_TRIALS = 12
LEAST_STEPS = 3
PROBE_STEPS = 3


def start(
    source: Path | None,
    words: list[str],
    *,
    trials: int | None = None,
    minutes: float | None = None,
    out: Path | None = None,
    sampler: str = "auto",
    seed: int = 0,
    prune: bool = True,
    metric: str = "",
    higher: bool = False,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Search the spaces among `words`, and return the record. Raises UsageError before anything is
    created; Interrupted when stopped (it goes on with `resume`)."""
    tell = tell or Tell()
    require_optuna()
    spaces, fixed = spaces_.parse(words)
    if sampler not in SAMPLERS:
        raise UsageError.of("E-SWEEP-07", "--sampler", sampler=sampler, known=", ".join(SAMPLERS))
    if (trials is not None and trials < 1) or (minutes is not None and not minutes > 0):
        raise UsageError.of("E-SWEEP-08", "--trials" if trials is not None else "--minutes")
    whole = spaces_.grid(spaces)
    wanted = trials or (len(whole) if whole and len(whole) <= 24 else DEFAULT_TRIALS)
    if sampler == "auto":
        sampler = "grid" if whole and len(whole) <= wanted else "tpe"
    if sampler == "grid" and whole is None:
        raise UsageError.of("E-SWEEP-09", "--sampler")
    wanted = min(wanted, len(whole)) if whole else wanted
    first = [f"{s.key}={value_text(s.first)}" for s in spaces]
    given = load_run(source, [*fixed, *first]).given
    given = {key: value for key, value in given.items() if key != "out"}
    _require_held_out(given, metric)
    name = source.stem if source else "sweep"
    out = out or run_folder.free_folder(f"{name}-sweep")
    run_folder.require_free(out)
    sweep = Sweep(out, given, spaces, wanted, sampler, seed, prune, metric, higher, minutes=minutes)
    with publish.folder(out) as place:
        sweep.out = place
        sweep.write()
    sweep.out = out
    return go_on(sweep, tell)


def resume(out: Path, tell: Tell | None = None) -> dict[str, Any]:
    """Go on with a sweep that was stopped; one that is done is left as it is."""
    require_optuna()
    return go_on(Sweep.read(out), tell or Tell())


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / RECORD).is_file()


def require_optuna() -> None:
    """Raises UsageError where Optuna is missing."""
    import importlib.util

    if importlib.util.find_spec("optuna") is None:
        raise UsageError.of("E-SWEEP-10", "sweep")


def go_on(sweep: Sweep, tell: Tell) -> dict[str, Any]:
    """Do the trials that are left, one process at a time."""
    lock = FileLock(sweep.out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError.of("E-SWEEP-14", str(sweep.out), folder=sweep.out) from error
    try:
        return _go_on(sweep, tell)
    except Interrupted:
        tell.line(say("sweep.stopped", folder=sweep.out))
        raise
    finally:
        lock.release()
        (sweep.out / ".lock").unlink(missing_ok=True)


def _go_on(sweep: Sweep, tell: Tell) -> dict[str, Any]:
    tell.line(
        say(
            "sweep.begin",
            trials=sweep.trials_wanted,
            sampler=sweep.sampler,
            spaces=" · ".join(f"{s.key}={s.as_text()}" for s in sweep.spaces),
        )
    )
    for space in sweep.spaces:
        if space.is_log:
            tell.line(say("sweep.log", key=space.key))
    if sweep.minutes is not None and sweep.samples is None:
        _measure(sweep, tell)
    while True:
        trial = next((t for t in sweep.trials if t.status not in ENDED), None)
        if trial is None:
            if len(sweep.trials) >= sweep.trials_wanted:
                break
            params = propose(sweep)
            if params is None:
                tell.line(say("sweep.exhausted", trials=len(sweep.trials)))
                sweep.trials_wanted = len(sweep.trials)
                break
            trial = Trial(len(sweep.trials), params)
            sweep.trials.append(trial)
            sweep.write()
        _run(sweep, trial, tell)
        sweep.write()
        _require_value(sweep, trial)
        _write_out(sweep)
        tell.line(line_of(sweep, trial))
        for line in trial.reason.splitlines():
            tell.line(f"  {line}")
    sweep.write()
    _write_out(sweep)
    best = sweep.best
    if best is None:
        why = [problem_of(t.problem) for t in sweep.trials if t.problem is not None]
        raise TunewrightError(why[:1])
    tell.line(
        say(
            "sweep.best",
            number=best.number + 1,
            value=f"{best.value:.4f}",
            params=_params_text(best),
            file=sweep.out / BEST,
            page=sweep.out / "report.html",
        )
    )
    return dict(json.loads((sweep.out / RECORD).read_text(encoding="utf-8")))


def _require_value(sweep: Sweep, trial: Trial) -> None:
    """Raise TunewrightError for a trial that was finished and measured nothing to compare by: the
    others would not either."""
    if trial.status != "done" or trial.value is not None:
        return
    if not sweep.metric:
        raise TunewrightError.of("E-SWEEP-12", "data.held_out", metric="held_out_loss")
    figures = run_folder.read_summary(sweep.folder(trial)).get("held_out_figures") or {}
    known = ", ".join(figures) or "-"
    raise TunewrightError.of("E-SWEEP-11", "--metric", metric=sweep.metric, known=known)


def _run(sweep: Sweep, trial: Trial, tell: Tell) -> None:
    """Do a trial, or the rest of it, and note how it ended."""
    folder, began = sweep.folder(trial), time.monotonic()
    tell.line(
        say(
            "sweep.trial",
            number=trial.number + 1,
            trials=sweep.trials_wanted,
            params=_params_text(trial),
        )
    )
    trial.measured = _measured_before(folder)
    given = {**settings_of(sweep, trial.params), "out": str(folder)}
    where = dict.fromkeys(given, say("sweep.where", number=trial.number + 1))
    try:
        parsed = parse_run(given, where)
        # Several processes tell no callback of this one, so none of their runs is stopped early.
        on = [] if launching.count(parsed) > 1 else [Pruner(sweep, trial)]
        if (folder / "run.yaml").is_file():
            finished = story.resume_run(folder, tell=tell, on=on)
        else:
            finished = story.train(parsed, tell=tell, on=on)
        trial.measured = _measured_before(folder)
        trial.status, trial.reason = _how(folder), ""
        trial.value, trial.steps = _value(sweep, finished.summary), finished.summary["steps"]
    except Interrupted:
        raise
    except UsageError as error:
        trial.status, trial.problem = "refused", error.problems[0].as_dict()
        trial.reason = str(error)
    except TunewrightError as error:
        trial.status, trial.problem = "failed", error.problems[0].as_dict()
        trial.reason = str(error)
    trial.seconds = round(trial.seconds + time.monotonic() - began, 3)


def _measured_before(folder: Path) -> dict[str, float]:
    """The held-out losses that a run measured before it was killed."""
    found = {}
    for event in _events(folder):
        loss = event.get("held_out_loss")
        if event.get("event") == "evaluation" and isinstance(loss, int | float):
            found[str(event["step"])] = float(loss)
    return found


def _events(folder: Path) -> list[dict[str, Any]]:
    try:
        return read_json_objects(folder / "events.jsonl")
    except OSError:
        return []


def _how(folder: Path) -> str:
    stopped = any(
        e.get("event") == "stopped_by" and e["by"] == Pruner.__name__ for e in _events(folder)
    )
    return "pruned" if stopped else "done"


def _value(sweep: Sweep, summary: dict[str, Any]) -> float | None:
    found = summary.get("held_out_loss")
    if sweep.metric:
        figures = summary.get("held_out_figures") or {}
        found = figures.get(sweep.metric)
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def settings_of(sweep: Sweep, params: dict[str, Any], *, budget: bool = True) -> dict[str, Any]:
    """The keys of a trial's run; `budget`: with the steps that the sweep's minutes allow."""
    given = {**sweep.given, **_without_kinds(params)}
    given.setdefault("probes", 0)
    if budget:
        given.setdefault("forgetting", "off")
    if budget and sweep.samples is not None:
        size = given.get("engine.batch_size", "auto")
        size = size if isinstance(size, int) else 16
        steps = max(LEAST_STEPS, round(sweep.samples / size))
        own = given.get("engine.steps")
        given["engine.steps"] = min(steps, own) if isinstance(own, int) else steps
    return given


def _without_kinds(params: dict[str, Any]) -> dict[str, Any]:
    """`method=lora,dora` sweeps `method.kind`."""
    return {f"{k}.kind" if k in ("method", "objective") else k: v for k, v in params.items()}


def _measure(sweep: Sweep, tell: Tell) -> None:
    """Find by a short run how many samples a trial may learn from, so that all of them take the
    minutes that were given."""
    assert sweep.minutes is not None
    params = {s.key: s.first for s in sweep.spaces}
    given = settings_of(sweep, params) | {"engine.steps": PROBE_STEPS}
    began = time.monotonic()
    with publish.scratch(sweep.out / "probe", "sweep") as place:
        given["out"] = str(place / "run")
        summary = story.train(parse_run(given, dict.fromkeys(given, "sweep")), tell=tell).summary
        wall = time.monotonic() - began
    step = summary["train_seconds"] / PROBE_STEPS
    around = max(0.0, wall - summary["train_seconds"])
    each = 60 * sweep.minutes / sweep.trials_wanted
    per_step = summary["samples"] / PROBE_STEPS
    sweep.samples = max(LEAST_STEPS, int((each - around) / max(step, 1e-4))) * round(per_step)
    sweep.write()
    tell.line(
        say(
            "sweep.budget",
            minutes=f"{sweep.minutes:g}",
            each=duration(each),
            samples=f"{sweep.samples:,}",
        )
    )


def _require_held_out(given: dict[str, Any], metric: str) -> None:
    """What cannot be compared is refused."""
    held = given.get("data.held_out")
    if held in (0, 0.0) and held is not None and not isinstance(held, bool):
        raise UsageError.of("E-SWEEP-12", "data.held_out", metric=metric or "held_out_loss")


def _write_out(sweep: Sweep) -> None:
    """The best run file and the page."""
    best = sweep.best
    if best is not None:
        given = settings_of(sweep, best.params, budget=False)
        for key in ("probes",):
            if key not in sweep.given:
                given.pop(key, None)
        head = say("sweep.best_file", number=best.number + 1, value=f"{best.value:.6g}")
        comments = {key: say("sweep.best_key") for key in _without_kinds(best.params)}
        write_text(sweep.out / BEST, f"# {head}\n{yaml_of(given, comments)}")
    write_sweep_report(sweep.out)


def _params_text(trial: Trial) -> str:
    return " ".join(f"{key}={_short(value)}" for key, value in trial.params.items())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def line_of(sweep: Sweep, trial: Trial) -> str:
    """A trial in one line."""
    value = "-" if trial.value is None else f"{trial.value:.4f}"
    return say(
        "sweep.line",
        number=trial.number + 1,
        trials=sweep.trials_wanted,
        status=say(f"sweep.status.{trial.status}"),
        value=value,
        params=_params_text(trial),
        time=duration(trial.seconds),
    )


def table(record: dict[str, Any]) -> list[str]:
    """The trials as lines for a terminal, the best first."""
    sign = -1 if record["higher"] else 1
    rows = sorted(
        record["trials"],
        key=lambda t: (t["status"] != "done", sign * (t["value"] or 0), t["number"]),
    )
    keys = list(record["spaces"])
    head = ["#", *keys, record["metric"] or "held_out_loss", say("sweep.column.status")]
    cells = [
        [
            str(t["number"] + 1) + ("*" if t["number"] == record["best"] else ""),
            *(_short(t["params"][key]) for key in keys),
            "-" if t["value"] is None else f"{t['value']:.6g}",
            say(f"sweep.status.{t['status']}"),
        ]
        for t in rows
    ]
    widths = [max(len(row[n]) for row in [head, *cells]) for n in range(len(head))]
    pairs = (zip(row, widths, strict=True) for row in [head, *cells])
    return ["  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in pairs]


__all__ = ["RECORD", "Sweep", "is_sweep", "resume", "start", "table"]
