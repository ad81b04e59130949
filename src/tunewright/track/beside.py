"""The run's side of trackers: start a process for each, and say at the end how they fared."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core import faults
from tunewright.core.errors import Problem, UsageError, problem, problem_of, raise_all
from tunewright.core.processes import detached
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.record import folder as run_folder
from tunewright.track.settings import EXTRA, Chosen, chosen, problems
from tunewright.track.state import FOLDER, State, log_of, path_of

SHARE, LEAST_SECONDS, MOST_SECONDS = 0.005, 0.05, 5.0
"""How long a run waits at its end for trackers: this share of what it took, within these bounds.
Who is not ready by then goes on alone."""


@dataclass
class _Started:
    one: Chosen
    child: subprocess.Popen[bytes]


class Beside:
    """The trackers of a run that goes on."""

    def __init__(self, run: Path, started: list[_Started]):
        self.run, self._started = run, started
        self._began = time.monotonic()

    def end(self, tell: Tell) -> None:
        """The run has ended: let the trackers read the rest, and say what is known of each."""
        for one in self._started:
            _close(one.child)
        spent = time.monotonic() - self._began
        until = time.monotonic() + min(max(SHARE * spent, LEAST_SECONDS), MOST_SECONDS)
        for started in self._started:
            kind = started.one.kind
            try:
                started.child.wait(max(0.0, until - time.monotonic()))
                tell.line(_outcome(self.run, kind))
            except subprocess.TimeoutExpired:
                tell.line(say("track.goes_on", kind=kind, file=path_of(self.run, kind)))
                _reap(started.child)


def start(given: Iterable[Any], run: Path, tell: Tell) -> Beside:
    """Start the trackers of a run. Nothing that goes wrong here stops the run: it is said."""
    started = []
    for one in chosen(given):
        if one.missing:
            tell.line(missing(one).line())
            continue
        try:
            started.append(_Started(one, _spawn(one, run)))
            tell.line(say("track.started", kind=one.kind, folder=_place(one, run)))
        except faults.UNFORESEEN as error:
            cause = faults.cause_of(error)
            tell.line(problem("E-TRACK-08", one.kind, kind=one.kind, cause=cause).line())
    return Beside(run, started)


def afterwards(run: Path, given: list[Any], tell: Tell, *, again: bool = False) -> dict[str, Any]:
    """Tell trackers of a run that is there, and wait for them: `{run, trackers: {kind: ...}}`, each
    with `status`, `step` and, where it failed, `problem`. What they were told before is not told
    again, unless `again` says so. Raises UsageError for wrong settings, a missing library, a folder
    that is no run."""
    raise_all(problems(given, "--to"))
    ones = chosen(given)
    raise_all(missing(one) for one in ones if one.missing)
    if not (run / "events.jsonl").is_file() or not (run / "run.yaml").is_file():
        raise UsageError.of("E-TRACK-09", str(run), folder=run)
    (run / FOLDER).mkdir(exist_ok=True)
    if again:
        for one in ones:
            State.read(run, one.kind).forget().write(run)
    started = [_Started(one, _spawn(one, run)) for one in ones]
    found = {}
    try:
        for beside in started:
            _close(beside.child)
        for beside in started:
            beside.child.wait()
            tell.line(_outcome(run, beside.one.kind))
            found[beside.one.kind] = _told(run, beside.one.kind)
    finally:
        for beside in started:
            if beside.child.poll() is None:
                beside.child.terminate()
                beside.child.wait()
    return {"run": str(run), "trackers": found}


def missing(one: Chosen) -> Problem:
    """That a tracker's library is not installed."""
    return problem(
        "E-TRACK-01", one.kind, kind=one.kind, module=", ".join(one.missing), extra=EXTRA
    )


def _spawn(one: Chosen, run: Path) -> subprocess.Popen[bytes]:
    run = run.resolve()
    (run / FOLDER).mkdir(exist_ok=True)
    given = one.settings.model_dump(exclude_unset=True)
    if given.get("folder"):
        given["folder"] = str(Path(given["folder"]).resolve())
    command = [sys.executable, "-m", "tunewright.track.child", str(run), one.kind]
    # Found where this process finds it, whatever was added to its path.
    paths = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    with open(log_of(run, one.kind), "ab") as log:
        return subprocess.Popen(
            [*command, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=run / FOLDER,
            env=environment,
            **detached(),
        )


def _close(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    with contextlib.suppress(OSError):  # it has ended
        child.stdin.close()


def _reap(child: subprocess.Popen[bytes]) -> None:
    """A child that ended stays as a zombie until somebody asks for it."""
    threading.Thread(target=child.wait, daemon=True).start()


def _place(one: Chosen, run: Path) -> Path:
    return Path(one.settings.folder or run / FOLDER / one.kind)


def _outcome(run: Path, kind: str) -> str:
    state = State.read(run, kind)
    if state.status == "done":
        return say("track.done", kind=kind, step=state.step, view=state.view)
    if state.problem is not None:
        return problem_of(state.problem).line()
    return problem("E-TRACK-10", kind, kind=kind, file=log_of(run, kind)).line()


def _told(run: Path, kind: str) -> dict[str, Any]:
    state = State.read(run, kind)
    told = {"status": state.status, "step": state.step, "view": state.view}
    if state.status not in ("done", "failed"):
        lost = problem("E-TRACK-10", kind, kind=kind, file=log_of(run, kind))
        return {**told, "status": "failed", "problem": lost.as_dict()}
    return {**told, "problem": state.problem} if state.problem else told


def runs(
    folder: Path, kinds: list[str], settings: dict[str, Any], tell: Tell, *, again: bool = False
) -> list[dict[str, Any]]:
    """`afterwards` for a run, or for every stage of a pipeline. Without `kinds` the trackers of the
    run file are told, each with its own settings; `settings` override them. `again`: as if nothing
    had been told. Raises UsageError as `afterwards`."""
    found = []
    for run in _runs_of(folder):
        given: list[Any] = [{"kind": kind, **settings} for kind in kinds]
        if not kinds:
            known = run_folder.read_run(run).get("track") or []
            given = [{**_as_settings(one), **settings} for one in known]
        if not given:
            raise UsageError.of("E-TRACK-11", str(run), folder=run)
        found.append(afterwards(run, given, tell, again=again))
    return found


def _as_settings(one: Any) -> dict[str, Any]:
    return dict(one) if isinstance(one, dict) else {"kind": one}


def _runs_of(folder: Path) -> list[Path]:
    stages = sorted(path.parent for path in folder.glob("*/run.yaml"))
    return [folder] if (folder / "run.yaml").is_file() or not stages else stages
