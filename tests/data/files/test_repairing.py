"""What people paste becomes JSON where it can mean one thing only; the original is never touched
and a guess is never written."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError
from tunewright.data.files.repairing import describe_repair, mend_text, repair_file

ROWS = [
    {
        "instruction": "What is it?",
        "output": 'a "thing", isn\'t it? (yes: [no])',
        "n": [1, -2.5e3, None, True, False, {}, []],
    },
    {"a": {"b": "it's\n中文 // # no comment"}},
]
STRICT = json.dumps(ROWS, ensure_ascii=False, indent=1)


def values(*left_out):
    """JSON values whose strings hold no characters of these Unicode categories."""
    texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", *left_out]), max_size=12)
    plain = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | texts
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=12,
    )


def mended(text, ending=".json"):
    return mend_text(text, f"f{ending}", ending)


def test_strict_json_stays_byte_for_byte():
    found = mended(STRICT)
    assert found.text == STRICT and not +found.changes


@pytest.mark.parametrize(
    ("text", "value", "kind"),
    [
        ('[{"a": 1,},]', [{"a": 1}], "trailing_comma"),
        ("[{'a': 'b'}]", [{"a": "b"}], "single_quotes"),
        ("[{'a': 'it\\'s \"so\"'}]", [{"a": 'it\'s "so"'}], "single_quotes"),
        ("[{“a”: “b”}]", [{"a": "b"}], "curly_quotes"),
        ("[{“a”: “他说“你好”，走了”}]", [{"a": "他说“你好”，走了"}], "curly_quotes"),
        ('[{"a": “say "hi"”}]', [{"a": 'say "hi"'}], "curly_quotes"),
        ('{"a": None, "b": True, "c": False}', {"a": None, "b": True, "c": False}, "constant"),
        ("[ // first\n1, # second\n /* third\n */ 2]", [1, 2], "comment"),
        ('{"a"：1，"b"：2}', {"a": 1, "b": 2}, "wide_punctuation"),
        ("{name: 'x', 名字: 1}", {"name": "x", "名字": 1}, "unquoted_key"),
        ('{"a": "line\none\ttab"}', {"a": "line\none\ttab"}, "control_character"),
        ('{"a": "caf\u00c3\u00a9"}', {"a": "café"}, "mojibake"),
        ('{"a": "caf\\u00c3\\u00a9"}', {"a": "café"}, "mojibake"),
    ],
)
def test_each_mistake_is_mended(text, value, kind):
    found = mended(text)
    assert json.loads(found.text) == value
    assert found.changes[kind] >= 1


# Python writes what cannot be printed as \\x80, which a string between double quotes leaves
# uncertain.
@given(value=values("Cc", "Cf", "Zl", "Zp", "Zs", "Co", "Cn"))
@settings(max_examples=250, deadline=None)
def test_what_python_prints_becomes_the_same_value_in_json(value):
    value = [value]
    assert ast.literal_eval(repr(value)) == value  # the oracle of the form that was pasted
    sound = _with_mojibake_undone(value)
    assert json.loads(mended(repr(value)).text) == sound


def _with_mojibake_undone(value):
    from tunewright.data.files.mojibake import repair

    if isinstance(value, str):
        return repair(value)
    if isinstance(value, list):
        return [_with_mojibake_undone(v) for v in value]
    return (
        {repair(k): _with_mojibake_undone(v) for k, v in value.items()}
        if isinstance(value, dict)
        else value
    )


@given(
    value=values(),
    commas=st.booleans(),
    comment=st.sampled_from(["", "// x\n", "/* y */", "# z\n"]),
)
@settings(max_examples=150, deadline=None)
def test_comments_and_commas_leave_every_value_as_it_was(value, commas, comment):
    text = json.dumps([value, 1], ensure_ascii=False)
    spoilt = text[:1] + comment + text[1:-1] + ("," if commas else "") + comment + "]"
    assert json.loads(mended(spoilt).text) == [_with_mojibake_undone(value), 1]


@pytest.mark.parametrize(
    "text",
    [
        "['it's']", '["say "hi" now"]', '[{"a": }]', '[{"a": 1 "b": 2}]', '[1, 2', '{"a": "x', "[NaN]", "[undefined]", '["\\d"]', "['don't', 'x']", '{"a" 1}', "[01]",
        "['a', b']", '{"a": "b”, "c": "d"}', "[1]]", '[{"a": 1}} ', "{'a': 'x', b'}", '["\\ud800"]', "[b'x']", "[,]", '{"a": “x}',
    ],
)  # fmt: skip
def test_what_may_mean_two_things_is_refused_with_its_place(text):
    with pytest.raises(DataError) as error:
        mended(text)
    assert (
        error.value.problems[0].code == "E-DATA-50"
        and "line 1, column" in error.value.problems[0].where
    )


def test_lines_of_jsonl_are_mended_one_by_one_and_all_bad_ones_are_named():
    found = mended('{"a": 1,}\n\n// note\n{"a": None}\n', ".jsonl")
    assert [json.loads(line) for line in found.text.split("\n") if line] == [{"a": 1}, {"a": None}]
    with pytest.raises(DataError) as error:
        mended("['it's']\n{}\n[1\n", ".jsonl")
    assert [p.where for p in error.value.problems] == [
        "f.jsonl, line 1, column 6",
        "f.jsonl, line 3, column 3",
    ]


def test_a_copy_is_written_with_its_difference_and_the_original_stays(tmp_path: Path):
    file, out = tmp_path / "a.json", tmp_path / "b.json"
    text = "[\n{'a': 'x'},\n{\"a\": \"y\"},\n]\n"
    file.write_text(text, encoding="utf-8")
    found = repair_file(file, out)
    assert file.read_text(encoding="utf-8") == text
    assert json.loads(out.read_text(encoding="utf-8")) == [{"a": "x"}, {"a": "y"}]
    assert (
        "-{'a': 'x'}," in found.diff and '+{"a": "x"},' in found.diff and found.changed_lines == 2
    )
    said = describe_repair(file, out, found)
    assert (
        "single quotes changed to double: 2" in said
        and "commas before a closing bracket removed: 1" in said
        and '+{"a": "x"},' in said
    )


def test_nothing_is_written_where_nothing_is_wrong_or_something_lies_there(tmp_path: Path):
    file, out = tmp_path / "a.json", tmp_path / "b.json"
    file.write_text(STRICT, encoding="utf-8")
    assert not +repair_file(file, out).changes and not out.exists()
    for taken in (file, tmp_path):
        with pytest.raises(DataError, match="E-DATA-51"):
            repair_file(file, taken)
    assert file.read_text(encoding="utf-8") == STRICT


def test_plain_text_and_damage_beyond_repair(tmp_path: Path):
    file, out = tmp_path / "a.txt", tmp_path / "b.txt"
    file.write_text("caf\u00c3\u00a9\ncaf\ufffd\nfine\n", encoding="utf-8")
    found = repair_file(file, out)
    assert out.read_text(encoding="utf-8") == "café\ncaf\ufffd\nfine\n"
    assert found.changes["mojibake"] == 1 and found.lost == [f"{file}:2"]


def test_kinds_that_are_not_mended_and_files_that_are_not_there(tmp_path: Path):
    for name, code in (("a.parquet", "E-DATA-52"), ("none.json", "E-DATA-01")):
        with pytest.raises(DataError, match=code):
            repair_file(tmp_path / name, tmp_path / "out.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match="E-DATA-56"):
        repair_file(tmp_path / "folder.json", tmp_path / "out.json")


def test_deep_nesting_is_walked_without_recursion():
    deep = "[" * 20_000 + "]" * 20_000
    assert mended(deep).text == deep
