"""Names to entries: how a method, an objective, a format or a reward becomes a word in a run file.

A registry fills itself on first use by importing its room, then whatever installed packages offer
under the entry point `tunewright.<axis>`. So floor 0 names no room in an import statement, and
`import tunewright` loads none.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from tunewright.core.errors import ConfigError, problem

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[F]):
    """One registered name: its frozen config class, the function behind it, and free facts shown in
    lists."""

    name: str
    config: type
    function: F
    facts: dict[str, Any]

    @property
    def package(self) -> str:
        """The package that offers it."""
        return self.config.__module__.partition(".")[0]

    @property
    def is_ours(self) -> bool:
        """Whether it has pages of docs/ and sentences of `assets/locales`; another package's has
        the documentation of its config class."""
        return self.package == __package__.partition(".")[0]


class Registry(Generic[F]):
    """The names of one axis. `room` is imported on first use and registers its own entries."""

    def __init__(self, axis: str, room: str):
        self.axis, self.room = axis, room
        self._entries: dict[str, Entry[F]] = {}
        self._loaded = False

    def register(self, name: str, config: type, **facts: Any) -> Callable[[F], F]:
        """Decorator: `function` is what `kind: name` calls, with an instance of `config`."""

        def keep(function: F) -> F:
            if name in self._entries:
                raise ValueError(f"{self.axis} {name!r} is registered twice")
            taken = next((e.name for e in self._entries.values() if e.config is config), None)
            if taken is not None:
                # A run is told by the class of its settings: `runfile.kind_of`.
                raise ValueError(f"{config.__name__} is the config class of {taken!r} already")
            self._entries[name] = Entry(name, config, function, facts)
            return function

        return keep

    def load(self) -> None:
        """Import the room and the entry points of outside packages, once. Raises ConfigError for a
        package that cannot be loaded."""
        if self._loaded:
            return
        self._loaded = True
        importlib.import_module(self.room)
        group = f"tunewright.{self.axis}"
        try:
            for point in entry_points(group=group):
                point.load()
        except Exception as e:  # what stands in another package may raise anything
            self._loaded = False
            package = point.dist.name if point.dist is not None else point.value
            fault = f"{type(e).__name__}: {e}"
            raise ConfigError(
                problem("E-CONFIG-47", point.value, package=package, group=group, cause=fault)
            ) from e

    def get(self, name: str) -> Entry[F] | None:
        """The entry of a name, or None."""
        self.load()
        return self._entries.get(name)

    def names(self) -> list[str]:
        """All names, sorted."""
        self.load()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[Entry[F]]:
        self.load()
        return iter([self._entries[name] for name in self.names()])

    def guess(self, name: str) -> str | None:
        """The registered name that `name` most probably meant."""
        close = difflib.get_close_matches(name, self.names(), n=1, cutoff=0.6)
        return close[0] if close else None


methods: Registry[Callable[..., Any]] = Registry("methods", "tunewright.methods")
objectives: Registry[Callable[..., Any]] = Registry("objectives", "tunewright.objectives")
formats: Registry[Callable[..., Any]] = Registry("formats", "tunewright.data.formats")
rewards: Registry[Callable[..., Any]] = Registry("rewards", "tunewright.rewards")
AXES = {"method": methods, "objective": objectives}
