"""AdaLoRA: PEFT's low-rank updates, whose ranks move to where they are needed.
Source: Zhang et al. 2023, arXiv 2303.10512."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from tunewright.core.refusals import refused
from tunewright.core.registry import method
from tunewright.core.types import Attached, Model, Term
from tunewright.methods.peft import attach_peft, placing, settings_of, wrap
from tunewright.methods.targets import TargetSection, cap_rank, chosen_layers
from tunewright.models.anatomy import Anatomy
from tunewright.models.shape import ModelShape

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn


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
            raise refused("adalora_room")
        if self.start_rank is not None and self.start_rank < self.rank:
            raise refused("adalora_start")
        return self


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

    names = chosen_layers(config, anatomy)
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
