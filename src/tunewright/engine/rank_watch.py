"""Which rank was lost, and why: every process shows once a second that it lives, and watches the
others.

A thread of each process counts up in the store that the processes met in. A count that stands still
for `timeout` seconds is a rank that was stopped, whose machine hangs or whose line is cut; after an
exchange that failed, a few seconds are enough. A rank that fails writes its error there before it
ends. The first such word is the cause that everybody names; whoever is still waiting for a lost
rank some seconds later is ended by its thread, so that no process stays behind. A process
that slept itself (a laptop's lid, a debugger) gives the others their time anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core import faults, launched
from tunewright.core.errors import (
    Interrupted,
    Problem,
    TrainingError,
    TunewrightError,
    UsageError,
    problem,
    problem_of,
)
from tunewright.core.launched import Place
from tunewright.core.words import say

BEAT_SECONDS = 1.0
GONE_SECONDS = 3.0
"""After a broken exchange or a SIGTERM, a rank that shows no life for so long is the one that was
lost."""
GRACE_SECONDS = 5.0
"""What a rank gets to end by itself once somebody was lost."""
TURNS = 4
"""Beats of its own that a process must have made in a row before it judges others."""
DONE = "done"
SHOWN_LINES = 12
"""Lines of the log of a rank that was lost."""


class RankError(TrainingError):
    """A rank of the run was lost, failed, or is not like the others. `exit_code` is that of what
    went wrong there."""

    def __init__(self, problems: Any, exit_code: int = 1, log: str = ""):
        super().__init__(problems)
        self.exit_code, self.log = exit_code, log
        self.last_lines = _end_of(log)

    def text(self, about: str = "") -> str:
        """The message, with the end of the log of the rank that was lost."""
        shown = [say("ranks.log_end", log=self.log), *self.last_lines] if self.last_lines else []
        return "\n".join([super().text(about), *shown])


def _end_of(log: str) -> list[str]:
    """The last lines of a log, where it can be read here."""
    if not log:
        return []
    try:
        text = Path(log).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [f"  | {line}" for line in text.splitlines()[-SHOWN_LINES:]]


@dataclass(frozen=True)
class Verdict:
    """Who ended the run. `kind`: gone, silent, error or stopped."""

    rank: int
    host: str
    kind: str
    seconds: float = 0.0
    doing: str = ""
    exit_code: int = 1
    problems: tuple[dict[str, Any], ...] = ()
    pid: int = 0
    log: str = ""

    def error(self) -> TunewrightError:
        """What every other rank raises."""
        where = f"rank {self.rank}, {self.host}"
        if self.kind == "stopped":
            return Interrupted(self.exit_code - 128, [problem_of(one) for one in self.problems])
        if self.kind == "gone":
            log = f": {self.log}" if self.log else ""
            found = problem("E-DIST-01", where, rank=self.rank, host=self.host, log=log)
            return RankError(found, log=self.log)
        if self.kind == "silent":
            return RankError(
                problem(
                    "E-DIST-02",
                    where,
                    rank=self.rank,
                    host=self.host,
                    seconds=f"{self.seconds:.0f}",
                    doing=self.doing or "-",
                ),
                log=self.log,
            )
        told = "; ".join(problem_of(one).line() for one in self.problems)
        found = problem("E-DIST-03", where, rank=self.rank, host=self.host, cause=told)
        return RankError(found, self.exit_code, self.log)

    def text(self) -> str:
        """For the store."""
        return json.dumps({**vars(self), "problems": list(self.problems)})

    @classmethod
    def of(cls, text: str) -> Verdict:
        """The inverse of `text`."""
        given = json.loads(text)
        return cls(**{**given, "problems": tuple(given["problems"])})


class Watch:
    """One process watching the others of its run. `timeout` in seconds."""

    def __init__(self, place: Place, timeout: float):
        import torch.distributed as dist

        self.place, self.timeout = place, timeout
        self.folder: Path | None = None
        """The run folder, once it is there."""
        self.verdict: Verdict | None = None
        self.log: Path | None = None
        self._what, self._broken_since = "", 0.0
        self._ended = threading.Event()
        self._known = threading.Event()
        base = dist.TCPStore(place.address, place.port, is_master=False, wait_for_workers=False)
        self._store = dist.PrefixStore(f"tunewright/{place.attempt}", base)
        self._beats = 0
        self._beat()
        self._store.wait([self._key(rank) for rank in range(place.world)])
        self._seen = {rank: ("", time.monotonic()) for rank in self._others()}
        self._thread = threading.Thread(target=self._watch, name="rank-watch", daemon=True)
        self._thread.start()

    def _others(self) -> list[int]:
        return [rank for rank in range(self.place.world) if rank != self.place.rank]

    @staticmethod
    def _key(rank: int) -> str:
        return f"beat/{rank}"

    # ---- what the main thread says

    def doing(self, what: str) -> None:
        """What this rank waits for, or nothing. Raises the error of a rank that was lost."""
        self._what = what
        if what and self.verdict is not None:
            raise self.verdict.error()

    def lost(self, error: BaseException) -> TunewrightError:
        """The error of the rank for which an exchange broke, as soon as it is known who that is."""
        self._broken_since = self._broken_since or time.monotonic()
        if self._known.wait(self.timeout + GONE_SECONDS) and self.verdict is not None:
            return self.verdict.error()
        where = f"rank {self.place.rank}, {self.place.host}"
        return RankError(problem("E-DIST-07", where, cause=faults.cause_of(error)))

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Whatever ends the inside is told to the others. Where another rank was lost before, that
        is the error."""
        try:
            yield
        except RankError:
            self._ended.set()
            raise
        except BaseException as e:
            if isinstance(e, Interrupted):
                # torchrun ends all ranks with a signal when one of them was lost.
                self._broken_since = self._broken_since or time.monotonic()
                self._known.wait(GONE_SECONDS + 2 * BEAT_SECONDS)
            if faults.is_broken_line(e):
                known = self.lost(e)
                self._ended.set()
                raise known from e
            found = self.verdict or self._publish(_of_error(e, self.place, str(self.log or "")))
            self._ended.set()
            if found.rank != self.place.rank and not isinstance(e, UsageError):
                raise found.error() from e
            raise

    def let_go(self) -> None:
        """Nobody need watch this rank any more, and it watches nobody."""
        self._ended.set()
        with contextlib.suppress(Exception):  # the store may be gone with the rank that kept it
            self._store.set(self._key(self.place.rank), DONE)

    # ---- the thread

    def _beat(self) -> None:
        self._beats += 1
        life = {"n": self._beats, "doing": self._what, "host": self.place.host}
        life |= {"pid": os.getpid(), "log": str(self.log or "")}
        self._store.set(self._key(self.place.rank), json.dumps(life))

    def _watch(self) -> None:
        steady, last = 0, time.monotonic()
        while not self._ended.wait(min(BEAT_SECONDS, self.timeout / 4)):
            now = time.monotonic()
            # Who slept cannot say how long the others were silent.
            if now - last > 3 * BEAT_SECONDS:
                steady = 0
                self._seen = {rank: (text, now) for rank, (text, _) in self._seen.items()}
                self._broken_since = now if self._broken_since else 0.0
            last, steady = now, steady + 1
            try:
                self._beat()
                found = self._told() or (self._judge(now) if steady >= TURNS else None)
            except Exception as e:
                found = self._without_store(e)
            if found is not None:
                self._end(found)
                return

    def _told(self) -> Verdict | None:
        """What somebody found out."""
        if not self._store.check(["end"]):
            return None
        return Verdict.of(self._store.get("end").decode())

    def _judge(self, now: float) -> Verdict | None:
        """A rank that shows no life."""
        others = self._others()
        texts = self._store.multi_get([self._key(rank) for rank in others])
        for rank, raw in zip(others, texts, strict=True):
            text = raw.decode()
            if text == DONE:
                continue
            before, since = self._seen[rank]
            if text != before:
                self._seen[rank] = (text, now)
                continue
            silent = now - since
            broken = bool(self._broken_since) and now - self._broken_since > 0.5
            if silent > self.timeout or (broken and silent > GONE_SECONDS):
                life = json.loads(text)
                kind = "gone" if broken else "silent"
                return self._publish(
                    Verdict(
                        rank,
                        life["host"],
                        kind,
                        silent,
                        life["doing"],
                        pid=life["pid"],
                        log=life["log"],
                    )
                )
        return None

    def _without_store(self, error: Exception) -> Verdict | None:
        """The process that keeps the store does not answer: rank 0, or the launcher beside it."""
        self._broken_since = self._broken_since or time.monotonic()
        if self._ended.is_set():
            return None
        return Verdict(0, self.place.address, "gone", doing=faults.cause_of(error))

    def _publish(self, verdict: Verdict) -> Verdict:
        """Be the first to say who ended the run, or learn who said it before."""
        with contextlib.suppress(Exception):  # without a store this rank's own verdict stands
            said = self._store.compare_set("end", "", verdict.text())
            verdict = Verdict.of(said.decode())
        self.verdict = verdict
        self._known.set()
        return verdict

    def _end(self, verdict: Verdict) -> None:
        """Let the main thread end; end the process where it cannot."""
        self.verdict = verdict
        self._known.set()
        here = verdict.host == self.place.host and verdict.rank != self.place.rank
        if verdict.kind == "silent" and here and verdict.pid:
            # A process that was stopped keeps its launcher waiting; it is one of ours.
            with contextlib.suppress(OSError):
                os.kill(verdict.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        if self._ended.wait(GRACE_SECONDS):
            return
        error = verdict.error()
        leave_word(self, error)
        sys.stderr.flush()
        os._exit(error.exit_code)


def _of_error(error: BaseException, place: Place, log: str) -> Verdict:
    host = socket.gethostname()
    if isinstance(error, Interrupted):
        told = tuple(one.as_dict() for one in error.problems)
        return Verdict(place.rank, host, "stopped", exit_code=error.exit_code, problems=told)
    if isinstance(error, TunewrightError):
        told = tuple(one.as_dict() for one in error.problems)
        return Verdict(place.rank, host, "error", exit_code=error.exit_code, problems=told, log=log)
    one: Problem = problem("E-TRAIN-06", "", doing="-", cause=faults.cause_of(error))
    return Verdict(place.rank, host, "error", problems=(one.as_dict(),), log=log)


def leave_word(watch: Watch, error: TunewrightError) -> None:
    """What a process says that is ended by its thread: to whoever launched it, to the run folder
    and to people."""
    from tunewright.record import folder as run_folder

    with contextlib.suppress(OSError):
        write_error(watch.place, error)
        if speaks(watch):
            if watch.folder is not None:
                run_folder.note_end(watch.folder, "failed", str(error))
            if not os.environ.get(launched.FOLDER):
                print(error.text(), file=sys.stderr)


def speaks(watch: Watch) -> bool:
    """Whether this rank speaks for all: the first that was not lost."""
    lost = watch.verdict.rank if watch.verdict is not None else None
    return watch.place.rank == (1 if lost == 0 else 0)


def write_error(place: Place, error: TunewrightError) -> None:
    """Leave an error for the launcher that started this process."""
    folder = os.environ.get(launched.FOLDER)
    if folder:
        told = {
            "rank": place.rank,
            "exit_code": error.exit_code,
            "kind": type(error).__name__,
            "problems": [one.as_dict() for one in error.problems],
            "log": getattr(error, "log", ""),
        }
        path = Path(folder) / f"rank-{place.rank}.error.json"
        path.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")


def leave(watch: Watch) -> None:
    """This rank is finished: nobody need watch it any more."""
    import torch.distributed as dist

    if watch.verdict is None:
        watch.let_go()
    watch._ended.set()
    with contextlib.suppress(Exception):  # the work is done; others may have left already
        if watch.verdict is None and dist.is_initialized():
            dist.destroy_process_group()
