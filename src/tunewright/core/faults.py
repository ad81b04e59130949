"""Unexpected errors: one message with a code for the person, and the traceback in a file for
whoever fixes it.

An exception that is not one of ours says nothing to a person and must not be lost either. It
becomes an `UnexpectedError` whose `__cause__` it is.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tunewright.core.errors import Problem, UnexpectedError, problem
from tunewright.core.files import readable_size
from tunewright.core.version import __version__

FILE = "traceback.txt"
LONGEST_CAUSE = 300
UNFORESEEN = (Exception, SystemExit)
"""What is caught; code of a person (a reward function) may even try to end the program."""


def caught(error: BaseException, folder: Path, doing: str) -> UnexpectedError:
    """The error to raise `from` one that is not ours. Appends the traceback to `FILE` in `folder`.
    `doing` says during what it came."""
    place = keep(error, folder)
    return UnexpectedError.of(_code(error), place, doing=doing, cause=cause_of(error))


def _code(error: BaseException) -> str:
    if is_memory(error):
        return "E-TRAIN-07"
    # What PyTorch says of a row that an embedding does not have, on a CPU.
    if isinstance(error, IndexError) and str(error) == "index out of range in self":
        return "E-TRAIN-10"
    return "E-TRAIN-08" if isinstance(error, OSError) else "E-TRAIN-06"


def is_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of the accelerator, ran out."""
    text = str(error).lower()
    no_room = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return (
        no_room
        or isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (
            isinstance(error, RuntimeError)
            and ("can't allocate memory" in text or "out of memory" in text)
        )
    )


def is_broken_line(error: BaseException) -> bool:
    """Whether an exchange with another process broke: what gloo and NCCL raise then, also inside of
    PyTorch's own exchanges (weights in shares)."""
    text = str(error).lower()
    names = ("gloo", "nccl", "connection reset by peer", "connection closed by peer")
    return isinstance(error, RuntimeError) and any(name in text for name in names)


def cause_of(error: BaseException) -> str:
    """Class and first line of an exception."""
    text = (str(error).strip().splitlines() or [""])[0]
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:LONGEST_CAUSE]


def keep(error: BaseException, folder: Path) -> str:
    """Append the traceback to `FILE` in `folder`, or where that cannot be written to one for
    temporary files. Returns the file, or why there is none."""
    python, now = sys.version.split()[0], time.strftime("%Y-%m-%d %H:%M:%S")
    head = f"tunewright {__version__} · Python {python} · {now}\n"
    text = head + "".join(traceback.format_exception(error)) + "\n"
    why = ""
    for place in (folder, Path(tempfile.gettempdir()) / "tunewright"):
        try:
            place.mkdir(parents=True, exist_ok=True)
            with open(place / FILE, "a", encoding="utf-8", errors="backslashreplace") as handle:
                handle.write(text)
            return str(place / FILE)
        except OSError as e:
            why = why or str(e)
    return why


def unwritten(error: BaseException, folder: Path) -> Problem:
    """That a folder could not be told how its run ended."""
    free = "?"
    with contextlib.suppress(OSError):
        free = readable_size(shutil.disk_usage(folder).free)
    return problem("E-TRAIN-09", str(folder / "summary.json"), cause=cause_of(error), free=free)
