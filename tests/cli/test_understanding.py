"""What the command line does not understand, and its help pages, in the reader's language."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import typer
from helpers.story import process, tunewright

from tunewright.cli import COMMANDS, understanding
from tunewright.core.telling import width

CHINESE = re.compile("[\u4e00-\u9fff]")
OF_TYPER = re.compile(
    r"No such|Missing|Invalid|Usage|Options|Arguments|Commands|Show this|Error:|Try |default:"
    r"|required|env var|OPTIONS|Did you|Possible|unexpected|Input should|Aborted"
)
WRONG = [
    (["trian"], "E-RUN-22", "train"),
    (["data", "chek"], "E-RUN-22", "check"),
    (["nothing-like-it"], "E-RUN-22", "--help"),
    (["train", "--modle", "x"], "E-RUN-23", "--model"),
    (["advise", "-m", "x"], "E-RUN-23", "--model"),
    (["train", "--epochs", "3"], "E-RUN-23", "engine.epochs="),
    (["train", "--num-train-epochs=3"], "E-RUN-23", "engine.epochs="),
    (["export", "merge"], "E-RUN-24", "RUN"),
    (["list"], "E-RUN-24", "methods|objectives"),
    (["serve", "--port"], "E-RUN-24", "--port"),
    (["--"], "E-RUN-24", "--help"),
    (["serve", "runs/mine", "--port", "abc"], "E-RUN-25", "'abc'"),
    (["serve", "runs/mine", "--port", "99999"], "E-RUN-25", "65535"),
    (["train", "--json=3"], "E-RUN-25", "--json"),
    (["train", "——model", "x"], "E-RUN-28", "`--model`"),
    (["train", "run.yaml", "engine.epochs＝3"], "E-RUN-28", "`engine.epochs=3`"),
    (["export", "merge", "a", "b", "c d", "e"], "E-RUN-26", "c d e"),
]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(("words", "code", "named"), WRONG)
def test_what_is_not_understood_has_a_code_and_a_remedy(
    words: list[str], code: str, named: str, language: str
) -> None:
    done = tunewright(*words, TUNEWRIGHT_LANG=language)
    assert (done.returncode, done.stdout) == (2, "")
    assert code in done.stderr and named in done.stderr
    if language == "zh":
        assert OF_TYPER.search(done.stderr) is None
        assert CHINESE.search(done.stderr)
    else:
        assert CHINESE.search(done.stderr) is None


def test_a_refusal_nobody_foresaw_keeps_typers_words() -> None:
    found = understanding._problem(typer.BadParameter("the moon is full"))
    assert (found.code, found.fields["usage"]) == ("E-RUN-27", "tunewright")
    assert "the moon is full" in found.what()


def test_a_question_may_hold_any_sign() -> None:
    done = tunewright("chat", "no-such-run", "-q", "——什么是＝号？")
    assert "E-RUN-28" not in done.stderr


def test_machines_get_the_refusal_as_json() -> None:
    done = tunewright("train", "--json", "--modle", "x")
    (problem,) = json.loads(done.stdout)["problems"]
    assert (done.returncode, problem["code"]) == (2, "E-RUN-23")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Every help page in Chinese, from one process: the texts are read when it starts."""
    names = [[], *([name] for name in COMMANDS), ["export"], ["data"], ["export", "gguf"]]
    code = (
        "import contextlib, io, json\n"
        "from tunewright.cli import app\n"
        "pages = {}\n"
        f"for words in {names!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "        with contextlib.suppress(SystemExit):\n"
        "            app([*words, '--help'], prog_name='tunewright')\n"
        "    pages[' '.join(words)] = said.getvalue()\n"
        "print(json.dumps(pages))\n"
    )
    env = {"TUNEWRIGHT_LANG": "zh", "COLUMNS": "80", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_help_pages_are_in_chinese_throughout(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        assert page.startswith(f"用法：tunewright {name}".rstrip()), name
        assert OF_TYPER.search(page) is None, (name, OF_TYPER.search(page))
        assert "显示这一页。" in page, name
        assert "<str>" not in page and "..." not in page.partition("命令：")[2], name


def test_help_pages_fit_the_terminal_and_no_line_begins_with_a_comma(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        for line in page.splitlines():
            # A usage line may hold a word that is longer than the terminal is wide.
            assert width(line) <= 80 or len(line.split()) == 1, (name, line)
            assert re.match(r"\s*[，。；：、）》」]", line) is None, (name, line)


def test_the_defaults_that_typer_adds_are_said() -> None:
    told = understanding._explained
    assert told("The port.  [default: 8080; 0<=x<=9]") == "The port.  [default: 8080; 0<=x<=9]"
    assert told("The key.  [env var: KEY; required]") == (
        "The key.  [environment variable: KEY; required]"
    )
    assert told("Columns [instruction]") == "Columns [instruction]"


@pytest.mark.parametrize("columns", [20, 40])
def test_nothing_is_lost_where_a_text_is_folded(columns: int) -> None:
    text = "训练之前，先看看（数据）：`check` 不需要 GPU，也不加载 torch；丢弃的行会说明原因。"
    lines = understanding.fold(text, columns)
    assert all(width(line) <= columns + 2 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_no_words_show_the_help_and_end_with_2() -> None:
    done = process(TUNEWRIGHT_LANG="zh")
    assert done.returncode == 2 and "用法：" in done.stderr and "E-RUN" not in done.stderr


def test_an_abort_is_said_in_the_readers_language(monkeypatch: Any) -> None:
    app = understanding.App()

    @app.command("stop")
    def stop() -> None:
        raise typer.Abort

    @app.command("other")
    def other() -> None:
        """Beside it, so that `app` is a group."""

    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["stop"], env={"TUNEWRIGHT_LANG": "zh"})
    assert (done.exit_code, done.stderr.strip()) == (1, "已停止。")
