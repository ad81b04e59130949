"""Marks that say which turns are learnt, as other tools write them: `loss: false` on a turn,
`loss_mask: [0, 1]` on a row.

A mark is true or false, 1 or 0, a share between them, or one of these as text; null is no mark.
`masked` says the opposite of the others. Only answers are learnt, so a mark that asks for another
turn is counted and has no effect. What cannot be honoured is a fault of the row: a value that is no
mark, a list of another length than the turns, `mask` (which says either in one tool or the other),
marks on parts of a turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunewright.core.types import Message
from tunewright.data.formats.common import (
    Columns,
    RowFault,
    json_cell,
    number_of,
    truth_of,
    weight_of,
)
from tunewright.data.formats.ledger import peek

MARKS = ("loss", "train", "training", "trainable", "loss_mask", "learn")
OPPOSITE = ("masked",)
UNCLEAR = ("mask", "train_detail", "training_detail")
WEIGHTS = ("weights", "weight")
ANSWERS = ("assistant", "function_call")
LISTS = (*MARKS, *OPPOSITE, *WEIGHTS, "mask")
_ANY = frozenset((*LISTS, *UNCLEAR))
"""Most rows and turns have none of these names, so that is asked first."""


def _share(value: Any, name: str) -> float | None:
    """How much of a turn is learnt by a mark's value: 0 to 1; None for no mark. Raises RowFault."""
    if value is None or value == "":
        return None
    truth = truth_of(value)
    share = float(truth) if truth is not None else number_of(value)
    if share is None or not 0 <= share <= 1:
        raise RowFault("bad_mark", f"{name}: {str(value)[:40]}")
    return 1 - share if name in OPPOSITE else share


def turn_weight(
    turn: Mapping[str, Any],
    columns: Columns,
    is_answer: bool,
    of_row: tuple[str, Any] | None = None,
) -> float:
    """The weight of a turn: its `weight` times what its marks say, and what the row's list says of
    it (name and value). Raises RowFault."""
    if of_row is None and _ANY.isdisjoint(turn):
        return 1.0
    weight = weight_of(turn)
    unclear = (
        next((name for name in UNCLEAR if turn.get(name) is not None), None) if is_answer else None
    )
    if unclear is not None:
        raise RowFault("unclear_mark", f"{unclear}: {str(turn[unclear])[:40]}")
    marks = [(name, turn[name]) for name in (*MARKS, *OPPOSITE) if name in turn] + (
        [of_row] if of_row is not None else []
    )
    if is_answer and weight == 0:
        columns.notes["not_learnt:weight"] += 1
    for name, value in marks:
        share = weight_of({"weight": value}) if name in WEIGHTS else _share(value, name)
        if share is not None and is_answer and share == 0 < weight:
            columns.notes[f"not_learnt:{name}"] += 1
        if share and not is_answer and name in MARKS:
            columns.notes["marks_on_questions"] += 1
        weight *= 1.0 if share is None else share
    return weight


def list_of(raw: Mapping[str, Any], columns: Columns) -> tuple[str, list[Any]] | None:
    """The list of marks of a row, with the name of its column. Raises RowFault for two of them, and
    for one whose meaning is unclear."""
    if _ANY.isdisjoint(raw):
        return None
    found = []
    for name in LISTS:
        if _is_list(peek(raw, name)):
            found.append((name, json_cell(raw[name], name, columns)))
    if not found:
        return None
    name, value = found[0]
    if len(found) > 1 or name == "mask":
        raise RowFault(
            "unclear_mark", ", ".join(f"{name}: {str(value)[:40]}" for name, value in found)
        )
    return name, value


def by_turn(
    raw: Mapping[str, Any], roles: Sequence[str], columns: Columns
) -> list[tuple[str, Any] | None]:
    """For each turn what the row's list says of it: a list for all turns, for all but a system
    prompt, or for the answers alone.

    Raises RowFault for a list of another length.
    """
    found = list_of(raw, columns)
    if found is None:
        return [None] * len(roles)
    name, values = found
    meant = (
        list(range(len(roles))),
        [i for i, role in enumerate(roles) if role != "system"],
        [i for i, role in enumerate(roles) if role in ANSWERS],
    )
    places = next((one for one in meant if len(one) == len(values)), None)
    if places is None:
        raise RowFault("bad_mark", f"{name}: {len(values)} / {len(roles)}")
    of_turn = dict(zip(places, values, strict=True))
    return [(name, of_turn[i]) if i in of_turn else None for i in range(len(roles))]


def marked(messages: list[Message], raw: Mapping[str, Any], columns: Columns) -> list[Message]:
    """The messages with the weights that the row's list gives them. Raises RowFault."""
    if _ANY.isdisjoint(raw):
        return messages
    marks = by_turn(raw, [m.role for m in messages], columns)
    return [
        m
        if mark is None
        else replace(m, weight=m.weight * turn_weight({}, columns, m.role in ANSWERS, mark))
        for m, mark in zip(messages, marks, strict=True)
    ]


def no_list(raw: Mapping[str, Any], columns: Columns) -> None:
    """Raises RowFault for a list of marks beside two answers or steps: which turns it means cannot
    be known."""
    found = list_of(raw, columns)
    if found is not None:
        raise RowFault("unclear_mark", f"{found[0]}: {str(found[1])[:40]}")


def row_weight(raw: Mapping[str, Any], columns: Columns) -> float:
    """The weight of a row: its `weight`, or 0 where a mark of the whole row says that it is not
    learnt.

    Columns of these names also hold other things, such as a measured loss or the name of a split:
    only truths, 0 and 1 are marks there.
    """
    if _ANY.isdisjoint(raw):
        return 1.0
    weight = 1.0 if _is_list(peek(raw, "weight")) else weight_of(raw)
    for name in (*MARKS, *OPPOSITE):
        if isinstance(peek(raw, name), list) or truth_of(peek(raw, name)) is None:
            continue
        if truth_of(raw[name]) == (name in OPPOSITE):
            columns.notes[f"rows_not_learnt:{name}"] += 1
            weight = 0.0
    return weight


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip()[:1] == "[")
