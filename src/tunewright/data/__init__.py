"""From files to labelled samples, and a report of every row. Without torch."""

from tunewright.data.inspecting import DataSet, inspect
from tunewright.data.reporting import describe

__all__ = ["DataSet", "describe", "inspect"]
