"""The road that the page is for: from nothing to a tuned model that answers beside its base, by
keyboard alone, and through reloads, a second tab and a killed server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import CUT_OFF, Visit, require_browser, tab, visiting
from helpers.story import model_folder, rows_file
from helpers.studio_world import Served

pytestmark = pytest.mark.browser
REFUSED = "ERR_CONNECTION_REFUSED"
"""What the console says while the server is gone; the page tries again."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A workspace with a tiny model and a few rows."""
    require_browser()
    root = tmp_path / "ws"
    model_folder(root / "tiny-model")
    rows_file(root / "capitals.json")
    server = Served(root)
    try:
        yield server
    finally:
        server.stop()


def tab_to(visit: Visit, name: str, key: str = "Tab", most: int = 250) -> None:
    """Press Tab until the focus is on (or inside) an element."""
    on = f"""document.activeElement.closest('[data-testid="{name}"]') !== null"""
    for _ in range(most):
        if visit.page.evaluate(on):
            return
        visit.page.keyboard.press(key)
    raise AssertionError(f"{name} is not reached by {key}")


def choose_by_keys(visit: Visit, picker: str, text: str) -> None:
    tab_to(visit, f"{picker}-input")
    visit.page.keyboard.type(text)
    visit.by(f"{picker}-option").first.wait_for()
    visit.page.keyboard.press("Enter")
    visit.poll(lambda: visit.by(f"{picker}-option").count() == 0)


@pytest.mark.slow
def test_the_whole_road_by_keyboard_alone(chromium: Any, served: Served) -> None:
    with visiting(chromium, served) as visit:
        keys = visit.page.keyboard
        tab_to(visit, "nav-train")
        keys.press("Enter")
        visit.by("screen-train").wait_for()
        visit.settle()
        choose_by_keys(visit, "pick-model", "tiny-model")
        choose_by_keys(visit, "pick-data", "capitals")
        tab_to(visit, "more")
        keys.press("Enter")
        visit.by("settings-search").wait_for()
        tab_to(visit, "settings-search")
        keys.type("engine.steps")
        visit.by("field-engine.steps").wait_for()
        tab_to(visit, "field-engine.steps")
        keys.press("Control+A")
        keys.type("3")
        tab_to(visit, "run-name")
        keys.type("by keys")
        visit.poll(lambda: visit.by("start").is_enabled())
        tab_to(visit, "start")
        keys.press("Enter")
        visit.by("screen-run").wait_for()
        visit.by("ask-both").wait_for(timeout=240_000)
        tab_to(visit, "ask-both")
        keys.press("Enter")
        visit.by("screen-compare").wait_for()
        visit.settle()
        tab_to(visit, "question")
        keys.press("Control+A")
        keys.type("what is it?")
        keys.press("Enter")
        visit.poll(lambda: visit.by("regenerate").count() == 2, 240)
        tab_to(visit, "edit-question-button", "Shift+Tab")
        keys.press("Enter")
        tab_to(visit, "edit-question")
        keys.press("Control+A")
        keys.type("how quickly?")
        tab_to(visit, "save-question")
        keys.press("Enter")
        visit.poll(
            lambda: visit.by("branch").count() == 1 and "2" in visit.by("branch").inner_text()
        )
        visit.poll(lambda: visit.by("chat-stop").count() == 0, 240)
        assert "how quickly?" in visit.by("asked").inner_text()
        tab_to(visit, "branch-earlier", "Shift+Tab")
        keys.press("Enter")
        assert "what is it?" in visit.by("asked").inner_text()
        visit.require_quiet()


def events_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "events.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def written_points(folder: Path, key: str) -> list[list[float]]:
    return [
        [one["step"], one[key]]
        for one in events_of(folder)
        if one["event"] == ("evaluation" if key == "held_out_loss" else "step")
        and one.get(key) is not None
    ]


def drawn(visit: Visit) -> dict[str, list[list[float]]]:
    """Every curve of the page, by its key."""
    found: dict[str, list[list[float]]] = {}
    for chart in visit.page.locator("figure[data-testid^=chart-]").all():
        found |= chart.evaluate("node => node.chartData")
    return found


def require_same_curves(visit: Visit, folder: Path) -> None:
    curves = drawn(visit)
    for key in ("loss", "held_out_loss", "learning_rate", "gradient_norm", "tokens_per_second"):
        # Where nothing is held out there is no such curve.
        assert curves.get(key, []) == written_points(folder, key), key
    assert curves["loss"]


def kept_answers(visit: Visit) -> list[str]:
    """What the two columns said, as the page keeps it."""
    visit.page.wait_for_timeout(700)
    kept = json.loads(visit.page.evaluate("localStorage.getItem('tunewright.compare')"))
    turn = kept["conversation"]["root"]["next"][0]
    return [turn["answers"][column["id"]]["list"][0]["content"] for column in kept["columns"]]


def fresh_answer(folder: Path, question: str, most: int) -> str:
    """What the base says with Transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        tokens = model.generate(
            **prompt, max_new_tokens=most, do_sample=False, top_p=None, temperature=None, top_k=None
        )
    made: str = tokenizer.decode(
        tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return made


def until(is_true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("language", ["en", "zh"])
def test_from_a_fresh_start_to_a_tuned_answer_in_six_clicks(
    chromium: Any, tmp_path: Path, language: str, record_property: Callable[[str, object], None]
) -> None:
    require_browser()
    served = Served(tmp_path / "ws")
    began = time.monotonic()
    try:
        with visiting(chromium, served, language=language) as visit:
            visit.click("recipe-facts")
            visit.by("screen-train").wait_for()
            visit.poll(lambda: visit.by("start").is_enabled(), 120)
            visit.click("start")
            visit.by("screen-run").wait_for()
            place = visit.page.url.partition("#/")[2]
            folder = served.root / "runs"
            until(lambda: any(folder.glob("*/events.jsonl")), 120)
            events = next(folder.glob("*/events.jsonl"))
            until(lambda: events.read_text().count('"step"') > 3, 240)

            visit.page.reload()
            visit.by("screen-run").wait_for()
            other = tab(visit, place)
            served.kill()
            steps = events.read_text().count('"event": "step"')
            until(lambda: events.read_text().count('"event": "step"') > steps, 120)
            served = Served(served.root, port=served.port)
            other.served = visit.served = served
            visit.page.reload()
            visit.by("screen-run").wait_for()

            for one in (visit, other):
                one.by("ask-both").wait_for(timeout=480_000)
            for one in (visit, other):
                one.settle()
                require_same_curves(one, events.parent)

            visit.click("ask-both")
            visit.by("screen-compare").wait_for()
            visit.poll(lambda: visit.by("question").input_value() != "")
            question = visit.by("question").input_value()
            visit.click("ask")
            visit.poll(lambda: visit.by("regenerate").count() == 2, 240)
            seconds = time.monotonic() - began
            record_property("seconds", round(seconds))
            print(f"{language}: {visit.clicks} clicks, {seconds:.0f} s")
            assert visit.clicks <= 6

            base, tuned = kept_answers(visit)
            text = (events.parent / "before_after.jsonl").read_text(encoding="utf-8")
            rows = [json.loads(line) for line in text.splitlines()]
            expected = next(row["expected"] for row in rows if row["question"] == question)
            assert expected.lower() in tuned.lower()
            assert expected.lower() not in base.lower()
            for one in (visit, other):
                one.require_quiet(CUT_OFF, REFUSED)
    finally:
        served.stop()
    summary = json.loads((events.parent / "summary.json").read_text())
    assert base == fresh_answer(Path(summary["base_folder"]), question, 256)
