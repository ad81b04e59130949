"""Every kind of rows that a set holds is told, from the pipeline's own columns; and
`data.good_only` leaves good answers alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.core.config import DataConfig
from tunewright.core.types import Conversation, Judged, Message, Origin, Preference, Stepwise
from tunewright.data import inspect
from tunewright.data.formats.shaping import Dropped
from tunewright.data.store.good_answers import only_good
from tunewright.text.renderer import Renderer

Write = Callable[[str, Any], str]
AT = Origin("rows.json", 1, 1)
ASKED = [Message("user", "one?"), Message("assistant", "one."), Message("user", "two?")]


def alpaca(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"what is {i}", "output": f"it is {i}"} for i in range(count)]


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"which {i}", "chosen": f"good {i}", "rejected": f"awful {i}"}
        for i in range(count)
    ]


def judged(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"judge {i}",
            "completion": ("good" if i % 2 else "awful") + f" {i}",
            "label": bool(i % 2),
        }
        for i in range(count)
    ]


def learnt_texts(data: Any, renderer: Renderer) -> list[str]:
    """What is learnt of every sample, as text."""
    return [
        renderer.decode([b.tokens[i] for i in b.learnt])
        for sample in (*data.train, *data.held_out)
        for b in sample.branches
    ]


def test_a_pair_becomes_its_chosen_answer_and_earlier_answers_are_context() -> None:
    made = only_good(
        Preference(
            ASKED, [Message("assistant", "yes")], [Message("assistant", "no")], AT, weight=2.0
        )
    )
    assert isinstance(made, Conversation) and made.weight == 2.0
    assert [(m.content, m.weight) for m in made.messages if m.role == "assistant"] == [
        ("one.", 0.0),
        ("yes", 1.0),
    ]


def test_judged_answers_stay_where_they_are_good() -> None:
    answered = [*ASKED, Message("assistant", "two.")]
    for made in (
        only_good(Judged(answered, True, AT)),
        only_good(Stepwise(answered, True, AT, steps=(("two.", True),))),
    ):
        assert isinstance(made, Conversation)
        assert [(m.content, m.weight) for m in made.messages if m.role == "assistant"] == [
            ("one.", 0.0),
            ("two.", 1.0),
        ]
    for made in (
        only_good(Judged(answered, False, AT)),
        only_good(Stepwise(answered, False, AT, steps=(("two.", False),))),
    ):
        assert isinstance(made, Dropped) and made.reason == "not_good"


def test_with_good_only_every_good_answer_is_learnt_and_no_bad_one_is_read(
    write: Write, renderer: Renderer
) -> None:
    files: list[Any] = [
        write("a.json", alpaca(30)),
        write("b.json", pairs(20)),
        write("c.json", judged(20)),
    ]
    data = inspect(DataConfig(train=files, good_only=True, held_out=5), renderer)
    assert list(data.report["kinds"]) == ["conversation"]
    found = sorted(text.split("<")[0].strip() for text in learnt_texts(data, renderer))
    assert found == sorted(
        [
            *(f"it is {i}" for i in range(30)),
            *(f"good {i}" for i in range(20)),
            *(f"good {i}" for i in range(1, 20, 2)),
        ]
    )
    assert not any(
        "awful" in renderer.decode(b.tokens)
        for sample in (*data.train, *data.held_out)
        for b in sample.branches
    )
    assert (
        data.report["reasons"]["not_good"]["count"] == 10
        and data.report["notes"]["good_only"] == 30
    )
    # What was left out because the run asked for it is no fault of the data.
    assert not [
        f for f in data.report["findings"] if f["name" if "name" in f else "key"] == "dropped"
    ]


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("turned", [False, True])
def test_the_report_names_every_kind_with_its_files_in_any_order(
    write: Write, renderer: Renderer, tokens: bool, turned: bool
) -> None:
    files: list[Any] = [write("a.json", alpaca(30)), write("b.json", pairs(4))]
    data = inspect(
        DataConfig(train=files[::-1] if turned else files, held_out=3),
        renderer,
        needs_tokens=tokens,
    )
    assert data.report["kinds"] == {
        "conversation": {"rows": 30, "files": [{"file": files[0], "rows": 30, "first_row": 1}]},
        "preference": {"rows": 4, "files": [{"file": files[1], "rows": 4, "first_row": 1}]},
    }
    assert any("b.json" in warning for warning in data.report["warnings"])


def test_a_held_out_file_counts_and_so_do_rows_in_the_middle_of_a_file(write: Write) -> None:
    turns = [
        {
            "messages": [
                {"role": "user", "content": f"q {i}"},
                {"role": "assistant", "content": f"a {i}"},
            ]
        }
        for i in range(5)
    ]
    found = inspect(
        DataConfig(train=write("a.jsonl", turns), held_out=write("b.jsonl", pairs(2))), None
    ).report["kinds"]
    assert {kind: one["rows"] for kind, one in found.items()} == {
        "conversation": 5,
        "preference": 2,
    }


def test_kinds_come_from_a_kept_set_as_they_did_when_it_was_made(
    write: Write, renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    long = [
        {"instruction": f"what is {i} " + "word " * 200, "output": f"it is {i}"}
        for i in range(1500)
    ]
    config = DataConfig(train=[write("a.json", long), write("b.json", pairs(1))], held_out=0)
    first, second = (inspect(config, renderer, needs_tokens=False).report for _ in range(2))
    assert (first["preparation"]["from_cache"], second["preparation"]["from_cache"]) == (
        False,
        True,
    )
    assert first["kinds"] == second["kinds"] and first["kinds"]["preference"]["rows"] == 1
    good = inspect(
        config.model_copy(update={"good_only": True}), renderer, needs_tokens=False
    ).report
    assert list(good["kinds"]) == ["conversation"] and not good["preparation"]["from_cache"]
