"""Names to entries: how a method, an objective, a format or a reward becomes a word in a run file.

A registry fills itself on first use by importing its room, then whatever installed packages offer
under the entry point `tunewright.<axis>`. So core names no other room in an import statement, and
`import tunewright` loads none.
"""

from __future__ import annotations

import difflib
import importlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig
    from typing_extensions import Unpack

    from tunewright.core.errors import Problem
    from tunewright.core.types import Attached, Model

from tunewright.core.errors import ConfigError, problem

F = TypeVar("F", bound=Callable[..., Any])
LOADING = threading.RLock()
"""Held while a room is loaded: another thread of a server must not find half of its names. One for
all axes, because rooms ask for each other's names."""


@dataclass(frozen=True)
class Entry(Generic[F]):
    """One registered name: its frozen config class, the function behind it, and free facts shown in
    lists."""

    name: str
    config: type
    function: F
    facts: dict[str, Any]

    @property
    def has_defaults(self) -> bool:
        """Whether every option has a default, so that the name alone says what to do."""
        fields: dict[str, Any] = getattr(self.config, "model_fields", {})
        return not any(field.is_required() for field in fields.values())

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
        self._loaded = self._is_loading = False

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
        with LOADING:
            # A room that asks for its own names while it is loaded gets those it has.
            if self._loaded or self._is_loading:
                return
            self._is_loading = True
            try:
                importlib.import_module(self.room)
                self._load_outside()
                self._loaded = True
            finally:
                self._is_loading = False

    def _load_outside(self) -> None:
        group = f"tunewright.{self.axis}"
        try:
            for point in entry_points(group=group):
                point.load()
        except Exception as e:  # what stands in another package may raise anything
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


methods: Registry[Callable[..., Attached]] = Registry("methods", "tunewright.methods")
objectives: Registry[Callable[..., Any]] = Registry("objectives", "tunewright.objectives")
formats: Registry[Callable[..., Any]] = Registry("formats", "tunewright.data.formats")
rewards: Registry[Callable[..., Any]] = Registry("rewards", "tunewright.rewards")
trackers: Registry[Callable[..., Any]] = Registry("trackers", "tunewright.track")
AXES = {"method": methods, "objective": objectives}


class MethodFacts(TypedDict, total=False):
    """What is known of a method before anything is loaded."""

    source: str
    """Its paper, or where its code is."""
    trains: str
    """What trains, in a few words."""
    rate: float
    """The learning rate that suits it in long runs, when the run file says `auto`."""
    by: str
    """Whose implementation it is; Tunewright's where nothing is said."""
    merges: str
    """Why it cannot be folded into plain weights; left out where it can."""
    on_quantised: bool
    """It can stand on a base in few bits."""
    own_optimizer: bool
    """Its paper is about the update: it brings its optimiser."""
    one_process: bool
    """It sums up over the passes of a step, which several processes do not share."""
    in_shares: bool
    """False where it cannot lie in shares on several processes (`engine.parallel: fsdp`)."""
    leaves: str
    """`model`: a run leaves a whole model and no adapter."""
    needs_weights: bool
    """It starts from the weights or from words, so a model without weights cannot show whether it
    fits."""
    peft_types: tuple[str, ...]
    """PEFT's types with whose saved folders it goes on; the first is the one it is saved as."""
    peft_fields: dict[str, str]
    """Our field -> where PEFT's description of the first type holds it."""
    goes_on: bool
    """False where a saved folder goes on as another kind unless this one is named."""
    continued: Callable[[Attached, Any], None]
    """What is left to do when a saved adapter goes on under a config of this kind."""
    obstacles: Callable[[Any, PreTrainedConfig], list[Problem]]
    """(method config, model config) -> why the method cannot be put on such a model."""
    load: Callable[[Any, Model, Path, str, bool], Attached]
    """(method config, model, folder, base path, trainable): puts on what `Attached.save` wrote, for
    methods that PEFT does not know."""


M = TypeVar("M", bound="Callable[..., Attached]")


def method(name: str, config: type, **facts: Unpack[MethodFacts]) -> Callable[[M], M]:
    """Decorator: the function puts the method `name` on a model, `(config, model, anatomy,
    base_path) -> Attached`."""

    def keep(function: M) -> M:
        methods.register(name, config, **facts)(function)
        return function

    return keep


def usual_rate(kind: str) -> float:
    """The registered learning rate of a method."""
    entry = methods.get(kind)
    assert entry is not None
    return float(entry.facts["rate"])


def kinds_of_peft_type(name: str) -> list[Entry[Callable[..., Attached]]]:
    """The methods that go on with saved folders of a PEFT type: first those that are saved so, and
    of these first the one that goes on where no kind is named."""
    found = [entry for entry in methods if name in entry.facts.get("peft_types", ())]
    return sorted(
        found, key=lambda e: (e.facts["peft_types"][0] != name, not e.facts.get("goes_on", True))
    )
