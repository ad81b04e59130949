"""What people do wrong, done through the page in both languages: each mistake is answered with its
code, what happened and what to do, and never with a traceback or a bare "Failed"."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit, require_browser, visiting
from helpers.story import model_folder, rows_file
from helpers.studio_world import Served, write_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CODE = re.compile(r"\bE-[A-Z]+-\d{2,3}\b")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452") + bytes(range(256)) * 40


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES: dict[str, str | bytes] = {
    "bad-line.jsonl": jsonl([{"instruction": "a?", "output": "b"}] * 3)
    + '{"instruction": "c?", \n',
    "wrong-columns.jsonl": jsonl([{"foo": f"one {i}", "bar": "two"} for i in range(8)]),
    "empty-answers.jsonl": jsonl([{"instruction": f"q {i}?", "output": ""} for i in range(8)]),
    "no-rows.jsonl": "",
    "picture.jsonl": PNG,
    "long.jsonl": jsonl([{"instruction": "q?", "output": "word " * 900} for _ in range(8)]),
    "texts.jsonl": jsonl([{"text": f"A line of plain text, number {i}."} for i in range(8)]),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A workspace with a tiny model, good rows, bad rows, and a run that is broken."""
    require_browser()
    root = tmp_path_factory.mktemp("mistakes") / "ws"
    model_folder(root / "tiny-model")
    rows_file(root / "good.json")
    for name, content in FILES.items():
        data = content if isinstance(content, bytes) else content.encode()
        (root / name).write_bytes(data)
    write_run(root / "runs" / "ended")
    broken = write_run(root / "runs" / "broken", model="tiny-model")
    (broken / "run.yaml").write_text("model: [\n")
    (broken / "adapter").mkdir()
    server = Served(root, "--max-upload", "1")
    try:
        yield server
    finally:
        server.stop()


def require_told(text: str, language: str, code: str = "E-") -> None:
    """A problem as a person can use it."""
    assert CODE.search(text), text
    assert code in text, text
    assert "Traceback" not in text, text
    assert not re.search(r"\bFailed\b", text), text
    words = CODE.sub("", text)
    assert bool(CHINESE.search(words)) == (language == "zh"), text
    # The code, what happened, and what to do.
    assert len(words.split()) > 8 or language == "zh", text


def inspected(visit: Visit, name: str) -> str:
    """What the page of a file says is wrong with it."""
    entry = next(one for one in visit.served.call("/api/data") if one["name"] == name)
    visit.go(f"data/{entry['id']}")
    found = visit.page.locator("[data-testid=stops], [data-testid=inspect-problems]")
    found.first.wait_for(timeout=90_000)
    return str(found.first.inner_text())


def planned(visit: Visit, model: str = "tiny-model", data: str = "good.json", **values: str) -> str:
    """What the train page says of a choice."""
    visit.go("train")
    visit.click("clear")
    typed(visit, "pick-model", model)
    typed(visit, "pick-data", data)
    if values:
        visit.click("more")
        for key, value in values.items():
            name = f"field-{key.replace('__', '.')}"
            visit.by("settings-search").fill(key.rpartition("__")[2].replace("_", " "))
            control = visit.page.locator(f"[data-testid='{name}'] :is(input, select)").first
            control.wait_for()
            control.fill(value)
            control.blur()
    found = visit.page.locator("[data-testid=plan-problems], [data-testid=start-problems]")
    found.first.wait_for(timeout=90_000)
    return str(found.first.inner_text())


def typed(visit: Visit, picker: str, text: str) -> None:
    """Choose what the list has, else take the text as it is."""
    field = visit.by(f"{picker}-input")
    field.click()
    field.fill(text)
    visit.page.wait_for_timeout(150)
    name = "option" if visit.by(f"{picker}-option").count() else "free"
    visit.by(f"{picker}-{name}").first.click()


def pasted(visit: Visit, text: str) -> str:
    visit.go("train")
    visit.click("paste-yaml")
    visit.by("paste-text").fill(text)
    visit.click("paste-take")
    return visit.problem()


def uploaded(visit: Visit, name: str, content: bytes) -> str:
    visit.go("data")
    chosen = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    visit.by("file").set_input_files(chosen)
    visit.by("upload-problems").wait_for(timeout=60_000)
    return str(visit.by("upload-problems").inner_text())


def ended(visit: Visit, body: dict[str, Any], screen: str) -> str:
    """What the screen of a job says when it ended with a problem."""
    job = visit.served.call("/api/jobs", body, **{"X-Language": language_of(visit)})
    visit.served.wait_for(job["id"], "failed", seconds=240)
    visit.go(f"{screen}?job={job['id']}")
    return visit.problem()


def language_of(visit: Visit) -> str:
    return "zh" if visit.page.locator("html").get_attribute("lang") == "zh-CN" else "en"


def run_id(visit: Visit, name: str) -> str:
    heads = visit.served.call("/api/runs")
    return str(next(head["id"] for head in heads if head["name"] == name))


def asked(visit: Visit, model: str) -> str:
    """What a column says when its model cannot be opened."""
    targets = [{"id": model, "label": "a model", "kind": "base"}]
    visit.page.route("**/api/chat/targets", lambda route: route.fulfill(json=targets))
    visit.go("compare")
    visit.by("question").fill("what is it?")
    visit.click("ask")
    text = visit.problem(seconds=120)
    visit.page.unroute_all()
    return text


def exported(visit: Visit, way: str, **options: Any) -> str:
    body = {"kind": "export", "way": way, "target": "tiny-model", "name": f"x-{way}"}
    return ended(visit, {**body, "options": options}, "export")


def advised(visit: Visit, field: str, value: str) -> str:
    visit.go("advise")
    typed(visit, "advise-model", "tiny-model")
    typed(visit, "advise-data", "good.json")
    visit.by(field).fill(value)
    visit.click("advise-start")
    return visit.problem()


def doctored(visit: Visit) -> str:
    return ended(visit, {"kind": "doctor", "target": run_id(visit, "broken")}, "doctor")


def not_a_run(visit: Visit) -> str:
    visit.page.goto(f"{visit.served.address}/#/runs/0123456789abcdef")
    return visit.problem()


def unknown_code(visit: Visit) -> str:
    """The list of codes itself: what a code means, and what to do."""
    visit.go("learn/E-STUDIO-15")
    visit.by("learn-code").first.wait_for()
    return str(visit.by("learn-code").first.inner_text())


MISTAKES: dict[str, tuple[str, Callable[[Visit], str]]] = {
    "a line that is no JSON": ("E-DATA", lambda v: inspected(v, "bad-line.jsonl")),
    "columns that no format has": ("E-DATA", lambda v: inspected(v, "wrong-columns.jsonl")),
    "answers that are all empty": ("E-DATA", lambda v: inspected(v, "empty-answers.jsonl")),
    "a file without rows": ("E-DATA", lambda v: inspected(v, "no-rows.jsonl")),
    "a picture with the name of rows": ("E-DATA", lambda v: inspected(v, "picture.jsonl")),
    "an unknown model": ("E-MODEL", lambda v: planned(v, model="nobody/no-such-model")),
    "a model folder outside": ("E-STUDIO-11", lambda v: planned(v, model="/etc/passwd")),
    "a learning rate of 10": ("E-", lambda v: planned(v, engine__learning_rate="10")),
    "a batch of no rows": ("E-CONFIG", lambda v: planned(v, engine__batch_size="0")),
    "a rank below one": ("E-CONFIG", lambda v: planned(v, method__rank="-3")),
    "data outside": ("E-STUDIO-11", lambda v: planned(v, data="../../etc/passwd")),
    "rows that are all too long": (
        "E-DATA",
        lambda v: planned(v, data="long.jsonl", data__max_tokens="16"),
    ),
    "an unknown key in pasted YAML": ("E-CONFIG", lambda v: pasted(v, "modle: tiny-model\n")),
    "pasted YAML that is none": ("E-CONFIG", lambda v: pasted(v, "model: [tiny\n  x: : y")),
    "pasted code of one's own": (
        "E-STUDIO-14",
        lambda v: pasted(v, "model: m\nobjective: {kind: grpo, reward: [python]}\n"),
    ),
    "an upload that is too large": (
        "E-STUDIO-07",
        lambda v: uploaded(v, "big.jsonl", b'{"text": "a"}\n' * 100_000),
    ),
    "an archive": ("E-STUDIO-24", lambda v: uploaded(v, "rows.zip", b"PK\x03\x04" + b"0" * 400)),
    "documents outside": ("E-STUDIO-11", lambda v: advised(v, "advise-docs", "../../../etc")),
    "documents that are not there": ("E-STUDIO-12", lambda v: advised(v, "advise-docs", "nowhere/")),
    "a model that vanished": ("E-", lambda v: asked(v, "tiny-model-that-was-moved")),
    "a run that is not there": ("E-STUDIO-12", not_a_run),
    "a run whose settings are damaged": ("E-", doctored),
    "rows without answers": (
        "E-EVAL",
        lambda v: ended(
            v,
            {"kind": "compare", "targets": ["tiny-model", "tiny-model"], "data": "texts.jsonl"},
            "evaluate",
        ),
    ),
    "a size that is no size": ("E-", lambda v: exported(v, "shrink", to="small")),
    "a number type that is none": ("E-EXPORT", lambda v: exported(v, "quantize", type="int3")),
    "options with an unknown metric": (
        "E-EVAL",
        lambda v: ended(
            v,
            {"kind": "evaluate", "target": "tiny-model", "data": "good.json", "metrics": "magic",
             "generate": True},
            "evaluate",
        ),
    ),
    "what a code means": ("E-STUDIO-15", unknown_code),
}  # fmt: skip


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_mistake_is_answered_with_code_cause_and_remedy(
    chromium: Any, served: Served, language: str
) -> None:
    wrong: dict[str, str] = {}
    with visiting(chromium, served, language=language) as visit:
        for name, (code, make) in MISTAKES.items():
            try:
                require_told(make(visit), language, code)
            except Exception as error:  # every one is made, and all that go wrong are told
                wrong[name] = f"{type(error).__name__}: {error}"[:900]
                visit.page.unroute_all()
        assert "Traceback" not in visit.text()
    assert len(MISTAKES) >= 25
    assert not wrong, json.dumps(wrong, indent=1, ensure_ascii=False)


def test_two_columns_of_one_model_are_pointed_out(chromium: Any, served: Served) -> None:
    with visiting(chromium, served) as visit:
        visit.go("compare")
        if visit.by("target-1").count() == 0:
            visit.click("add-column")
        first = visit.by("target-0").input_value()
        visit.by("target-1").select_option(first)
        visit.by("twice").wait_for()
        visit.require_quiet()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_taken_port_is_told_before_the_page_opens(
    served: Served, tmp_path: Path, language: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tunewright", "studio", "--no-browser", "--root", str(tmp_path),
         "--port", str(served.port)],
        capture_output=True, text=True, timeout=90, check=False,
        env={**os.environ, "TUNEWRIGHT_LANG": language},
    )  # fmt: skip
    assert done.returncode == 2
    require_told(done.stderr, language, "E-STUDIO-02")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_wrong_token_is_told_in_both_languages(
    chromium: Any, served: Served, language: str
) -> None:
    context = chromium.new_context()
    page = context.new_page()
    reply = page.goto(f"{served.address}/?token=wrong")
    assert reply is not None and reply.status == 401
    text = page.locator("body").inner_text()
    assert "token" in text and CHINESE.search(text) and ".studio/token" in text
    context.close()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_full_disk_is_told(
    chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    """The stand-in of a full disk: every program of the server sees 4,096 free bytes."""
    require_browser()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import shutil\n"
        "from collections import namedtuple\n"
        "usage = namedtuple('usage', 'total used free')\n"
        "shutil.disk_usage = lambda path: usage(10**9, 10**9 - 4096, 4096)\n"
    )
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    )
    served = Served(tmp_path / "ws")
    try:
        with visiting(chromium, served, language=language) as visit:
            text = uploaded(visit, "rows.jsonl", b'{"text": "a"}\n' * 40_000)
            require_told(text, language, "E-STUDIO-21")
    finally:
        served.stop()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_a_running_run_does_not_allow(chromium: Any, tmp_path: Path, language: str) -> None:
    """Deleted while it runs; its model deleted under it, then asked."""
    require_browser()
    root = tmp_path / "ws"
    model = model_folder(root / "tiny-model")
    rows_file(root / "good.json")
    served = Served(root)
    config = {
        "model": "tiny-model", "data.train": "good.json", "engine.steps": 4000,
        "engine.threads": 1, "engine.dtype": "float32", "forgetting": "off",
    }  # fmt: skip
    try:
        job = served.call("/api/jobs", {"kind": "train", "config": config, "name": "long"})
        events = root / "runs" / "long" / "events.jsonl"
        with visiting(chromium, served, language=language) as visit:
            visit.poll(lambda: events.is_file() and events.read_text().count('"step"') > 5, 120)
            visit.go("runs")
            visit.click("run-delete")
            require_told(visit.problem(), language, "E-STUDIO-15")
            for path in model.iterdir():
                path.unlink()
            model.rmdir()
            visit.go(f"runs/{job['run']}")
            visit.click("stop")
            served.wait_for(job["id"], "stopped", "failed", "done", seconds=120)
            visit.go(f"compare?run={job['run']}")
            visit.by("question").fill("what is it?")
            visit.click("ask")
            require_told(visit.problem(seconds=120), language)
    finally:
        served.stop()
