"""Floor 2: files to rows, rows to samples, and a report of everything that was kept, dropped and
learnt. Needs no torch."""

from tunewright.data.inspecting import DataSet, inspect
from tunewright.data.reporting import describe

__all__ = ["DataSet", "describe", "inspect"]
