"""What the page is told of data: the command's own report, files that a run would refuse, repairs,
and a row token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import story
from typer.testing import CliRunner

from tunewright import cli
from tunewright.core.errors import TunewrightError
from tunewright.studio import looking
from tunewright.studio.lines import Request

ROWS = [
    {"instruction": f"What is {n} and {n}?", "input": "", "output": f"It is {2 * n}."}
    for n in range(12)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("model"))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def asked(call: Any, **args: Any) -> dict[str, Any]:
    given = {k: str(v) if isinstance(v, Path) else v for k, v in args.items()}
    found: dict[str, Any] = call(Request(1, "inspect", None, given, lambda said: None))
    json.dumps(found)
    return found


def test_the_report_is_that_of_the_command(tmp_path: Path, model: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [*ROWS, ROWS[0], {"instruction": "", "output": ""}])
    found = asked(looking.inspect, data=file, model=model)
    words = ["data", "check", str(file), "--model", str(model)]
    theirs = json.loads(CliRunner().invoke(cli.app, [*words, "--json"]).stdout)
    told = CliRunner().invoke(cli.app, words).stdout
    for report in (found["report"], theirs):
        del report["preparation"]
    assert found["report"] == theirs
    assert found["text"] == told.rstrip("\n")
    assert (found["rows"], found["kept"], found["dropped"]) == (14, 13, 1)
    assert found["format"] == "alpaca" == found["detected"][0]["format"]
    assert "instruction, output" in found["detected"][0]["why"]
    assert found["columns"] == ["instruction", "input", "output"]
    assert found["rows_head"][:12] == ROWS and found["repairs"] == []
    assert any(one.get("key") == "duplicates" for one in found["warnings"])


def test_a_file_that_a_run_refuses_is_shown_with_its_stops(tmp_path: Path, model: Path) -> None:
    unknown = write(tmp_path / "odd.jsonl", [{"frage": "Wer?", "nummer": n} for n in range(3)])
    found = asked(looking.inspect, data=unknown)
    assert found["report"] is None and found["format"] is None
    assert [one["code"] for one in found["stops"]] == ["E-DATA-08"]
    assert found["stops"][0]["do"] and found["columns"] == ["frage", "nummer"]
    assert found["rows_head"][2] == {"frage": "Wer?", "nummer": 2} and found["detected"] == []
    named = asked(looking.inspect, data=unknown, columns={"prompt": "frage", "completion": "nummer"}, format="prompt_completion")  # fmt: skip
    assert named["format"] == "prompt_completion" and named["kept"] == 3
    wrong = asked(looking.inspect, data=unknown, columns={"prompt": "nothing"})
    assert wrong["stops"] and "nothing" in wrong["stops"][0]["what"]
    # Rows that the objective cannot learn from stop it as well, beside the report.
    pairs = asked(looking.inspect, data=write(tmp_path / "rows.jsonl", ROWS), objective="dpo")
    assert [one["code"] for one in pairs["stops"]] == ["E-COMPAT-05"] and pairs["report"]
    swapped = [{"instruction": "Sure, here it is.", "output": ""}] * 5
    empty = asked(looking.inspect, data=write(tmp_path / "empty.jsonl", swapped), model=model)
    assert empty["stops"] and empty["kept"] == 0


def test_a_broken_line_is_named_and_what_can_be_mended_is_offered(tmp_path: Path) -> None:
    good = '{"instruction": "a", "output": "b"}\n'
    file = tmp_path / "broken.jsonl"
    file.write_text(good * 3 + "{'instruction': 'c', 'output': None,}\n" + good, "utf-8")
    found = asked(looking.inspect, data=file)
    assert len(found["rows_head"]) == 3 and found["stops"][0]["code"].startswith("E-DATA-")
    assert "line 4" in found["stops"][0]["where"]
    assert {one["key"] for one in found["repairs"]} == {"single_quotes", "constant", "trailing_comma"}  # fmt: skip
    assert all(one["text"] and one["count"] for one in found["repairs"])
    made = asked(looking.repair, data=file, out=tmp_path / "mended.jsonl")
    assert made["out"] == str(tmp_path / "mended.jsonl") and made["diff"]
    rows = [json.loads(line) for line in (tmp_path / "mended.jsonl").read_text().splitlines()]
    assert rows[3] == {"instruction": "c", "output": None}
    assert asked(looking.inspect, data=tmp_path / "mended.jsonl")["repairs"] == []
    with pytest.raises(TunewrightError) as caught:
        asked(looking.repair, data=file, out=tmp_path / "mended.jsonl")
    assert caught.value.problems[0].code == "E-DATA-51"
    unsure = tmp_path / "unsure.jsonl"
    unsure.write_text(good + '{"instruction": "a" "b", "output": "c"}\n', "utf-8")
    found = asked(looking.inspect, data=unsure)
    assert found["stops"] and found["repair_stops"] and found["repairs"] == []


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("none.jsonl", None, "E-DATA-01"), ("empty.jsonl", b"", "E-DATA-06"), ("x.exe", b"MZ", "E-DATA-16")],
)  # fmt: skip
def test_what_holds_no_rows_is_refused(
    tmp_path: Path, name: str, content: bytes | None, code: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TunewrightError) as caught:
        asked(looking.inspect, data=tmp_path / name)
    assert caught.value.problems[0].code == code


def test_long_and_odd_values_are_shown_short(tmp_path: Path) -> None:
    row = {"instruction": "x" * 5000, "output": "<script>alert(1)</script>", "n": 1.10, "deep": {"a": ["y" * 3000]}}  # fmt: skip
    found = asked(looking.inspect, data=write(tmp_path / "long.jsonl", [row] * 3))
    shown = found["rows_head"][0]
    assert len(shown["instruction"]) < 2100 and len(shown["deep"]["a"][0]) < 2100
    assert shown["output"] == row["output"]


def test_a_row_is_shown_as_the_model_reads_it(tmp_path: Path, model: Path) -> None:
    from transformers import AutoTokenizer

    rows = [{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"你好 {n}"}, {"role": "assistant", "content": f"Hi, {n}!"}]} for n in range(3)]  # fmt: skip
    file = write(tmp_path / "rows.jsonl", rows)
    found = asked(looking.preview, data=file, row=2, model=model)
    assert (found["row"], found["of"]) == (2, 3) and found["messages"] == rows[1]["messages"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    theirs = tokenizer.apply_chat_template(rows[1]["messages"], tokenize=False)
    text = "".join(one["text"] for one in found["tokens"])
    assert text == theirs.rstrip("\n") or text == theirs
    assert [one["id"] for one in found["tokens"]] == tokenizer(text, add_special_tokens=False)["input_ids"]  # fmt: skip
    for role, content in (("user", "你好 1"), ("assistant", "Hi, 1!"), ("system", "Be brief.")):
        of_role = "".join(one["text"] for one in found["tokens"] if one["role"] == role)
        assert content in of_role and len(of_role) < len(content) + 3
    learnt = "".join(one["text"] for one in found["tokens"] if one["learnt"])
    assert learnt == "Hi, 1!<|im_end|>"
    assert {one["text"] for one in found["tokens"] if one["special"]} == {"<|im_start|>", "<|im_end|>"}  # fmt: skip
    assert found["rendered_by"]


def test_pairs_have_two_ways_and_rows_without_a_model_their_texts(
    tmp_path: Path, model: Path
) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(3)]
    file = write(tmp_path / "pairs.jsonl", pairs)
    found = asked(looking.preview, data=file, row=1, model=model)
    learnt = ["".join(t["text"] for t in b["tokens"] if t["learnt"]) for b in found["branches"]]
    assert learnt == ["good 0<|im_end|>", "bad 0<|im_end|>"]
    bare = asked(looking.preview, data=file, row=1)
    assert bare["tokens"] == [] and bare["rendered_by"] is None and bare["messages"]
    assert asked(looking.preview, data=file, row=None)["row"] in (1, 2, 3)
    for row in (0, 4):
        with pytest.raises(TunewrightError) as caught:
            asked(looking.preview, data=file, row=row)
        assert caught.value.problems[0].code == "E-DATA-53"
