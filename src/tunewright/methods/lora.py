"""LoRA and its closest variants: a frozen linear layer plus a trained low-rank product (Hu
et al. 2021, arXiv 2106.09685).

The layers are PEFT's. Kin differ in the scale (rsLoRA), in a trained length for each output (DoRA),
in where A and B start (PiSSA, OLoRA: EVA, LoftQ: `methods/lora_starts.py`)
and in how fast B learns (LoRA+).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from tunewright.core.errors import CompatError, problem
from tunewright.core.refusals import refused
from tunewright.core.registry import method, usual_rate
from tunewright.core.types import Attached, Model
from tunewright.methods import experts, whole_modules, word_rows
from tunewright.methods.lora_starts import start_from_rounding, start_from_rows, start_from_weights
from tunewright.methods.peft import attach_peft, placing, require_linear, wrap
from tunewright.methods.targets import LowRankSection, chosen_layers, ranks_of, small_layers
from tunewright.models.anatomy import Anatomy

if TYPE_CHECKING:
    from peft import PeftModel


def _fits_eva(config: LowRankSection) -> None:
    """Raise ValueError for settings that EVA cannot have."""
    if config.new_tokens or config.modules_to_save:
        raise refused("eva_words")
    if config.rank_pattern or config.alpha_pattern:
        raise refused("eva_ranks")


class LoraConfig(LowRankSection):
    """Low-rank update of chosen linear layers."""

    rslora: bool = False
    """Divide by the root of the rank, so that large ranks learn as fast as small ones
    (Kalajdzievski 2023)."""
    dora: bool = False
    """Train the length of each output's weights separately from their direction (Liu et al.
    2024)."""
    pissa: bool = False
    """Start A and B at the largest singular directions of each weight (Meng et al. 2024)."""
    pissa_niter: int | None = Field(default=None, gt=0)
    """With `pissa`: a fast approximate decomposition with this many iterations (4 to 16). Default:
    the exact one."""
    olora: bool = False
    """Start A and B at an orthonormal decomposition of each weight (Büyükakyüz 2024)."""
    eva: bool = False
    """Start A at the directions in which the inputs of its layer vary most on your data (Paischer
    et al. 2024)."""
    loftq: bool = False
    """Start A and B at the quantisation error of each weight (Li et al. 2023). Needs
    `base.bits`."""

    @model_validator(mode="after")
    def _one_start(self) -> LoraConfig:
        if self.pissa + self.olora + self.dora + self.eva + self.loftq > 1:
            raise refused("one_start")
        if self.eva:
            _fits_eva(self)
        if self.pissa_niter is not None and not self.pissa:
            raise refused("pissa_niter")
        return self


class RsLoraConfig(LowRankSection):
    """LoRA scaled by the root of its rank, so that large ranks learn as fast as small ones."""


class DoraConfig(LowRankSection):
    """LoRA that trains the length of each output's weights apart from their direction."""

    dora: ClassVar[bool] = True


class LoraPlusConfig(LowRankSection):
    """LoRA whose B learns faster than its A."""

    ratio: float = Field(default=16.0, gt=0)
    """Learning rate of B divided by that of A, which is `engine.learning_rate`."""


class PissaConfig(LowRankSection):
    """LoRA that starts at the largest singular directions of each weight."""

    pissa_niter: int | None = Field(default=None, gt=0)
    """A fast approximate decomposition with this many iterations (4 to 16). Default: the exact one.
    """


class OloraConfig(LowRankSection):
    """LoRA that starts at an orthonormal decomposition of each weight."""


class EvaConfig(LowRankSection):
    """LoRA that starts at the directions in which each layer's inputs vary most on your rows."""

    rho: float = Field(default=1.0, ge=1)
    """Above 1, ranks move to layers whose inputs have more directions: a layer gets at most rho *
    rank, and `rank` stays the mean."""

    @model_validator(mode="after")
    def _no_words(self) -> EvaConfig:
        _fits_eva(self)
        return self


class LoftqConfig(LowRankSection):
    """LoRA that starts by mending what quantising took from each weight of a base in few bits."""

    loftq: ClassVar[bool] = True
    niter: int | None = Field(default=None, gt=0)
    """A fast approximate decomposition with this many iterations (4 to 16). Default: the exact one,
    which takes minutes on a large model."""


FIELDS = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "rslora": "use_rslora",
    "dora": "use_dora",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "modules_to_save": "modules_to_save",
}
"""Where PEFT's description of a LoRA holds our fields."""
_PRODUCT = "a thin product of two matrices beside chosen linear layers"


@method(
    "lora",
    LoraConfig,
    by="PEFT",
    source="arXiv 2106.09685",
    trains=_PRODUCT,
    on_quantised=True,
    rate=2e-4,
    peft_types=("LORA",),
    peft_fields=FIELDS,
)
def lora(config: LoraConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Put LoRA layers on `model`. Only A and B train, in float32 whatever the base computes in; B
    starts at 0, so nothing changes at step 0.

    y = W x + (alpha / rank) B A x.
    """
    start = next((name for name in ("pissa", "olora", "eva", "loftq") if getattr(config, name)), "")
    return _attach(
        config,
        model,
        anatomy,
        base_path,
        rslora=config.rslora,
        dora=config.dora,
        start=start,
        niter=config.pissa_niter,
    )


@method(
    "rslora",
    RsLoraConfig,
    by="PEFT",
    source="arXiv 2312.03732",
    trains=_PRODUCT,
    on_quantised=True,
    rate=2e-4,
    peft_types=("LORA",),
    goes_on=False,
)
def rslora(config: RsLoraConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Rank-stabilised LoRA (Kalajdzievski 2023): y = W x + (alpha / sqrt(rank)) B A x."""
    return _attach(config, model, anatomy, base_path, rslora=True)


@method(
    "dora",
    DoraConfig,
    by="PEFT",
    source="arXiv 2402.09353",
    trains="a thin product and the length of each output's weights",
    on_quantised=True,
    rate=2e-4,
    peft_types=("LORA",),
    goes_on=False,
)
def dora(config: DoraConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Weight-decomposed LoRA (Liu et al. 2024): W' = m (W + s B A) / ||W + s B A||, the norm taken
    for each output; m starts at ||W||."""
    return _attach(config, model, anatomy, base_path, dora=True)


@method(
    "lora_plus",
    LoraPlusConfig,
    by="PEFT",
    source="arXiv 2402.12354",
    trains=f"{_PRODUCT}, B at a higher rate",
    on_quantised=True,
    rate=5e-5,
    peft_types=("LORA",),
    goes_on=False,
    continued=lambda attached, config: faster_b(attached, config.ratio),
)
def lora_plus(config: LoraPlusConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """LoRA+ (Hayou et al. 2024): the update of LoRA, with B learning `ratio` times as fast as A."""
    attached = _attach(config, model, anatomy, base_path)
    faster_b(attached, config.ratio)
    return attached


@method(
    "pissa",
    PissaConfig,
    by="PEFT",
    source="arXiv 2404.02948",
    trains="a thin product that starts at the largest singular directions",
    rate=1e-4,
    peft_types=("LORA",),
    goes_on=False,
    needs_weights=True,
)
def pissa(config: PissaConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Principal singular values and vectors adaptation (Meng et al. 2024): with W = U S V^T, A =
    sqrt(S_r) V_r^T, B = U_r sqrt(S_r), and y = (W - s B0 A0) x + s B A x. What B0 A0 takes away is
    subtracted beside the weights, which stay as they are (`methods/lora_starts.py`)."""
    return _attach(config, model, anatomy, base_path, start="pissa", niter=config.pissa_niter)


@method(
    "olora",
    OloraConfig,
    by="PEFT",
    source="arXiv 2406.01775",
    trains="a thin product that starts at an orthonormal basis",
    rate=1e-4,
    peft_types=("LORA",),
    goes_on=False,
    needs_weights=True,
)
def olora(config: OloraConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Orthonormal LoRA (Büyükakyüz 2024): with W = Q R, B = Q_r and A = R_r, and y = (W - s B0 A0)
    x + s B A x, as `pissa` does it."""
    return _attach(config, model, anatomy, base_path, start="olora")


@method(
    "eva",
    EvaConfig,
    by="PEFT",
    source="arXiv 2410.07170",
    trains="a thin product that starts at your rows",
    on_quantised=True,
    rate=2e-4,
    peft_types=("LORA",),
    goes_on=False,
    needs_weights=True,
)
def eva(config: EvaConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Explained variance adaptation (Paischer et al. 2024): y = W x + s B A x; with the inputs of
    the layer on some rows X = U S V^T, A starts at the first rows of V^T and B at 0.
    `Attached.look` is told the rows."""
    return _attach(config, model, anatomy, base_path, start="eva", rho=config.rho)


@method(
    "loftq",
    LoftqConfig,
    by="PEFT",
    source="arXiv 2310.08659",
    trains="a thin product that starts by mending the rounding of the base",
    on_quantised=True,
    merges="it mends the rounding of its quantised base",
    rate=2e-4,
    peft_types=("LORA",),
    goes_on=False,
    needs_weights=True,
)
def loftq(config: LoftqConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """LoRA-aware quantisation (Li et al. 2023): y = Q x + s B A x with Q = quantised(W); s B A
    starts as the best product of its rank for W - Q."""
    return _attach(config, model, anatomy, base_path, start="loftq", niter=config.niter)


def _attach(
    config: LowRankSection,
    model: Model,
    anatomy: Anatomy,
    base_path: str,
    *,
    rslora: bool = False,
    dora: bool = False,
    start: str = "",
    niter: int | None = None,
    rho: float = 1.0,
) -> Attached:
    import peft

    names = chosen_layers(config, anatomy, tensors=True)
    experts.require(config, names, anatomy, start, dora=dora)
    modules = [name for name in names if name not in anatomy.parameters]
    per_rank = 1.0 if start else 0.0 if rslora else 2.0
    ranks = ranks_of(config, model, names, anatomy, per_rank, experts.rank_of(config, model))
    if start == "eva":  # PEFT deals out one rank of its own
        small_layers(model, names, ranks.ranks, all_alike=True)
    if start == "olora":
        require_linear(
            model, modules, "olora"
        )  # PEFT decomposes the weight as it lies, and Conv1D's lies turned
    words = (
        word_rows.make(config.new_tokens, model, anatomy, "method.new_tokens")
        if config.new_tokens
        else None
    )
    whole = whole_modules.chosen(config.modules_to_save, names, model, anatomy)
    both = [
        name
        for name in names
        if words and name in (*anatomy.roles["embedding"], *anatomy.roles.get("head", []))
    ]
    if both:
        raise CompatError(problem("E-METHOD-80", "method.targets", module=both[0]))
    if words:
        words.inside(whole)
    alpha = config.alpha if config.alpha is not None else per_rank * config.rank or 8.0
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT computes with any number
        lora_dropout=config.dropout,
        use_rslora=rslora,
        use_dora=dora,
        init_lora_weights="eva" if start == "eva" else True,
        eva_config=peft.EvaConfig(rho=rho) if start == "eva" else None,
        **ranks.patterns(alpha, rooted=rslora),
        trainable_token_indices={place: words.ids for place in words.places}
        if words and words.places
        else None,
        target_parameters=experts.short_names(names, anatomy) or None,
        **whole_modules.named_for_peft(model, whole),
        **placing(model, modules),
    )
    wrapped = wrap(model, settings, base_path)
    if words:
        words.start(wrapped, "pieces")
    attached = ranks.told(_begun(wrapped, config.rank, start, niter))
    return experts.told(attached, ranks, config, model)


def _begun(wrapped: PeftModel, rank: int, start: str, niter: int | None) -> Attached:
    """The layers with the start of their matrices (`pissa`, `olora`, `eva`, `loftq`; an empty text
    is PEFT's own)."""
    if not start:
        return attach_peft(wrapped)
    if start == "eva":
        return start_from_rows(attach_peft(wrapped), wrapped, rank)
    if start == "loftq":
        return start_from_rounding(attach_peft(wrapped), wrapped, niter)
    return start_from_weights(
        wrapped, f"pissa_niter_{niter}" if start == "pissa" and niter else start
    )


def faster_b(attached: Attached, ratio: float) -> None:
    """LoRA+: B learns `ratio` times as fast as A."""
    attached.rate_factors = {
        name: ratio
        for name in attached.parameters
        if ".lora_B." in name or ".lora_embedding_B." in name
    }
    attached.learning_rate = usual_rate("lora_plus")
