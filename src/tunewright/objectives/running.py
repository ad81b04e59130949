"""A mean over the steps so far, which a resumed run goes on with."""

from __future__ import annotations

from typing import Any


class RunningMean:
    """The mean of the steps' means, each step counted once, as BCO's authors take it.

    Measuring held-out rows, which runs without gradient, does not move it.
    """

    def __init__(self) -> None:
        self.mean, self.count = 0.0, 0

    def add(self, total: float, weight: float) -> None:
        """Count in the values of one step by their weighted sum and the sum of the weights."""
        import torch

        if weight and torch.is_grad_enabled():
            self.count += 1
            self.mean += (total / weight - self.mean) / self.count

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"mean": self.mean, "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.mean, self.count = float(state["mean"]), int(state["count"])
