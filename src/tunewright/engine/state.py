"""What a checkpoint holds: what trains, the optimiser's state, what method and objective keep from
step to step, and how far the run is.

Tensors go by parameter name, so that a checkpoint survives a change of order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunewright.engine import ranks, sharding, shards
from tunewright.engine.offload import AwayOptimizer, on_host
from tunewright.engine.step import Stepper
from tunewright.record import checkpoint
from tunewright.record.checkpoint import Checkpoint
from tunewright.record.events import plain


@dataclass
class Progress:
    """What a run has done so far; stored in every checkpoint and the source of the summary's
    figures."""

    step: int = 0
    samples: int = 0
    logical_tokens: int = 0
    physical_rows: int = 0
    label_tokens: int = 0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    first_loss: float | None = None
    final_loss: float | None = None
    held_out_loss_before: float | None = None
    held_out_loss: float | None = None
    held_out_figures: dict[str, float] = field(default_factory=dict)
    """What the objective watches (accuracy, margin), as last measured on the held-out rows."""
    held_out_loss_all: float | None = None
    """Over all held-out rows at the end, where only some of them were measured on the way."""
    held_out_figures_all: dict[str, float] = field(default_factory=dict)
    held_out_rewards_before: list[float] = field(default_factory=list)
    """Rewards of the answers to the held-out prompts before training, where a run learns from
    rewards."""
    groups_alike: float | None = None
    """Summed over the steps: the share of groups whose answers all had one reward, where a run
    compares answers with others to the same question."""
    imbalance: float | None = None
    """Summed over the steps: rows of the fullest rank as a multiple of the mean."""
    kept_sharing: float | None = None
    """Summed over the steps: share of the rows saved by one process that the ranks still save."""
    best_step: int | None = None
    best_loss: float | None = None
    best_figures: dict[str, float] = field(default_factory=dict)
    """`held_out_figures` at the best step: what is told of the weights that are handed out."""
    worse_in_a_row: int = 0
    """Measurements since the lowest held-out loss."""
    stopped_early: bool = False
    skipped_steps: int = 0
    skipped_in_a_row: int = 0


def gather(
    stepper: Stepper, progress: Progress
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """(tensors by file and name, plain values) of a run as it is now."""
    attached, named = stepper.attached, stepper.trained()
    tensors: dict[str, dict[str, torch.Tensor]] = {
        "model": dict(named),
        "optimizer": optimizer_tensors(stepper.optimizer, named),
    }
    if attached.tensors:
        tensors["method"] = attached.tensors()
    state = {"progress": asdict(progress), **stepper.state()}
    if attached.state:
        state["method"] = attached.state()
    return tensors, plain(state)


def save(root: Path, stepper: Stepper, progress: Progress, *, protect: int | None) -> Path:
    """Publish the checkpoint of a run as it is now. Rank 0 writes what all ranks have alike; of
    weights in shares every rank writes its own. Raises CheckpointError, on all ranks."""
    team = ranks.current()
    if team.sharded:
        return shards.save(root, progress.step, *gather(stepper, progress), protect=protect)
    tensors, plain_state = gather(stepper, progress)
    target = checkpoint.folder_of(root, progress.step)
    if team.is_first:
        target = checkpoint.save(root, progress.step, tensors, plain_state, protect=protect)
    team.wait()
    return target


def restore(stepper: Stepper, found: Checkpoint) -> Progress:
    """Put everything back that `gather` took, and give how far the run was."""
    load_weights(stepper, found)
    load_optimizer(stepper, found)
    stepper.load_state(found.state)
    if stepper.attached.load_state:
        stepper.attached.load_state(found.state["method"])
    # JSON could hold numbers that are not finite only as words.
    known: dict[str, Any] = {
        name: float(value) if isinstance(value, str) else value
        for name, value in found.state["progress"].items()
    }
    return Progress(**known)


def load_optimizer(stepper: Stepper, found: Checkpoint) -> None:
    """The optimiser's state alone."""
    load_optimizer_tensors(stepper.optimizer, stepper.trained(), found.tensors("optimizer"))


@torch.no_grad()
def load_weights(stepper: Stepper, found: Checkpoint) -> None:
    """The weights alone, and what the method keeps beside them."""
    stored = found.tensors("model")
    if stepper.attached.tensors:
        kept = found.tensors("method")
        for name, tensor in stepper.attached.tensors().items():
            tensor.copy_(kept[name])
    for name, p in stepper.trained():
        # A weight that slept then is held in fewer bits than one that learns.
        kept = stored[name]
        if p.dtype != kept.dtype:
            p.data = p.data.to(kept.dtype)
        sharding.put(p, kept)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named: list[tuple[str, torch.nn.Parameter]]
) -> dict[str, torch.Tensor]:
    """`parameter/key` -> tensor of the optimiser's state, such as `...lora_A.weight/exp_avg`."""
    names = {id(p): name for name, p in named}
    return {
        f"{names[id(p)]}/{key}": torch.as_tensor(on_host(value))
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    named: list[tuple[str, torch.nn.Parameter]],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = dict(named)
    for full, tensor in tensors.items():
        name, key = full.rsplit("/", 1)
        p = parameters[name]
        if key == "step":
            # AdamW counts in a float tensor on the CPU, others in a Python integer; moments live
            # where the parameter does.
            optimizer.state[p][key] = tensor if tensor.is_floating_point() else int(tensor)
        elif isinstance(optimizer, AwayOptimizer):
            optimizer.state[p][key] = optimizer.kept(tensor, p)
        else:
            optimizer.state[p][key] = sharding.like(p, tensor)
