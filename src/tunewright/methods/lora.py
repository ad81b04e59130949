"""LoRA: a frozen linear layer plus a trained product of two thin matrices (Hu et al. 2021, arXiv 2106.09685). The layers are PEFT's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from tunewright.core.config import Section
from tunewright.core.registry import methods
from tunewright.core.types import Attached, Needs


class LoraConfig(Section):
    """Low-rank update of chosen linear layers."""

    rank: int = Field(default=16, gt=0)
    """Rank of the update. Trainable parameters grow linearly; 8-64 covers most tasks."""
    alpha: float | None = Field(default=None, gt=0)
    """Strength: the update is multiplied by alpha / rank. Default: twice the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of inputs of the update set to 0 while training; one draw for each row, which samples that share the row share."""
    targets: list[str] = ["linear"]
    """Roles (attention.query, mlp.down), groups (attention, mlp, linear) or module names (q_proj)."""

    @field_validator("targets", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


def short_names(model: Any, names: list[str]) -> list[str]:
    """Last components of module names where they select exactly `names` in `model`, else the full names: keeps adapter_config.json readable."""
    suffixes = {name.rsplit(".", 1)[-1] for name in names}
    matched = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in suffixes}
    return sorted(suffixes) if matched == set(names) else sorted(names)


@methods.register("lora", LoraConfig, source="arXiv 2106.09685")
def lora(config: LoraConfig, model: Any, anatomy: Any, base_path: str) -> Attached:
    """Put LoRA layers on `model`. Only A and B train, in float32 whatever the base computes in; B starts at 0, so nothing changes at step 0."""
    import peft

    names = anatomy.select(config.targets)
    targets = short_names(model, names)
    alpha = config.alpha if config.alpha is not None else 2 * config.rank
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT computes with any number
        lora_dropout=config.dropout,
        target_modules=targets,
        fan_in_fan_out=all(type(model.get_submodule(name)).__name__ == "Conv1D" for name in names),  # GPT-2 stores its weights turned
        base_model_name_or_path=base_path,
    )
    with warnings.catch_warnings():
        # PEFT asks Transformers for a name that Transformers has renamed: theirs to settle, not a user's.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        wrapped = peft.get_peft_model(model, settings)
    wrapped.peft_config["default"].base_model_name_or_path = base_path
    return attach_peft(wrapped)


def attach_peft(wrapped: Any) -> Attached:
    """The `Attached` of a model that already carries a LoRA adapter, new or loaded."""
    fuse(wrapped)

    def save(folder: Path) -> None:
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)

    return Attached(
        parameters=[name for name, p in wrapped.named_parameters() if p.requires_grad],
        model=wrapped,
        needs=Needs(frozen_base=True),
        save=save,
        disabled=wrapped.disable_adapter,
        merge=wrapped.merge_and_unload,
        learning_rate=2e-4,
    )


def fuse(wrapped: Any) -> int:
    """Let plain LoRA layers run as one autograd function while they train. Returns how many; the others keep PEFT's own forward."""
    import torch
    from peft.tuners.lora import Linear
    from torch import nn

    from tunewright.models.fast import low_rank_linear

    def fused(layer: Any, own_forward: Any) -> Any:
        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            name = layer.active_adapters[0] if len(layer.active_adapters) == 1 else None
            if name is None or layer.merged or layer.disable_adapters or not torch.is_grad_enabled() or args or kwargs:
                return own_forward(x, *args, **kwargs)
            base = layer.get_base_layer()
            return low_rank_linear(x, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])

        return forward

    count = 0
    for module in wrapped.modules():
        # DoRA, dropout and quantised bases have terms that the fused form lacks.
        plain = type(module) is Linear and type(module.get_base_layer()) is nn.Linear and not module.lora_variant
        plain = plain and all(isinstance(d, nn.Identity) or d.p == 0 for d in module.lora_dropout.values())
        if plain and not any(m.bias is not None for m in module.lora_B.values()) and not module.get_base_layer().weight.requires_grad:
            module.forward = fused(module, module.forward)
            count += 1
    return count
