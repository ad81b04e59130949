"""LoRA and its closest kin: a frozen linear layer plus a trained product of two thin matrices (Hu
et al. 2021, arXiv 2106.09685).

The layers are PEFT's. Kin differ in the scale (rsLoRA), in a trained length for each output (DoRA),
in where A and B start (PiSSA, OLoRA: `methods/started.py`; EVA, LoftQ: `methods/measured.py`) and
in how fast B learns (LoRA+). `attach_peft` is the end that every PEFT method shares, new or loaded.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from tunewright.core.config import Section
from tunewright.core.errors import CompatError, first_line, problem
from tunewright.core.registry import methods
from tunewright.core.types import Attached, Needs
from tunewright.core.words import say
from tunewright.methods.word_rows import checked_tokens

RATES = {
    "LORA": 2e-4,
    "ADALORA": 1e-3,
    "LOHA": 1e-3,
    "LOKR": 1e-3,
    "IA3": 5e-3,
    "VERA": 4e-3,
    "OFT": 5e-4,
    "BOFT": 5e-4,
    "LN_TUNING": 1e-3,
    "TRAINABLE_TOKENS": 1e-3,
}
"""The rate that suits a PEFT type in runs of more than 1,000 steps; 2e-4 for types not named."""


EVA_WITHOUT_WORDS = "new_tokens does not go with eva, whose start in PEFT takes every layer of an adapter for a low-rank one: use another kind"


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


class LoraConfig(LowRankSection):
    """Low-rank update of chosen linear layers."""

    rslora: bool = False
    """Divide by the root of the rank, so that large ranks learn as fast as small ones
    (Kalajdzievski 2023)."""
    dora: bool = False
    """Train the length of each output's weights apart from their direction (Liu et al. 2024)."""
    pissa: bool = False
    """Start A and B at the largest singular directions of each weight (Meng et al. 2024)."""
    pissa_niter: int | None = Field(default=None, gt=0)
    """With `pissa`: a fast approximate decomposition with this many iterations (4 to 16). Default:
    the exact one."""
    olora: bool = False
    """Start A and B at an orthonormal decomposition of each weight (Büyükakyüz 2024)."""
    eva: bool = False
    """Start A at the directions in which the inputs of its layer vary most on your rows (Paischer
    et al. 2024)."""
    loftq: bool = False
    """Start A and B at what quantising took from each weight (Li et al. 2023). Needs `base.bits`.
    """

    @model_validator(mode="after")
    def _one_start(self) -> LoraConfig:
        if self.pissa + self.olora + self.dora + self.eva + self.loftq > 1:
            raise ValueError("pissa, olora, eva, loftq and dora do not go together: choose one")
        if self.eva and self.new_tokens:
            raise ValueError(EVA_WITHOUT_WORDS)
        if self.pissa_niter is not None and not self.pissa:
            raise ValueError("pissa_niter has no effect without pissa: true")
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
    """LoRA that starts at the directions in which the inputs of each layer vary most on your rows."""

    rho: float = Field(default=1.0, ge=1)
    """Above 1, ranks move to layers whose inputs have more directions: a layer gets at most rho *
    rank, and `rank` stays the mean."""

    @model_validator(mode="after")
    def _no_words(self) -> EvaConfig:
        if self.new_tokens:
            raise ValueError(EVA_WITHOUT_WORDS)
        return self


class LoftqConfig(LowRankSection):
    """LoRA that starts by mending what quantising took from each weight of a base in few bits."""

    loftq: ClassVar[bool] = True
    niter: int | None = Field(default=None, gt=0)
    """A fast approximate decomposition with this many iterations (4 to 16). Default: the exact one,
    which takes minutes on a large model."""


_PRODUCT = "a thin product of two matrices beside chosen linear layers"


@methods.register(
    "lora", LoraConfig, by="PEFT", source="arXiv 2106.09685", trains=_PRODUCT, on_quantised=True
)
def lora(config: LoraConfig, model: Any, anatomy: Any, base_path: str) -> Attached:
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


@methods.register(
    "rslora", RsLoraConfig, by="PEFT", source="arXiv 2312.03732", trains=_PRODUCT, on_quantised=True
)
def rslora(config: RsLoraConfig, model: Any, anatomy: Any, base_path: str) -> Attached:
    """Rank-stabilised LoRA (Kalajdzievski 2023): y = W x + (alpha / sqrt(rank)) B A x."""
    return _attach(config, model, anatomy, base_path, rslora=True)


@methods.register(
    "dora",
    DoraConfig,
    by="PEFT",
    source="arXiv 2402.09353",
    trains="a thin product and the length of each output's weights",
    on_quantised=True,
)
def dora(config: DoraConfig, model: Any, anatomy: Any, base_path: str) -> Attached:
    """Weight-decomposed LoRA (Liu et al. 2024): W' = m (W + s B A) / ||W + s B A||, the norm taken
    for each output; m starts at ||W||."""
    return _attach(config, model, anatomy, base_path, dora=True)


@methods.register(
    "lora_plus",
    LoraPlusConfig,
    by="PEFT",
    source="arXiv 2402.12354",
    trains=f"{_PRODUCT}, B at a higher rate",
    on_quantised=True,
)
def lora_plus(config: LoraPlusConfig, model: Any, anatomy: Any, base_path: str) -> Attached:
    """LoRA+ (Hayou et al. 2024): the update of LoRA, with B learning `ratio` times as fast as A."""
    attached = _attach(config, model, anatomy, base_path)
    faster_b(attached, config.ratio)
    return attached


@methods.register(
    "pissa",
    PissaConfig,
    by="PEFT",
    source="arXiv 2404.02948",
    trains="a thin product that starts at the largest singular directions",
)
def pissa(config: PissaConfig, model: Any, anatomy: Any, base_path: str) -> Attached:
    """Principal singular values and vectors adaptation (Meng et al. 2024): with W = U S V^T, A =
    sqrt(S_r) V_r^T, B = U_r sqrt(S_r), and y = (W - s B0 A0) x + s B A x. What B0 A0 takes away is
    subtracted beside the weights, which stay as they are (`methods/started.py`)."""
    return _attach(config, model, anatomy, base_path, start="pissa", niter=config.pissa_niter)


@methods.register(
    "olora",
    OloraConfig,
    by="PEFT",
    source="arXiv 2406.01775",
    trains="a thin product that starts at an orthonormal basis",
)
def olora(config: OloraConfig, model: Any, anatomy: Any, base_path: str) -> Attached:
    """Orthonormal LoRA (Büyükakyüz 2024): with W = Q R, B = Q_r and A = R_r, and y = (W - s B0 A0)
    x + s B A x, as `pissa` does it."""
    return _attach(config, model, anatomy, base_path, start="olora")


@methods.register(
    "eva",
    EvaConfig,
    by="PEFT",
    source="arXiv 2410.07170",
    trains="a thin product that starts at your rows",
    on_quantised=True,
)
def eva(config: EvaConfig, model: Any, anatomy: Any, base_path: str) -> Attached:
    """Explained variance adaptation (Paischer et al. 2024): y = W x + s B A x; with the inputs of
    the layer on some rows X = U S V^T, A starts at the first rows of V^T and B at 0.
    `Attached.look` is told the rows."""
    return _attach(config, model, anatomy, base_path, start="eva", rho=config.rho)


@methods.register(
    "loftq",
    LoftqConfig,
    by="PEFT",
    source="arXiv 2310.08659",
    trains="a thin product that starts by mending the rounding of the base",
    on_quantised=True,
    merges="it mends the rounding of its quantised base",
)
def loftq(config: LoftqConfig, model: Any, anatomy: Any, base_path: str) -> Attached:
    """LoRA-aware quantisation (Li et al. 2023): y = Q x + s B A x with Q = quantised(W); s B A
    starts as the best product of its rank for W - Q."""
    return _attach(config, model, anatomy, base_path, start="loftq", niter=config.niter)


def _attach(
    config: LowRankSection,
    model: Any,
    anatomy: Any,
    base_path: str,
    *,
    rslora: bool = False,
    dora: bool = False,
    start: str = "",
    niter: int | None = None,
    rho: float = 1.0,
) -> Attached:
    import peft

    from tunewright.methods import measured, word_rows
    from tunewright.methods.lora_starts import start_from_weights

    names = chosen_layers(config, model, anatomy)
    capped = cap_rank(
        model, names, config.rank, all_alike=start == "eva"
    )  # PEFT's EVA deals out one rank of its own
    if start == "olora":
        require_linear(
            model, names, "olora"
        )  # PEFT decomposes the weight as it lies, and Conv1D's lies turned
    words = (
        word_rows.make(config.new_tokens, model, anatomy, "method.new_tokens")
        if config.new_tokens
        else None
    )
    both = [
        name
        for name in names
        if words and name in (*anatomy.roles["embedding"], *anatomy.roles.get("head", []))
    ]
    if both:
        raise CompatError(problem("E-METHOD-80", "method.targets", module=both[0]))
    usual = config.rank if start else 8.0 if rslora else 2 * config.rank
    alpha = config.alpha if config.alpha is not None else usual
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT computes with any number
        lora_dropout=config.dropout,
        use_rslora=rslora,
        use_dora=dora,
        init_lora_weights="eva" if start == "eva" else True,
        eva_config=peft.EvaConfig(rho=rho) if start == "eva" else None,
        **capped.patterns(alpha, rooted=rslora),
        trainable_token_indices={place: words.ids for place in words.places} if words else None,
        **placing(model, names),
    )
    wrapped = wrap(model, settings, base_path)
    if words:
        words.start(wrapped, "pieces")
    if not start:
        return capped.told(attach_peft(wrapped))
    # PEFT takes some names for the tensors in which a family stores all its experts: what it puts
    # there has no matrix to start from.
    tensors = next(
        (
            name
            for name, module in wrapped.named_modules()
            if type(module).__name__ == "ParamWrapper"
        ),
        None,
    )
    if tensors is not None:
        raise CompatError(problem("E-METHOD-77", "method.targets", start=start, module=tensors))
    if start == "eva":
        return capped.told(measured.start_from_rows(attach_peft(wrapped), wrapped, config.rank))
    if start == "loftq":
        return capped.told(measured.start_from_rounding(attach_peft(wrapped), wrapped, niter))
    return capped.told(
        start_from_weights(wrapped, f"pissa_niter_{niter}" if start == "pissa" and niter else start)
    )


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
    from tunewright.models.anatomy import is_linear, shape_of

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


def require_linear(model: Any, names: list[str], kind: str) -> None:
    """Raise CompatError where PEFT's layers of this kind have no form for GPT-2's Conv1D."""
    for name in names:
        if type(model.get_submodule(name)).__name__ == "Conv1D":
            raise CompatError(problem("E-METHOD-21", "method.kind", kind=kind, module=name))


def placing(model: Any, names: list[str]) -> dict[str, Any]:
    """What every layer-wise PEFT config says about where it sits."""
    found: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": short_names(model, names)}
    if all(type(model.get_submodule(name)).__name__ == "Conv1D" for name in names):
        found["fan_in_fan_out"] = True  # GPT-2 stores its weights turned
    return found


def short_names(model: Any, names: list[str]) -> list[str]:
    """Last components of module names where they select exactly `names` in `model`, else the full
    names: keeps adapter_config.json readable."""
    suffixes = {name.rsplit(".", 1)[-1] for name in names}
    matched = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in suffixes}
    return sorted(suffixes) if matched == set(names) else sorted(names)


def wrap(model: Any, settings: Any, base_path: str) -> Any:
    """PEFT's model around `model`, all its own parameters in float32. Raises CompatError with
    PEFT's own words where it refuses."""
    import peft
    import torch

    settings.base_model_name_or_path = base_path
    base = {id(p) for p in model.parameters()}
    try:
        with warnings.catch_warnings():
            # PEFT remarks on itself (renamed attributes, values it adjusts, turned weights); what
            # matters to a user is an error of ours.
            warnings.simplefilter("ignore")
            wrapped = peft.get_peft_model(model, settings)
    except (
        ValueError,
        TypeError,
        NotImplementedError,
        RuntimeError,
        KeyError,
        AttributeError,
        AssertionError,
    ) as e:
        raise CompatError(
            problem("E-METHOD-24", "method", type=settings.peft_type.value, cause=first_line(e))
        ) from e
    wrapped.peft_config["default"].base_model_name_or_path = base_path
    for p in wrapped.parameters():
        if id(p) not in base and p.is_floating_point() and p.dtype.itemsize < 4:
            p.data = p.data.to(torch.float32)
    return wrapped


def set_dropout(wrapped: Any, share: float) -> None:
    """Let a PEFT adapter of any type drop this share of its inputs while it trains, and say so in
    its description."""
    from torch import nn

    config = wrapped.peft_config["default"]
    for name in [
        name for name in vars(config) if name.endswith("_dropout") and name != "encoder_dropout"
    ]:
        setattr(config, name, share)
        for module in wrapped.modules():
            layers = getattr(module, name, None)
            if isinstance(layers, nn.ModuleDict) and "default" in layers:
                before = layers["default"]
                # BOFT's layer of the name drops blocks; the others are torch's, or nothing where
                # the share is 0.
                usual = isinstance(before, nn.Identity | nn.Dropout)
                layers["default"] = (
                    (nn.Dropout(share) if share else nn.Identity())
                    if usual
                    else type(before)(share)
                )
                layers["default"].train(before.training)


def faster_b(attached: Attached, ratio: float) -> None:
    """LoRA+: B learns `ratio` times as fast as A."""
    attached.rate_factors = {
        name: ratio
        for name in attached.parameters
        if ".lora_B." in name or ".lora_embedding_B." in name
    }
    attached.learning_rate = 5e-5


def attach_peft(wrapped: Any) -> Attached:
    """The `Attached` of a model that already carries a PEFT adapter of any type, new or loaded."""
    config = wrapped.peft_config["default"]
    kind = config.peft_type.value
    if config.is_prompt_learning:
        from tunewright.methods.prompts import attach_prompt

        return attach_prompt(wrapped)
    for name, p in wrapped.named_parameters():
        if (
            ".ranknum." in name
        ):  # AdaLoRA's divisor: PEFT lets it train on a half-precision base and never saves it
            p.requires_grad_(False)
    _compute_as_the_base(wrapped)
    fuse(wrapped)

    def save(folder: Path) -> None:
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)

    reason = say("methods.no_merge", type=kind) if not can_merge(wrapped) else ""
    # A start that PEFT took out of the weights is missing from the base, whoever trained the
    # adapter.
    taken = str(getattr(config, "init_lora_weights", "")).startswith(
        ("pissa", "olora", "corda", "loftq", "lora_ga")
    )
    why = (
        "methods.biases_train"
        if getattr(config, "bias", "none") not in ("none", None)
        else "methods.start_taken"
        if taken
        else ""
    )
    return Attached(
        parameters=[name for name, p in wrapped.named_parameters() if p.requires_grad],
        model=wrapped,
        needs=Needs(frozen_base=True),
        save=save,
        disabled=None if why else wrapped.disable_adapter,
        disabled_reason=say(why) if why else "",
        merge=None if reason else wrapped.merge_and_unload,
        merge_reason=reason,
        learning_rate=RATES.get(kind, 2e-4),
    )


def _compute_as_the_base(wrapped: Any) -> None:
    """Copies of whole modules that an adapter trains (`modules_to_save`) are held in float32 and
    used in the number type of what they stand for."""
    from peft.utils.other import ModulesToSaveWrapper

    from tunewright.methods.base_weights import in_number_type_of

    for wrapper in [m for m in wrapped.modules() if isinstance(m, ModulesToSaveWrapper)]:
        narrow = next(
            (
                p.dtype
                for p in wrapper.original_module.parameters()
                if p.is_floating_point() and p.dtype.itemsize < 4
            ),
            None,
        )
        for module in wrapper.modules_to_save.modules():
            wide = {
                key: narrow
                for key, p in module._parameters.items()
                if p is not None and p.is_floating_point() and p.dtype.itemsize >= 4
            }
            if narrow and wide:
                module.forward = in_number_type_of(module, module.forward, wide)


def can_merge(wrapped: Any) -> bool:
    """Whether every layer of the adapter has a form as plain weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in wrapped.modules() if isinstance(m, BaseTunerLayer)]
    return (
        bool(layers)
        and hasattr(wrapped.base_model, "merge_and_unload")
        and all(type(m).merge is not BaseTunerLayer.merge for m in layers)
    )


def fuse(wrapped: Any) -> int:
    """Let plain LoRA layers run as one autograd function while they train. Returns how many; the
    others keep PEFT's own forward."""
    import torch
    from peft.tuners.lora import Linear
    from torch import nn

    from tunewright.models.kernels.fused import low_rank_linear, may_fuse

    def fused(layer: Any, own_forward: Any) -> Any:
        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            name = layer.active_adapters[0] if len(layer.active_adapters) == 1 else None
            if (
                name is None
                or layer.merged
                or layer.disable_adapters
                or not may_fuse()
                or args
                or kwargs
            ):
                return own_forward(x, *args, **kwargs)
            base = layer.get_base_layer()
            return low_rank_linear(
                x,
                base.weight,
                base.bias,
                layer.lora_A[name].weight,
                layer.lora_B[name].weight,
                layer.scaling[name],
            )

        return forward

    count = 0
    for module in wrapped.modules():
        # DoRA, dropout and quantised bases have terms that the fused form lacks.
        plain = (
            type(module) is Linear
            and type(module.get_base_layer()) is nn.Linear
            and not module.lora_variant
        )
        plain = plain and all(
            isinstance(d, nn.Identity) or d.p == 0 for d in module.lora_dropout.values()
        )
        if (
            plain
            and not any(m.bias is not None for m in module.lora_B.values())
            and not module.get_base_layer().weight.requires_grad
        ):
            # The fused form rounds A and B to the base's number type; PiSSA and OLoRA subtract
            # where they started, which would leave the rounding.
            exact = all(
                type(m) is nn.Linear for m in (*module.lora_A.values(), *module.lora_B.values())
            )
            if exact or all(
                m.weight.dtype == module.get_base_layer().weight.dtype
                for m in module.lora_A.values()
            ):
                module.forward = fused(module, module.forward)
                count += 1
    return count
