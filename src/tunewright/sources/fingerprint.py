"""What the files of a model are, in one short text: for everything that is kept under it.

The bytes decide, not names or times. Reading them again and again would cost more than what is
kept saves, so the digest of large files is remembered under their path, size, times and inode
(`core/findings.py`): any write changes the time of change, which no program can set back. A file
that was written a moment ago is not remembered: a second write might leave no trace.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from tunewright.core import findings
from tunewright.core.machine import versions
from tunewright.core.publish import MARKER

DIGEST_BYTES = 16
SMALLEST_BYTES = 16 << 20
"""Weights of less than this are read anew each time, and nothing is kept about their model: it
takes less than a tenth of a second."""
MAX_READ_BYTES = 64 << 20
SETTLED_NS = 2_000_000_000
"""Age of the last change from which a file is taken to be at rest; the clocks of file systems tick
in steps of up to 2 s."""


def weights_digest(folder: Path) -> str:
    """A digest of the weight files of a model: all bytes up to 1 GiB a file, beyond that its size,
    its header and a MiB at sixteen places."""
    files = sorted(Path(folder).glob("*.safetensors"))
    marks = [_marks(path) for path in files]
    newest = max((max(mark[3:]) for mark in marks), default=0)
    total = sum(mark[1] for mark in marks)
    if total < SMALLEST_BYTES or time.time_ns() - newest < SETTLED_NS:
        return _digest(files)
    key = [os.path.realpath(folder), marks]
    return str(findings.once("weights", key, lambda: _digest(files)))


def _marks(path: Path) -> list[Any]:
    """Name, size, inode and the times of the last write and of the last change."""
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _digest(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as handle:
            places = range(0, size, 1 << 20) if size <= 1 << 30 else range(0, size, size // 16)
            for place in places:
                handle.seek(place)
                digest.update(handle.read(1 << 20))
    return digest.hexdigest()


def fingerprint(folder: Path) -> str:
    """A digest of everything in a model's or adapter's folder that decides what it computes and how
    it is asked: weights, configuration, tokenizer, templates and code."""
    folder = Path(folder)
    digest = hashlib.blake2b(weights_digest(folder).encode(), digest_size=DIGEST_BYTES)
    templates = folder.glob("additional_chat_templates/*.jinja")
    for path in sorted([*folder.iterdir(), *templates]):
        if path.suffix == ".safetensors" or path.name == MARKER or not path.is_file():
            continue
        marks = _marks(path)
        digest.update(f"{path.relative_to(folder)} {marks[1]}\n".encode())
        # What is larger is no part of any model we open: its marks will do.
        digest.update(path.read_bytes() if marks[1] <= MAX_READ_BYTES else repr(marks).encode())
    return digest.hexdigest()


def is_kept_about(folder: Path) -> bool:
    """Whether anything is kept about the model of a folder: not about the smallest, which are as
    quickly asked again."""
    files = Path(folder).glob("*.safetensors")
    return sum(path.stat().st_size for path in files) >= SMALLEST_BYTES


@functools.cache
def judged_by() -> dict[str, str]:
    """What judges here: versions of the libraries, and the state of this package's own files. Part
    of the key of whatever was found out. Loads no library."""
    root = Path(__file__).parents[1]
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for path in sorted(root.rglob("*.py")):
        stat = path.stat()
        digest.update(f"{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return versions() | {"files": digest.hexdigest()}


@functools.cache
def computed_by() -> dict[str, str]:
    """The same with the kind of processor: part of the key of whatever was computed."""
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    processor = torch.backends.cpu.get_cpu_capability()
    return judged_by() | {"processor": processor, "device": device}
