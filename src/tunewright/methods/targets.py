"""Which layers a method sits on, and the ranks that fit them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from tunewright.core.config import Section
from tunewright.core.errors import CompatError, problem
from tunewright.core.types import Attached
from tunewright.core.words import say
from tunewright.methods.word_rows import checked_tokens
from tunewright.models.anatomy import is_linear, shape_of


class TargetSection(Section):
    """Which layers a method sits on."""

    targets: list[str] = ["linear"]
    """Roles (attention.query, mlp.down), groups (attention, mlp, linear) or module names (q_proj).
    """
    layers: list[int] | None = None
    """Only these blocks, counted from 0; negative numbers count from the last block. Default: all.
    """

    @field_validator("targets", "layers", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


class LowRankSection(TargetSection):
    """Two thin matrices beside each chosen layer."""

    rank: int = Field(default=16, gt=0)
    """Rank of the update. Trainable parameters grow linearly; 8-64 covers most tasks."""
    alpha: float | None = Field(default=None, gt=0)
    """Strength: the update is multiplied by alpha / rank (rsLoRA: by alpha / sqrt(rank)). Default:
    twice the rank; PiSSA and OLoRA the rank; rsLoRA 8."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of inputs of the update set to 0 while training; one draw for each row, which samples
    that share the row share."""
    new_tokens: list[str | int] = []
    """Words that become one token each, such as ["<plan>", "</plan>"], whose rows of the embedding
    train as well; a number names a token that is there."""

    _new_tokens = field_validator("new_tokens", mode="before")(checked_tokens)

    def rows_beside(self, shape: Any) -> int:
        """Numbers in the rows of `new_tokens` that train on a model of `shape`."""
        return int(len(self.new_tokens) * shape.hidden * (1 if shape.tied else 2))


def chosen_layers(config: TargetSection, model: Any, anatomy: Any) -> list[str]:
    """Names of the modules that `targets` and `layers` choose. Raises ModelError for a target that
    matches nothing, CompatError for a block that does not exist."""
    names: list[str] = anatomy.select(config.targets)
    if config.layers is None:
        return names
    count = len(anatomy.blocks)
    wrong = [n for n in config.layers if not -count <= n < count]
    blocks = [] if wrong else [f"{anatomy.blocks[n]}." for n in config.layers]
    kept = [name for name in names if name.startswith(tuple(blocks))] if blocks else []
    if not kept:
        raise CompatError(
            problem(
                "E-METHOD-28",
                "method.layers",
                layers=wrong or config.layers,
                count=count,
                last=count - 1,
            )
        )
    return kept


@dataclass
class Capped:
    """Layers whose smaller side is below `rank`, each with that side. `names` are all that were
    chosen."""

    rank: int
    most: dict[str, int]
    names: list[str]

    def patterns(self, alpha: float, *, rooted: bool = False) -> dict[str, Any]:
        """PEFT's `rank_pattern` and `alpha_pattern`: the lower rank at the strength of all others
        (`rooted`: alpha / sqrt(rank), else alpha / rank)."""
        if not self.most:
            return {}
        ranks = {self._key(name): most for name, most in self.most.items()}
        return {
            "rank_pattern": ranks,
            "alpha_pattern": {
                key: alpha * ((most / self.rank) ** 0.5 if rooted else most / self.rank)
                for key, most in ranks.items()
            },
        }

    def _key(self, name: str) -> str:
        """The last component where all chosen layers of that name have one rank: keeps
        adapter_config.json readable. PEFT matches ends of names."""
        short = name.rpartition(".")[2]
        alike = {self.most.get(other) for other in self.names if other.rpartition(".")[2] == short}
        return short if alike == {self.most[name]} else re.escape(name)

    def told(self, attached: Attached, sentence: str = "methods.rank_capped") -> Attached:
        """Say it where the method is put on."""
        if self.most:
            first = next(iter(self.most))
            attached.notes.append(
                say(
                    sentence,
                    rank=self.rank,
                    count=len(self.most),
                    of=len(self.names),
                    first=first,
                    most=self.most[first],
                )
            )
        return attached


def cap_rank(model: Any, names: list[str], rank: int, *, all_alike: bool = False) -> Capped:
    """Which of the layers `names` are too small for a rank: a product of higher rank would train
    numbers that cannot change what the layer does.

    Raises CompatError where every one of them is; with `all_alike`, where any is.
    """
    found = Capped(rank, {}, names)
    widest = ("", 0, 0)
    for name in names:
        module = model.get_submodule(name)
        inputs, outputs = shape_of(module) if is_linear(module) else tuple(module.weight.shape)[:2]
        widest = max(widest, (name, inputs, outputs), key=lambda one: min(one[1:]))
        if rank > min(inputs, outputs):
            found.most[name] = min(inputs, outputs)
    if names and (len(found.most) == len(names) or (all_alike and found.most)):
        name, inputs, outputs = widest
        raise CompatError(
            problem(
                "E-METHOD-20",
                "method.rank",
                rank=rank,
                module=name,
                inputs=inputs,
                outputs=outputs,
                most=min(inputs, outputs),
            )
        )
    return found
