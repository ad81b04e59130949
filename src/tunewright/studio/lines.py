"""What the server asks of a child process: one JSON object a line on stdin, events and one result a
line on stdout.

    {"id": 7, "call": "plan", "language": "zh", "args": {...}}
    {"cancel": 7}
    <- {"id": 7, "event": "piece", ...}           any number of them
    <- {"id": 7, "done": true, "result": {...}}   or "problems": [...]
    <- {"id": 7, "done": true, "dropped": true}   a newer request of the kind came first
    <- {"id": 7, "done": true, "cancelled": true}

One request is worked on at a time. Of those that wait only the newest of a kind stays, but for
calls of which each counts (`keeps`). A library that prints would spoil the answers, so the real
stdout is kept aside and descriptor 1 leads to stderr from then on. The process ends with its stdin:
whoever started it is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tunewright.core import faults
from tunewright.core.errors import Problem, TunewrightError, UsageError, problem
from tunewright.core.refusals import reason_of
from tunewright.core.words import LANGUAGES, set_language
from tunewright.record.events import plain

LONGEST_LINE = 64 * 2**20
"""Bytes of a request: data pasted into a page, and never more."""
A = TypeVar("A", bound="Args")


class Args(BaseModel):
    """The arguments of a call. Keys that are not known are left alone: the page may be newer."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Cancelled(BaseException):
    """Raised inside a call whose result nobody waits for any more. Like KeyboardInterrupt it is no
    Exception, so that nothing on the way takes it for an error of its own."""


@dataclass
class Request:
    """One request while it is worked on."""

    id: Any
    call: str
    language: str | None
    args: dict[str, Any]
    send: Callable[[dict[str, Any]], None]
    cancelled: threading.Event = field(default_factory=threading.Event)

    def event(self, name: str, **more: Any) -> None:
        """Tell something before the result."""
        self.send({"id": self.id, "event": name, **more})

    def check(self) -> None:
        """Raise Cancelled where nobody waits any more; called wherever work can stop."""
        if self.cancelled.is_set():
            raise Cancelled

    def read(self, kind: type[A]) -> A:
        """The arguments. Raises UsageError (E-STUDIO-31) naming each that is missing or wrong."""
        try:
            return kind.model_validate(self.args)
        except ValidationError as error:
            found = {".".join(map(str, one["loc"])): reason_of(one) for one in error.errors()}
            raise UsageError(
                [
                    problem("E-STUDIO-31", key, field=key, call=self.call, reason=reason)
                    for key, reason in found.items()
                ]
            ) from error


Call = Callable[[Request], Any]


class Child:
    """The loop of a child process. `calls` are what may be asked; each gets the request and returns
    what JSON can hold. `keeps` are calls whose waiting requests are never dropped. `idle` is called
    whenever nothing was asked for `idle_seconds`. `interrupts`: cancelling stops a call wherever it
    is, as Ctrl+C would; without, where it calls `Request.check`."""

    def __init__(
        self,
        calls: Mapping[str, Call],
        *,
        keeps: Collection[str] = (),
        idle: Callable[[], None] | None = None,
        idle_seconds: float = 60.0,
        interrupts: bool = False,
    ) -> None:
        self.calls, self.keeps = calls, keeps
        self.idle, self.idle_seconds = idle, idle_seconds
        # Windows has no such signal: there a call is let finish, and its result is not told.
        self.interrupts = interrupts and hasattr(signal, "SIGUSR1")
        self._out: TextIO = sys.stdout
        self._writing = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: list[Request] = []
        self._current: Request | None = None
        self._inside = False
        self._ended = False

    def run(self) -> None:
        """Answer until stdin ends."""
        asked, self._out = _own_pipes()
        # Ctrl+C in the terminal is meant for the server, which ends this process by closing stdin.
        with suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.interrupts:
            signal.signal(signal.SIGUSR1, self._interrupted)
        threading.Thread(target=self._read, args=(asked,), daemon=True).start()
        while (request := self._next()) is not None:
            self._work(request)

    # ---- what comes in

    def _read(self, asked: TextIO) -> None:
        for line in asked:
            if line.strip():
                self._take(line)
        with self._changed:
            self._ended = True
            busy = self._current is not None
            self._changed.notify()
        if busy:
            os._exit(0)  # the server is gone, and so is whoever waited for this

    def _take(self, line: str) -> None:
        try:
            given = json.loads(line) if len(line) <= LONGEST_LINE else None
        except ValueError:
            given = None
        if not isinstance(given, dict):
            self._fail(None, [problem("E-STUDIO-30", "stdin")])
        elif "cancel" in given:
            self._cancel(given["cancel"])
        else:
            self._queue(given)

    def _queue(self, given: dict[str, Any]) -> None:
        call, args, spoken = given.get("call"), given.get("args"), given.get("language")
        if not isinstance(call, str) or call not in self.calls or not isinstance(args or {}, dict):
            self._fail(given.get("id"), [problem("E-STUDIO-30", str(call))])
            return
        language = spoken if spoken in LANGUAGES else None
        request = Request(given.get("id"), call, language, args or {}, self._write)
        with self._changed:
            older = [] if call in self.keeps else [r for r in self._waiting if r.call == call]
            self._waiting = [r for r in self._waiting if r not in older] + [request]
            self._changed.notify()
        for one in older:
            self._write({"id": one.id, "done": True, "dropped": True})

    def _cancel(self, which: Any) -> None:
        with self._changed:
            waited = [r for r in self._waiting if r.id == which]
            self._waiting = [r for r in self._waiting if r.id != which]
            running = self._current if self._current and self._current.id == which else None
        if running is not None and not running.cancelled.is_set():
            running.cancelled.set()
            if self.interrupts:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        for one in waited:
            self._write({"id": one.id, "done": True, "cancelled": True})

    # ---- what goes out

    def _next(self) -> Request | None:
        while True:
            with self._changed:
                self._current = None
                told = self._waiting or self._ended or self._changed.wait(self.idle_seconds)
                if self._waiting:
                    self._current = self._waiting.pop(0)
                    return self._current
                if self._ended:
                    return None
            if not told and self.idle is not None:
                try:
                    self.idle()
                except faults.UNFORESEEN as error:
                    unforeseen(error, "idle")

    def _work(self, request: Request) -> None:
        set_language(request.language)
        try:
            result = self._called(request)
        except Cancelled:
            self._inside = False
            self._write({"id": request.id, "done": True, "cancelled": True})
        except TunewrightError as error:
            self._fail(request.id, error.problems)
        except faults.UNFORESEEN as error:
            self._fail(request.id, [unforeseen(error, request.call)])
        else:
            self._write({"id": request.id, "done": True, "result": result})

    def _called(self, request: Request) -> Any:
        self._inside = True
        try:
            request.check()
            result = self.calls[request.call](request)
            request.check()
            return result
        finally:
            self._inside = False

    def _interrupted(self, *_: Any) -> None:
        """In the main thread, between two of its steps: leave the call that was cancelled."""
        if self._inside and self._current is not None and self._current.cancelled.is_set():
            raise Cancelled

    def _fail(self, which: Any, problems: list[Problem]) -> None:
        said = [one.as_dict() for one in problems]
        self._write({"id": which, "done": True, "problems": said})

    def _write(self, said: dict[str, Any]) -> None:
        text = _json(said)
        try:
            with self._writing:
                self._out.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")
                self._out.flush()
        except (BrokenPipeError, ValueError):
            os._exit(0)


def unforeseen(error: BaseException, doing: str) -> Problem:
    """What is said of an exception that is not ours; its traceback goes to stderr, which is the
    server's log, and to a file."""
    import tempfile

    place = faults.keep(error, Path(tempfile.gettempdir()) / "tunewright")
    print(faults.cause_of(error), file=sys.stderr, flush=True)
    code = "E-STUDIO-33" if faults.is_memory(error) else "E-STUDIO-32"
    return problem(code, place, doing=doing, cause=faults.cause_of(error))


def _json(said: dict[str, Any]) -> str:
    """One line. `str` for what JSON does not know: a path, a number of NumPy; words for numbers
    that it does not know, NaN above all, which a browser would refuse to read."""
    how: dict[str, Any] = {"ensure_ascii": False, "default": str, "allow_nan": False}
    try:
        return json.dumps(said, **how)
    except ValueError:
        return json.dumps(plain(said), **how)


def _own_pipes() -> tuple[TextIO, TextIO]:
    """(stdin, stdout) for this module alone: whatever else prints goes to stderr, and whatever else
    reads finds nothing."""
    asked = os.fdopen(os.dup(0), "r", encoding="utf-8", errors="replace", newline="\n")
    said = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8", closefd=False), sys.stderr
    return asked, said
