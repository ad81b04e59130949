"""Every screen, in both languages, both themes, wide and narrow: no serious fault for people with
another way of reading, nothing wider than the window, no key without its words; and a picture of
each in the folder of the test (or in STUDIO_SHOTS)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import results
from browsing import SCREENS, Visit, require_browser, unsaid_keys, visiting
from helpers.studio_world import Served, write_run

pytestmark = pytest.mark.browser

PLACES = {
    **{name: name for name in SCREENS},
    "run": "runs/{run}",
    "together": "runs?ids={run},{other}",
    "trash": "runs?tab=trash",
    "compare-run": "compare?run={run}",
    "learn-methods": "learn/lora",
    "learn-code": "learn/E-DATA-01",
    **{
        f"{name}-result": f"{'evaluate' if name == 'compare' else name}?job={job}"
        for name, job in results.IDS.items()
    },
}
"""Every address that looks different from the others."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A workspace with a few runs and rows."""
    require_browser()
    root = tmp_path_factory.mktemp("screens") / "harbour"
    write_run(root / "runs" / "harbour-facts")
    write_run(root / "runs" / "harbour-facts-2", 40, rank="16", method="dora", began="1790009000")
    write_run(root / "runs" / "stopped-early", 7, status="stopped", began="1790020000")
    write_run(root / "runs" / "no-memory", 3, status="failed", began="1790030000")
    lines = '{"instruction": "Who keeps the light?", "output": "Maren Stout keeps it."}\n'
    (root / "harbour.jsonl").write_text(lines * 12, encoding="utf-8")
    server = Served(root)
    try:
        yield server
    finally:
        server.stop()


def places(served: Served) -> dict[str, str]:
    heads = {head["name"]: head["id"] for head in served.call("/api/runs")}
    known = {"run": heads["harbour-facts"], "other": heads["harbour-facts-2"]}
    return {name: place.format(**known) for name, place in PLACES.items()}


def pretend(visit: Visit, name: str) -> None:
    """The results of jobs that nobody ran."""
    found = results.every("harbour-facts").get(name.removesuffix("-result"))
    visit.page.unroute_all()
    if found is None or not name.endswith("-result"):
        return
    kept = results.kept_answers("Maren Stout keeps it.")
    visit.page.route(f"**/api/jobs/{found['id']}", lambda route: route.fulfill(json=found))
    visit.page.route(f"**/api/jobs/{found['id']}/answers", lambda r: r.fulfill(json=kept))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 375])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_screen_fits_and_speaks(
    chromium: Any, served: Served, tmp_path: Path, language: str, width: int, theme: str
) -> None:
    shots = Path(os.environ.get("STUDIO_SHOTS") or tmp_path)
    shots.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    with visiting(chromium, served, language=language, width=width, theme=theme) as visit:
        for name, place in places(served).items():
            pretend(visit, name)
            visit.go(place)
            file = shots / f"{name}-{width}-{language}-{theme}.png"
            visit.page.screenshot(path=str(file), full_page=not name.startswith("learn"))
            assert file.stat().st_size > 8_000, name
            wide = visit.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            if wide > 0:
                wrong.append(f"{name}: {wide} px wider than the window")
            if name.startswith("learn"):
                continue  # it speaks of settings and of NaN
            text = visit.text()
            wrong += [f"{name}: {key}" for key in unsaid_keys(text)]
            wrong += [f"{name}: {word}" for word in ("undefined", "NaN", "[object") if word in text]
        assert (
            visit.page.locator("html").get_attribute("lang")
            == {"en": "en", "zh": "zh-CN"}[language]
        )
        visit.require_quiet()
    assert not wrong, wrong


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 1440), ("light", 375)])
def test_axe_finds_no_serious_fault(chromium: Any, served: Served, theme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    wrong: list[str] = []
    with visiting(chromium, served, theme=theme, width=width) as visit:
        for name, place in places(served).items():
            pretend(visit, name)
            visit.go(place)
            for fault in axe.run(visit.page).response["violations"]:
                if fault["impact"] in ("serious", "critical"):
                    where = [node["html"][:160] for node in fault["nodes"][:3]]
                    wrong.append(f"{name}: {fault['id']}: {where}")
    assert not wrong, "\n".join(wrong)


def test_the_language_changes_at_once_and_is_remembered(chromium: Any, served: Served) -> None:
    with visiting(chromium, served, language="en") as visit:
        visit.go("runs")
        assert visit.page.locator("h1").inner_text() == "Runs"
        visit.click("language-zh")
        visit.poll(lambda: visit.page.locator("h1").inner_text() == "训练记录")
        visit.page.reload()
        visit.by("screen-runs").wait_for()
        assert visit.page.locator("h1").inner_text() == "训练记录"


def test_the_theme_changes_at_once_and_is_remembered(chromium: Any, served: Served) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    with visiting(chromium, served, theme="light") as visit:
        light = visit.page.evaluate(paper)
        visit.click("theme-dark")
        visit.poll(lambda: visit.page.evaluate(paper) != light)
        visit.page.reload()
        visit.by("screen-home").wait_for()
        visit.poll(lambda: visit.page.evaluate(paper) != light)


def test_runs_are_searched_sorted_annotated_deleted_and_put_back(
    chromium: Any, served: Served
) -> None:
    with visiting(chromium, served) as visit:
        visit.go("runs")
        rows = visit.by("run-row")
        assert rows.count() == 4
        visit.by("runs-search").fill("dora")
        visit.poll(lambda: rows.count() == 1)
        visit.click("run-edit")
        visit.by("edit-tags").fill("harbour, 港口")
        visit.by("edit-note").fill("a note to find")
        visit.click("edit-save")
        visit.by("runs-search").fill("note to find")
        visit.poll(lambda: rows.count() == 1 and "港口" in rows.first.inner_text())
        visit.by("runs-search").fill("")
        visit.click("sort-name")
        first = visit.by("run-link").first.inner_text()
        visit.click("sort-name")
        assert visit.by("run-link").first.inner_text() != first
        name = visit.by("run-link").first.inner_text()
        visit.click("run-delete")
        visit.by("undo").wait_for()
        visit.poll(lambda: rows.count() == 3)
        visit.click("undo")
        visit.poll(lambda: rows.count() == 4)
        assert name in visit.text()
        visit.require_quiet()


def test_two_runs_together_show_their_differences_and_curves(chromium: Any, served: Served) -> None:
    with visiting(chromium, served) as visit:
        visit.go("runs")
        for name in ("harbour-facts", "harbour-facts-2"):
            visit.by("run-row").filter(has=visit.page.get_by_text(name, exact=True)).get_by_test_id(
                "run-select"
            ).check()
        visit.click("compare-selected")
        visit.by("overlay-chart").wait_for()
        rows = [row.inner_text() for row in visit.by("diff-row").all()]
        assert any("method.rank" in row and "8" in row and "16" in row for row in rows), rows
        drawn = visit.by("overlay-chart").evaluate("node => node.chartData")
        for run_id, points in drawn.items():
            told = served.call(f"/api/runs/{run_id}/series")["keys"]["loss"]
            assert points == told
        assert {len(points) for points in drawn.values()} == {20, 40}
        visit.page.reload()
        visit.by("overlay-chart").wait_for()
        visit.require_quiet()


def test_learn_finds_words_in_both_languages_and_codes(chromium: Any, served: Served) -> None:
    with visiting(chromium, served, language="zh") as visit:
        visit.go("learn")
        visit.by("learn-search").fill("fine-tuning")
        visit.poll(lambda: 0 < visit.by("learn-term").count() < 60)
        assert "微调" in visit.text()
        visit.go("learn/E-DATA-01")
        visit.by("learn-code").first.wait_for()
        assert "E-DATA-01" in visit.by("learn-code").first.inner_text()
