"""What the configs of methods share: what they cost, the layers that they sit on, the ranks that
fit those."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, field_validator

from tunewright.core.config import Section
from tunewright.core.errors import CompatError, problem, raise_all
from tunewright.core.refusals import refused
from tunewright.core.types import Attached, Model
from tunewright.core.words import say
from tunewright.methods.whole_modules import numbers
from tunewright.methods.word_rows import checked_tokens
from tunewright.models.anatomy import ROLES, WHOLE, Anatomy, is_linear, shape_of
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
    rank_pattern: dict[str, int] = {}
    """Other ranks for some of the layers: a role, group, module name or a pattern of names as PEFT
    takes it, with the rank, such as {mlp: 8, q_proj: 32}."""
    alpha_pattern: dict[str, float] = {}
    """Another strength for some of the layers, as `rank_pattern` names them. Where it says nothing
    and alpha is not given, a layer keeps the strength of its own rank."""
    modules_to_save: Names = []
    """Whole modules that train beside the update and are saved with it: embedding, head, norm, or
    names of modules. A head that is the embedding trains with it."""
    new_tokens: list[str | int] = []
    """Words that become one token each, such as ["<plan>", "</plan>"], whose embedding rows are
    trained as well; a number is the id of an existing token."""

    _new_tokens = field_validator("new_tokens", mode="before")(checked_tokens)

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if isinstance(value, dict) and any(isinstance(v, bool) for v in value.values()):
            raise refused("no_truth")  # Python counts true as 1
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns(cls, value: dict[str, Any]) -> dict[str, Any]:
        if any(number <= 0 for number in value.values()):
            raise refused("layer_numbers")
        for key in value:
            try:
                re.compile(key)
            except re.error as e:
                raise refused("pattern", name=repr(key), cause=str(e)) from e
        return value

    def trainable_numbers(self, shape: ModelShape) -> int:
        """rank x (inputs + outputs) of every chosen matrix, the rows of `new_tokens` and the
        modules that train whole."""
        outside = {
            "embedding": Matrix(1, shape.vocabulary, shape.hidden),
            "head": Matrix(1, shape.hidden, shape.vocabulary),
        }
        roles = roles_of(shape, self.targets)
        chosen = {role: (shape.matrices | outside)[role] for role in roles}
        rows = len(self.new_tokens) * shape.hidden * (1 if shape.tied else 2)
        dora = getattr(self, "dora", False)
        lengths = sum(m.count * m.outputs for m in chosen.values()) if dora else 0
        thin = sum(
            self._rank_of(role, shape) * m.count * (m.inputs + m.outputs)
            for role, m in chosen.items()
        )
        whole = numbers(self.modules_to_save, shape)
        return int(rows + lengths + thin + whole + self._of_experts(shape))

    def _of_experts(self, shape: ModelShape) -> int:
        """The numbers of the updates of experts and routers. The shape knows no layers that are
        dense among others that are not."""
        if shape.experts < 2 or "mlp.down" not in shape.matrices:
            return 0
        down = shape.matrices["mlp.down"]
        visits = max(1, round(down.share * shape.experts))
        width, hidden = down.inputs, down.outputs
        # Gate and up are one tensor. A router is one matrix for all experts of a block.
        sizes = {
            "experts.gate_up": (down.count, hidden, 2 * width),
            "experts.down": (down.count, width, hidden),
            "router": (down.count // shape.experts, hidden, shape.experts),
        }
        total = 0
        for role, (count, inputs, outputs) in sizes.items():
            group = role.partition(".")[0]
            if not {role, group} & set(self.targets):
                continue
            usual = self.rank if role == "router" else self.expert_rank or self.rank // visits
            rank = self.rank_pattern.get(role, self.rank_pattern.get(group, max(1, usual)))
            total += count * min(rank, inputs, outputs) * (inputs + outputs)
        return total

    def _rank_of(self, role: str, shape: ModelShape) -> int:
        """The rank of a role; a pattern of single layers is not known here."""
        named = [key for key in self.rank_pattern if role in roles_of(shape, [key])]
        return self.rank_pattern[min(named, key=_breadth)] if named else self.rank


GROUPS = ("attention", "mlp")


def _breadth(key: str) -> int:
    """How much a word for layers names: a module name or pattern 0, a role 1, a group 2, all 3."""
    if key in WHOLE:
        return 3
    return 2 if key in GROUPS else 1 if key in ROLES else 0


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


def chosen_layers(config: TargetSection, anatomy: Anatomy, *, tensors: bool = False) -> list[str]:
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
class Ranks:
    """The rank of every layer that was chosen, and its strength alpha where it is not the usual
    one. `small` are layers whose smaller side is below the rank that was asked for, each with that
    side."""

    rank: int
    names: list[str]
    ranks: dict[str, int]
    alphas: dict[str, float]
    small: dict[str, int]
    experts: dict[str, int] = field(default_factory=dict)
    """Tensors that hold all experts, each with the rank of one expert's update."""

    def patterns(self, alpha: float, *, rooted: bool = False) -> dict[str, Any]:
        """PEFT's `rank_pattern` and `alpha_pattern`. A layer that is too small for its rank, and an
        expert, which has a share of it, keep its strength (`rooted`: alpha / sqrt(rank), else
        alpha / rank)."""
        alphas = {}
        lower = self.small | self.experts
        for name in self.names:
            own = self.alphas.get(name, alpha)
            if name in lower:
                share = lower[name] / self.ranks[name]
                own *= share**0.5 if rooted else share
            if own != alpha:
                alphas[name] = own
        ranks = {name: lower.get(name, self.ranks[name]) for name in self.names}
        ranks = {name: rank for name, rank in ranks.items() if rank != self.rank}
        found = {"rank_pattern": self._short(ranks), "alpha_pattern": self._short(alphas)}
        return {key: value for key, value in found.items() if value}

    def _short(self, values: dict[str, Any]) -> dict[str, Any]:
        """Names to their last component where all chosen layers of that name have one value: keeps
        adapter_config.json readable. PEFT matches ends of names."""
        alike: dict[str, set[Any]] = {}
        for name in self.names:
            alike.setdefault(name.rpartition(".")[2], set()).add(values.get(name))

        def key(name: str) -> str:
            if name in self.experts:  # a dense layer beside them may have the same last name
                return re.escape(".".join(name.split(".")[-2:]))
            short = name.rpartition(".")[2]
            return short if len(alike[short]) == 1 else re.escape(name)

        return {key(name): value for name, value in values.items()}

    def told(self, attached: Attached, sentence: str = "methods.rank_capped") -> Attached:
        """Say it where the method is put on."""
        if self.small:
            first = next(iter(self.small))
            attached.notes.append(
                say(
                    sentence,
                    rank=self.rank,
                    count=len(self.small),
                    of=len(self.names),
                    first=first,
                    most=self.small[first],
                )
            )
        return attached


def tensor_of(model: Model, name: str) -> Any:
    """The parameter of that name, None for the name of a module."""
    parent, _, own = name.rpartition(".")
    return model.get_submodule(parent)._parameters.get(own) if parent else None


def ranks_of(
    config: LowRankSection,
    model: Model,
    names: list[str],
    anatomy: Anatomy,
    per_rank: float,
    expert_rank: int | None = None,
) -> Ranks:
    """The rank and strength of each of the layers `names`. Where no alpha is given, a layer of
    another rank has `per_rank` times its own rank; 0: the alpha of all.

    Raises CompatError (E-KEY-02) for a pattern that fits none of them.
    """
    patterns: dict[str, dict[str, Any]] = {
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
    }
    per_layer: dict[str, dict[str, Any]] = {}
    faults = []
    for key_of, pattern in patterns.items():
        per_layer[key_of] = found = {}
        unused = set(pattern)
        words = {key: _chosen_by(key, anatomy) for key in pattern}
        for name in names:
            keys = [key for key in pattern if _fits(key, name, words[key])]
            unused -= set(keys)
            if keys:
                found[name] = pattern[min(keys, key=_breadth)]
        faults += [
            problem("E-KEY-02", f"method.{key_of}", key=key, targets=", ".join(config.targets))
            for key in pattern
            if key in unused
        ]
    raise_all(faults, CompatError)
    ranks = {name: int(per_layer["rank_pattern"].get(name, config.rank)) for name in names}
    alphas = per_layer["alpha_pattern"]
    if config.alpha is None and per_rank:
        own = {name: per_rank * rank for name, rank in ranks.items() if rank != config.rank}
        alphas = own | alphas
    named = per_layer["rank_pattern"]
    each = {name: named.get(name, expert_rank or config.rank) for name in names}
    tensors = experts_of(model, each)
    return Ranks(config.rank, names, ranks, alphas, small_layers(model, names, ranks), tensors)


def experts_of(model: Model, ranks: dict[str, int]) -> dict[str, int]:
    """Of the names those that hold all experts in one tensor, with a rank that fits an expert."""
    shapes = {name: tensor_of(model, name) for name in ranks}
    return {
        name: min(ranks[name], *tensor.shape[1:])
        for name, tensor in shapes.items()
        if tensor is not None and tensor.dim() == 3
    }


def _chosen_by(key: str, anatomy: Anatomy) -> set[str] | None:
    """The modules of a role or group, none where the model has no such part; None for a name or
    pattern."""
    if not _breadth(key):
        return None
    there = key in WHOLE or key in anatomy.roles or key in GROUPS
    return set(anatomy.select([key], tensors=True)) if there else set()


def _fits(key: str, name: str, chosen: set[str] | None) -> bool:
    """Whether a word for layers names this one: as a role or group, else as PEFT matches the ends
    of names."""
    if chosen is not None:
        return name in chosen
    return re.match(rf"(.*\.)?({key})$", name) is not None


def cap_rank(model: Model, names: list[str], rank: int, *, all_alike: bool = False) -> Ranks:
    """One rank for all layers, lower where one is too small for it. Raises CompatError where all
    are, with `all_alike` where any is."""
    ranks = dict.fromkeys(names, rank)
    small = small_layers(model, names, ranks, all_alike=all_alike)
    return Ranks(rank, names, ranks, {}, small)


def small_layers(
    model: Model, names: list[str], ranks: dict[str, int], *, all_alike: bool = False
) -> dict[str, int]:
    """Which of the layers `names` are too small for their ranks: a product of higher rank would
    train numbers that cannot change what the layer does. Name -> the smaller side.

    Raises CompatError where every one of them is; with `all_alike`, where any is.
    """
    found: dict[str, int] = {}
    layers = 0  # experts beside them are measured apart
    widest = ("", 0, 0)
    for name in names:
        tensor = tensor_of(model, name)
        if tensor is not None and tensor.dim() == 3:
            continue
        layers += 1
        module = model.get_submodule(name) if tensor is None else None
        inputs, outputs = (
            tuple(tensor.shape)
            if tensor is not None
            else shape_of(module)
            if is_linear(module)
            else tuple(model.get_parameter(f"{name}.weight").shape)[:2]
        )
        widest = max(widest, (name, inputs, outputs), key=lambda one: min(one[1:]))
        if ranks[name] > min(inputs, outputs):
            found[name] = min(inputs, outputs)
    if layers and (len(found) == layers or (all_alike and found)):
        name, inputs, outputs = widest
        raise CompatError(
            problem(
                "E-METHOD-20",
                "method.rank",
                rank=ranks[name],
                module=name,
                inputs=inputs,
                outputs=outputs,
                most=min(inputs, outputs),
            )
        )
    return found
