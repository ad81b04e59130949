"""From files to labelled samples, and a report of every row. Without torch."""

from tunewright.data.describing import describe
from tunewright.data.inspecting import DataSet, inspect

__all__ = ["DataSet", "describe", "inspect"]
