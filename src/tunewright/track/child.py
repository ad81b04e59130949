"""The process that tells one tracker of one run.

    python -m tunewright.track.child RUN KIND SETTINGS

It reads `events.jsonl` until its standard input ends, which is when the run ended (or died), then
tells the end and leaves. It asks the system for idle time only, so that the steps come first. A
guard ends it when its library hangs after the run, and when it writes more than a share of what was
free on the disk.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunewright.core import faults
from tunewright.core.errors import Problem, TunewrightError, problem
from tunewright.core.files import readable_size
from tunewright.core.words import say
from tunewright.record import folder as run_folder
from tunewright.track import reading
from tunewright.track.pictures import of_run
from tunewright.track.settings import Chosen, chosen
from tunewright.track.sink import About, Sink
from tunewright.track.state import FOLDER, State, log_of

LOOK_SECONDS, GUARD_SECONDS = 0.5, 0.1
PATIENCE_SECONDS = 300.0
"""How long a library may take for one thing after the run has ended."""
SHARE_OF_FREE, MOST_BYTES = 0.1, 2 << 30
"""What the tracker may write: this share of the free space at its start, and never more."""
OWN_BYTES = 1 << 20
"""The limit of one file is never below this: on a full disk, what failed is still to be written
down."""
ROWS = 1000
"""Questions of a table."""


def main(run: Path, kind: str, settings: dict[str, Any]) -> int:
    """Tell the tracker `kind` of the run until it has ended; the exit code."""
    be_idle(yes=True)
    (run / FOLDER).mkdir(exist_ok=True)
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended,), daemon=True).start()
    # Two processes must not tell one tracker: a run that is taken up again waits for the first.
    with FileLock(run / FOLDER / f"{kind}.lock"):
        state = State.read(run, kind)
        guard = Guard(run, state, ended)
        try:
            (one,) = chosen([{"kind": kind, **settings}])
            state.settings = settings
            Teller(run, one, state, guard).follow(ended)
        except faults.UNFORESEEN as error:
            _fail(run, state, _problem_of(run, kind, error))
            return 1
        return 0


class Teller:
    """Passes on what the run wrote."""

    def __init__(self, run: Path, one: Chosen, state: State, guard: Guard):
        self.run, self.state, self.guard, self.one = run, state, guard, one
        self.reader = reading.EventReader(run / "events.jsonl")

    def follow(self, ended: threading.Event) -> None:
        """Until the run has ended and everything was told."""
        sink = self._open()
        state, last = self.state, False
        while True:
            last = ended.is_set()  # asked before reading, so that nothing written later is missed
            self._tell(sink)
            if last:
                break
            ended.wait(LOOK_SECONDS)
        status = str(run_folder.read_summary(self.run).get("status") or "running")
        if status != "running" and not state.closed:
            self._tell_end(sink)
        self.guard.doing()
        sink.finish(status)
        state.status, state.problem, state.unsure = "done", None, False
        state.closed = status == "done"
        state.write(self.run)

    def _open(self) -> Sink:
        run, state, one = self.run, self.state, self.one
        place = Path(one.settings.folder or run / FOLDER / one.kind)
        place.mkdir(parents=True, exist_ok=True)
        self.guard.watch(place)
        key = hashlib.sha256(f"{one.kind} {state.times} {_born(run)}".encode()).hexdigest()[:32]
        settings = run_folder.read_run(run)
        name = one.settings.name or run.resolve().name
        again, state.opened = state.opened > 0, state.opened + 1
        state.view = str(one.entry.facts.get("view", "")).format(folder=place)
        state.status, state.problem = "following", None
        state.write(run)
        sink: Sink = one.entry.function(one.settings, About(run, name, settings, place, key, again))
        if state.unsure and (reached := sink.reached()) is not None:
            state.told.figures = dict(reached)
        if not again:
            with contextlib.suppress(NotImplementedError):
                sink.file(run / "run.yaml")
        return sink

    def _tell(self, sink: Sink) -> None:
        """What was written since the last time."""
        fresh = self.state.told.news(self.reader.read())
        if not fresh:
            return
        self.guard.doing()
        self._promise()
        for one in fresh.figures:
            sink.figures(one.step, one.time, one.values)
            self.guard.doing()
        for told in fresh.answers:
            sink.table("answers", told.step, told.rows[:ROWS])
        self._kept(sink)

    def _tell_end(self, sink: Sink) -> None:
        """Answers, pictures, and the summary."""
        self.guard.doing()
        self._promise()
        summary = run_folder.read_summary(self.run)
        step = max(int(summary.get("steps") or 0), self.state.step, 0)
        figures = reading.summary_figures(summary)
        fresh = self.state.told.news(reading.Batch([reading.Figures(step, time.time(), figures)]))
        for one in fresh.figures:
            sink.figures(one.step, one.time, one.values)
        if rows := reading.answers_before_after(self.run):
            sink.table("before_after", step, rows[:ROWS])
        for name, png in of_run(self.run):
            self.guard.doing()
            sink.picture(name, step, png)
        for name in ("summary.json", "before_after.jsonl", "data_report.json"):
            if (self.run / name).is_file():
                sink.file(self.run / name)
        self._kept(sink)

    def _promise(self) -> None:
        self.state.unsure = True
        self.state.write(self.run)

    def _kept(self, sink: Sink) -> None:
        sink.flush()
        self.state.unsure = False
        self.state.write(self.run)
        self.guard.doing()


class Guard:
    """Ends this process when its library hangs after the run, or fills the disk."""

    def __init__(self, run: Path, state: State, ended: threading.Event):
        self.run, self.state, self.ended = run, state, ended
        self.free = shutil.disk_usage(run).free
        most = os.environ.get("TUNEWRIGHT_TRACK_BYTES") or MOST_BYTES
        self.most = int(min(SHARE_OF_FREE * self.free, int(most)))
        self.patience = float(os.environ.get("TUNEWRIGHT_TRACK_PATIENCE") or PATIENCE_SECONDS)
        self.place: Path | None = None
        self._before, self._lately = 0, time.monotonic()
        _limit_files(self.most)

    def watch(self, place: Path) -> None:
        """Look from now on at what is written into `place`, which may be another disk."""
        self.place, self._before = place, size_of(place)
        self.free = min(self.free, shutil.disk_usage(place).free)
        self.most = min(self.most, int(SHARE_OF_FREE * self.free))
        _limit_files(self.most)
        self.doing()
        threading.Thread(target=self._look, daemon=True).start()

    def doing(self) -> None:
        """The library came back."""
        self._lately = time.monotonic()

    def _look(self) -> None:
        try:
            self._watch()
        finally:
            _end_session()  # nothing goes on without its guard

    def _watch(self) -> None:
        seen_end: float | None = None
        looked = 0
        while True:
            time.sleep(GUARD_SECONDS)
            if self.ended.is_set() and seen_end is None:
                seen_end = time.monotonic()
                # For a library that never lets another thread run.
                faulthandler.dump_traceback_later(2 * self.patience, repeat=False, exit=True)
            assert self.place is not None
            looked += 1
            grown = _written()
            if looked % 5 == 0:  # a folder of many files takes a while
                grown = max(grown, size_of(self.place) - self._before)
            kind = self.state.kind
            if grown > self.most:
                size, free = readable_size(grown), readable_size(self.free)
                self._end(problem("E-TRACK-06", kind, kind=kind, size=size, free=free))
            since = max(self._lately, seen_end or 0.0)
            if seen_end is not None and time.monotonic() - since > self.patience:
                seconds = f"{self.patience:.0f}"
                self._end(problem("E-TRACK-05", kind, kind=kind, seconds=seconds))

    def _end(self, said: Problem) -> None:
        try:
            _fail(self.run, self.state, said)
            print(said.line(), file=sys.stderr, flush=True)
        finally:
            _end_session()


def size_of(place: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118
    return total


def _written() -> int:
    """Bytes that this process handed to the system for writing; 0 where that is not said."""
    try:
        for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
            if line.startswith("wchar:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def _limit_files(most: int) -> None:
    """No file of this process grows beyond `most` bytes."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = max(most, OWN_BYTES)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def be_idle(*, yes: bool) -> None:
    """Compute only while nobody else wants to, as far as the system knows such a thing; or, once
    the run has ended, as anybody."""
    kinds: Any = getattr(os, "SCHED_IDLE", None), getattr(os, "SCHED_OTHER", None)
    if None in kinds:
        with contextlib.suppress(AttributeError, OSError):
            os.nice(19 if yes else 0)
        return
    for thread in _threads():
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread, kinds[0] if yes else kinds[1], os.sched_param(0))


def _threads() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]  # noqa: PTH208
    except OSError:
        return [0]


def _wait_for_end(ended: threading.Event) -> None:
    """The run holds the other end: it is closed when the run ends, however it ends."""
    with contextlib.suppress(OSError, ValueError):
        while os.read(0, 4096):
            pass
    ended.set()
    be_idle(yes=False)


def _end_session() -> None:
    """End this process and what its library started, whatever they are doing."""
    try:
        if os.name != "nt" and os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGKILL)
    finally:
        os._exit(1)


def _born(run: Path) -> str:
    """What tells this run from every other: its folder may move, its first event stays."""
    try:
        with open(run / "events.jsonl", "rb") as handle:
            return handle.readline().decode("utf-8", "replace")
    except OSError:
        return str(run.resolve())


def _problem_of(run: Path, kind: str, error: BaseException) -> Problem:
    import traceback

    with contextlib.suppress(OSError):  # the log may lie on a full disk
        traceback.print_exception(error)
    if isinstance(error, TunewrightError):
        return error.problems[0]
    cause = faults.cause_of(error)
    return problem("E-TRACK-07", kind, kind=kind, cause=cause, file=log_of(run, kind))


def _fail(run: Path, state: State, said: Problem) -> None:
    state.status, state.problem = "failed", said.as_dict()
    with contextlib.suppress(OSError):
        state.write(run)


if __name__ == "__main__":
    _run, _kind, _settings = sys.argv[1:4]
    _quiet: Callable[..., Any] = signal.signal
    # Ctrl-C is for the run; its end is heard from the closed pipe.
    _quiet(signal.SIGINT, signal.SIG_IGN)
    _code = main(Path(_run), _kind, json.loads(_settings))
    print(say("track.ended", kind=_kind), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(_code)  # threads of a library do not hold the process
