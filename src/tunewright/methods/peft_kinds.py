"""Methods that PEFT implements and that are neither LoRA nor prompts: LoHa, LoKr, AdaLoRA, IA3,
VeRA, OFT, and any other PEFT type by its name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from tunewright.core.errors import CompatError, ConfigError, problem, raise_all
from tunewright.core.registry import method
from tunewright.core.types import Attached, Model, Term
from tunewright.core.words import say
from tunewright.methods.peft import attach_peft, placing, require_linear, settings_of, wrap
from tunewright.methods.prompts import attach_prompt, wrap_prompt
from tunewright.methods.targets import (
    MethodSection,
    TargetSection,
    cap_rank,
    chosen_layers,
    chosen_roles,
)
from tunewright.models.anatomy import Anatomy, shape_of
from tunewright.models.shape import ModelShape

if TYPE_CHECKING:
    import peft
    from peft import PeftModel
    from torch import Tensor, nn


class LohaConfig(TargetSection):
    """Two low-rank products, multiplied number by number."""

    rank: int = Field(default=8, gt=0)
    """Rank of each of the two products; the update can reach rank * rank."""
    alpha: float | None = Field(default=None, gt=0)
    """Strength: the update is multiplied by alpha / rank. Default: the rank."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """Two products for each matrix."""
        return int(
            sum(2 * self.rank * m.count * (m.inputs + m.outputs) for m in self.matrices(shape))
        )


class LokrConfig(TargetSection):
    """A small matrix and a low-rank product, combined as a Kronecker product."""

    rank: int = Field(default=8, gt=0)
    """Rank of the larger factor; if the factor is small already, it is not decomposed."""
    alpha: float | None = Field(default=None, gt=0)
    """Strength: the update is multiplied by alpha / rank. Default: the rank."""
    decompose_factor: int = -1
    """Size of the small factor; -1: as near to the square root of the layer's size as divides it.
    """
    decompose_both: bool = False
    """Make the small factor a low-rank product, too."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """Numbers that train on a model of `shape`: for each matrix two factors, whole or as
        products, as PEFT cuts its sides."""
        total = 0
        for m in self.matrices(shape):
            (small_in, large_in), (small_out, large_out) = (
                _factors(n, self.decompose_factor) for n in (m.inputs, m.outputs)
            )
            thin_first = self.decompose_both and self.rank < max(small_in, small_out) / 2
            thin_second = self.rank < max(large_in, large_out) / 2
            first = self.rank * (small_in + small_out) if thin_first else small_in * small_out
            second = self.rank * (large_in + large_out) if thin_second else large_in * large_out
            total += m.count * (first + second)
        return int(total)


class AdaloraConfig(TargetSection):
    """Low-rank updates whose ranks move to where they are needed."""

    rank: int = Field(default=8, gt=0)
    """Mean rank of a layer at the end."""
    start_rank: int | None = Field(default=None, gt=0)
    """Rank of every layer at the start. Default: one and a half times `rank`."""
    alpha: float | None = Field(default=None, gt=0)
    """Strength: the update is multiplied by alpha / start_rank. Default: twice the start rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of inputs of the update set to 0 while training."""
    wait: float = Field(default=0.1, ge=0, lt=1)
    """Share of the run before ranks begin to fall."""
    settle: float = Field(default=0.3, ge=0, lt=1)
    """Share of the run at its end in which the ranks stay as they are."""
    every: int | None = Field(default=None, gt=0)
    """Steps between two decisions on ranks. Default: a hundredth of the run, at least 1."""
    orthogonality: float = Field(default=0.1, ge=0)
    """Weight of the penalty that keeps the directions of each layer apart."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """As at the start, when every layer has `start_rank`."""
        first = self.start_rank or -(-3 * self.rank // 2)
        return int(sum(m.count * first * (m.inputs + m.outputs + 1) for m in self.matrices(shape)))

    @model_validator(mode="after")
    def _room(self) -> AdaloraConfig:
        if self.wait + self.settle >= 1:
            raise ValueError("wait and settle together leave no steps in which ranks could fall")
        if self.start_rank is not None and self.start_rank < self.rank:
            raise ValueError("start_rank is below rank: ranks only fall")
        return self


class Ia3Config(MethodSection):
    """One learnt factor for each key, value and feed-forward activation."""

    targets: list[str] = []
    """Roles, groups or module names whose outputs are scaled. Empty: keys, values and the
    feed-forward's last layer, or what has them fused."""
    feedforward: list[str] = ["mlp.down"]
    """Those of the targets whose input is scaled in place of the output."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """Numbers that train on a model of `shape` (models/shape.py) with the usual targets, for
        the estimate before loading."""
        fused = "attention.key" not in shape.matrices
        outputs = [
            shape.matrices[r]
            for r in (["attention.qkv"] if fused else ["attention.key", "attention.value"])
            if r in shape.matrices
        ]
        down = shape.matrices.get("mlp.down")
        return int(
            sum(m.count * m.outputs for m in outputs) + (down.count * down.inputs if down else 0)
        )


class VeraConfig(TargetSection):
    """Two random matrices that all layers share and that do not train; each layer trains two
    vectors."""

    rank: int = Field(default=256, gt=0)
    """Rank of the shared matrices; it may be above a layer's size, for they do not train."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of inputs of the update set to 0 while training."""
    seed: int = 0
    """Start of the random stream of the shared matrices."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """Numbers that train on a model of `shape`: an output vector and a rank vector for each
        matrix."""
        return int(sum(m.count * (m.outputs + self.rank) for m in self.matrices(shape)))


class OftConfig(TargetSection):
    """Each layer's inputs are turned by a learnt rotation, block by block."""

    block_size: int = Field(default=32, gt=1)
    """Inputs that turn together; PEFT takes the nearest size that divides the layer's inputs."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """Numbers that train on a model of `shape`: half a square for each block of inputs."""
        return int(
            sum(m.count * m.inputs * (self.block_size - 1) // 2 for m in self.matrices(shape))
        )


class BoftConfig(TargetSection):
    """Each layer's outputs are turned by learnt rotations, block by block, and multiplied by a
    learnt factor each."""

    block_size: int = Field(default=4, gt=1)
    """Numbers that turn together; it must divide the layer's inputs."""
    factors: int = Field(default=1, gt=0)
    """Rotations in a row, each over differently mixed blocks, so that few numbers make a dense
    rotation. More than 1 needs PEFT's CUDA kernel."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of blocks that are left unturned while training."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """Numbers that train on a model of `shape`: a square for each block and factor, and one
        number an output."""
        return int(
            sum(
                m.count * (self.factors * m.inputs * self.block_size + m.outputs)
                for m in self.matrices(shape)
            )
        )


class PeftConfig(MethodSection):
    """Any method of the installed PEFT, by PEFT's own name and options."""

    type: str
    """PEFT's name of the method, such as LORA, BOFT, HRA, FOURIERFT, LN_TUNING."""
    options: dict[str, Any] = {}
    """Fields of PEFT's config class for that type, such as {r: 8}."""
    targets: list[str] = ["linear"]
    """Roles, groups or module names, where the type sits on modules and the options name none."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """About as many numbers as a LoRA of that rank has: PEFT's types are many, and none of the
        common ones has more."""
        rank = self.options.get("r", 16)
        return int(
            sum(
                (rank if isinstance(rank, int) else 16) * m.count * (m.inputs + m.outputs)
                for m in map(shape.matrices.__getitem__, chosen_roles(self.targets, shape))
            )
        )


def _factors(size: int, wanted: int) -> tuple[int, int]:
    """(small, large) with small * large = size, as PEFT cuts a side: with `wanted` where that
    divides it, else the pair nearest to a square whose smaller factor is at most `wanted` (-1:
    any)."""
    if wanted > 0 and size % wanted == 0:
        return min(wanted, size // wanted), max(wanted, size // wanted)
    small = max(
        n for n in range(1, int(size**0.5) + 1) if size % n == 0 and (wanted == -1 or n <= wanted)
    )
    return small, size // small


def _scale(config: LohaConfig | LokrConfig) -> float:
    return config.alpha if config.alpha is not None else config.rank


@method(
    "loha",
    LohaConfig,
    by="PEFT",
    source="arXiv 2108.06098",
    trains="two thin products, multiplied number by number, beside chosen linear layers",
    rate=1e-3,
    peft_types=("LOHA",),
    peft_fields={"rank": "r", "alpha": "alpha"},
)
def loha(config: LohaConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Low-rank Hadamard product (Hyeon-Woo et al. 2021; LyCORIS): W' = W + (alpha / rank) (A1 B1) *
    (A2 B2)."""
    import peft

    names = chosen_layers(config, model, anatomy)
    require_linear(model, names, "loha")
    capped = cap_rank(model, names, config.rank)
    settings = peft.LoHaConfig(
        r=config.rank,
        alpha=_scale(config),  # type: ignore[arg-type]
        **capped.patterns(_scale(config)),
        **placing(model, names),
    )
    return capped.told(attach_peft(wrap(model, settings, base_path)))


@method(
    "lokr",
    LokrConfig,
    by="PEFT",
    source="arXiv 2309.14859",
    trains="a small matrix and a thin product, Kronecker-multiplied, beside linear layers",
    rate=1e-3,
    peft_types=("LOKR",),
    peft_fields={
        "rank": "r",
        "alpha": "alpha",
        "decompose_factor": "decompose_factor",
        "decompose_both": "decompose_both",
    },
)
def lokr(config: LokrConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Low-rank Kronecker product (Yeh et al. 2023, LyCORIS): W' = W + (alpha / rank) C kron
    (A B)."""
    import peft

    names = chosen_layers(config, model, anatomy)
    require_linear(model, names, "lokr")
    # A factor smaller than the rank stays whole, so only a rank above every layer is refused.
    cap_rank(model, names, config.rank)
    settings = peft.LoKrConfig(
        r=config.rank,
        alpha=_scale(config),  # type: ignore[arg-type]
        decompose_factor=config.decompose_factor,
        decompose_both=config.decompose_both,
        **placing(model, names),
    )
    return attach_peft(wrap(model, settings, base_path))


@method(
    "ia3",
    Ia3Config,
    by="PEFT",
    source="arXiv 2205.05638",
    trains="one factor for each key, value and feed-forward activation",
    on_quantised=True,
    rate=5e-3,
    peft_types=("IA3",),
)
def ia3(config: Ia3Config, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """(IA)^3 (Liu et al. 2022): keys, values and the input of the feed-forward's last layer are
    multiplied by learnt factors that start at 1."""
    import peft

    fused = "attention.qkv" in anatomy.roles and "attention.key" not in anatomy.roles
    usual = [
        "attention.qkv" if fused else "attention.key",
        "attention.qkv" if fused else "attention.value",
        "mlp.down",
    ]
    names = anatomy.select(config.targets or usual)
    forward = set(anatomy.select(config.feedforward)) & set(names) if config.feedforward else set()
    found = placing(model, names)
    # PEFT asks that feed-forward names are among the target names, so both are written the same
    # way.
    if forward and set(found["target_modules"]) != set(names):
        short = {name.rsplit(".", 1)[-1] for name in forward}
        if {n for n in names if n.rsplit(".", 1)[-1] in short} == forward:
            return attach_peft(
                wrap(model, peft.IA3Config(feedforward_modules=sorted(short), **found), base_path)
            )
        found["target_modules"] = sorted(names)
    return attach_peft(
        wrap(model, peft.IA3Config(feedforward_modules=sorted(forward), **found), base_path)
    )


@method(
    "vera",
    VeraConfig,
    by="PEFT",
    source="arXiv 2310.11454",
    trains="two vectors for each linear layer, around random matrices that all share",
    rate=4e-3,
    peft_types=("VERA",),
    peft_fields={"rank": "r", "dropout": "vera_dropout", "seed": "projection_prng_key"},
)
def vera(config: VeraConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Vector-based random matrix adaptation (Kopiczko et al. 2023): W' = W + diag(b) B diag(d) A
    with A, B random and shared; b starts at 0."""
    import peft

    names = chosen_layers(config, model, anatomy)
    settings = peft.VeraConfig(
        r=config.rank,
        vera_dropout=config.dropout,
        projection_prng_key=config.seed,
        **placing(model, names),
    )
    return attach_peft(wrap(model, settings, base_path))


@method(
    "oft",
    OftConfig,
    by="PEFT",
    source="arXiv 2306.07280",
    trains="a rotation of each linear layer's inputs, in blocks",
    rate=5e-4,
    peft_types=("OFT",),
    peft_fields={"block_size": "oft_block_size"},
)
def oft(config: OftConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Orthogonal fine-tuning (Qiu et al. 2023), turning the inputs: y = W (R x) with R
    block-diagonal and orthogonal by Cayley's transform."""
    import peft

    names = chosen_layers(config, model, anatomy)
    require_linear(model, names, "oft")
    return attach_peft(
        wrap(
            model,
            peft.OFTConfig(r=0, oft_block_size=config.block_size, **placing(model, names)),
            base_path,
        )
    )


@method(
    "boft",
    BoftConfig,
    by="PEFT",
    source="arXiv 2311.06243",
    trains="rotations of each layer's inputs, and a factor for each output",
    rate=5e-4,
    peft_types=("BOFT",),
    peft_fields={
        "block_size": "boft_block_size",
        "factors": "boft_n_butterfly_factor",
        "dropout": "boft_dropout",
    },
)
def boft(config: BoftConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Butterfly orthogonal fine-tuning (Liu et al. 2023): W' = diag(s) (W R) with R = B_1 ... B_m,
    each B_i block-diagonal and orthogonal (Cayley) after a butterfly permutation. Raises
    CompatError (E-METHOD-64) for m above 1 where PEFT would silently take 1, because its kernel is
    not there."""
    import peft
    import torch

    names = chosen_layers(config, model, anatomy)
    require_linear(model, names, "boft")
    if config.factors > 1 and not torch.cuda.is_available():
        raise CompatError(problem("E-METHOD-64", "method.factors", factors=config.factors))
    widths = {name: shape_of(model.get_submodule(name))[0] for name in names}
    for name in names:
        inputs = widths[name]
        if inputs % config.block_size:
            sizes = [n for n in range(2, 65) if all(w % n == 0 for w in widths.values())]
            raise CompatError(
                problem(
                    "E-METHOD-65",
                    "method.block_size",
                    size=config.block_size,
                    module=name,
                    inputs=inputs,
                    sizes=", ".join(map(str, sizes)),
                )
            )
    settings = peft.BOFTConfig(
        boft_block_size=config.block_size,
        boft_n_butterfly_factor=config.factors,
        boft_dropout=config.dropout,
        **placing(model, names),
    )
    return attach_peft(wrap(model, settings, base_path))


@method(
    "adalora",
    AdaloraConfig,
    by="PEFT",
    in_shares=False,  # its ranks are dealt out by whole matrices
    source="arXiv 2303.10512",
    trains="low-rank updates whose ranks move to where they are needed",
    rate=1e-3,
    peft_types=("ADALORA",),
    peft_fields={
        "rank": "target_r",
        "start_rank": "init_r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
    },
)
def adalora(config: AdaloraConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Adaptive budget allocation (Zhang et al. 2023): W' = W + s P diag(e) Q; the least important
    entries of e are set to 0 until the mean rank is `rank`, on a cubic schedule over the run; a
    penalty keeps P and Q near orthogonal."""
    import peft

    names = chosen_layers(config, model, anatomy)
    first = config.start_rank or -(-3 * config.rank // 2)
    capped = cap_rank(model, names, first)
    settings = peft.AdaLoraConfig(
        target_r=config.rank,
        init_r=first,
        lora_alpha=config.alpha if config.alpha is not None else 2 * first,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        orth_reg_weight=config.orthogonality,
        total_step=1,  # told by `begin`; PEFT asks for a number now
        **placing(model, names),
    )
    wrapped = wrap(model, settings, base_path)
    attached = attach_peft(wrapped)
    schedule_ranks(attached, wrapped, config.wait, config.settle, config.every)
    return capped.told(
        attached, "methods.rank_above"
    )  # PEFT starts all layers at one rank, and what is above a layer's size can fall away


def schedule_ranks(
    attached: Attached, wrapped: PeftModel, wait: float, settle: float, every: int | None
) -> None:
    """Let PEFT's allocator follow the engine's steps, and let its memory survive a resume."""
    import torch

    settings = settings_of(wrapped)
    tuner: Any = wrapped.base_model
    allocator = tuner.rankallocator
    trained = [
        (name, p)
        for name, p in tuner.model.named_parameters()
        if "lora_" in name and "default" in name
    ]

    def begin(total_steps: int) -> None:
        settings.total_step = total_steps
        settings.tinit, settings.tfinal = int(wait * total_steps), int(settle * total_steps)
        settings.deltaT = every or max(1, total_steps // 100)

    def tensors() -> dict[str, Tensor]:
        # PEFT makes these with zeros at the first update and forgets them when the ranks settle;
        # zeros made earlier change nothing.
        for store in (allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc):
            for name, p in trained:
                store.setdefault(name, torch.zeros_like(p))
        parts = {"mean": allocator.exp_avg_ipt, "spread": allocator.exp_avg_unc}
        return {
            f"{name}/{part}": store[name].detach()
            for part, store in parts.items()
            for name, _ in trained
        }

    def load_state(state: dict[str, Any]) -> None:
        settings.rank_pattern = state["rank_pattern"]

    def save(folder: Path) -> None:
        # Entries set to 0 stay in the file: leaving them out would change the order in which
        # numbers are added.
        ranks, settings.rank_pattern = settings.rank_pattern, None
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
        settings.rank_pattern = ranks

    def settles_at() -> int:
        return int(settings.total_step - settings.tfinal)

    def after_update(step: int) -> None:
        if step == settles_at() and not allocator.exp_avg_ipt:
            # The ranks are decided at the very first step, before PEFT has looked at any gradient.
            allocator.update_ipt(tuner.model)
        tuner.update_and_allocate(step)

    attached.begin, attached.after_update, attached.complete_from = begin, after_update, settles_at
    attached.penalties = lambda: {"orthogonality": orthogonality(trained, settings.orth_reg_weight)}
    attached.tensors, attached.load_state, attached.save = tensors, load_state, save
    attached.state = lambda: {"rank_pattern": settings.rank_pattern}


def orthogonality(trained: list[tuple[str, nn.Parameter]], weight: float) -> Term:
    """The mean of ||Q Q^T - I|| and ||P^T P - I|| (Frobenius) over all layers, as PEFT adds it to a
    loss; Q is `lora_A`, P is `lora_B`."""
    import torch

    gaps = []
    for name, p in trained:
        if "lora_A" in name or "lora_B" in name:
            square = p @ p.T if "lora_A" in name else p.T @ p
            gaps.append(
                torch.linalg.matrix_norm(
                    square - torch.eye(len(square), dtype=p.dtype, device=p.device)
                )
            )
    return torch.stack(gaps).mean(), weight


RESERVED = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "inference_mode",
    "revision",
    "auto_mapping",
    "peft_version",
}
IMPOSSIBLE = {
    "XLORA": "lora",
    "POLY": "lora",
    "SHADOW": "lora",
    "MULTITASK_PROMPT_TUNING": "prompt_tuning",
    "CPT": "prompt_tuning",
    "CARTRIDGE": "prefix_tuning",
}
"""PEFT types that a run cannot train, and the kind to use instead; the reasons are sentences of the
catalogue."""


@method(
    "peft",
    PeftConfig,
    by="PEFT",
    source="github.com/huggingface/peft",
    trains="what the PEFT type trains",
    needs_weights=True,
)
def peft_type(config: PeftConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Any PEFT type on the model. Raises ConfigError for a type or option that PEFT does not have,
    CompatError for what cannot be trained here."""
    settings_class = config_class(config)
    options = dict(config.options)
    known = settings_class.__dataclass_fields__
    if "target_modules" in known and not options.get("target_modules"):
        options |= {
            k: v for k, v in placing(model, anatomy.select(config.targets)).items() if k in known
        }
    settings: Any
    try:
        settings = settings_class(**{"task_type": "CAUSAL_LM", **options})
    except (TypeError, ValueError, ImportError) as e:
        cause = str(e).splitlines()[0][:300]
        raise CompatError(
            problem("E-METHOD-24", "method.options", type=config.type, cause=cause)
        ) from e
    if settings.is_prompt_learning:
        return attach_prompt(wrap_prompt(model, settings, base_path))
    wrapped = wrap(model, settings, base_path)
    attached = attach_peft(wrapped)
    if settings.peft_type.value == "ADALORA":
        schedule_ranks(attached, wrapped, 0.1, 0.3, None)
    return attached


def config_class(config: PeftConfig) -> type[peft.PeftConfig]:
    """PEFT's config class for `type`, every option checked against its fields."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    types = {t.value: settings for t, settings in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = config.type.upper().replace("-", "_")
    if name not in types:
        guess = difflib.get_close_matches(name, types, n=1, cutoff=0.0)
        raise ConfigError(
            problem(
                "E-METHOD-22",
                "method.type",
                type=config.type,
                guess=guess[0],
                known=", ".join(sorted(types)),
            )
        )
    if name in IMPOSSIBLE:
        reason = say(f"methods.impossible.{name}")
        raise CompatError(
            problem(
                "E-METHOD-25", "method.type", type=name, reason=reason, instead=IMPOSSIBLE[name]
            )
        )
    known = [field for field in types[name].__dataclass_fields__ if field not in RESERVED]
    wrong = []
    for option in config.options:
        if option in RESERVED:
            wrong.append(problem("E-METHOD-26", f"method.options.{option}", option=option))
        elif option not in known:
            guess = difflib.get_close_matches(option, known, n=1, cutoff=0.0)
            wrong.append(
                problem(
                    "E-METHOD-23",
                    f"method.options.{option}",
                    type=name,
                    option=option,
                    guess=guess[0],
                    known=", ".join(known),
                )
            )
    raise_all(wrong, ConfigError)
    return types[name]
