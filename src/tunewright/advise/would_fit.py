"""What makes a run fit: other settings, a smaller model, less kept at once, more processes."""

from __future__ import annotations

from dataclasses import replace

from tunewright.advise import among, changes, room, timing
from tunewright.advise.estimate import Estimate, comfortable, estimate, needed
from tunewright.advise.room import Room
from tunewright.core.machine import available_bytes
from tunewright.engine import ranks
from tunewright.engine.placement import World
from tunewright.models.shape import ModelShape


def largest_fitting(found: Estimate, available: int) -> ModelShape | None:
    """The largest common shape, smaller than the model asked for, with which the same run fits;
    None if not even the smallest does."""
    asked = found.question
    fits = [
        s
        for s in changes.ladder()
        if s.parameters < asked.shape.parameters
        and needed(asked, shape=s) <= comfortable(asked, available)
    ]
    return max(fits, key=lambda s: s.parameters, default=None)


def ways_to_fit(found: Estimate, available: int) -> list[changes.Way]:
    """What to change so that the run fits, what costs least first; nothing where no change of
    settings helps."""
    most = comfortable(found.question, available)
    return changes.ways(found.question, most, needed, timing.relative_seconds)


def leanest(found: Estimate) -> changes.Way | None:
    """The settings with which the same model needs least memory."""
    return changes.leanest(found.question, needed, timing.relative_seconds)


def room_for(
    found: Estimate, recompute: str, offload: str, available: int
) -> tuple[Room, dict[str, str]]:
    """(how the run makes room where `available` bytes are free, why by key): what takes least time
    of what `engine.recompute` and `engine.offload` leave open."""
    most = comfortable(found.question, available)
    return room.room_for(found.question, recompute, offload, most, needed)


def with_room(found: Estimate, chosen: Room) -> Estimate:
    """The same estimate for a run that makes room so."""
    asked = room.with_room(found.question, chosen)
    return found if asked == found.question else estimate(asked)


def room_of(world: World) -> int:
    """Memory of each process of a run: of its GPU, or its part of this machine's."""
    return available_bytes(world.device) // ranks.current().here


def among_processes(found: Estimate, world: World, available: int | None = None) -> Estimate:
    """The estimate with what `engine.parallel: auto` is in `world`, which is noted there."""
    most = room_of(world) if available is None else available
    need = needed(found.question, parallel="ddp")
    world.parallel, world.reasons["engine.parallel"] = among.choose(
        found.question, need, most, comfortable(found.question, most)
    )
    return estimate(replace(found.question, parallel=world.parallel))
