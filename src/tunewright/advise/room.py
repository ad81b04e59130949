"""How a run makes room in memory without changing a number: what is computed again, what is kept of
attention, what lies elsewhere. As little of it as the estimate asks for.

What each costs in time is rough; only the order matters here. On a GPU, state and activations go to
the host's memory, on a CPU into files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from tunewright.advise.question import Question
from tunewright.core.files import readable_size
from tunewright.core.registry import methods
from tunewright.core.runfile import kind_of
from tunewright.core.words import say
from tunewright.models.limits import KEEP_BYTES

RECOMPUTE = ("none", "selective", "full")
OFFLOAD = ("none", "optimizer", "activations", "all")
OF_RECOMPUTE = {"none": 0.0, "selective": 0.1, "full": 0.33}
"""How much longer the steps take (`full` measured: docs/engine.md)."""
OF_KEEPING_NOTHING = 0.05
"""The same where attention probabilities are computed again."""
OF_OFFLOAD = {
    "cuda": {"none": 0.0, "optimizer": 0.2, "activations": 0.4, "all": 0.6},
    "cpu": {"none": 0.0, "optimizer": 0.4, "activations": 0.7, "all": 1.1},
}
"""The same for what lies elsewhere; not measured on a GPU."""


@dataclass(frozen=True)
class Room:
    """What a run does for memory, as in `engine.recompute` and `engine.offload`; and up to how many
    bytes attention probabilities are kept."""

    recompute: str = "none"
    keep_bytes: int = KEEP_BYTES
    offload: str = "none"

    def slower(self, device: str) -> float:
        """How much longer the steps take, as a share."""
        kept = self.keep_bytes or self.recompute != "none"
        where = OF_OFFLOAD["cuda" if device.startswith("cuda") else "cpu"]
        return (
            OF_RECOMPUTE[self.recompute]
            + where[self.offload]
            + (0.0 if kept else OF_KEEPING_NOTHING)
        )


def rooms(question: Question, recompute: str, offload: str) -> list[Room]:
    """Every way that the run file leaves open (`auto`), what takes least time first."""
    levels = RECOMPUTE if recompute == "auto" else (recompute,)
    entry = methods.get(kind_of(question.method)) if question.method is not None else None
    own = entry is not None and entry.facts.get("own_optimizer")
    places: tuple[str, ...] = OFFLOAD if not own else ("none", "activations")
    if question.parallel == "fsdp":
        places = ("none",)  # `engine.offload_shares` is for that
    if offload != "auto":
        places = (offload,)
    found = [
        Room(level, KEEP_BYTES if level == "none" and keeps else 0, place)
        for level, place, keeps in itertools.product(levels, places, (True, False))
        if level == "none" or keeps
    ]
    if recompute != "auto":
        # Who said `none` meant it: probabilities too.
        found = [one for one in found if one.keep_bytes or one.recompute != "none"]
    return sorted(found, key=lambda one: one.slower(question.device))


def room_for(
    question: Question, recompute: str, offload: str, most: int, needed: Callable[..., int]
) -> tuple[Room, dict[str, str]]:
    """The fastest room with which the run needs at most `most` bytes, the leanest where none does;
    and why, by key of the run file. `needed(question, **changes)` counts bytes."""
    open_ways = rooms(question, recompute, offload)
    sizes = {one: needed(question, **asdict(one)) for one in open_ways}
    fitting = (one for one in open_ways if sizes[one] <= most)
    room = next(fitting, None) or min(open_ways, key=lambda one: sizes[one])
    kept, now = readable_size(sizes[open_ways[0]]), readable_size(sizes[room])
    slower = f"{100 * room.slower(question.device):.0f}"
    reasons = {}
    for key, value, first in (
        ("recompute", room.recompute, "none"),
        ("offload", room.offload, "none"),
    ):
        needs = value != first or (key == "recompute" and not room.keep_bytes)
        if not needs:
            reasons[f"engine.{key}"] = say("fit.recompute.none")
        elif value == first:
            reasons[f"engine.{key}"] = say("fit.room.attention", kept=kept, now=now)
        else:
            reasons[f"engine.{key}"] = say("fit.room.some", kept=kept, now=now, slower=slower)
    return room, reasons


def with_room(question: Question, room: Room) -> Question:
    """The same run in this room."""
    changes: dict[str, Any] = asdict(room)
    return replace(question, **changes)
