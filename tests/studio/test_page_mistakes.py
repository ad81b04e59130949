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
CODE = re.compile(r"\bE-[A-Z]+-\d{2,3}\b|(?<=\s)empty(?=\s|$)")
"""Codes of errors, and of a finding in rows."""
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
    server = Served(root, "--max-upload", "1")
    try:
        yield server
    finally:
        server.stop()


def told(visit: Visit, found: Any, code: str = "E-", seconds: float = 60) -> str:
    """The text of what the page shows, once it names the code; else whatever it shows."""

    def texts() -> list[str]:
        return [str(one.inner_text()) for one in found.all()]

    for _ in range(int(seconds * 5)):
        if any(code in text for text in texts()):
            break
        visit.page.wait_for_timeout(200)
    shown = texts()
    return next((text for text in shown if code in text), " | ".join(shown) or visit.text())


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


def inspected(visit: Visit, name: str) -> Any:
    """What the page of a file says is wrong with it."""
    entry = next(one for one in visit.served.call("/api/data") if one["name"] == name)
    visit.go(f"data/{entry['id']}")
    return visit.page.locator("[data-testid=stops], [data-testid=inspect-problems]")


def planned(visit: Visit, model: str = "tiny-model", data: str = "good.json", **values: str) -> Any:
    """What the train page says of a choice."""
    visit.go("train")
    visit.click("clear")
    typed(visit, "pick-model", model)
    typed(visit, "pick-data", data)
    if values:
        visit.click("more")
        for key, value in values.items():
            name = key.replace("__", ".")
            visit.by("settings-search").fill(name)
            control = visit.by(f"field-{name}").first
            control.fill(value)
            control.blur()
    return visit.page.locator("[data-testid=plan-problems], [data-testid=start-problems]")


def typed(visit: Visit, picker: str, text: str) -> None:
    """Choose what the list has, else take the text as it is."""
    field = visit.by(f"{picker}-input")
    field.click()
    field.fill(text)
    known = visit.by(f"{picker}-option").filter(has_text=text).first
    known.or_(visit.by(f"{picker}-free").first).first.wait_for()
    visit.page.wait_for_timeout(150)
    (known if known.count() else visit.by(f"{picker}-free").first).click()


def pasted(visit: Visit, text: str) -> Any:
    visit.go("train")
    visit.click("paste-yaml")
    visit.by("paste-text").fill(text)
    visit.click("paste-take")
    return visit.by("paste-dialog").get_by_test_id("problem")


def uploaded(visit: Visit, name: str, content: bytes) -> Any:
    visit.go("data")
    chosen = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    visit.by("file").set_input_files(chosen)
    return visit.by("upload-problems")


def ended(visit: Visit, body: dict[str, Any], screen: str) -> Any:
    """What the screen of a job says when it ended with a problem."""
    job = visit.served.call("/api/jobs", body, **{"X-Language": language_of(visit)})
    visit.served.wait_for(job["id"], "failed", "done", seconds=120)
    visit.go(f"{screen}?job={job['id']}")
    return visit.by("problem")


def language_of(visit: Visit) -> str:
    return "zh" if visit.page.locator("html").get_attribute("lang") == "zh-CN" else "en"


def asked(visit: Visit, model: str) -> Any:
    """What a column says when its model cannot be opened."""
    targets = [{"id": model, "label": "a model", "kind": "base"}]
    visit.page.route("**/api/chat/targets", lambda route: route.fulfill(json=targets))
    visit.go("compare")
    visit.by("question").fill("what is it?")
    visit.click("ask")
    return visit.by("problem")


def exported(visit: Visit, way: str, **options: Any) -> Any:
    body = {"kind": "export", "way": way, "target": "tiny-model", "name": f"x-{way}"}
    return ended(visit, {**body, "options": options}, "export")


def advised(visit: Visit, field: str, value: str) -> Any:
    visit.go("advise")
    typed(visit, "advise-model", "tiny-model")
    typed(visit, "advise-data", "good.json")
    visit.by(field).fill(value)
    visit.click("advise-start")
    return visit.by("problem")


def not_a_run(visit: Visit) -> Any:
    visit.page.goto(f"{visit.served.address}/#/runs/0123456789abcdef")
    return visit.by("problem")


def meaning(visit: Visit, code: str) -> Any:
    """The list of codes itself: what a code means, and what to do."""
    visit.go(f"learn/{code}")
    return visit.by("learn-code")


MISTAKES: dict[str, tuple[str, Callable[[Visit], Any]]] = {
    "a line that is no JSON": ("E-DATA", lambda v: inspected(v, "bad-line.jsonl")),
    "columns that no format has": ("E-DATA", lambda v: inspected(v, "wrong-columns.jsonl")),
    "answers that are all empty": ("empty", lambda v: inspected(v, "empty-answers.jsonl")),
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
    "a diagnosis of what nobody trained": (
        "E-",
        lambda v: ended(v, {"kind": "doctor", "target": "good.json"}, "doctor"),
    ),
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
    "what a code means": ("E-STUDIO-15", lambda v: meaning(v, "E-STUDIO-15")),
}  # fmt: skip


@pytest.fixture(scope="module", params=["en", "zh"])
def visit(request: Any, chromium: Any, served: Served) -> Iterator[Visit]:
    """One person, who goes on after each mistake."""
    with visiting(chromium, served, language=request.param) as found:
        found.page.set_default_timeout(20_000)
        yield found


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_answered_with_code_cause_and_remedy(visit: Visit, name: str) -> None:
    code, make = MISTAKES[name]
    try:
        require_told(told(visit, make(visit), code), language_of(visit), code)
    finally:
        visit.page.unroute_all()
        visit.page.goto("about:blank")  # no dialog stays open
        visit.go("home")


def test_there_are_25_mistakes() -> None:
    assert len(MISTAKES) >= 25


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
            found = uploaded(visit, "rows.jsonl", b'{"text": "a"}\n' * 40_000)
            require_told(told(visit, found, "E-STUDIO-21"), language, "E-STUDIO-21")
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
            require_told(told(visit, visit.by("problem"), "E-STUDIO-15"), language, "E-STUDIO-15")
            for path in model.iterdir():
                path.unlink()
            model.rmdir()
            visit.go(f"runs/{job['run']}")
            visit.click("stop")
            served.wait_for(job["id"], "stopped", "failed", "done", seconds=120)
            visit.go(f"compare?run={job['run']}")
            visit.by("question").fill("what is it?")
            visit.click("ask")
            require_told(told(visit, visit.by("problem"), seconds=120), language)
    finally:
        served.stop()
