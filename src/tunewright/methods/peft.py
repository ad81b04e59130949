"""What all methods of PEFT's share: layers put on a model, and what a run must know of them.

`wrap` puts an adapter of any type on a model, `attach_peft` is the end that all of them share, new
or loaded. Learnt prompts stand before the input and not on layers: `methods/prompts.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import CompatError, first_line, problem
from tunewright.core.registry import kinds_of_peft_type, usual_rate
from tunewright.core.types import Attached, Model, Needs
from tunewright.core.words import say
from tunewright.methods.base_weights import in_number_type_of
from tunewright.models.peft_names import as_written, make_portable

if TYPE_CHECKING:
    import peft
    from peft import PeftModel
    from torch import Tensor

RATE, OTHER_RATES = 2e-4, {"LN_TUNING": 1e-3}
"""The rate of PEFT types that no kind is saved as; of those that one is, its own."""


def wrap(model: Model, settings: peft.PeftConfig, base_path: str) -> PeftModel:
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
            with as_written():
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
            problem(
                "E-METHOD-24",
                "method",
                type=str(getattr(settings.peft_type, "value", "")),
                cause=first_line(e),
            )
        ) from e
    wrapped.peft_config["default"].base_model_name_or_path = base_path
    for p in wrapped.parameters():
        if id(p) not in base and p.is_floating_point() and p.dtype.itemsize < 4:
            p.data = p.data.to(torch.float32)
    return wrapped


def rate_of_type(name: str) -> float:
    """The learning rate that suits a PEFT type in runs of more than 1,000 steps."""
    rates = [
        usual_rate(entry.name)
        for entry in kinds_of_peft_type(name)
        if entry.facts["peft_types"][0] == name
    ]
    return rates[0] if rates else OTHER_RATES.get(name, RATE)


def settings_of(wrapped: PeftModel) -> Any:
    """The settings of the adapter: an instance of PEFT's config class of its type."""
    return wrapped.peft_config["default"]


def set_dropout(wrapped: PeftModel, share: float) -> None:
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


def attach_peft(wrapped: PeftModel) -> Attached:
    """The `Attached` of a model that already carries a PEFT adapter of any type, new or loaded."""
    config = settings_of(wrapped)
    kind = config.peft_type.value
    for name, p in wrapped.named_parameters():
        if (
            ".ranknum." in name
        ):  # AdaLoRA's divisor: PEFT lets it train on a half-precision base and never saves it
            p.requires_grad_(False)
    _compute_as_the_base(wrapped)
    if kind == "OFT":
        _rotate_rows(wrapped)
    fuse(wrapped)

    def save(folder: Path) -> None:
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
        make_portable(folder, wrapped.get_base_model(), config)

    reason = say("methods.no_merge", type=kind) if not can_merge(wrapped) else ""
    twice = _of_one_weight(wrapped)
    if twice and not reason:
        reason = say("methods.no_merge_shared", first=twice[0], second=twice[1])
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
        learning_rate=rate_of_type(kind),
    )


def _compute_as_the_base(wrapped: PeftModel) -> None:
    """Copies of whole modules that an adapter trains (`modules_to_save`) are held in float32 and
    used in the dtype of what they stand for."""
    from peft.utils.other import ModulesToSaveWrapper

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
            wide = [
                key
                for key, p in module._parameters.items()
                if p is not None and p.is_floating_point() and p.dtype.itemsize >= 4
            ]
            if narrow and wide:
                module.forward = in_number_type_of(
                    module, module.forward, dict.fromkeys(wide, narrow)
                )


def _rotate_rows(wrapped: PeftModel) -> None:
    """PEFT's OFT takes an input of four dimensions for images; on a linear layer they are rows, as
    DeepSeek-V3 has them for each head."""
    from peft.tuners.oft.layer import Linear

    def by_rows(own_forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            return own_forward(x.flatten(0, -2)).view(x.shape) if x.dim() == 4 else own_forward(x)

        return forward

    for layer in [m for m in wrapped.modules() if isinstance(m, Linear)]:
        for rotation in layer.oft_R.values():
            rotation.forward = by_rows(rotation.forward)


def can_merge(wrapped: PeftModel) -> bool:
    """Whether every layer of the adapter has a form as plain weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in wrapped.modules() if isinstance(m, BaseTunerLayer)]
    return (
        bool(layers)
        and hasattr(wrapped.base_model, "merge_and_unload")
        and all(type(m).merge is not BaseTunerLayer.merge for m in layers)
    )


def _of_one_weight(wrapped: PeftModel) -> tuple[str, str] | None:
    """Two layers with an adapter of their own each whose weight is one and the same, as the
    blocks of Zamba share it: merged, each would get what the other learnt as well."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    seen: dict[int, str] = {}
    for name, module in wrapped.get_base_model().named_modules():
        # New rows of an embedding that is also the head are learnt once, by the embedding's layer.
        if not isinstance(module, BaseTunerLayer) or getattr(module, "tied_adapter", None):
            continue
        weight = module.get_base_layer()._parameters.get("weight")
        if weight is not None and seen.setdefault(id(weight), name) != name:
            return seen[id(weight)], name
    return None


def fuse(wrapped: PeftModel) -> int:
    """Let plain LoRA layers run as one autograd function while they train. Returns how many; the
    others keep PEFT's own forward."""
    from peft.tuners.lora import Linear
    from torch import nn

    from tunewright.models.kernels.fused import low_rank_linear, may_fuse

    def fused(layer: Any, own_forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(x: Tensor, *args: object, **kwargs: object) -> Tensor:
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
            base, first, second = layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name]
            return low_rank_linear(
                x, base.weight, base.bias, first.weight, second.weight, layer.scaling[name]
            )

        return forward

    count = 0
    module: Any
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
            # The fused form rounds A and B to the base's dtype; PiSSA and OLoRA subtract
            # where they started, which would leave the rounding.
            exact = all(
                type(m) is nn.Linear for m in (*module.lora_A.values(), *module.lora_B.values())
            )
            if exact or all(
                m.weight.dtype == module.get_base_layer().weight.dtype
                for m in module.lora_A.values()
            ):
                module.forward = fused(module, module.forward)
                module.plain_low_rank = True  # `models.kernels.packed` computes it apart
                count += 1
    return count


def require_linear(model: Model, names: list[str], kind: str) -> None:
    """Raise CompatError where PEFT's layers of this kind have no form for GPT-2's Conv1D."""
    for name in names:
        if type(model.get_submodule(name)).__name__ == "Conv1D":
            raise CompatError(problem("E-METHOD-21", "method.kind", kind=kind, module=name))


def placing(model: Model, names: list[str]) -> dict[str, Any]:
    """What every layer-wise PEFT config says about where it sits."""
    found: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": short_names(model, names)}
    if names and all(type(model.get_submodule(name)).__name__ == "Conv1D" for name in names):
        found["fan_in_fan_out"] = True  # GPT-2 stores its weights turned
    return found


def short_names(model: Model, names: list[str]) -> list[str]:
    """Last components of module names where they select exactly `names` in `model`, else the full
    names: keeps adapter_config.json readable."""
    suffixes = {name.rsplit(".", 1)[-1] for name in names}
    matched = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in suffixes}
    return sorted(suffixes) if matched == set(names) else sorted(names)
