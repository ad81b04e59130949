"""What a pass holds, branch by branch: what the objectives share.

Legend: L learnt tokens of a pass, B its branches. Weights are the data's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunewright.core.moves import to_device
from tunewright.core.types import PassOutput, Sample

if TYPE_CHECKING:
    from torch import Tensor


def learnt_weight(samples: list[Sample]) -> float:
    """The weights of all learnt tokens."""
    return float(sum(sum(branch.weights) for sample in samples for branch in sample.branches))


def per_branch(values_L: Tensor, output: PassOutput) -> Tensor:
    """Sums over the learnt tokens of each branch, (B,)."""
    zero_B = values_L.new_zeros(len(output.branch_sample))
    return zero_B.index_add(0, output.branch, values_L)


def roles(output: PassOutput) -> list[str]:
    """The role of each branch."""
    return [branch.role for sample in output.samples for branch in sample.branches]


def places_of(role: str, output: PassOutput) -> Tensor:
    """Indices of the branches with this role: of P pairs, (P,)."""
    import torch

    found = [i for i, one in enumerate(roles(output)) if one == role]
    return to_device(found, output.weight.device, torch.long)
