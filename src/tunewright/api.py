"""The same from Python: `tunewright.train(...)` returns a `Run`."""

from __future__ import annotations

from tunewright.train import Run, train

__all__ = ["Run", "train"]
