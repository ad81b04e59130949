"""How a long job speaks: lines and one line of progress, on stderr, plain when piped."""

from __future__ import annotations

import contextlib
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import TextIO

from tunewright.core.words import say

QUIET_SECONDS, LIVE_SECONDS = 2.0, 0.1
"""Answers that come sooner are told with one line; and the least time between two tellings."""


def duration(seconds: float) -> str:
    """75 -> '1:15'; 4000 -> '1:06:40'."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def width(text: str) -> int:
    """Places that a text takes on a terminal: two for a Chinese sign."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


class Tell:
    """Lines and progress for people. Subclass it to show a run elsewhere (a notebook, a page);
    `Quiet` says nothing."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream if stream is not None else sys.stderr
        self._live = bool(getattr(self._stream, "isatty", lambda: False)())
        self._open = False
        self._next_share = 0.0
        self._started = 0.0

    @property
    def colour(self) -> bool:
        """Whether colours make sense here."""
        import os

        return self._live and not os.environ.get("NO_COLOR")

    def line(self, text: str) -> None:
        """One finished line."""
        self._clear()
        print(text, file=self._stream, flush=True)

    def start(self, what: str) -> None:
        """Begin a piece of work whose progress will be told."""
        self._started, self._next_share = time.monotonic(), 0.0
        self._progress(what)

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total`, with the time left at the pace so far. Piped output gets a line every
        tenth."""
        spent = time.monotonic() - self._started
        left = duration(spent / done * (total - done)) if done else "?"
        text = (
            f"{what} {done}/{total}"
            + (f" · {note}" if note else "")
            + (f" · {left} ⏳" if self._live and done < total else f" · {left}")
        )
        if self._live:
            self._progress(text)
        elif done >= self._next_share * total:
            print(text, file=self._stream, flush=True)
            self._next_share = done / total + 0.1

    def finish(self) -> None:
        """End the progress line."""
        self._clear()

    def _progress(self, text: str) -> None:
        if self._live:
            print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)
            self._open = True

    def _clear(self) -> None:
        if self._open:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
            self._open = False


class Relay(Tell):
    """Passes everything on to `inner`; a subclass says what it changes on the way."""

    def __init__(self, inner: Tell):
        super().__init__()
        self.inner = inner

    @property
    def colour(self) -> bool:
        """Whether colours make sense there."""
        return self.inner.colour

    def line(self, text: str) -> None:
        """As the other does."""
        self.inner.line(text)

    def start(self, what: str) -> None:
        """As the other does."""
        self.inner.start(what)

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        """As the other does."""
        self.inner.progress(what, done, total, note)

    def finish(self) -> None:
        """As the other does."""
        self.inner.finish()


class Once(Relay):
    """A line that was said already is not said again."""

    def __init__(self, inner: Tell):
        super().__init__(inner)
        self._said: set[str] = set()

    def line(self, text: str) -> None:
        """One finished line, the first time."""
        if text not in self._said:
            self._said.add(text)
            self.inner.line(text)


class Quiet(Tell):
    """Says nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def start(self, what: str) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        """Nothing."""


def telling_answers(
    tell: Tell, what: str, count: int, most: int
) -> Callable[[int, int, int], None]:
    """The `progress` of `engine.decoding.answers.answer` that tells people of `count` answers of at
    most `most` tokens in all: one line at once, and tokens with the time left where more than
    `QUIET_SECONDS` pass."""
    what, most = say("answering.tokens", what=what), max(1, most)
    began = told = time.monotonic()
    tell.start(what)
    tell.progress(what, 0, most, say("answering.answers", done=0, count=count))

    def progress(done: int, written: int, _: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - began >= QUIET_SECONDS and now - told >= LIVE_SECONDS:
            told = now
            tell.progress(what, written, most, say("answering.answers", done=done, count=count))

    return progress


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No progress bars and no reports from Transformers; what is wrong comes back as an exception
    or in the loading info."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
