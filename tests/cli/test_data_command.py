"""`data check` and `data show` as a person runs them: what is printed where, the files written, the
exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.families import tokenizer_of
from typer.testing import CliRunner

from tunewright.cli import app
from tunewright.core.words import set_language


@pytest.fixture(autouse=True)
def _english():
    set_language("en")
    yield
    set_language(None)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer and nothing else."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_of("chatml").save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "max_position_embeddings": 2048}), encoding="utf-8"
    )
    return str(folder)


def rows(count: int, **more: str) -> list[dict[str, str]]:
    return [
        {
            "instruction": f"What is number {i} of the list?",
            "output": f"It is the {'abcdefgh'[i % 8] * (i % 5 + 1)} with {i * 7}.",
            **more,
        }
        for i in range(count)
    ]


def put(path: Path, content: list[dict[str, str]] | str) -> str:
    path.write_text(
        content if isinstance(content, str) else "\n".join(map(json.dumps, content)) + "\n",
        encoding="utf-8",
    )
    return str(path)


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["data", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_check_prints_the_report_and_json_holds_the_promised_keys(
    tmp_path: Path, tokenizer: str
) -> None:
    file = put(tmp_path / "a.jsonl", [*rows(40), {"instruction": "x", "output": ""}])
    code, out, _ = run("check", file, "--tokenizer", tokenizer)
    assert code == 0 and "40 kept, 1 dropped" in out and "score " in out and "a.jsonl:41" in out
    assert "\x1b" not in out and out.count("have no question or no answer") == 1
    code, out, _ = run("check", file, "--tokenizer", tokenizer, "--json")
    told = json.loads(out)
    assert (
        code == 0
        and told["rows_kept"] == 40
        and told["rows_dropped"] == 1
        and told["reasons"]["empty_answer"]["count"] == 1
    )
    (empty,) = [f for f in told["findings"] if f["key"] == "empty"]
    assert (
        empty["places"] == [f"{file}:41"]
        and empty["what"]
        and empty["do"]
        and empty["severity"] == "warn"
    )
    assert (
        0 <= told["score"] <= 100
        and told["score_lowered_by"]["empty"] == 100 - told["score"]
        and told["stop"] is False
    )


def test_check_ends_with_2_at_a_stop_and_still_prints_everything(
    tmp_path: Path, tokenizer: str
) -> None:
    file = put(tmp_path / "c.jsonl", [{**row, "output": "No."} for row in rows(50)])
    code, out, _ = run("check", file, "--tokenizer", tokenizer)
    assert (
        code == 2
        and "50 kept" in out
        and "STOP the same answer in most rows" in out
        and "score" in out
    )
    code, out, _ = run("check", file, "--json")
    assert code == 2 and json.loads(out)["stop"] is True
    nothing = put(tmp_path / "n.jsonl", [{"instruction": "q", "output": ""}] * 5)
    code, out, _ = run("check", nothing, "--json")
    assert code == 2 and json.loads(out)["rows_kept"] == 0 and json.loads(out)["score"] == 0


def test_check_takes_the_words_of_a_run(tmp_path: Path, tokenizer: str) -> None:
    file = put(
        tmp_path / "q.jsonl", [{"q": row["instruction"], "a": row["output"]} for row in rows(30)]
    )
    held = put(
        tmp_path / "h.jsonl", [{"q": row["instruction"], "a": row["output"]} for row in rows(5)]
    )
    code, out, _ = run(
        "check",
        "q.jsonl",
        "--data-dir",
        str(tmp_path),
        "--columns",
        "instruction=q",
        "--columns",
        "output=a",
        "--held-out",
        held,
        "--json",
    )
    told = json.loads(out)
    assert code == 0 and told["train"] == 30 and told["held_out"] == 5
    assert {f["key"]: f["count"] for f in told["findings"]}["held_out_repeated"] == 5
    code, out, _ = run(
        "check",
        file,
        "--columns",
        "instruction=q",
        "--columns",
        "output=a",
        "--tokenizer",
        tokenizer,
        "--max-tokens",
        "30",
        "--oversize",
        "truncate",
        "--json",
    )
    assert json.loads(out)["tokens_total"] <= 30 * 30


def test_mistakes_on_the_command_line_end_with_2_and_one_message(
    tmp_path: Path, tokenizer: str
) -> None:
    file = put(tmp_path / "a.jsonl", rows(3))
    for words, code in (
        (["check", str(tmp_path / "none.jsonl")], "E-DATA-01"), (["check", file, "--model", "x/y", "--tokenizer", tokenizer], "E-DATA-55"),
        (["show", file, "--row", "4"], "E-DATA-53"), (["check", file, "--repair", file], "E-DATA-51"), (["check", str(tmp_path), "--repair", str(tmp_path / "o.json")], "E-DATA-52"),
    ):  # fmt: skip
        number, _, err = run(*words)
        assert number == 2 and code in err, words
    assert Path(file).read_text(encoding="utf-8").count("\n") == 3


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_of_a_check_has_its_picture_and_needs_nothing_else(
    tmp_path: Path, tokenizer: str
) -> None:
    file = put(
        tmp_path / "a.jsonl",
        [*rows(40), *rows(4), {"instruction": "<script>alert(1)</script>", "output": "no"}],
    )
    code, _, err = run(
        "check", file, "--tokenizer", tokenizer, "--html", str(tmp_path / "out.html")
    )
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    page = Page(text)
    assert code == 0 and "out.html written" in err
    names = [tag for tag, _ in page.tags]
    assert "svg" in names and "script" not in names and "repeated rows" in page.text
    assert not re.search(r'(?:src|href)="(?!#)', text) and "prefers-color-scheme: dark" in text
    (svg,) = [a for tag, a in page.tags if tag == "svg"]
    assert svg["role"] == "img" and svg["aria-label"]
    assert (
        sum(
            int(title.replace(",", ""))
            for title in re.findall(r"<title>[^<]*: ([\d,]+)</title>", text)
        )
        == 41
    )


def test_show_marks_what_is_learnt_in_the_terminal_in_json_and_on_a_page(
    tmp_path: Path, tokenizer: str
) -> None:
    file = put(
        tmp_path / "a.jsonl", [*rows(4), {"instruction": "什么是鑫？", "output": "三个金 <b>字"}]
    )
    code, out, _ = run(
        "show", file, "--row", "5", "--tokenizer", tokenizer, "--html", str(tmp_path / "s.html")
    )
    assert code == 0 and "[[三个金 <b>字<|im_end|>]]" in out and "\x1b" not in out
    page = Page((tmp_path / "s.html").read_text(encoding="utf-8"))
    learnt = [a for tag, a in page.tags if tag == "mark"]
    assert (
        learnt
        and all(a["title"] for a in learnt)
        and "三个金 <b>字<|im_end|>" in page.text
        and "b" not in [tag for tag, _ in page.tags]
    )
    code, out, _ = run("show", file, "--row", "5", "--tokenizer", tokenizer, "--json")
    tokens = json.loads(out)["branches"][0]["tokens"]
    assert "".join(t["text"] for t in tokens if t["learnt"]) == "三个金 <b>字<|im_end|>"
    assert sum(1 for _ in learnt) == sum(1 for t in tokens if t["learnt"] and t["text"])
    code, out, _ = run("show", file, "--random", "--json")
    assert code == 0 and 1 <= json.loads(out)["row"] <= 5


def test_repair_writes_a_copy_that_can_be_read_and_shows_the_difference(tmp_path: Path) -> None:
    text = "[ // pasted\n {'instruction': 'What?', 'output': 'cafÃ©',},\n {“instruction”: “Why?”, “output”: None},\n]\n"
    file, out_file = put(tmp_path / "a.json", text), tmp_path / "b.json"
    code, out, _ = run("check", file, "--repair", str(out_file))
    assert (
        code == 0
        and '+ {"instruction": "What?", "output": "café"},' in out
        and "- {'instruction'" in out
    )
    assert Path(file).read_text(encoding="utf-8") == text
    assert json.loads(out_file.read_text(encoding="utf-8")) == [
        {"instruction": "What?", "output": "café"},
        {"instruction": "Why?", "output": None},
    ]
    code, out, _ = run("check", str(out_file), "--repair", str(tmp_path / "c.json"), "--json")
    assert (
        code == 0
        and json.loads(out)
        == {"out": None, "changes": {}, "changed_lines": 0, "diff": [], "lost": []}
        and not (tmp_path / "c.json").exists()
    )
    unsure = put(tmp_path / "u.json", "[{'a': 'it's'}]")
    code, _, err = run("check", unsure, "--repair", str(tmp_path / "d.json"))
    assert (
        code == 2
        and "E-DATA-50" in err
        and "u.json, line 1, column 12" in err
        and not (tmp_path / "d.json").exists()
    )


def test_check_and_show_load_neither_torch_nor_transformers(tmp_path: Path, tokenizer: str) -> None:
    file = put(tmp_path / "a.jsonl", rows(25))
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('HEAVY', sorted({'torch', 'transformers', 'peft'} & set(sys.modules))))\n"
        f"sys.argv = ['tunewright', 'data', COMMAND, {file!r}, '--tokenizer', {tokenizer!r}]\n"
        "from tunewright.cli import main\nmain()\n"
    )
    for command in ("check", "show"):
        done = subprocess.run(
            [sys.executable, "-c", program.replace("COMMAND", repr(command))],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout[-300:]


@pytest.mark.parametrize("kind", ["run", "whole_run", "adapter"])
def test_a_run_folder_stands_for_the_tokenizer_template_and_system_prompt_it_was_trained_with(
    tmp_path: Path, tokenizer: str, kind: str
) -> None:
    from helpers.story import model_folder

    base = model_folder(tmp_path / "base")
    folder = tmp_path / "run"
    own = folder / {"run": "adapter", "whole_run": "model", "adapter": "."}[kind]
    own.mkdir(parents=True)
    tokenizer_of("llama3").save_pretrained(
        own
    )  # another template than the base's: what was trained with counts
    if kind == "whole_run":
        (own / "config.json").write_text((base / "config.json").read_text())
    else:
        (own / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    if kind != "adapter":
        (folder / "run.yaml").write_text(f"model: {base}  # given\ndata:\n  system: 'Be brief.'\n")
    file = put(tmp_path / "a.jsonl", rows(25))
    code, out, err = run("show", file, "--model", str(folder))
    assert code == 0, err
    assert "<|start_header_id|>user" in out and "<|im_start|>" not in out
    assert ("Be brief." in out) == (kind != "adapter")
    code, out, err = run("check", file, "--model", str(folder), "--held-out", "0", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["rows_kept"] == 25 and report["stop_learnt_share"] == 1.0
    # The same tokens as with the folder of the tokenizer, but for the run's system prompt.
    _, plain, _ = run("check", file, "--tokenizer", str(own), "--held-out", "0", "--json")
    assert (json.loads(plain)["tokens_total"] < report["tokens_total"]) == (kind != "adapter")
    assert json.loads(plain)["learnt_tokens"] == report["learnt_tokens"]


def test_a_run_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {}\n")
    code, _, err = run("show", put(tmp_path / "a.jsonl", rows(3)), "--model", str(tmp_path))
    assert code == 2 and "E-DATA-81" in err and str(tmp_path) in err
