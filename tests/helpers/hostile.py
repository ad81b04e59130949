"""Files that break readers, built in code, and what each must come to: rows, or the code of one
clear error.

Run as a program it goes through all of them in a folder and prints what happened as JSON: outcome,
codes, places, processor seconds, and the peak of its memory.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROW = {"instruction": "What is machine learning?", "output": "A part of artificial intelligence."}
CHINESE = {
    "instruction": "机器学习是什么？请用一句话回答。",
    "output": "它是人工智能的一个分支，让计算机从数据中学习。",
}
TRADITIONAL = {
    "instruction": "機器學習是什麼？請用一句話回答。",
    "output": "它是人工智慧的一個分支，讓電腦從資料中學習。",
}
LINE = json.dumps(ROW)
ARRAY = json.dumps([ROW, ROW], indent=1)
CSV = "instruction,output\nq1,a1\nq2,a2\n"

Build = Callable[[Path], None]
CORPUS: dict[str, tuple[Any, Build]] = {}
"""Name of the file -> (number of rows, or codes of which one must come), and what writes it."""


def case(name: str, expected: int | str, content: bytes | str | Build) -> None:
    """One more hostile file."""
    assert name not in CORPUS
    wanted = expected if isinstance(expected, int) else tuple(expected.split())
    if callable(content):
        CORPUS[name] = (wanted, content)
    else:
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        CORPUS[name] = (wanted, lambda path: path.write_bytes(data) and None)


def encoded(row: dict[str, str], codec: str) -> bytes:
    return json.dumps([row] * 3, ensure_ascii=False, indent=1).encode(codec)


def messages(*turns: Any, **more: Any) -> str:
    return json.dumps({"messages": list(turns), **more})


def columns(**cells: Any) -> str:
    return json.dumps({**ROW, **cells})


# Encodings
case("bom.json", 2, b"\xef\xbb\xbf" + ARRAY.encode())
case("bom_only.json", "E-DATA-06", b"\xef\xbb\xbf")
case("bom_inside.json", "E-DATA-03", ARRAY.encode() + b"\n\xef\xbb\xbf" + ARRAY.encode())
case("bom_inside.jsonl", "E-DATA-03", f"{LINE}\n\ufeff{LINE}\n")
case("utf16_bom.json", 3, b"\xff\xfe" + encoded(CHINESE, "utf-16-le"))
case("utf16_be_bom.jsonl", 1, b"\xfe\xff" + LINE.encode("utf-16-be"))
case("utf16_no_bom.json", 3, encoded(CHINESE, "utf-16-le"))
case("utf16_be_no_bom.json", 3, encoded(ROW, "utf-16-be"))
case("utf16_odd.json", "E-DATA-05", b"\xff\xfe" + encoded(ROW, "utf-16-le")[:-1])
case("utf32_no_bom.json", 3, encoded(CHINESE, "utf-32-le"))
case("utf32_bom_cut.json", "E-DATA-05", b"\xff\xfe\x00\x00" + encoded(ROW, "utf-32-le")[:-2])
case("gbk.json", 3, encoded(CHINESE, "gbk"))
case("gb18030.csv", 1, ("instruction,output\n" + ",".join(CHINESE.values())).encode("gb18030"))
case("big5.json", 3, encoded(TRADITIONAL, "big5"))
case(
    "latin1.json",
    "E-DATA-05",
    json.dumps(
        [{"instruction": "Où êtes-vous né?", "output": "À Paris, l'été."}], ensure_ascii=False
    ).encode("latin-1"),
)
case("cp1252.txt", "E-DATA-05", "It\u2019s \u201cfine\u201d.\n".encode("cp1252"))
case("korean.txt", "E-DATA-05", "기계 학습은 인공지능의 한 분야입니다.".encode("euc_kr"))
case("shift_jis.txt", "E-DATA-05", "機械学習とは何ですか。".encode("shift_jis"))
case(
    "one_bad_byte.jsonl",
    "E-DATA-05",
    LINE.encode() + b"\n" + LINE.encode().replace(b"What", b"Wh\xe9t"),
)
case("cut_character.jsonl", "E-DATA-05", '{"text": "机'.encode()[:-1])
case("random.json", "E-DATA-05", bytes((i * 7919) % 251 for i in range(5000)))
case("nul_bytes.json", "E-DATA-03", b'[{"instruction": "a",\x00 "output": "b"}]')
case("nul_bytes.jsonl", "E-DATA-03", LINE.encode() + b"\n" + b"\x00" * 40)
case("only_nul.txt", "E-DATA-34", b"\x00" * 5000)
# Line ends and separators
case("crlf.jsonl", 2, f"{LINE}\r\n{LINE}\r\n")
case("cr_only.jsonl", 2, f"{LINE}\r{LINE}\r")
case("cr_only.csv", 2, CSV.replace("\n", "\r"))
case("mixed_newlines.jsonl", 4, f"{LINE}\n{LINE}\r\n{LINE}\r{LINE}")
case("u2028.jsonl", 1, '{"text": "a\u2028b\u2029c\x85d"}')
case("u2028_between.jsonl", "E-DATA-03", f"{LINE}\u2028{LINE}")
case("form_feed.json", "E-DATA-03", f"[\x0c{LINE}]")
case("no_newline_at_end.jsonl", 1, LINE)
# Nothing there
case("empty.json", "E-DATA-06", b"")
case("empty.csv", "E-DATA-06", b"")
case("empty.parquet", "E-DATA-37", b"")
case("spaces.json", "E-DATA-06", b" \n\t\r\n ")
case("spaces.txt", "E-DATA-06", b" \n\n \n")
case("empty_array.json", "E-DATA-06", b"[]")
case("header_only.csv", "E-DATA-06", "instruction,output\n")
# JSON as people paste it
case("trailing_comma.json", "E-DATA-03", f"[{LINE},\n]")
case("trailing_comma_in_object.jsonl", "E-DATA-03", LINE[:-1] + ",}")
case("single_quotes.json", "E-DATA-03", "[{'instruction': 'a', 'output': 'b'}]")
case("curly_quotes.json", "E-DATA-03", "[{“instruction”: “a”, “output”: “b”}]")
case("comments.json", "E-DATA-03", f"[\n// rows\n{LINE}]")
case("python_literals.json", "E-DATA-03", '[{"instruction": "a", "output": None}]')
case("missing_comma.json", "E-DATA-03", f"[{LINE}\n{LINE}]")
case("unclosed.json", "E-DATA-03", f"[{LINE},\n{LINE}")
case("wrong_bracket.json", "E-DATA-03", f"[{LINE}}}")
case("two_arrays.json", "E-DATA-03", f"[{LINE}]\n[{LINE}]")
case("nan.json", "E-DATA-03", '[{"instruction": "a", "output": NaN}]')
case("infinity.jsonl", "E-DATA-03", '{"instruction": "a", "output": -Infinity}')
case("overflow.jsonl", "E-DATA-12", '{"instruction": "a", "output": 1e999}')
case("control_characters.json", "E-DATA-03", '[{"instruction": "a\x01b", "output": "c"}]')
case("tab_in_string.json", "E-DATA-03", '[{"instruction": "a\tb", "output": "c"}]')
case("invalid_escape.json", "E-DATA-03", '[{"instruction": "C:\\data", "output": "c"}]')
case("half_escape.json", "E-DATA-03", '[{"instruction": "\\u12", "output": "c"}]')
case("html.json", "E-DATA-03", "<!DOCTYPE html><html><body>404</body></html>")
case("duplicate_keys.jsonl", "E-DATA-03", '{"instruction": "a", "output": "b", "output": "c"}')
case("many_bad_lines.jsonl", "E-DATA-03", "{'a': 1}\n" * 20_000)
case("lone_surrogate.jsonl", "E-DATA-12", '{"instruction": "a\\ud83d", "output": "b"}')
case("lone_surrogate_key.jsonl", "E-DATA-08", '{"\\ud83d": "a", "b": "c"}')
case(
    "lone_surrogate_tool.jsonl",
    "E-DATA-12",
    messages(
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        tools=[{"name": "\ud83d"}],
    ),
)
# Sizes
case(
    "long_line.jsonl",
    1,
    lambda path: path.write_text('{"text": "' + "x" * 50_000_000 + '"}') and None,
)
case(
    "long_line.json",
    1,
    lambda path: path.write_text('[{"text": "' + "x " * 25_000_000 + '"}]') and None,
)
case(
    "long_bad_line.jsonl",
    "E-DATA-03",
    lambda path: path.write_text('{"text": "' + "x" * 50_000_000) and None,
)
case("deep_lists.json", "E-DATA-03", "[" * 100_000)
case("deep_lists_closed.jsonl", "E-DATA-03", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
case("deep_dictionaries.json", "E-DATA-03", '{"a":' * 100_000 + "1" + "}" * 100_000)
case("deepish_fact.jsonl", 1, '{"prompt": "a", "fact": ' + "[" * 400 + "]" * 400 + "}")
case(
    "deepish_text.jsonl",
    "E-DATA-12",
    '{"instruction": ' + "[" * 400 + "]" * 400 + ', "output": "b"}',
)
case("huge_integer.jsonl", "E-DATA-03", '{"instruction": "a", "output": ' + "9" * 5000 + "}")
case("large_integer.jsonl", 1, '{"instruction": "a", "output": ' + "9" * 4000 + "}")
case("many_columns.jsonl", "E-DATA-08", json.dumps({f"column {i}": i for i in range(100_000)}))
case(
    "many_columns.csv",
    "E-DATA-08",
    ",".join(f"c{i}" for i in range(100_000)) + "\n" + ",".join("1" for _ in range(100_000)),
)
case("long_key.jsonl", "E-DATA-08", json.dumps({"k" * 5_000_000: 1}))
# Other rows than objects
case("numbers.json", "E-DATA-08", "[1, 2, 3]")
case("strings.jsonl", "E-DATA-08", '"a"\n"b"\n')
case("nulls.json", "E-DATA-08", "[null, null]")
case("lists.jsonl", "E-DATA-08", "[1]\n[2]")
case("one_number.json", "E-DATA-08", "7")
case("nested_array.json", "E-DATA-08", f"[[{LINE}]]")
case("mixed_rows.json", 40, f"[1, null, {', '.join([LINE] * 40)}]")
# Wrong types in each column
case("instruction_is_object.jsonl", "E-DATA-12", columns(instruction={"a": 1}))
case("output_is_list.jsonl", "E-DATA-12", columns(output=[1, 2]))
case("output_is_null.jsonl", "E-DATA-12", columns(output=None))
case("output_is_number.jsonl", 1, columns(output=0))
case("history_is_text.jsonl", "E-DATA-12", columns(history="a"))
case("system_is_list.jsonl", "E-DATA-12", columns(system=[1]))
case("weight_is_text.jsonl", "E-DATA-12", columns(weight="much"))
case("weight_is_infinite.jsonl", "E-DATA-12", LINE[:-1] + ', "weight": 1e999}')
case("tools_are_numbers.jsonl", "E-DATA-12", columns(tools=[1]))
case("tools_are_broken_json.jsonl", "E-DATA-12", columns(tools="[{"))
case("messages_is_text.jsonl", "E-DATA-12", '{"messages": "hello"}')
case("messages_of_numbers.jsonl", "E-DATA-12", '{"messages": [1]}')
case(
    "wrong_roles.jsonl",
    "E-DATA-12",
    messages({"role": "narrator", "content": "a"}, {"role": "assistant", "content": "b"}),
)
case(
    "role_is_number.jsonl",
    "E-DATA-12",
    messages({"role": 1, "content": "a"}, {"role": "assistant", "content": "b"}),
)
case("only_system.jsonl", "E-DATA-12", messages({"role": "system", "content": "a"}))
case(
    "empty_answer.jsonl",
    "E-DATA-12",
    messages({"role": "user", "content": "a"}, {"role": "assistant", "content": ""}),
)
case(
    "content_is_picture.jsonl",
    "E-DATA-12",
    messages(
        {"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "a"}
    ),
)
case(
    "tool_call_is_text.jsonl",
    "E-DATA-12",
    messages(
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": "f"}
    ),
)
case(
    "function_call_is_text.jsonl",
    "E-DATA-12",
    json.dumps(
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": "f("},
            ]
        }
    ),
)
case("chosen_is_number.jsonl", 1, json.dumps({"prompt": "a", "chosen": 1, "rejected": 2}))
case(
    "chosen_is_missing.jsonl",
    "E-DATA-12",
    json.dumps({"prompt": "a", "chosen": None, "rejected": "b"}),
)
case(
    "label_is_word.jsonl",
    "E-DATA-12",
    json.dumps({"prompt": "a", "completion": "b", "kto_tag": "maybe"}),
)
# Tables
case("unbalanced_quote.csv", "E-DATA-36", 'instruction,output\nq1,"a1\nq2,a2\nq3,a3\n')
case(
    "unbalanced_quote_large.csv",
    "E-DATA-36",
    lambda path: path.write_text('instruction,output\nq1,"a1\n' + "q,a\n" * 3_000_000) and None,
)
case("stray_quote.csv", "E-DATA-36", 'instruction,output\n"q"1,a1\n')
case("too_many_cells.csv", "E-DATA-36", CSV + "q3,a3,more\n")
case("too_few_cells.csv", "E-DATA-36", CSV + "q3\n")
case("no_header.csv", "E-DATA-08", "q1,a1\nq2,a2\n")
case("duplicated_header.csv", "E-DATA-35", "output,instruction,output\na,b,c\n")
case("nul.csv", "E-DATA-36", b'instruction,output\n"q\x001",\x00\n')
case("large_cell.csv", 1, "instruction,output\nq," + "a" * 1_000_000 + "\n")
case("semicolons.csv", 2, CSV.replace(",", ";"))
case("excel_sep.csv", 2, "sep=;\r\n" + CSV.replace(",", ";").replace("\n", "\r\n"))
case("commas_in.tsv", "E-DATA-08", CSV)
# Packed
case("plain.json.gz", "E-DATA-32", ARRAY)
case("good.json.gz", 2, gzip.compress(ARRAY.encode()))
case("cut.json.gz", "E-DATA-31", gzip.compress(os.urandom(100) + ARRAY.encode())[:80])
case("empty.json.gz", "E-DATA-06 E-DATA-31", b"")
case(
    "damaged.jsonl.gz",
    "E-DATA-32",
    lambda path: path.write_bytes(_damaged(gzip.compress(LINE.encode() * 50))) and None,
)
case("garbage_behind.jsonl.gz", "E-DATA-32", gzip.compress(LINE.encode()) + b"garbage")
case(
    "bomb.jsonl.gz",
    "E-DATA-33",
    lambda path: path.write_bytes(gzip.compress(b" " * 100_000_000)) and None,
)
case("packed_twice.json.gz", "E-DATA-34", gzip.compress(gzip.compress(ARRAY.encode())))
case("gzip_named.json", "E-DATA-34", gzip.compress(ARRAY.encode()))
case("zip_named.json", "E-DATA-34", b"PK\x03\x04" + b"\x14\x00" * 20)
case("pickle_named.json", "E-DATA-34", b"\x80\x04\x95\x10\x00\x00\x00")
case("picture_named.txt", "E-DATA-34", b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
# Parquet and Arrow
case("cut.parquet", "E-DATA-37", lambda path: path.write_bytes(parquet_bytes()[:-40]) and None)
case(
    "damaged.parquet",
    "E-DATA-37 E-DATA-12",
    lambda path: path.write_bytes(_damaged(parquet_bytes())) and None,
)
case("text_named.parquet", "E-DATA-37", ARRAY)
case(
    "footer_lies.parquet",
    "E-DATA-37",
    lambda path: path.write_bytes(parquet_bytes()[:-8] + b"\xff\xff\xff\x7fPAR1") and None,
)
case("cut.arrow", "E-DATA-37", lambda path: path.write_bytes(arrow_bytes()[:-200]) and None)
case("text_named.arrow", "E-DATA-37", ARRAY)
case("packed.parquet.gz", 2, lambda path: path.write_bytes(gzip.compress(parquet_bytes())) and None)
# No files
case("folder.json", "E-DATA-07", lambda path: path.mkdir())
case("loop.json", "E-DATA-02", lambda path: path.symlink_to(path.name))
case("dangling.json", "E-DATA-02", lambda path: path.symlink_to("nowhere.json"))
case("device.json", "E-DATA-30", lambda path: path.symlink_to("/dev/zero"))
case("pipe.json", "E-DATA-30", lambda path: os.mkfifo(path))
case("folder_with_pipe", "E-DATA-30", lambda path: path.mkdir() or os.mkfifo(path / "a.json"))
case(
    "hidden_only",
    "E-DATA-07",
    lambda path: path.mkdir() or ((path / ".a.json").write_text(ARRAY) and None),
)
case("unknown.xlsx", "E-DATA-16", b"PK\x03\x04")
case("noending", "E-DATA-16", ARRAY)
case("two.endings.json.zip", "E-DATA-16", ARRAY)


def _damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return (
        data[:middle]
        + bytes(byte ^ 0xFF for byte in data[middle : middle + 8])
        + data[middle + 8 :]
    )


def parquet_bytes() -> bytes:
    """Two rows as Parquet."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.table({name: [text] * 2 for name, text in ROW.items()}), sink)
    return sink.getvalue().to_pybytes()


def arrow_bytes() -> bytes:
    """Two rows as an Arrow file."""
    import pyarrow as arrow

    table = arrow.table({name: [text] * 2 for name, text in ROW.items()})
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def go_through(place: str) -> dict[str, Any]:
    """What a run would make of one file."""
    from tunewright.core.config import DataConfig
    from tunewright.core.errors import DataError
    from tunewright.data import describe, inspect

    started = cpu_seconds()
    found: dict[str, Any] = {}
    try:
        report = inspect(
            DataConfig(train=place, held_out=0), None, None, 0, needs_tokens=False
        ).report
        describe(report)
        json.dumps(report, ensure_ascii=False).encode("utf-8")
        found["rows"] = report["rows_kept"]
    except DataError as error:
        found["codes"] = [p.code for p in error.problems]
        found["places"] = [p.where for p in error.problems]
        found["text"] = error.text()
        found["text"].encode("utf-8")
    except BaseException as error:
        found["traceback"] = repr(error)[:300]
    return found | {"seconds": cpu_seconds() - started}


def cpu_seconds() -> float:
    """Processor time of this process and its ended workers: on a machine that does other things as
    well, what a file costs."""
    return sum(os.times()[:4])


def peak_bytes() -> int:
    """The most memory this process has held."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(folder: str, *only: str) -> None:
    """All files, or some."""
    import pyarrow.parquet  # noqa: F401 - a library's own size is no growth

    go_through("nothing.json")
    results: dict[str, Any] = {}
    begun = peak_bytes()
    for name, (_, build) in CORPUS.items():
        if only and name not in only:
            continue
        path = Path(folder) / name
        build(path)
        results[name] = go_through(str(path))
    print(json.dumps({"files": results, "grown_bytes": peak_bytes() - begun}))


if __name__ == "__main__":
    main(*sys.argv[1:])
