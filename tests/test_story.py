"""Probes: a string, a row in the data's form, or a row without an answer."""

from __future__ import annotations

import pytest

from tunewright.core.errors import DataError
from tunewright.data import DataSet
from tunewright.run.questions import choose_probes

NOTHING = DataSet([], [], [], [], {})


def test_a_probe_is_a_string_or_a_row_with_or_without_an_answer() -> None:
    given = [
        "who?", {"instruction": "say", "input": "it", "output": "it"}, {"question": "when?"}, {"messages": [{"role": "user", "content": "where?"}]},
        {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]},
    ]  # fmt: skip
    found = choose_probes(given, NOTHING)
    assert [(p.question, p.expected) for p in found] == [
        ("who?", ""),
        ("say\nit", "it"),
        ("when?", ""),
        ("where?", ""),
        ("why?", "so"),
    ]
    assert [m.role for m in found[4].messages] == ["system", "user"]


def test_a_probe_that_asks_nothing_is_refused_with_its_place() -> None:
    with pytest.raises(DataError, match=r"probes\[0\]"):
        choose_probes([{"text": "no question here"}], NOTHING)
