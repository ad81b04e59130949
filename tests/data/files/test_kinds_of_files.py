"""Tables, Parquet, Arrow, packed files, encodings and hub sets: the rows are those that other
libraries wrote, the faults have names."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import json
import sys
import types
from pathlib import Path

import pytest
from helpers.hostile import CHINESE, TRADITIONAL, _damaged, arrow_bytes, parquet_bytes
from helpers.rows import data_files, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError
from tunewright.core.types import Origin
from tunewright.data.files import hub
from tunewright.data.files.reading import stream
from tunewright.data.files.source import READERS, RawRow
from tunewright.data.formats.shaping import shape

ROW = {"instruction": "q", "output": "a"}
cells = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


def code_of(path, **more):
    with pytest.raises(DataError) as caught:
        read(Path(path), **more)
    return caught.value.problems[0]


# ---- tables


@given(
    rows=st.lists(st.tuples(cells, cells, st.just("x")), min_size=1, max_size=6),
    delimiter=st.sampled_from([",", ";", "\t"]),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_the_csv_module_writes_is_read_back_with_its_lines(
    tmp_path, rows, delimiter, end, quoting
):
    if (
        quoting == csv.QUOTE_MINIMAL
    ):  # Python before 3.13 leaves a lone "\r" without quotes, which breaks the table it writes
        rows = [tuple(cell.replace("\r", "") for cell in row) for row in rows]
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(["instruction", "output", "id"])
    starts = []
    for row in rows:
        # A reader and an editor count "\r\n", "\n" and "\r" as one line end each.
        starts.append(sink.getvalue().replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1)
        writer.writerow(row)
    path = tmp_path / "a.csv"
    path.write_bytes(sink.getvalue().encode("utf-8"))
    found = read(path).rows
    assert [tuple(row.value.values()) for row in found] == rows
    assert [row.origin.line for row in found] == starts


def test_columns_without_a_name_and_cells_behind_the_table_do_no_harm(write):
    found = read(Path(write("a.csv", ",instruction,output,,\n0,q,a,,\n\n1,r,b,,\n"))).rows
    assert [row.value for row in found] == [
        {"column_1": "0", "instruction": "q", "output": "a"},
        {"column_1": "1", "instruction": "r", "output": "b"},
    ]
    assert [row.origin.line for row in found] == [2, 4]


def test_every_row_that_does_not_fit_the_header_is_counted_and_five_are_shown(write):
    with pytest.raises(DataError) as caught:
        read(Path(write("a.csv", "instruction,output\n" + "q,a\nq\n" * 8)))
    problems = caught.value.problems
    assert [p.where.split(", ")[1] for p in problems[:5]] == [
        "line 3",
        "line 5",
        "line 7",
        "line 9",
        "line 11",
    ]
    assert (
        len(problems) == 6
        and "3 more rows" in problems[5].what()
        and "1 cells, the header 2" in problems[0].what()
    )


def test_an_open_quote_is_named_with_the_line_on_which_its_row_begins(write):
    found = code_of(write("a.csv", 'instruction,output\nq1,a1\nq2,"a2\nq3,a3\nq4,a4\n'))
    assert (
        found.code == "E-DATA-36"
        and found.where.endswith("line 3")
        and "never closed" in found.what()
    )


def test_tables_of_messages_and_labels_make_rows(write):
    cell = json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a, b"}])
    sink = io.StringIO()
    csv.writer(sink).writerows([["messages", "weight"], [cell, "0.5"]])
    shaped = shape(read(Path(write("a.csv", sink.getvalue()))).rows)
    assert (
        shaped.format == "messages"
        and shaped.rows[0].answer() == "a, b"
        and shaped.rows[0].weight == 0.5
    )
    assert (
        shape(read(Path(write("b.tsv", "text\tlabel\ngood, very\t1\n"))).rows).rows[0].answer()
        == "1"
    )


# ---- Parquet and Arrow


def table_of(rows):
    import pyarrow as arrow

    return arrow.Table.from_pylist(rows)


def written(tmp_path, table, kind):
    import pyarrow as arrow
    import pyarrow.feather as feather
    import pyarrow.parquet as parquet

    path = tmp_path / f"a.{'arrow' if kind.startswith('arrow') else kind}"
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=7)
    elif kind == "feather":
        feather.write_feather(table, str(path), compression="lz4")
    else:
        with (arrow.ipc.new_file if kind == "arrow file" else arrow.ipc.new_stream)(
            str(path), table.schema
        ) as writer:
            writer.write_table(table, max_chunksize=7)
    return path


@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow file", "arrow stream"])
def test_columnar_files_give_the_rows_that_were_written(tmp_path, kind):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": "a" * i},
            ],
            "n": i,
            "none": None,
        }
        for i in range(40)
    ]
    found = read(written(tmp_path, table_of(rows), kind))
    assert [row.value for row in found.rows] == rows and [
        row.origin.row for row in found.rows
    ] == list(range(1, 41))
    assert found.encoding == "utf-8" and shape(found.rows).format == "messages"


def test_values_beyond_json_become_what_json_can_hold(tmp_path):
    moment = datetime.datetime(2024, 2, 3, 4, 5, 6)
    row = {
        "t": moment,
        "d": moment.date(),
        "m": decimal.Decimal("1.50"),
        "b": "é".encode(),
        "x": b"\xff\x00",
        "l": [{"at": moment}],
    }
    (found,) = read(written(tmp_path, table_of([row]), "parquet")).rows
    assert (
        found.value["t"] == "2024-02-03T04:05:06"
        and found.value["d"] == "2024-02-03"
        and found.value["m"] == "1.50"
    )
    assert (
        found.value["b"] == "é"
        and found.value["x"] == {"base64": "/wA="}
        and found.value["l"] == [{"at": "2024-02-03T04:05:06"}]
    )
    json.dumps(found.value)


def test_numbers_of_32_and_16_bits_are_the_decimals_that_were_meant(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    half = (
        arrow.array([0.1, None], arrow.float32()).cast(arrow.float16())
        if hasattr(arrow, "float16")
        else None
    )
    table = arrow.table(
        {
            "answer": arrow.array([0.1, None], arrow.float32()), "double": arrow.array([1e-05, 0.1]), "list": arrow.array([[0.1, 0.7], None], arrow.list_(arrow.float32())),
            "deep": arrow.array([{"x": 0.1}, None], arrow.struct([("x", arrow.float32())])), "half": half, "question": ["q", "r"], "big": arrow.array([1e16, 2.5]),
        }
    )  # fmt: skip
    first, second = (row.value for row in read(written(tmp_path, table, "parquet")).rows)
    assert (first["answer"], first["list"], first["deep"], first["double"], first["half"]) == (
        0.1,
        [0.1, 0.7],
        {"x": 0.1},
        1e-05,
        0.1,
    )
    assert (second["answer"], second["list"], second["deep"]) == (None, None, None)
    (row,) = shape([RawRow({"question": "q", "answer": first["answer"]}, Origin("a", 1, 1))]).rows
    assert row.answer() == "0.1"
    for cell, text in (
        (first["double"], "0.00001"),
        (first["big"], "10000000000000000.0"),
        (True, "true"),
    ):
        assert (
            shape([RawRow({"question": "q", "answer": cell}, Origin("a", 1, 1))]).rows[0].answer()
            == text
        )


TOOL = {
    "type": "function",
    "function": {
        "name": "move",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer"}},
            "required": ["x"],
        },
    },
}
OTHER = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {
            "type": "object",
            "properties": {"goal": {"type": "string", "enum": ["home"]}},
        },
    },
}
IDLE = {
    "type": "function",
    "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}},
}


def called(name, tool, **arguments):
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    return {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": calls},
        ],
        "tools": [tool],
    }


@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow file"])
def test_nulls_that_a_tables_one_schema_adds_to_calls_and_tools_are_left_out(tmp_path, kind):
    rows = [
        called("move", TOOL, x=0, at={"y": 1}),
        called("find", OTHER, goal="home", at={"z": [{"k": 1}, {"l": 2}]}),
        called("stop", IDLE),
    ]
    table = read(written(tmp_path, table_of(rows), kind)).rows
    assert (
        table[0].value["messages"][1]["tool_calls"][0]["function"]["arguments"]["goal"] is None
    )  # the fault is in the file
    found, wanted = (
        shape(one) for one in (table, [RawRow(row, Origin("a.jsonl", 1, 1)) for row in rows])
    )
    assert [(row.messages, row.tools) for row in found.rows] == [
        (row.messages, row.tools) for row in wanted.rows
    ]
    assert found.notes["schema_nulls"] > 0 == wanted.notes["schema_nulls"]


def test_a_null_that_somebody_wrote_stays(tmp_path):
    row = called("move", TOOL, x=None)
    (lines,) = shape([RawRow(row, Origin("a.jsonl", 1, 1))]).rows
    text = {"messages": json.dumps(row["messages"]), "tools": json.dumps(row["tools"])}
    (cells,) = shape(read(written(tmp_path, table_of([text]), "parquet")).rows).rows
    for made in (lines, cells):
        assert made.messages[1].tool_calls[0]["function"]["arguments"] == {"x": None}


@pytest.mark.parametrize("kind", ["parquet", "arrow stream"])
def test_label_numbers_get_the_names_that_the_datasets_library_keeps_in_the_file(tmp_path, kind):
    about = {
        "info": {
            "features": {
                "text": {"_type": "Value"},
                "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
            }
        }
    }
    table = table_of(
        [{"text": "t", "label": 1}, {"text": "u", "label": 0}, {"text": "v", "label": -1}]
    )
    found = read(
        written(tmp_path, table.replace_schema_metadata({"huggingface": json.dumps(about)}), kind)
    )
    assert [row.value["label"] for row in found.rows] == ["pos", "neg", None] and found.notes[
        "label_named"
    ] == 3
    shaped = shape(found.rows)
    assert [row.answer() for row in shaped.rows] == ["pos", "neg"] and shaped.dropped[
        0
    ].reason == "no_label"


def test_a_parquet_file_with_many_rows_is_streamed(tmp_path):
    import pyarrow as arrow

    path = written(tmp_path, arrow.table({"text": ["x" * 100] * 50_000}), "parquet")
    rows = stream(path).rows
    assert next(rows).value == {"text": "x" * 100} and sum(1 for _ in rows) == 49_999


SEEDS = {
    "a.json": json.dumps([ROW] * 3, indent=1).encode(),
    "a.jsonl": (json.dumps(ROW) + "\n").encode() * 3,
    "a.csv": b'instruction,output\n"q, r",a\n' * 3,
    "a.txt": b"one\n\ntwo\n",
    "a.json.gz": gzip.compress(json.dumps([ROW] * 20).encode()),
    "a.parquet": parquet_bytes(),
    "a.arrow": arrow_bytes(),
}


@pytest.mark.parametrize("name", SEEDS)
@given(data=st.data())
@settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_damaged_file_of_any_kind_is_rows_or_a_data_error(tmp_path, name, data):
    content = bytearray(SEEDS[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        content = content or bytearray(b"x")
    path = tmp_path / name
    path.write_bytes(
        content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content
    )
    try:
        assert read(path).rows
    except DataError as error:
        assert all(one.code.startswith("E-DATA-") and name in one.where for one in error.problems)


# ---- packed


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt", "a.parquet", "a.arrow"])
def test_packed_files_hold_the_rows_of_the_plain_ones(tmp_path, name):
    (tmp_path / name).write_bytes(SEEDS[name])
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(SEEDS[name]))
    plain, packed = read(tmp_path / name), read(tmp_path / f"{name}.gz")
    assert [row.value for row in packed.rows] == [
        row.value for row in plain.rows
    ] and packed.kind == plain.kind


def test_faults_of_packed_files_have_names(tmp_path):
    whole = gzip.compress(json.dumps([{"text": str(i)} for i in range(500)]).encode())
    for content, code in (
        (whole[:-20], "E-DATA-31"),
        (_damaged(whole), "E-DATA-32"),
        (b"[]", "E-DATA-32"),
        (gzip.compress(b" " * 70 * 2**20), "E-DATA-33"),
    ):
        (tmp_path / "a.json.gz").write_bytes(content)
        assert code_of(tmp_path / "a.json.gz").code == code
    # Several packed files one after the other are one packed file.
    (tmp_path / "a.jsonl.gz").write_bytes(
        gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}\n')
    )
    assert len(read(tmp_path / "a.jsonl.gz").rows) == 2


def test_text_that_packs_very_well_is_no_bomb(tmp_path):
    content = (json.dumps({"text": "the same row"}) + "\n").encode() * 100_000
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    assert len(content) > 200 * (tmp_path / "a.jsonl.gz").stat().st_size
    assert len(read(tmp_path / "a.jsonl.gz").rows) == 100_000


# ---- encodings


@pytest.mark.parametrize(
    "codec",
    [
        "gb18030",
        "gbk",
        "gb2312",
        "big5",
        "cp950",
        "utf-16-le",
        "utf-16-be",
        "utf-32-le",
        "utf-32-be",
    ],
)
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".txt"])
def test_unmarked_chinese_is_told_and_said(write, codec, ending):
    row = TRADITIONAL if codec in ("big5", "cp950") else CHINESE
    text = {
        ".json": json.dumps([row], ensure_ascii=False),
        ".jsonl": json.dumps(row, ensure_ascii=False),
        ".csv": ",".join(row) + "\n" + ",".join(row.values()),
        ".txt": "".join(row.values()),
    }[ending]
    found = read(Path(write(f"a{ending}", text.encode(codec))))
    assert found.rows[0].value == ({"text": text} if ending == ".txt" else row)
    names = {"gbk": "gb18030", "gb2312": "gb18030", "cp950": "big5"}
    assert found.encoding == names.get(codec, codec) and found.notes["encoding_told"] == 1


def test_utf8_is_never_taken_for_another_encoding(write):
    for text in ("机器学习", "é", "日本語のテキスト", "한국어", "naïve café ☕ 🎉", "a"):
        found = read(Path(write("a.txt", text)))
        assert (
            found.encoding == "utf-8"
            and found.rows[0].value == {"text": text}
            and not found.notes["encoding_told"]
        )


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("Les élèves étaient déjà très fatigués après l'été ; où êtes-vous né ?", "latin-1"),
        ("It\u2019s \u201cquoted\u201d text \u2013 with dashes\u2026", "cp1252"),
        ("Машинное обучение это раздел искусственного интеллекта.", "cp1251"),
        ("기계 학습은 인공지능의 한 분야입니다. 오늘 날씨가 좋습니다.", "euc_kr"),
        ("機械学習とは何ですか。人工知能の一分野です。", "shift_jis"),
        ("機械学習とは何ですか。人工知能の一分野です。", "euc_jp"),
        ("Größe, Übung, Straße, schön, für, müde", "latin-1"),
    ],
)
def test_other_encodings_are_refused_and_never_taken_for_chinese(write, text, codec):
    found = code_of(write("a.txt", text.encode(codec)))
    assert found.code == "E-DATA-05" and "line 1" in found.where


def test_a_byte_late_in_a_large_file_is_named_with_its_place(tmp_path):
    lines = [json.dumps({"text": "x" * 50})] * 20_000
    content = bytearray("\n".join(lines).encode())
    at = content.index(b"xxx", 900_000)
    content[at] = 0xE9
    (tmp_path / "a.jsonl").write_bytes(content)
    found = code_of(tmp_path / "a.jsonl")
    assert f"byte {at} " in found.what() and found.where.endswith(
        f"line {content[:at].count(10) + 1}"
    )


def test_the_told_encoding_stands_in_the_report(write):
    from tunewright.data import inspect

    report = inspect(
        DataConfig(
            train=write("a.json", json.dumps([CHINESE] * 3, ensure_ascii=False).encode("gbk"))
        ),
        None,
        None,
        0,
        needs_tokens=False,
    ).report
    assert report["encoding"] == "gb18030" and any(
        "encoding was detected" in line for line in report["warnings"]
    )


# ---- documents, folders, hub sets


def test_a_text_file_is_one_document_where_the_format_says_so(write):
    from tunewright.data import inspect

    place = write("a.md", "# Title\n\nOne.\n\n\nTwo.\n")
    data = inspect(
        DataConfig(train=place, format="documents", held_out=0), None, None, 0, needs_tokens=False
    )
    assert [row.text for row in data.train_rows] == ["# Title\n\nOne.\n\n\nTwo."]
    assert (
        len(
            inspect(
                DataConfig(train=place, held_out=0), None, None, 0, needs_tokens=False
            ).train_rows
        )
        == 3
    )


def test_a_folder_may_hold_files_of_several_kinds(tmp_path):
    from tunewright.data import inspect

    for name in ("a.json", "a.jsonl", "a.csv", "a.parquet", "a.json.gz"):
        (tmp_path / name).write_bytes(SEEDS[name])
    report = inspect(
        DataConfig(train=str(tmp_path), held_out=0), None, None, 0, needs_tokens=False
    ).report
    assert report["rows_read"] == 3 + 3 + 5 + 2 + 20 and report["format"] == "alpaca"


class FakeSet:
    def __init__(self, *files):
        self.cache_files = [{"filename": str(file)} for file in files]


@pytest.fixture
def libraries(monkeypatch, tmp_path):
    """Stand-ins for datasets and modelscope that note what they were asked for."""
    (tmp_path / "set.arrow").write_bytes(arrow_bytes())
    asked = []

    def load_dataset(name, config, *, split):
        asked.append(("datasets", name, config, split))
        if split == "nothing":
            raise ValueError("Unknown split 'nothing'. Should be one of\n ['train'].")
        return FakeSet(tmp_path / "set.arrow")

    class MsDataset:
        @staticmethod
        def load(name, **more):
            asked.append(("modelscope", name, more))
            return types.SimpleNamespace(to_hf_dataset=lambda: FakeSet(tmp_path / "set.arrow"))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setitem(sys.modules, "modelscope", types.SimpleNamespace())
    monkeypatch.setitem(
        sys.modules, "modelscope.msdatasets", types.SimpleNamespace(MsDataset=MsDataset)
    )
    return asked


def test_hub_sets_are_fetched_by_their_libraries_and_read_as_files(libraries):
    for place in (
        "hf:owner/name",
        "owner/name",
        "hf:owner/name/en#test",
        "modelscope:owner/name/sub",
    ):
        (path,) = data_files(place)
        assert len(read(path).rows) == 2
    assert libraries == [
        ("datasets", "owner/name", None, "train"),
        ("datasets", "owner/name", None, "train"),
        ("datasets", "owner/name", "en", "test"),
        ("modelscope", "owner/name", {"split": "train", "subset_name": "sub"}),
    ]
    with pytest.raises(
        DataError, match=r"E-DATA-39.*Unknown split 'nothing'. Should be one of \['train'\]"
    ):
        data_files("hf:owner/name#nothing")
    with pytest.raises(DataError, match="E-DATA-39"):
        data_files("hf:only-a-name")


@pytest.mark.parametrize(
    "place",
    [
        "hf:owner/name#train[:1]",
        "owner/name#train[50%:]",
        "hf:owner/name#train+test",
        "modelscope:owner/name#train[:1]",
    ],
)
def test_a_slice_of_a_split_is_refused_before_anything_is_fetched(libraries, place):
    with pytest.raises(DataError, match=r"E-DATA-80.*train"):
        data_files(place)
    assert libraries == []


def test_a_library_that_hands_out_fewer_rows_than_its_files_hold_is_refused(
    libraries, monkeypatch, tmp_path
):
    for rows, refused in ((1, True), (2, False)):
        part = FakeSet(tmp_path / "set.arrow")
        part.num_rows = rows
        monkeypatch.setattr(
            sys.modules["datasets"], "load_dataset", lambda name, config, *, split, part=part: part
        )
        if refused:
            with pytest.raises(DataError, match=r"E-DATA-80.*1 / 2"):
                data_files("hf:owner/name")
        else:
            assert data_files("hf:owner/name") == [tmp_path / "set.arrow"]


@pytest.mark.parametrize(
    ("place", "library"),
    [
        ("hf:owner/name", "datasets"),
        ("owner/name", "datasets"),
        ("modelscope:owner/name", "modelscope"),
    ],
)
def test_a_missing_library_is_said_with_the_line_that_installs_it(monkeypatch, place, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match="E-DATA-38") as caught:
        data_files(place)
    assert (
        library in caught.value.problems[0].what()
        and hub.INSTALL in caught.value.problems[0].remedy()
    )


def test_a_missing_file_is_never_looked_for_on_a_hub(libraries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (
        "data/rows.json",
        "data/rows.jsonl.gz",
        "rows",
        "../a/b",
        "a/b/c/d",
        "/data/rows",
    ):
        with pytest.raises(DataError, match="E-DATA-01"):
            data_files(place)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").mkdir()
    with pytest.raises(DataError, match="E-DATA-07"):
        data_files("owner/name")
    assert libraries == []


def test_every_kind_of_file_that_is_promised_has_a_reader():
    assert set(READERS) >= {
        ".json",
        ".jsonl",
        ".ndjson",
        ".csv",
        ".tsv",
        ".parquet",
        ".arrow",
        ".feather",
        ".txt",
        ".md",
    }
