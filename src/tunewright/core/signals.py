"""Ctrl-C and SIGTERM: finish the step, leave a verified checkpoint, end with the signal's exit
code. A second one ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from tunewright.core.errors import Interrupted, problem

WATCHED = [
    s
    for s in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP"))
    if s is not None
]


class StopFlag:
    """Remembers the first signal. `check` is called wherever work can stop: between passes, batches
    of answers, rows."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.deferred = False
        """True while a stop must wait for the next `check` (weights are changing); False: stop
        where we are."""

    def handle(self, number: int, frame: Any) -> None:
        """The signal handler."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        if not self.deferred:
            raise self.error()

    def error(self) -> Interrupted:
        """The exception that ends the command with the signal's exit code."""
        number = self.signal or signal.SIGINT
        return Interrupted(number, problem("E-RUN-06", "", signal=signal.Signals(number).name))

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.signal is not None:
            raise self.error()


@contextlib.contextmanager
def watching() -> Iterator[StopFlag]:
    """Install the handlers for the time of a run. In a thread (a notebook's, a server's) Python
    allows none: the flag then never fires."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    # A signal that the caller chose to ignore (nohup ignores SIGHUP) stays ignored.
    watched = [number for number in WATCHED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, flag.handle) for number in watched}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
