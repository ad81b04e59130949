"""Whose names the suites of this folder ask: ours, or those of another package.

A package that adds names to a registry runs the suites on them with `TUNEWRIGHT_CONTRACT` set to a
module of its own, which holds one dictionary an axis (`METHODS`, `OBJECTIVES`, ...): name -> what
our tables say of a name of ours. See tests/outside_package.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

from tunewright.core.registry import Registry

Row = TypeVar("Row")
OUTSIDE = os.environ.get("TUNEWRIGHT_CONTRACT", "")


def rows(axis: str, row: Callable[..., Row], ours: dict[str, Row]) -> dict[str, Row]:
    """The table of an axis: `ours`, or the other package's."""
    if not OUTSIDE:
        return ours
    given = getattr(importlib.import_module(OUTSIDE), axis)
    return {name: row(**fields) for name, fields in given.items()}


def names(registry: Registry[Any]) -> list[str]:
    """The registered names that the table must hold."""
    package = OUTSIDE.partition(".")[0]
    return [e.name for e in registry if (e.package == package if OUTSIDE else e.is_ours)]
