"""Files of every bad kind give an error with file, line and cause; good rows know the line on which
they start."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from pathlib import Path

import pytest
from helpers.rows import data_files, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError
from tunewright.core.words import error_text
from tunewright.data.files.encodings import decode
from tunewright.data.files.reading import stream
from tunewright.data.files.source import READERS

ROW = {"instruction": "q", "output": "a"}
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def fault(write, name, content):
    with pytest.raises(DataError) as caught:
        read(Path(write(name, content)))
    assert caught.value.exit_code == 2
    for one in caught.value.problems:
        assert error_text(one.code)["what"] and "{" not in one.line().replace(
            "{file: ", ""
        ).replace("{instruction: ", "")
    return caught.value.problems


@given(
    rows=st.lists(values, min_size=1, max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    newline=st.sampled_from(["\n", "\r\n"]),
)
@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_array_rows_equal_the_standard_decoder_and_know_their_lines(
    tmp_path, rows, indent, newline
):
    text = json.dumps(rows, indent=indent).replace("\n", newline)
    path = tmp_path / "a.json"
    path.write_bytes(text.encode())
    found = read(path).rows
    assert [row.value for row in found] == rows
    lines = text.split("\n")
    assert [row.origin.row for row in found] == list(range(1, len(rows) + 1))
    if indent is not None:
        starts = [i for i, line in enumerate(lines, 1) if line.startswith(" " * indent) and i > 1]
        for row in found:
            assert row.origin.line in starts
            assert (
                lines[row.origin.line - 1]
                .strip()
                .startswith(json.dumps(row.value, indent=indent).split("\n")[0].rstrip())
            )


@given(rows=st.lists(values, min_size=1, max_size=6), blank=st.integers(0, 2))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_jsonl_rows_know_their_lines_also_between_blank_lines(tmp_path, rows, blank):
    path = tmp_path / "a.jsonl"
    if isinstance(rows[0], list) or len(rows) == 1:
        rows = [{}, *rows]  # an array, or one object around a list of rows, is read as that
    path.write_text(
        ("\n" * (blank + 1)).join(json.dumps(row, ensure_ascii=True) for row in rows),
        encoding="utf-8",
    )
    found = read(path).rows
    assert [row.value for row in found] == rows
    assert [row.origin.line for row in found] == [1 + i * (blank + 1) for i in range(len(rows))]


@given(
    data=st.binary(max_size=60),
    ending=st.sampled_from(
        [".json", ".jsonl", ".txt", ".csv", ".tsv", ".json.gz", ".parquet", ".arrow"]
    ),
)
@settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_bytes_are_rows_or_a_data_error(tmp_path, data, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(data)
    try:
        assert read(path).rows
    except DataError:
        pass


@given(rows=st.lists(st.just(ROW), min_size=1, max_size=3), data=st.data())
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_character_is_rows_or_a_data_error(tmp_path, rows, data):
    text = json.dumps(rows, indent=1)
    at = data.draw(st.integers(0, len(text) - 1))
    path = tmp_path / "a.json"
    path.write_text(
        text[:at]
        + data.draw(st.sampled_from(["", ",", '"', "'", "]", "}", "\\", "NaN", "//", "\n"]))
        + text[at + 1 :],
        encoding="utf-8",
    )
    try:
        read(path)
    except DataError as error:
        assert all("line" in one.where for one in error.problems)


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ('[\n{"a": 1},\n{"a": 2},\n]', 4, 1, "comma before the closing"),
        ('[\n{"a": 1,}\n]', 2, 9, "comma before the closing"),
        ("[\n{'a': 1}\n]", 2, 2, "single quotes"),
        ("[\n{“a”: 1}\n]", 2, 2, "curly"),
        ('[\n{"a"：1}\n]', 2, 5, "Chinese comma"),
        ('[\n{"b": "NaN", "a": NaN}\n]', 2, 19, "NaN"),
        ('[\n{"a": -Infinity}\n]', 2, 7, "NaN"),
        ('[\n{"a": None}\n]', 2, 7, "None"),
        ('[\n{"a": 1}\n', 3, 1, "missing or the file was cut"),
        ('[\n{"a": 1', 2, 8, "missing or the file was cut"),
        ('[\n{"a": "1', 2, 7, "never ends"),
        ('[\n// c\n{"a": 1}]', 2, 1, "comment"),
        ('[{"a": 1}]\n# c', 2, 1, "comment"),
        ('[{"a": 1}]\n{"a": 1}', 2, 1, "after the end"),
        ('[\n{"a": "x\ny"}\n]', 2, 9, "line break"),
        ('[\n{"a": "C:\\q"}\n]', 2, 10, "backslash"),
        ('[\n{"a": 1 "b": 2}\n]', 2, 9, "comma is missing"),
        ('[\n{"a": 1}\n{"a": 1}\n]', 3, 1, "a comma is missing between two objects"),
        ('[\n{"a": True}\n]', 2, 7, "in Python's notation"),
        ('[\n{"a": 1]\n', 2, 8, "does not match the open one"),
        ('[\n{"a": 1}}\n', 2, 9, "does not match the open one"),
        ('[\n{"a" 1}\n]', 2, 6, "colon is missing"),
        ('[\n{"a": }\n]', 2, 7, "value is missing"),
        ('[{"a": 1}]\n[{"a": 1}]', 2, 1, "second array"),
        ('[{"a": 1}]\n\ufeff[{"a": 1}]', 2, 1, "byte order mark in the middle"),
        ('[{"a": 1},\n\ufeff{"a": 1}]', 2, 1, "byte order mark in the middle"),
        ('[\n{"a":\u00a01}\n]', 2, 6, "U+00A0"),
        ('[\n{"a": "x\u201d, "b": 2}\n]', 2, 13, "curly"),
        ('[\n{"a": 1, "b": {"c": 1, "c": 2}}\n]', 2, 1, "`c` appears twice"),
        ("<html><body>404</body></html>", 1, 1, "HTML"),
        ("[\n{&quot;a&quot;: 1}\n]", 2, 2, "&quot;"),
        ('```json\n[{"a": 1}]\n```', 1, 1, "code fence"),
        ("[\n{a: 1}\n]", 2, 2, "without double quotes"),
        ("[\n" + "1" * 5000 + "\n]", 2, 1, "digits"),
        ("[\n" + "[" * 200_000 + "\n]", 2, 1, "nested"),
        ("hello", 1, 1, "unexpected"),
    ],
)
def test_syntax_error_names_line_column_and_cause(write, text, line, column, words):
    (found,) = fault(write, "a.json", text)
    assert found.code == "E-DATA-03"
    assert found.where.endswith(f"a.json, line {line}, column {column}") or (
        words == "comma before the closing" and f"line {line}" in found.where
    )
    assert words in found.what()


def test_every_bad_line_of_a_jsonl_file_is_counted_and_five_are_shown(write):
    lines = ['{"a": 1}', "{'a': 1}"] * 8
    found = fault(write, "a.jsonl", "\n".join(lines))
    assert [p.code for p in found] == ["E-DATA-03"] * 5 + ["E-DATA-04"]
    assert [p.where.split(", ")[1] for p in found[:5]] == [
        "line 2",
        "line 4",
        "line 6",
        "line 8",
        "line 10",
    ]
    assert "3 more" in found[5].what()


def test_two_values_on_a_line_are_an_error(write):
    (found,) = fault(write, "a.jsonl", '{"a": 1} {"a": 2}')
    assert "after the end" in found.what()


def test_line_separators_inside_strings_do_not_cut_a_line(write):
    assert read(Path(write("a.jsonl", '{"a": "x\u2028y\x85z"}\n{"a": "b"}'))).rows[0].value == {
        "a": "x\u2028y\x85z"
    }


@pytest.mark.parametrize(
    ("codec", "bom", "name"),
    [
        ("utf-8", b"", "utf-8"),
        ("utf-8", b"\xef\xbb\xbf", "utf-8+bom"),
        ("utf-16-le", b"\xff\xfe", "utf-16-le+bom"),
        ("utf-16-be", b"\xfe\xff", "utf-16-be+bom"),
        ("utf-32-le", b"\xff\xfe\x00\x00", "utf-32-le+bom"),
    ],
)
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_encodings_are_told_by_their_mark(write, codec, bom, name, ending):
    text = '[{"a": "你好"}]' if ending == ".json" else '{"a": "你好"}'
    file = read(Path(write(f"a{ending}", bom + text.encode(codec))))
    assert file.rows[0].value == {"a": "你好"} and file.encoding == name


def test_bytes_of_no_plausible_encoding_name_the_byte_the_line_and_a_guess(write):
    text = '[\n{"instruction": "Où êtes-vous né?", "output": "À Paris."}\n]'
    (found,) = fault(write, "a.json", text.encode("cp1252"))
    assert (
        found.code == "E-DATA-05"
        and found.where.endswith("line 2")
        and "byte 20" in found.what()
        and "Windows-1252" in found.remedy()
    )


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.json", b"", "E-DATA-06"),
        ("a.json", b"  \n ", "E-DATA-06"),
        ("a.json", b"[]", "E-DATA-06"),
        ("a.jsonl", b"\n\n", "E-DATA-06"),
        ("a.txt", b"\n", "E-DATA-06"),
        ("a.xlsx", b"PK", "E-DATA-16"),
        ("noending", b"[]", "E-DATA-16"),
    ],
)
def test_empty_and_unknown_files_are_errors(write, name, content, code):
    assert [p.code for p in fault(write, name, content)] == [code]


def test_missing_files_and_folders_without_data_are_errors(tmp_path):
    for place, code in (
        (tmp_path / "none.json", "E-DATA-01"),
        (tmp_path, "E-DATA-07"),
        ("a\0b", "E-DATA-02"),
        ("x" * 5000, "E-DATA-02"),
    ):
        with pytest.raises(DataError) as caught:
            data_files(str(place))
        assert caught.value.problems[0].code in (code, "E-DATA-01")
    (tmp_path / "d.json").mkdir()
    with pytest.raises(DataError, match="E-DATA-30"):
        read(tmp_path / "d.json")


def test_folder_gives_its_data_files_in_order_of_name(tmp_path):
    for name in (
        "b.jsonl",
        "a.json",
        "notes.pdf",
        ".hidden.json",
        "dataset_info.json",
        "c.tsv",
        "d.CSV",
        "e.parquet",
        "f.json.gz",
    ):
        (tmp_path / name).write_text("[]", encoding="utf-8")
    (tmp_path / "g.json").mkdir()
    assert [p.name for p in data_files(str(tmp_path))] == [
        "a.json",
        "b.jsonl",
        "c.tsv",
        "d.CSV",
        "e.parquet",
        "f.json.gz",
    ]
    assert [p.name for p in data_files("a.json", str(tmp_path))] == ["a.json"]


def test_objects_without_brackets_and_arrays_in_jsonl_are_read(write):
    pretty = json.dumps(ROW, indent=2)
    rows = read(Path(write("a.json", pretty + "\n" + pretty))).rows
    assert [r.value for r in rows] == [ROW, ROW] and [r.origin.line for r in rows] == [1, 5]
    assert [
        r.value for r in read(Path(write("b.json", json.dumps(ROW) + "\n" + json.dumps(ROW)))).rows
    ] == [ROW, ROW]
    assert [
        r.value for r in read(Path(write("c.jsonl", json.dumps([ROW, ROW], indent=2)))).rows
    ] == [ROW, ROW]


def test_text_rows_are_blocks_between_blank_lines_or_lines(write):
    rows = read(Path(write("a.txt", "\none\ntwo\r\n\r\n \nthree\n"))).rows
    assert [(r.value["text"], r.origin.line) for r in rows] == [("one\ntwo", 2), ("three", 6)]
    rows = read(Path(write("b.txt", "one\ntwo\n"))).rows
    assert [(r.value["text"], r.origin.line) for r in rows] == [("one", 1), ("two", 2)]


def test_a_large_array_is_read_in_time_that_grows_with_its_size(tmp_path):
    """Eight times the rows. A decoder that copies the rest of the text at every row takes 64 times
    as long for them. Of each, the least of three times of this process alone."""

    def seconds(count: int) -> float:
        path, spent = tmp_path / f"{count}.json", []
        path.write_text(
            json.dumps([{"instruction": "q" * 400, "output": "a" * 400}] * count, indent=1),
            encoding="utf-8",
        )
        for _ in range(3):
            begin = time.process_time()
            rows = read(path).rows
            spent.append(time.process_time() - begin)
        assert rows[-1].origin.line == 2 + 4 * (count - 1)
        return min(spent)

    assert seconds(8000) < 30 * seconds(1000)


def test_a_long_line_is_no_special_case(write):
    assert len(read(Path(write("a.jsonl", json.dumps({"text": "x" * 3_000_000})))).rows) == 1


def test_a_syntax_error_far_into_an_array_keeps_its_line_and_column(write):
    # The array is decoded through a window of 256 Ki characters; the place is counted from the
    # start of the file all the same.
    rows = [{"instruction": "q" * 300, "output": "a" * i} for i in range(2500)]
    lines = json.dumps(rows, indent=1).split("\n")
    lines[8002] = lines[8002].replace('": "', '" "', 1)
    (found,) = fault(write, "a.json", "\n".join(lines))
    column = lines[8002].index('" "') + 3
    assert found.where.endswith(f", line 8003, column {column}") and "colon" in found.what()
    one_line = "[" + ", ".join(map(json.dumps, rows))
    (found,) = fault(write, "b.json", one_line + ", x]")
    assert found.where.endswith(f", line 1, column {len(one_line) + 3}")


def test_values_longer_than_the_window_and_numbers_at_its_end_are_whole(write):
    for length in (2**18 - 12, 2**18, 700_000):
        rows = ["x" * length, 123456789, {"a": [1.5e3, True, None] * 3}, "y" * 100_000, -17]
        assert [row.value for row in read(Path(write("a.json", json.dumps(rows)))).rows] == rows
    numbers = list(range(100_000, 200_000))
    assert [row.value for row in read(Path(write("b.json", json.dumps(numbers)))).rows] == numbers


def test_a_stream_gives_the_rows_that_read_gives_and_knows_its_encoding_before(write):
    path = Path(write("a.jsonl", [ROW] * 5))
    opened = stream(path)
    assert (opened.kind, opened.encoding) == ("jsonl", "utf-8")
    assert list(opened.rows) == read(path).rows and list(opened.rows) == []


def test_no_row_after_a_bad_line_is_given_out_and_all_bad_lines_are_counted(write):
    lines = ['{"a": 1}', '{"a": 2}', "{'a': 3}", '{"a": 4}', "{'a': 5}"]
    opened = stream(Path(write("a.jsonl", "\n".join(lines))))
    assert [next(opened.rows).value, next(opened.rows).value] == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError) as caught:
        next(opened.rows)
    assert [p.where.split(", ")[1] for p in caught.value.problems] == ["line 3", "line 5"]


def test_memory_stays_flat_over_a_stream(tmp_path):
    rows = 2_500
    text = json.dumps({"instruction": "q" * 2500, "output": "a" * 2500})
    contents = {
        "a.jsonl": (text + "\n") * rows,
        "a.json": "[" + ",\n".join([text] * rows) + "]",
        "a.csv": "instruction,output\n" + ("q" * 2500 + "," + "a" * 2500 + "\n") * rows,
        "a.txt": ("q" * 5000 + "\n") * rows,
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress(
            "".join(json.dumps({"text": str(i) * 1000}) + "\n" for i in range(rows)).encode(), 1
        )
    )
    for path in sorted(tmp_path.iterdir()):
        tracemalloc.start()
        assert sum(1 for _ in stream(path).rows) == rows
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # The files are 12 MB, the rows as objects several times that; a window and a few rows stay
        # below 4 MB.
        assert peak < 4_000_000, (path.name, peak)


def test_decode_counts_bytes_from_the_start_of_the_file():
    with pytest.raises(DataError, match="byte 5"):
        decode(b"\xef\xbb\xbfa\n\xff", "f")


def test_readers_are_registered_by_ending():
    assert {".json", ".jsonl", ".ndjson", ".txt"} <= READERS.keys()


# ---- rows that are lists of turns

TALKS = [
    [{"role": "user", "content": f"Jar {i}?"}, {"role": "assistant", "content": f"Plums {i}."}]
    for i in range(3)
]
SHARED = [
    [{"from": "human", "value": "Jar?"}, {"from": "gpt", "value": "Plums."}],
    [{"from": "human", "value": "Tin?"}, {"from": "gpt", "value": "Tea."}],
]


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("layout", ["lines", "list", "pretty", "spread"])
@pytest.mark.parametrize(
    "talks", [TALKS, SHARED, TALKS[:1], SHARED[:1]], ids=["many", "shared", "one", "one shared"]
)
def test_a_list_of_turns_is_a_dialogue(write, talks, layout, ending):
    text = {
        "lines": "\n".join(map(json.dumps, talks)) + "\n", "list": json.dumps(talks), "pretty": json.dumps(talks, indent=1),
        "spread": "[\n" + ",\n".join(map(json.dumps, talks)) + "\n]",
    }[layout]  # fmt: skip
    found = read(Path(write(f"a.{ending}", text))).rows
    name = "messages" if "role" in talks[0][0] else "conversations"
    assert [row.value for row in found] == [{name: talk} for talk in talks]
    if layout == "lines":
        assert [row.origin.line for row in found] == [*range(1, len(talks) + 1)]


def test_a_file_that_is_one_dialogue_over_lines_is_one_row(write):
    assert [
        row.value for row in read(Path(write("a.json", json.dumps(TALKS[0], indent=2)))).rows
    ] == [{"messages": TALKS[0]}]


def test_a_dialogue_longer_than_what_is_read_at_once_is_one_row_a_line(write):
    long = [
        [
            {"role": "user", "content": "a" * 300_000},
            {"role": "assistant", "content": "b" * 300_000},
        ]
        for _ in range(3)
    ]
    assert [
        row.value["messages"]
        for row in read(Path(write("a.jsonl", "\n".join(map(json.dumps, long))))).rows
    ] == long


@pytest.mark.parametrize("between", ["", "\n"])
def test_arrays_of_rows_that_were_put_together_are_still_an_error(write, between):
    with pytest.raises(DataError, match="second array"):
        read(Path(write("a.jsonl", json.dumps([ROW, ROW]) + between + json.dumps([ROW]))))


def test_rows_that_call_a_column_role_stay_rows(write):
    rows = [{"role": "pirate", "content": "Ahoy"}, {"role": "cook", "content": "Soup"}]
    assert [row.value for row in read(Path(write("a.json", json.dumps(rows)))).rows] == rows


@pytest.mark.parametrize("value", [[ROW] * 3, {"data": [ROW] * 3}], ids=["array", "under a key"])
def test_rows_on_one_line_are_told_apart_by_their_number(write, value):
    place = write("a.json", json.dumps(value))
    assert [str(row.origin) for row in read(Path(place)).rows] == [
        f"{place}:1",
        f"{place}:1 (row 2)",
        f"{place}:1 (row 3)",
    ]
    spread = write("b.json", json.dumps(value, indent=1))
    assert not any("(row" in str(row.origin) for row in read(Path(spread)).rows)
