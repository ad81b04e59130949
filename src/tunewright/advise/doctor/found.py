"""What the data check found, from a data report."""

from __future__ import annotations

from typing import Any


def found_of(report: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The findings in a data report: key -> (count, total)."""
    told = report.get("findings")
    return {
        str(one["key"]): (int(one["count"]), int(one["total"]))
        for one in (told if isinstance(told, list) else [])
        if isinstance(one, dict) and {"key", "count", "total"} <= one.keys()
    }
