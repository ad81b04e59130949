"""What the configs of methods share: what they cost, the layers that they sit on, the ranks that
fit those."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, field_validator

from tunewright.core.config import Section
from tunewright.core.errors import CompatError, problem
from tunewright.core.types import Attached, Model
from tunewright.core.words import say
from tunewright.methods.word_rows import checked_tokens
from tunewright.models.anatomy import WHOLE, Anatomy, is_linear, shape_of
from tunewright.models.shape import Matrix, ModelShape, roles_of


def _one_is_a_list(value: object) -> object:
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


Names = Annotated[list[str], BeforeValidator(_one_is_a_list)]
"""Roles, groups, module names; one alone may stand without a list."""


class MethodSection(Section):
    """The config of a method, and what it costs before anything is loaded."""

    trains_base: ClassVar[bool] = False
    """Weights of the model itself train, not numbers beside them."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """How many numbers train on a model of `shape`."""
        raise NotImplementedError

    def grown(self, shape: ModelShape) -> ModelShape:
        """The shape that a model of `shape` has under the method."""
        return shape


class TargetSection(MethodSection):
    """Which layers a method sits on."""

    targets: Names = ["linear"]
    """Roles (attention.query, mlp.down), groups (attention, mlp, linear) or module names (q_proj).
    """
    layers: Annotated[list[int] | None, BeforeValidator(_one_is_a_list)] = None
    """Only these blocks, counted from 0; negative numbers count from the last block. Default: all.
    """

    def matrices(self, shape: ModelShape) -> list[Matrix]:
        """The linear layers of a shape that `targets` choose; what matches nothing is left for the
        loaded model to refuse."""
        return [shape.matrices[role] for role in chosen_roles(self.targets, shape)]


class LowRankSection(TargetSection):
    """Two thin matrices beside each chosen layer."""

    rank: int = Field(default=16, gt=0)
    """Rank of the update. Trainable parameters grow linearly; 8-64 covers most tasks."""
    alpha: float | None = Field(default=None, gt=0)
    """Strength: the update is multiplied by alpha / rank (rsLoRA: by alpha / sqrt(rank)). Default:
    twice the rank; PiSSA and OLoRA the rank; rsLoRA 8."""
    expert_rank: int | None = Field(default=None, gt=0)
    """Rank of the update of every single expert, where `targets` name `experts`. Default: the rank
    divided by the experts that a token visits, so that a token passes as many numbers as in a dense
    layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of inputs of the update set to 0 while training; one draw for each row, which samples
    that share the row share."""
    new_tokens: list[str | int] = []
    """Words that become one token each, such as ["<plan>", "</plan>"], whose embedding rows are
    trained as well; a number is the id of an existing token."""

    _new_tokens = field_validator("new_tokens", mode="before")(checked_tokens)

    def trainable_numbers(self, shape: ModelShape) -> int:
        """rank x (inputs + outputs) of every chosen matrix, and the rows of `new_tokens`."""
        outside = {
            "embedding": Matrix(1, shape.vocabulary, shape.hidden),
            "head": Matrix(1, shape.hidden, shape.vocabulary),
        }
        chosen = [(shape.matrices | outside)[role] for role in roles_of(shape, self.targets)]
        rows = len(self.new_tokens) * shape.hidden * (1 if shape.tied else 2)
        lengths = sum(m.count * m.outputs for m in chosen) if getattr(self, "dora", False) else 0
        return rows + lengths + sum(self.rank * m.count * (m.inputs + m.outputs) for m in chosen)


def chosen_roles(targets: list[str], shape: ModelShape) -> list[str]:
    """The roles inside the blocks of a shape that roles, groups and module names choose."""
    wanted = {shape.targets.get(target, target) for target in targets}
    return [role for role in shape.matrices if wanted & {*WHOLE, role, role.split(".")[0]}]


def low_rank_moments(config: Any, shape: ModelShape) -> int:
    """Numbers in the two moments of an optimiser that sees the matrices of `config.targets` through
    a window of `config.rank`, and all other weights as they are."""
    seen = [shape.matrices[role] for role in chosen_roles(config.targets, shape)]
    low = sum(
        m.count * min(config.rank, m.inputs, m.outputs) * max(m.inputs, m.outputs) for m in seen
    )
    return 2 * (shape.parameters - sum(m.weights for m in seen) + low)


def chosen_layers(
    config: TargetSection, model: Model, anatomy: Anatomy, *, tensors: bool = False
) -> list[str]:
    """Names of the modules (and, where the caller can take them, of the `tensors` that hold all
    experts) that `targets` and `layers` choose. Raises ModelError for a target that matches
    nothing, CompatError for a block that does not exist."""
    names: list[str] = anatomy.select(config.targets, tensors=tensors)
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
    experts: dict[str, int] = field(default_factory=dict)
    """Tensors that hold all experts, each with the rank of one expert's update."""

    def patterns(self, alpha: float, *, rooted: bool = False) -> dict[str, Any]:
        """PEFT's `rank_pattern` and `alpha_pattern`: the lower rank at the strength of all others
        (`rooted`: alpha / sqrt(rank), else alpha / rank)."""
        if not self.most and not self.experts:
            return {}
        lower = self.most | {n: r for n, r in self.experts.items() if r != self.rank}
        ranks = {self._key(name): most for name, most in lower.items()}
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
        if name in self.experts:
            # A dense layer beside them may have the same last name.
            return re.escape(".".join(name.split(".")[-2:]))
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


def tensor_of(model: Model, name: str) -> Any:
    """The parameter of that name, None for the name of a module."""
    parent, _, own = name.rpartition(".")
    return model.get_submodule(parent)._parameters.get(own) if parent else None


def cap_rank(
    model: Model,
    names: list[str],
    rank: int,
    *,
    all_alike: bool = False,
    expert_rank: int | None = None,
) -> Capped:
    """Which of the layers `names` are too small for a rank: a product of higher rank would train
    numbers that cannot change what the layer does. Each expert of a tensor that holds all of them
    gets `expert_rank`.

    Raises CompatError where every one of them is; with `all_alike`, where any is.
    """
    found = Capped(rank, {}, names)
    widest = ("", 0, 0)
    for name in names:
        tensor = tensor_of(model, name)
        if tensor is not None and tensor.dim() == 3:
            found.experts[name] = min(expert_rank or rank, *tensor.shape[1:])
            continue
        module = model.get_submodule(name) if tensor is None else None
        inputs, outputs = (
            tuple(tensor.shape)
            if tensor is not None
            else shape_of(module)
            if is_linear(module)
            else tuple(model.get_parameter(f"{name}.weight").shape)[:2]
        )
        widest = max(widest, (name, inputs, outputs), key=lambda one: min(one[1:]))
        if rank > min(inputs, outputs):
            found.most[name] = min(inputs, outputs)
    layers = len(names) - len(found.experts)
    if layers and (len(found.most) == layers or (all_alike and found.most)):
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
