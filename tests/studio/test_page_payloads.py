"""What rows, names and answers hold is text on the page: no script of theirs runs, and nothing that
they name is fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import results
from browsing import Visit, require_browser, visiting
from helpers.studio_world import Served, write_run

pytestmark = pytest.mark.browser

NASTY = (
    "<img src=x onerror=window.__hit=1>",
    "<script>window.__hit=2</script>",
    "<svg onload=window.__hit=3></svg>",
    "![x](http://evil.example/a.png)",
    "<img src=http://evil.example/b.png>",
    "[press](javascript:window.__hit=4)",
    '"><iframe srcdoc="<script>parent.__hit=5</script>"></iframe>',
    "{{constructor.constructor('window.__hit=6')()}}",
    "<style>@import url(http://evil.example/c.css); * {color: red}</style>",
    "<a href='data:text/html,<script>1</script>'>x</a>",
    "<form action=http://evil.example><button>go</button></form>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=window.__hit=7>",
    "<details open ontoggle=window.__hit=8><summary>s</summary></details>",
)
TEXT = "\n\n".join(NASTY)
NAME = NASTY[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A workspace in which everything that can be named or written holds payloads."""
    require_browser()
    root = tmp_path_factory.mktemp("payloads") / "ws"
    run = write_run(root / "runs" / NAME)
    rows = [{"instruction": text, "output": text} for text in (*NASTY, TEXT)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (root / f"{NAME}.jsonl").write_text(lines, encoding="utf-8")
    asked = {"question": TEXT, "expected": TEXT, "kind": "probe", "before": TEXT, "after": TEXT}
    (run / "before_after.jsonl").write_text(json.dumps(asked) + "\n", encoding="utf-8")
    model = root / NAME.replace("1", "9")
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": TEXT, "architectures": [TEXT]}))
    with open(run / "events.jsonl", "a", encoding="utf-8") as events:
        for kind in ("samples", "warning", TEXT):
            said = {"event": kind, "time": 1.0, "step": 3, "text": TEXT, "message": TEXT}
            said["samples"] = [{"question": TEXT, "answer": TEXT}]
            events.write(json.dumps(said) + "\n")
    server = Served(root)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def visit(chromium: Any, served: Served) -> Iterator[Visit]:
    with visiting(chromium, served) as found:
        yield found


def require_harmless(visit: Visit) -> None:
    """Nothing ran, nothing was fetched, and no element came out of the text."""
    assert visit.page.evaluate("window.__hit") is None
    made = "main :is(img, iframe, object, embed, script, style, form[action], base, math)"
    assert visit.page.locator(made).count() == 0
    for link in visit.page.locator("main a").all():
        address = (link.get_attribute("href") or "").lower()
        assert not address.startswith(("javascript:", "data:", "vbscript:")), address
    visit.require_quiet()


def run_of(served: Served) -> dict[str, Any]:
    heads: list[dict[str, Any]] = served.call("/api/runs")
    return heads[0]


def test_names_of_runs_data_and_models_are_text(visit: Visit, served: Served) -> None:
    run = run_of(served)
    change = {"name": TEXT[:100], "note": TEXT, "tags": [NAME, NASTY[4]]}
    body = json.dumps(change)
    reply = visit.page.request.patch(
        f"{served.address}/api/runs/{run['id']}",
        data=body,
        headers={"Content-Type": "application/json", "Origin": served.address},
    )
    assert reply.ok, reply.text()
    for place in (
        "runs",
        "home",
        "data",
        "train",
        "evaluate",
        "doctor",
        "advise",
        "export",
        "queue",
    ):
        visit.go(place)
        require_harmless(visit)
    visit.go("runs")
    assert "<img src=x onerror" in visit.text()
    visit.click("run-edit")
    assert visit.by("edit-note").input_value() == TEXT
    require_harmless(visit)


def test_a_run_shows_payloads_as_text(visit: Visit, served: Served) -> None:
    visit.go(f"runs/{run_of(served)['id']}")
    for tab in visit.page.get_by_role("tab").all():
        tab.click()
        visit.settle()
        require_harmless(visit)
    assert "onerror" in visit.text()


def test_rows_are_shown_as_text(visit: Visit, served: Served) -> None:
    entry = next(one for one in served.call("/api/data") if one["kind"] == "workspace")
    visit.go(f"data/{quote(entry['id'])}")
    # The first look at rows may fetch the model whose tokens are shown.
    visit.poll(lambda: "onerror" in visit.text(), 240)
    visit.settle()
    require_harmless(visit)


def test_answers_are_markdown_without_anything_that_loads(visit: Visit, served: Served) -> None:
    said = [
        ("loading", {"column": 0, "text": TEXT}),
        ("thought", {"column": 0, "text": TEXT}),
        ("piece", {"column": 0, "text": "**strong** and `code`\n\n"}),
        *[("piece", {"column": 0, "text": f"{one}\n\n"}) for one in NASTY],
        ("end", {"column": 0, "end": "stop", "tokens": 9, "seconds": 1.0}),
        ("problem", {"column": 1, "problems": [{"code": "E-X-1", "what": TEXT, "do": TEXT}]}),
        ("done", {}),
    ]
    stream = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in said)
    visit.page.route(
        "**/api/chat", lambda route: route.fulfill(content_type="text/event-stream", body=stream)
    )
    visit.page.route(
        "**/api/chat/targets",
        lambda route: route.fulfill(
            json=[
                {"id": "a", "label": TEXT, "kind": "base"},
                {"id": "b", "label": "b", "kind": "base"},
            ]
        ),
    )
    visit.go("compare")
    visit.click("add-column")
    visit.by("question").fill(TEXT)
    visit.click("ask")
    visit.by("answer-text").first.wait_for()
    visit.by("thoughts").first.locator("summary").click()
    assert visit.by("answer-text").first.locator("strong").inner_text() == "strong"
    assert "what" not in visit.problem().lower() or TEXT[:20] in visit.problem()
    require_harmless(visit)
    # What is kept in the browser comes back as text, too.
    visit.page.wait_for_timeout(600)
    visit.page.reload()
    visit.by("answer-text").first.wait_for()
    require_harmless(visit)


@pytest.mark.parametrize("name", ["evaluate", "compare", "advise", "doctor", "export"])
def test_results_are_text(visit: Visit, name: str) -> None:
    job = results.every(TEXT)[name]
    visit.page.route(f"**/api/jobs/{job['id']}", lambda route: route.fulfill(json=job))
    kept = results.kept_answers(TEXT)
    visit.page.route(f"**/api/jobs/{job['id']}/answers", lambda r: r.fulfill(json=kept))
    screen = "evaluate" if name == "compare" else name
    visit.go(f"{screen}?job={job['id']}")
    visit.poll(lambda: "onerror" in visit.text())
    require_harmless(visit)


def test_the_address_itself_is_text(visit: Visit) -> None:
    for place in ("learn/", "runs/", "nowhere-", "data/"):
        visit.page.goto(f"{visit.served.address}/#/{place}{quote(TEXT[:300])}")
        visit.page.wait_for_timeout(400)
        visit.settle()
        assert visit.page.evaluate("window.__hit") is None
    visit.page.goto(f"{visit.served.address}/#/runs?ids={quote(NAME)}&search={quote(NAME)}")
    visit.settle()
    assert visit.page.evaluate("window.__hit") is None
    assert visit.page.locator("main :is(img, iframe, script)").count() == 0
