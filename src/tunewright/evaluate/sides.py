"""The two models of a gate: found before any weights are read, opened while they are needed, and
closed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunewright.core.telling import Quiet, Tell
from tunewright.core.words import say
from tunewright.engine import naming
from tunewright.evaluate.address import is_address
from tunewright.evaluate.contract import Contract
from tunewright.evaluate.subjects import AddressSubject, Subject, open_subject, require_askable
from tunewright.models import load

BASE = "base"
"""What stands for the model that a run or an adapter was trained from."""


@dataclass
class How:
    """How both are opened."""

    tell: Tell
    dtype: str | None
    think: bool | None


class Side:
    """One of the two models, opened while it is needed. A `Subject` that was given stays open."""

    def __init__(self, given: str | Subject, how: How, *, base: bool = False):
        self.given, self.how, self.base = given, how, base
        self.subject: Subject | None = None if isinstance(given, str) else given
        self.found = None
        if isinstance(given, str) and not is_address(given):
            self.found = naming.find(given, how.tell, base=base, think=how.think)
            require_askable(self.found)
        elif isinstance(given, str):
            AddressSubject(given, how.tell)

    @property
    def system(self) -> str | None:
        """The system prompt under which it was trained."""
        if isinstance(self.given, Subject):
            return self.given.system
        return None if self.found is None else self.found.system

    @property
    def measurable(self) -> bool:
        """Whether it is made of files, whose size is known."""
        if isinstance(self.given, Subject):
            return self.given.bytes_on_disk is not None
        return self.found is not None

    @property
    def needs(self) -> int:
        """Bytes of its weights, about."""
        return load.weight_bytes(self.found.source.folder) if self.found is not None else 0

    def open(self) -> Subject:
        """The subject, opened where it is not."""
        if self.subject is None:
            assert isinstance(self.given, str)
            how = self.how
            self.subject = open_subject(
                self.given, how.tell, base=self.base, dtype=how.dtype, think=how.think
            )
        return self.subject

    def close(self) -> None:
        """Free it, unless it was given open."""
        if self.subject is not None and isinstance(self.given, str):
            self.subject.close()
            self.subject = None


def other_side(
    contract: Contract,
    trained: str | Subject,
    against: str | Subject | None,
    how: How,
    folder: Path,
) -> Side | None:
    """The other model, if there is one. `trained` is what knows a base."""
    given = against if against is not None else contract.against
    if given is None or (given == BASE and not Path(BASE).exists()):
        knows = isinstance(trained, str) and not is_address(trained) and _was_trained(trained)
        return Side(trained, how, base=True) if knows else None
    if against is None and isinstance(given, str) and (folder / given).exists():
        given = str(folder / given)
    return Side(given, how)


def _was_trained(target: str) -> bool:
    found = naming.find(target, Quiet())
    return found.run is not None or found.adapter is not None


def name_of(side: Side) -> str:
    if isinstance(side.given, Subject):
        return side.given.name
    return say("subject.base_of", target=side.given) if side.base else side.given
