"""The grid that holds plans against runs: what it asks for, and how it judges."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import plan_grid

from tunewright.core import compat
from tunewright.core.runfile import parse_run

MiB = 2**20


def result(number: int, memory: float, seconds: float, whole: float) -> dict[str, Any]:
    return {
        "cell": number, "name": f"cell {number}", "memory": 1000 * MiB, "train": 10.0, "whole": 20.0,
        "plan": {"peak_memory_bytes": memory * MiB, "train_seconds": seconds, "wall_seconds": whole},
    }  # fmt: skip


def test_the_grid_is_wide_enough_and_every_cell_can_run(tmp_path: Path) -> None:
    assert len(plan_grid.CELLS) >= 24
    assert len({cell.name for cell in plan_grid.CELLS}) == len(plan_grid.CELLS)
    for part, least in (("size", 5), ("method", 8), ("objective", 7), ("dtype", 2), ("batch", 4)):
        assert len({getattr(cell, part) for cell in plan_grid.CELLS}) >= least, part
    data = plan_grid.make_data(tmp_path)
    for cell in plan_grid.CELLS:
        given = plan_grid.given_of(cell, Path("model"), data, tmp_path / "out")
        words = {key: json.loads(json.dumps(value)) for key, value in given.items()}
        config = parse_run(words, dict.fromkeys(words, "grid")).config
        assert not compat.problems(config), cell.name


def test_what_is_outside_of_the_bounds_is_marked_and_counted() -> None:
    results = [result(0, 1100, 12, 21), result(1, 1200, 9, 30), result(2, 860, 7.4, 20)]
    lines = plan_grid.table(results)
    assert "1.10 |" in lines[2] and "1.20 |" in lines[2] and "!" not in lines[2]
    assert "1.20 ! |" in lines[3] and "1.50 ! |" in lines[3]
    assert "0.86 |" in lines[4] and "0.74 ! |" in lines[4]
    assert "memory 2 of 3, time 2 of 3, whole 2 of 3, both 1 of 3" in lines[-1]


def test_the_table_goes_between_the_marks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{plan_grid.MARK}\nold\n{plan_grid.END_MARK}\nafter\n")
    for _ in range(2):
        plan_grid.write_into(page, ["| a |", "| b |"])
        assert page.read_text() == (
            f"before\n{plan_grid.MARK}\n| a |\n| b |\n{plan_grid.END_MARK}\nafter\n"
        )
    page.write_text("no marks\n")
    with pytest.raises(SystemExit):
        plan_grid.write_into(page, [])
    assert page.read_text() == "no marks\n"


def test_cells_are_named_by_numbers_and_ranges() -> None:
    assert plan_grid.wanted("1-3,7") == [1, 2, 3, 7]
    assert plan_grid.wanted(None) == list(range(len(plan_grid.CELLS)))
    assert plan_grid.wanted("0,999") == [0]
