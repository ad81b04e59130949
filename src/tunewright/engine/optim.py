"""The update rules, from PyTorch, and their state by parameter name so that a checkpoint survives a change of order."""

from __future__ import annotations

from typing import Any

import torch

from tunewright.core.config import EngineConfig


def make_optimizer(engine: EngineConfig, named: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) over the named parameters; vectors (biases, norms) are not decayed."""
    matrices = [p for _, p in named if p.ndim > 1]
    vectors = [p for _, p in named if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": engine.weight_decay}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=0.0)


def optimizer_tensors(optimizer: torch.optim.Optimizer, named: list[tuple[str, torch.nn.Parameter]]) -> dict[str, torch.Tensor]:
    """`parameter/key` -> tensor of the optimiser's state, such as `...lora_A.weight/exp_avg`."""
    names = {id(p): name for name, p in named}
    return {f"{names[id(p)]}/{key}": torch.as_tensor(value) for p, state in optimizer.state.items() for key, value in state.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, named: list[tuple[str, torch.nn.Parameter]], tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = dict(named)
    for full, tensor in tensors.items():
        name, key = full.rsplit("/", 1)
        p = parameters[name]
        # The step counter of AdamW stays on the CPU; moments live where the parameter does.
        optimizer.state[p][key] = tensor if key == "step" else tensor.to(p.device)
