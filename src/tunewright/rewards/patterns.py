"""Regular expressions with a time limit: a small process beside ours does the matching and is ended
when it takes too long.

Python's `re` cannot be interrupted from a thread, and a pattern such as (a+)+$ takes time
exponential in the text. A process can be ended on every system. It holds nothing but `re`, starts
in a few hundredths of a second with the first pattern and is kept for the next ones.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tunewright.core.words import say
from tunewright.rewards.base import short

START_SECONDS = 60.0
"""How long the process may take to start on a busy machine; never counted against a pattern."""


class PatternError(Exception):
    """The pattern is none, or took too long on this text."""


class _Matcher:
    """One child process and the thread that reads its answers. Belongs to the process that started
    it; a fork starts its own."""

    def __init__(self) -> None:
        command = [
            sys.executable,
            "-I",
            "-S",
            "-B",
            str(Path(__file__).with_name("pattern_child.py")),
        ]
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.answers: queue.Queue[bytes] = queue.Queue()
        self.owner = os.getpid()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.receive(START_SECONDS)  # it says that it is ready

    def _read(self) -> None:
        assert self.child.stdout
        for line in self.child.stdout:
            self.answers.put(line)
        self.answers.put(b"")

    def receive(self, seconds: float) -> Any:
        """The next answer; None where there is none in time or the process ended."""
        try:
            line = self.answers.get(timeout=seconds)
        except queue.Empty:
            return None
        return json.loads(line) if line else None

    def ask(self, question: dict[str, Any], seconds: float) -> Any:
        """Send one question and wait for its answer."""
        assert self.child.stdin
        with contextlib.suppress(OSError):  # it ended meanwhile: no answer will come
            self.child.stdin.write(json.dumps(question).encode() + b"\n")
            self.child.stdin.flush()
        return self.receive(seconds)

    def end(self) -> None:
        """End the process if it is ours."""
        if self.owner == os.getpid():
            self.child.kill()
            self.child.wait()
            self.reader.join(
                timeout=5
            )  # it sees the end of the pipe; closing under it would be an error in the thread
            for pipe in (self.child.stdin, self.child.stdout):
                with contextlib.suppress(OSError):
                    if pipe:
                        pipe.close()


_lock = threading.Lock()
_matcher: _Matcher | None = None


def _end() -> None:
    global _matcher
    if _matcher is not None:
        _matcher.end()
        _matcher = None


atexit.register(_end)


def matches(pattern: str, text: str, mode: str, flags: int, seconds: float) -> bool:
    """Whether `pattern` matches `text`; `mode` is search or fullmatch. Raises PatternError for a
    pattern that is none or takes longer than `seconds`."""
    global _matcher
    with _lock:
        if _matcher is None or _matcher.owner != os.getpid() or _matcher.child.poll() is not None:
            _matcher = _Matcher()
        answer: Any = None
        try:
            answer = _matcher.ask(
                {
                    "pattern": pattern,
                    "text": text,
                    "mode": mode,
                    "flags": flags,
                    "seconds": seconds,
                },
                seconds,
            )
        finally:
            if (
                answer is None
            ):  # too slow, or interrupted: a late answer must not be taken for the next one's
                _end()
    if answer is None:
        raise PatternError(
            say("rewards.why.slow_pattern", pattern=short(pattern), seconds=f"{seconds:g}")
        )
    if "error" in answer:
        raise PatternError(
            say("rewards.why.pattern", pattern=short(pattern), cause=answer["error"])
        )
    return bool(answer["matches"])
