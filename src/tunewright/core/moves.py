"""Numbers from Python to a device and back, without waiting for it in between.

A plain copy of pageable memory to a GPU makes the host wait until everything asked of the GPU
before is done. From pinned memory it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def to_device(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on `device` of `values`: a list of numbers, a NumPy array or a tensor of the host.
    `dtype` None: that of the values."""
    import torch

    made = torch.as_tensor(values, dtype=dtype)
    if torch.device(device).type != "cuda":
        return made.to(device)
    return made.pin_memory().to(device, non_blocking=True)


def later(total: Tensor) -> Tensor:
    """A sum to be looked at, as a figure: a number that is read only when the step is over, so that
    nothing waits for the device in between."""
    # Sums of passes add up as Python's floats would. Apple's GPUs have no float64.
    return total.detach() if total.device.type == "mps" else total.detach().double()
