"""Methods that train weights of the model itself: all of them, the last blocks, the biases, the
norms, the token embedding.

Nothing is added to the model, so nothing has to be folded in afterwards. `full` leaves a whole
model; the others leave only the weights they changed. Sources: freezing all but the last blocks:
Yosinski et al. 2014; biases: Ben Zaken et al. 2022 (BitFit); norms: Zhao et al. 2023 (LN-tuning).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from tunewright.core.errors import ModelError, problem
from tunewright.core.registry import method, usual_rate
from tunewright.core.types import Attached, Model, Needs
from tunewright.core.words import say
from tunewright.methods import saved
from tunewright.methods.base_weights import BaseWeights
from tunewright.methods.targets import MethodSection, Names
from tunewright.models.anatomy import Anatomy
from tunewright.models.shape import ModelShape


class FullConfig(MethodSection):
    """Every weight trains."""

    trains_base: ClassVar[bool] = True

    def trainable_numbers(self, shape: ModelShape) -> int:
        return shape.parameters


class FreezeConfig(MethodSection):
    """Only the last blocks train, or named parts."""

    blocks: int | None = Field(default=None, gt=0)
    """How many blocks at the end of the model train. Default: 2 where neither `targets` nor
    `patterns` is given."""
    targets: Names = []
    """Roles (attention, mlp.down, norm, head) or module names (q_proj, self_attn). With `blocks`,
    those that lie in blocks are limited to the last ones."""
    patterns: Names = []
    """Names of weights with `*`, for example `model.layers.2?.mlp.*`; they train besides the rest.
    """

    trains_base: ClassVar[bool] = True

    def trainable_numbers(self, shape: ModelShape) -> int:
        matrices = {
            role: m.weights
            for role, m in shape.matrices.items()
            if not self.targets or _touches(role, self.targets)
        }
        blocks = min(
            shape.layers,
            self.blocks or (2 if not self.targets and not self.patterns else shape.layers),
        )
        tables = shape.head_weights if {"embedding", "head"} & set(self.targets) else 0
        norms = 0 if self.targets else 2 * shape.hidden * blocks
        return int(sum(matrices.values()) * blocks // shape.layers + norms + tables)


def _touches(role: str, targets: list[str]) -> bool:
    """Whether targets may select a role; a name that is no role counts as one, so that an estimate
    is not too low."""
    return any(
        t in (role, role.split(".")[0], "linear", "all", "all-linear")
        or ("." not in t and t not in ("norm", "head", "embedding"))
        for t in targets
    )


NO_BIAS = {
    "llama",
    "mistral",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "smollm3",
    "olmo2",
    "phi3",
}
"""Families whose layers have none."""


class BitFitConfig(MethodSection):
    """Only biases train."""

    targets: Names = []
    """Roles or module names whose biases train. Default: every bias of the model."""

    trains_base: ClassVar[bool] = True

    def trainable_numbers(self, shape: ModelShape) -> int:
        return 0 if shape.family in NO_BIAS else int(shape.layers * 4 * shape.hidden)


class NormsConfig(MethodSection):
    """Only the scales (and shifts) of normalisations train."""

    trains_base: ClassVar[bool] = True

    def trainable_numbers(self, shape: ModelShape) -> int:
        return (2 * shape.layers + 1) * shape.hidden


class EmbeddingsConfig(MethodSection):
    """Only the token embedding trains."""

    head: bool = False
    """Train the output head as well, where it is a matrix of its own. A head that is tied to the
    embedding is the same matrix and always trains with it."""

    trains_base: ClassVar[bool] = True

    def trainable_numbers(self, shape: ModelShape) -> int:
        return shape.head_weights * (2 if self.head and not shape.tied else 1)


def load_part(
    config: MethodSection, model: Model, folder: Path, base_path: str, trainable: bool
) -> Attached:
    """The saved weights of `folder` in `model`. Raises ModelError (E-METHOD-41, E-METHOD-42) where
    they do not fit."""
    import torch

    described = saved.read(folder)
    stored = saved.read_tensors(folder)
    by_name = dict(model.named_parameters())
    odd = [
        name
        for name, tensor in stored.items()
        if name not in by_name or by_name[name].shape != tensor.shape
    ]
    if odd:
        raise ModelError(problem("E-METHOD-42", str(folder), count=len(odd), first=sorted(odd)[0]))
    part = BaseWeights(model, [name for name in by_name if name in stored], keep=True)
    with torch.no_grad():
        for name, p in part.parameters.items():
            p.copy_(stored[name])
            p.requires_grad_(trainable)
    return attach_part(part, described.kind, config, base_path or described.base)


def attach_part(part: BaseWeights, kind: str, config: MethodSection, base_path: str) -> Attached:
    """The `Attached` of some weights of the base that train."""

    def save(folder: Path) -> None:
        saved.write(folder, kind, config, base_path, part.tensors())

    return Attached(
        parameters=part.names,
        model=part.model,
        needs=Needs(),
        save=save,
        disabled=part.originals,
        merge=part.merge,
        learning_rate=usual_rate(kind),
    )


@method(
    "full",
    FullConfig,
    source="arXiv 1801.06146",
    trains="every weight of the model",
    leaves="model",
    rate=2e-5,
)
def full(config: FullConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Train every weight, in float32 whatever the model computes in."""
    return attach_whole(model, usual_rate("full"))


def attach_whole(model: Model, learning_rate: float) -> Attached:
    """The `Attached` of a model of which every weight trains. The run leaves a whole model."""
    return attach_whole_part(
        BaseWeights(model, [name for name, _ in model.named_parameters()], keep=False),
        learning_rate,
    )


def attach_whole_part(part: BaseWeights, learning_rate: float) -> Attached:
    """As `attach_whole`, of weights that are held already."""
    return Attached(
        parameters=part.names,
        model=part.model,
        needs=Needs(),
        save=part.save_model,
        saves_model=True,
        disabled=None,
        disabled_reason=say("methods.full_no_base"),
        merge=part.merge,
        learning_rate=learning_rate,
    )


@method(
    "freeze",
    FreezeConfig,
    source="arXiv 1411.1792",
    trains="the last blocks, or named parts",
    load=load_part,
    rate=5e-5,
)
def freeze(config: FreezeConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Train the last blocks or named parts; the rest stays. Raises ModelError for what the model
    does not have."""
    return attach_part(
        BaseWeights(model, frozen_but(config, model, anatomy), keep=True),
        "freeze",
        config,
        base_path,
    )


def frozen_but(config: FreezeConfig, model: Model, anatomy: Anatomy) -> list[str]:
    """Names of the parameters that a freeze config lets train, in the model's order."""
    blocks = config.blocks if config.blocks is not None or config.targets or config.patterns else 2
    if blocks is not None and blocks > len(anatomy.blocks):
        raise ModelError(
            problem("E-METHOD-02", "method.blocks", blocks=blocks, there=len(anatomy.blocks))
        )
    last = anatomy.blocks if blocks is None else anatomy.blocks[-blocks:]
    early = tuple(f"{name}." for name in anatomy.blocks if name not in last)
    parts = {target: anatomy.parts_of_blocks(target) for target in config.targets}
    chosen = anatomy.select([target for target in config.targets if not parts[target]])
    chosen += [name for names in parts.values() for name in names]
    modules = [name for name in chosen if not name.startswith(early)]
    if blocks is not None and not config.targets:
        modules = list(last)
    names = parameters_of(model, modules)
    for pattern in config.patterns:
        found = [name for name, _ in model.named_parameters() if fnmatchcase(name, pattern)]
        if not found:
            raise ModelError(
                problem(
                    "E-METHOD-03",
                    "method.patterns",
                    pattern=pattern,
                    example=next(name for name, _ in model.named_parameters()),
                )
            )
        names += found
    if not names:
        raise ModelError(
            problem(
                "E-METHOD-04", "method.targets", targets=", ".join(config.targets), blocks=blocks
            )
        )
    return saved.in_order(model, names)


def parameters_of(model: Model, modules: list[str]) -> list[str]:
    """Names, as `named_parameters` gives them, of all parameters in the named modules. A tied
    matrix goes by its first name."""
    inside = {id(p) for name in modules for p in model.get_submodule(name).parameters()}
    return [name for name, p in model.named_parameters() if id(p) in inside]


@method(
    "bitfit",
    BitFitConfig,
    source="arXiv 2106.10199",
    trains="the biases",
    load=load_part,
    rate=1e-3,  # biases and norms are few and need larger moves; a matrix is easily spoilt
)
def bitfit(config: BitFitConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Train the biases. Raises ModelError (E-METHOD-01) for a model that has none, which is most of
    the Llama kind."""
    modules = anatomy.select(config.targets) if config.targets else anatomy.modules
    names = [name for name in parameters_of(model, modules) if name.rpartition(".")[2] == "bias"]
    if not names:
        having = [
            role
            for role, found in anatomy.roles.items()
            if any(getattr(model.get_submodule(name), "bias", None) is not None for name in found)
        ]
        code = "E-METHOD-05" if having else "E-METHOD-01"
        raise ModelError(
            problem(
                code,
                "method",
                family=anatomy.family,
                targets=", ".join(config.targets),
                having=", ".join(having),
            )
        )
    return attach_part(BaseWeights(model, names, keep=True), "bitfit", config, base_path)


@method(
    "norms",
    NormsConfig,
    source="arXiv 2312.11420",
    trains="the scales of the normalisations",
    load=load_part,
    rate=1e-3,  # biases and norms are few and need larger moves; a matrix is easily spoilt
)
def norms(config: NormsConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Train the scales and shifts of every normalisation. Raises ModelError (E-METHOD-06) where
    none has any."""
    names = parameters_of(model, anatomy.roles.get("norm", []))
    if not names:
        raise ModelError(problem("E-METHOD-06", "method", family=anatomy.family))
    return attach_part(BaseWeights(model, names, keep=True), "norms", config, base_path)


@method(
    "embeddings",
    EmbeddingsConfig,
    source="arXiv 1910.11856",
    trains="the token embedding",
    load=load_part,
    rate=2e-4,
)
def embeddings(
    config: EmbeddingsConfig, model: Model, anatomy: Anatomy, base_path: str
) -> Attached:
    """Train the token embedding, and with `head` the output head; where they are tied they are one
    matrix and stay one."""
    modules = [
        *anatomy.roles.get("embedding", []),
        *(anatomy.roles.get("head", []) if config.head else []),
    ]
    return attach_part(
        BaseWeights(model, parameters_of(model, modules), keep=True),
        "embeddings",
        config,
        base_path,
    )
