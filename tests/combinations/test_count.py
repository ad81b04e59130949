"""How much the tests of combinations look at: a table that shrinks is noticed."""

from __future__ import annotations

import test_engine_and_objectives as engine
import test_methods_and_commands as commands
import test_rows_and_objectives as rows

from tunewright.core.registry import methods, objectives


def test_more_than_four_hundred_combinations_are_looked_at() -> None:
    looked_at = {*rows.combinations(), *commands.combinations(), *engine.combinations()}
    assert len(looked_at) >= 700
    assert {kind for kind, *_ in commands.combinations()} == set(methods.names())
    assert {objective for objective, *_ in (*rows.combinations(), *engine.combinations())} == set(
        objectives.names()
    )
