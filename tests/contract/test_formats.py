"""What every format of data promises, asked of every registered name: a row or a reason, never an
exception, and its own rows are told from every other format's.

To add a format: one `Row` in OURS, with rows of it and rows that it must not accept.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from asked import OUTSIDE, names, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.registry import formats
from tunewright.core.types import ROW_KINDS, Origin
from tunewright.core.types import Row as Made
from tunewright.core.words import catalogue
from tunewright.data.files.source import RawRow
from tunewright.data.formats.common import Columns, Unusable
from tunewright.data.formats.shaping import shape

DOCS = Path(__file__).parents[2] / "docs"
HERE = Origin("f.json", 1, 1)
READ_BACK = {
    "conversation": "messages",
    "preference": "preference",
    "judged": "kto",
    "stepwise": "stepwise",
    "text": "text",
}
"""Kind of rows -> the format in which they are written and read again without a loss."""


@dataclass(frozen=True)
class Row:
    """Rows of one format. `{}` in a text stands for a name."""

    kind: str
    """A word of `core.types.ROW_KINDS`."""
    rows: list[dict[str, Any]]
    bad: list[Any] = field(default_factory=list)
    """Objects that cannot be learnt from."""


def said(*turns: str, who: str = "role", what: str = "content", roles: Any = None) -> list[Any]:
    names = roles or ("user", "assistant")
    return [{who: names[i % 2], what: text} for i, text in enumerate(turns)]


OURS: dict[str, Row] = {
    "alpaca": Row(
        "conversation",
        [
            {"instruction": "what is {}?", "output": "it is {}", "text": "all of it"},
            {"instruction": "what is it?", "input": "{}", "output": "that", "system": "be kind"},
        ],
        [{"instruction": "what?", "output": ""}, {"instruction": "what?"}],
    ),
    "messages": Row(
        "conversation",
        [
            {"messages": said("what is {}?", "it is {}"), "prompt": "q"},
            {"messages": said("hi", "hello", "what is {}?", "it is {}")},
        ],
        [{"messages": []}, {"messages": said("alone")}, {"messages": 3}],
    ),
    "sharegpt": Row(
        "conversation",
        [
            {
                "conversations": said(
                    "what is {}?", "it is {}", who="from", what="value", roles=("human", "gpt")
                )
            }
        ],
        [{"conversations": [{"from": "gpt", "value": "first"}, {"from": "nobody"}]}],
    ),
    "prompt_completion": Row(
        "conversation",
        [{"question": "what is {}?", "answer": "it is {}"}, {"prompt": "{}", "completion": "so"}],
        [{"prompt": "what?", "completion": ""}],
    ),
    "classification": Row(
        "conversation",
        [{"text": "a text of {}", "label": 1}, {"text": "{}", "label": "good"}],
        [{"text": "", "label": 1}],
    ),
    "question_context": Row(
        "conversation",
        [{"question": "what is {}?", "context": "the {}", "answer": "a", "id": 1}],
        [{"question": "what?", "context": "the", "answers": {"text": [], "answer_start": []}}],
    ),
    "text": Row("text", [{"text": "all about {}", "url": "u"}], [{"text": ""}, {"text": []}]),
    "documents": Row("text", [{"document": "all about {}", "title": "t"}], [{"document": ""}]),
    "preference": Row(
        "preference",
        [
            {"instruction": "what is {}?", "input": "", "chosen": "a", "rejected": "b"},
            {"prompt": "what is {}?", "chosen": "a", "rejected": "b", "margin": 0.5},
        ],
        [{"prompt": "what?", "chosen": "a"}, {"prompt": "what?", "chosen": "", "rejected": "b"}],
    ),
    "kto": Row(
        "judged",
        [{"prompt": "what is {}?", "completion": "it is {}", "label": True}],
        [{"prompt": "what?", "completion": "it", "label": "perhaps"}],
    ),
    "stepwise": Row(
        "stepwise",
        [{"prompt": "what is {}?", "completions": ["a", "b"], "labels": [True, False]}],
        [{"prompt": "what?", "completions": ["a", "b"], "labels": [True]}],
    ),
    "prompts": Row("prompt", [{"prompt": "what is {}?", "facts": 1}], [{"prompt": ""}]),
}
ROWS = rows("FORMATS", Row, OURS)
every_name = pytest.mark.parametrize("name", list(ROWS))

KEYS = st.sampled_from(
    "instruction input output history system messages conversations role content from value prompt"
    " completion question answer text weight tools tool_calls name chosen rejected label kto_tag"
    " completions labels context answers document margin tool_call_id reasoning_content".split()
    + [key for row in ROWS.values() for raw in row.rows for key in raw]
)
TEXTS = st.sampled_from(
    ["", " ", "user", "assistant", "system", "gpt", "human", "x", "\ud800", "\x00", "<|im_end|>"]
    + ["[]", "[{", "true", "1e999"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def made(name: str, raw: Any) -> Made | Unusable:
    entry = formats.get(name)
    assert entry is not None
    row: Made | Unusable = entry.function(raw, HERE, Columns())
    return row


def filled(raw: dict[str, Any], text: str) -> dict[str, Any]:
    return json.loads(json.dumps(raw).replace("{}", text))


def spoken(row: Any) -> str:
    turns = [*getattr(row, "messages", ()), *getattr(row, "prompt", ())]
    return "\n".join([getattr(row, "text", ""), *(m.content for m in turns)])


def test_every_registered_name_has_a_row_and_every_row_a_name() -> None:
    assert sorted(ROWS) == names(formats)


@every_name
def test_it_says_what_it_needs_in_both_languages(name: str) -> None:
    entry = formats.get(name)
    assert entry is not None
    assert entry.facts["needs"] and entry.facts["reads"] and entry.config.__doc__
    if not OUTSIDE:
        assert all(f"list.formats.{name}" in catalogue(lang) for lang in ("en", "zh"))
        for page in ("data.md", "data.zh-CN.md"):
            assert f"`{name}`" in (DOCS / page).read_text(encoding="utf-8")


@every_name
@given(raw=VALUES | st.dictionaries(KEYS, VALUES, max_size=5))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_any_value_is_a_row_or_a_reason_with_a_sentence(name: str, raw: Any) -> None:
    row = made(name, raw)
    if not isinstance(row, Unusable):
        json.dumps(asdict(row), ensure_ascii=False, allow_nan=False).encode("utf-8")
    elif OUTSIDE:
        assert row.reason
    else:
        assert all(f"data.reason.{row.reason}" in catalogue(lang) for lang in ("en", "zh"))


@every_name
@given(raw=st.dictionaries(KEYS, VALUES, max_size=5))
@settings(max_examples=100, deadline=None)
def test_looking_at_any_object_never_fails(name: str, raw: dict[str, Any]) -> None:
    entry = formats.get(name)
    assert entry is not None and entry.facts["looks_like"](raw) in range(5)


@every_name
def test_its_own_rows_hold_what_they_say_and_stay_as_they_were(name: str) -> None:
    for raw in ROWS[name].rows:
        given_raw = filled(raw, "tiny lighthouse")
        before = copy.deepcopy(given_raw)
        row = made(name, given_raw)
        assert not isinstance(row, Unusable), row
        assert ROW_KINDS[type(row)] == ROWS[name].kind
        assert "tiny lighthouse" in spoken(row) and row.origin == HERE
        assert given_raw == before
        assert made(name, given_raw) == row


@every_name
def test_what_it_reads_can_be_written_and_read_again(name: str) -> None:
    again = READ_BACK.get(ROWS[name].kind)
    if again is None:
        assert ROWS[name].kind == "prompt"  # `data convert` writes rows with answers
        return
    for raw in ROWS[name].rows:
        row = made(name, filled(raw, "lighthouse"))
        assert not isinstance(row, Unusable)
        written = formats.get(again).facts["write"](row)  # type: ignore[union-attr]
        assert replace(made(again, written), origin=HERE) == row  # type: ignore[type-var]


@every_name
def test_bad_rows_are_dropped_with_a_reason(name: str) -> None:
    assert ROWS[name].bad
    for raw in [*ROWS[name].bad, 7, {}, "x", None, []]:
        assert isinstance(made(name, raw), Unusable), raw


@every_name
def test_it_is_told_from_the_rows_even_when_most_are_bad(name: str) -> None:
    for raw in ROWS[name].rows:
        given_rows = [RawRow(v, Origin("f.json", i, i)) for i, v in enumerate([7, {}, raw, "x"], 1)]
        shaped = shape(given_rows)
        assert shaped.format == name and len(shaped.rows) == 1 and len(shaped.dropped) == 3
