"""Machines that one may rent or buy: what `assets/devices.json` knows of them. Facts that their
makers state, with the address where they do; nothing here was measured."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from functools import cache

from tunewright.advise.speed import Rates
from tunewright.core.errors import UsageError
from tunewright.core.words import ASSETS

GiB = 2**30
REACHED = 0.5
"""Share of the stated peak that matrix products of fine-tuning reach on a GPU; taken from published
figures (PaLM's and Llama's reports give 40 to 57 %), not measured here."""
APPLE_SHARE = 0.75
"""Part of a Mac's memory that its GPU may hold."""
SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(g|gb|gib|m|mb|mib|t|tb|tib)?\s*$", re.IGNORECASE)
UNITS = {"g": 2**30, "m": 2**20, "t": 2**40}


@dataclass(frozen=True)
class Device:
    """A machine by its maker's figures."""

    name: str
    aliases: tuple[str, ...]
    memory_gib: float
    tflops: float | None
    """Dense products in 16 bits, sums in 32, at peak; None: not stated."""
    bandwidth_gbs: float
    watts: float | None
    bfloat16: bool
    device: str
    """How `engine.device` would call it: cuda or mps."""
    source: str

    @property
    def dtype(self) -> str:
        """What `engine.dtype: auto` would take there (`engine/placement.py`)."""
        return "bfloat16" if self.bfloat16 else "float32"

    @property
    def usable_bytes(self) -> int:
        """Memory for a run."""
        share = APPLE_SHARE if self.device == "mps" else 1.0
        return int(self.memory_gib * share * GiB)

    def rates(self) -> Rates | None:
        """What a run may reach there; None where the peak is not stated, or holds for another dtype
        than a run would take."""
        if self.tflops is None or not self.bfloat16:
            return None
        return Rates(self.tflops * 1e12 * REACHED, self.bandwidth_gbs * 1e9)


@cache
def all_devices() -> tuple[Device, ...]:
    """Every known device, smallest memory first."""
    rows = json.loads((ASSETS / "devices.json").read_text(encoding="utf-8"))
    found = [Device(**{**row, "aliases": tuple(row["aliases"])}) for row in rows]
    return tuple(sorted(found, key=lambda one: (one.memory_gib, one.tflops or 0.0)))


def named(name: str) -> Device:
    """The device that a person means: case, spaces and maker do not matter. Raises UsageError
    (E-FIT-03) with the names that are known."""
    wanted = _plain(name)
    by_name = {_plain(word): one for one in all_devices() for word in (one.name, *one.aliases)}
    found = by_name.get(wanted)
    if found is None:
        close = difflib.get_close_matches(wanted, by_name, n=1, cutoff=0.6)
        raise UsageError.of(
            "E-FIT-03",
            "--device",
            name=name,
            guess=by_name[close[0]].name if close else "RTX 4090",
            known=", ".join(one.name for one in all_devices()),
        )
    return found


def _plain(name: str) -> str:
    text = re.sub(r"[\s_\-]+", "", name.casefold())
    for maker in ("nvidia", "geforce", "amd", "tesla", "rtx", "apple"):
        text = text.removeprefix(maker)
    return text


def bytes_of(text: str) -> int:
    """`48GB`, `48 GiB`, `48`: bytes, a GB taken as 2^30 as the makers of GPUs do. Raises UsageError
    (E-FIT-04)."""
    found = SIZE.match(text)
    size = float(found.group(1)) * UNITS[(found.group(2) or "g")[0].lower()] if found else 0.0
    if not size > 0:
        raise UsageError.of("E-FIT-04", "--memory", text=text)
    return int(size)
