"""Files to rows, rows to samples, and a report of everything that was kept, dropped and
learnt. Needs no torch."""

from tunewright.data.describing import describe
from tunewright.data.inspecting import DataSet, inspect

__all__ = ["DataSet", "describe", "inspect"]
