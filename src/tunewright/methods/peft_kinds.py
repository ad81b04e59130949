"""Methods that PEFT implements and that are neither LoRA nor prompts: LoHa, LoKr, IA3, VeRA, OFT
and BOFT. AdaLoRA and any other PEFT type have files of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tunewright.core.errors import CompatError, problem
from tunewright.core.registry import method
from tunewright.core.types import Attached, Model
from tunewright.methods.peft import attach_peft, placing, require_linear, wrap
from tunewright.methods.targets import MethodSection, TargetSection, cap_rank, chosen_layers
from tunewright.models.anatomy import Anatomy, shape_of
from tunewright.models.shape import ModelShape

if TYPE_CHECKING:
    pass


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

    names = chosen_layers(config, anatomy)
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

    names = chosen_layers(config, anatomy)
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

    names = chosen_layers(config, anatomy)
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

    names = chosen_layers(config, anatomy)
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

    names = chosen_layers(config, anatomy)
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
