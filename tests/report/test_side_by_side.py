"""The terminal's table shows marks, obeys no answer, and fits the width."""

from __future__ import annotations

import io

import pytest
from helpers.fake_run import rows
from rich.console import Console

from tunewright.core.words import set_language
from tunewright.report.side_by_side import table


@pytest.fixture(autouse=True)
def english():
    set_language("en")
    yield
    set_language(None)


def shown(asked, width):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, legacy_windows=False).print(
        table(asked, width)
    )
    return out.getvalue()


@pytest.mark.parametrize("width", [30, 60, 80, 140])
def test_no_line_is_wider_than_the_terminal(width):
    text = shown(rows(), width)
    assert max(map(len, text.splitlines())) <= width


def test_marks_stand_where_the_answer_holds_what_was_expected():
    text = shown(
        [
            {"question": "q", "expected": "Vell", "before": "no", "after": "Tamsin vell"},
            {"question": "r", "expected": "x", "before": "", "after": "y"},
        ],
        80,
    )
    assert "✓ Tamsin vell" in text and "✗ y" in text
    assert "✓" not in shown([{"question": "q", "before": "a", "after": "b"}], 80)


def test_an_answer_cannot_command_the_terminal():
    text = shown(
        [
            {
                "question": "\x1b[2J[bold]q[/bold]",
                "expected": "",
                "before": "\x07\x9b1m",
                "after": "\u202eabc\ud800",
            }
        ],
        140,
    )
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e", "\ud800"}
    assert "[bold]q[/bold]" in text
