"""The sections of a report that say whether it got better and what training broke."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers import fake_evaluation
from helpers.fake_run import SUMMARY, write_run

from tunewright.record.diagnosis import Examination, Finding
from tunewright.report.html import render

LANGS = ("en", "zh")


def page(folder: Path, lang: str = "en", doctor: Any = None, **more: Any) -> str:
    run = write_run(folder / "run", summary={**SUMMARY, **more})
    if isinstance(doctor, Examination):
        doctor.write(run)
    elif doctor is not None:
        (run / "doctor.json").write_text(doctor, encoding="utf-8")
    return render(run, lang)


def text_of(html: str, section: str) -> str:
    """The visible text of a section."""
    body = html.split(f'<section id="{section}">')[1].split("</section>")[0]

    class Texts(HTMLParser):
        found: list[str] = []

        def handle_data(self, data: str) -> None:
            self.found.append(data)

    parser = Texts()
    parser.found = []
    parser.feed(body)
    return " ".join("".join(parser.found).split())  # a hard space is one as well


@pytest.mark.parametrize("lang", LANGS)
def test_a_good_run_shows_scores_speed_and_that_nothing_broke(tmp_path: Path, lang: str) -> None:
    html = page(tmp_path, lang, **fake_evaluation.keys(broken=False))
    told, broken = text_of(html, "evaluation"), text_of(html, "damage")
    assert "64 %" in told and "+64" in told and "350 → 300" in told
    assert ("12 of 12 right before" if lang == "en" else "12 题答对 12") in told
    assert ("Nothing was found in 12" if lang == "en" else "在 12 个") in broken
    assert 'class="findings"' not in html.split('<section id="damage">')[1].split("</section>")[0]
    assert not re.search(r"\b(report|damage|forgetting)\.[a-z_.]+", told + broken)  # spoken keys
    assert "{" not in told + broken


@pytest.mark.parametrize("lang", LANGS)
def test_what_broke_stands_with_count_cause_and_examples(tmp_path: Path, lang: str) -> None:
    html = page(tmp_path, lang, **fake_evaluation.keys(broken=True))
    told, broken = text_of(html, "evaluation"), text_of(html, "damage")
    assert ("Personal data" if lang == "en" else "个人信息") in broken
    assert "15*****91" in broken and "93.0 %" in broken
    assert fake_evaluation.SECRET not in broken and "na***@b***" in broken
    assert "facts.jsonl:12" in broken and "Because the air scatters the light." in broken
    assert broken.index("*@") > 0 and ("FORGOT" in told or "忘记" in told)
    assert "We breathe with our lungs." in told  # a question that was forgotten, with its answers
    assert "{" not in told + broken


def test_a_language_that_does_not_count_is_said(tmp_path: Path) -> None:
    told = text_of(page(tmp_path, **fake_evaluation.keys(broken=False)), "evaluation")
    assert "Chinese: 0 of 12 right before, no better than guessing" in told


def test_the_doctors_worst_word_is_shown_and_absence_claims_nothing(tmp_path: Path) -> None:
    keys = fake_evaluation.keys(broken=False)
    told = text_of(page(tmp_path / "a", doctor=fake_evaluation.EXAMINED, **keys), "evaluation")
    assert "Problems found: 2. The worst: 9 of 72 steps" in told and "All findings" in told
    assert "went from" not in told  # the other one stands in its own section
    silent = Examination([], ["nan_steps"])
    told = text_of(page(tmp_path / "b", doctor=silent, **keys), "evaluation")
    assert "No problem found. Checks made: 1." in told
    for name, absent in (("c", None), ("d", "{"), ("e", '"x"')):
        told = text_of(page(tmp_path / name, doctor=absent, **keys), "evaluation")
        assert "Diagnosis" not in told and "roblem" not in told


@pytest.mark.parametrize("skipped", ["off", "numbers", "time", "no_questions", "resumed", "unfinished"])  # fmt: skip
def test_why_nothing_is_known_about_forgetting_is_said(tmp_path: Path, skipped: str) -> None:
    keys = fake_evaluation.keys(broken=False) | {"forgetting": {"skipped": skipped}}
    told = text_of(page(tmp_path, **keys), "evaluation")
    assert "Forgetting" in told and "forgetting.skipped" not in told


def test_a_run_of_an_earlier_version_has_neither_section(tmp_path: Path) -> None:
    html = page(tmp_path)
    assert 'id="evaluation"' not in html and 'id="damage"' not in html and "#damage" not in html


def test_few_answers_are_called_few(tmp_path: Path) -> None:
    keys = fake_evaluation.keys(broken=False)
    keys["damage"]["questions"] = 3
    assert "prove little" in text_of(page(tmp_path, **keys), "damage")
    keys["damage"]["questions"] = 0
    assert "nothing was looked at" in text_of(page(tmp_path / "b", **keys), "damage")


@pytest.mark.wide("None", "x", "bad4")
@pytest.mark.parametrize("bad", [None, [], "x", 3, {}, {"scores": 1}, {"scores": [1, {}]},
                                 {"languages": 4}, {"findings": [{}, 3]}, {"questions": "many"}])  # fmt: skip
def test_damaged_keys_never_break_the_page(tmp_path: Path, bad: Any) -> None:
    for key in ("evaluation", "forgetting", "damage"):
        html = page(tmp_path / key, **(fake_evaluation.keys(broken=True) | {key: bad}))
        assert html.endswith("</html>\n")


def test_the_picture_is_drawn_for_both_widths_and_inside_its_box(tmp_path: Path) -> None:
    html = page(tmp_path, **fake_evaluation.keys(broken=True))
    drawings = re.findall(r'<svg class="chart intervals (wide|narrow)" viewBox="0 0 (\d+) (\d+)".*?</svg>', html, re.DOTALL)  # fmt: skip
    assert [name for name, _, _ in drawings] == ["wide", "narrow"]
    for svg in re.findall(r'<svg class="chart intervals.*?</svg>', html, re.DOTALL):
        width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())  # type: ignore[union-attr]
        for name, value in re.findall(r'\b(x1|x2|x|cx|y1|y2|y|cy)="([\d.]+)"', svg):
            assert 0 <= float(value) <= (width if "x" in name else height)
        assert len(re.findall("<circle", svg)) == 2 * 5


def test_hostile_answers_stay_text(tmp_path: Path) -> None:
    keys = fake_evaluation.keys(broken=True)
    keys["damage"]["findings"][0]["evidence"] = [
        {"question": "<script>x</script>", "before": "<b>", "after": "<img src=x onerror=y>",
         "kind": "<i>", "value": "<u>", "row": "<s>"}
    ]  # fmt: skip
    keys["forgetting"]["forgotten"][0]["after"] = "<script>y</script>"
    doctor = Examination([Finding("nan_steps", "bad", {"count": "<script>z</script>"})], [])
    html = page(tmp_path, doctor=doctor, **keys)
    assert "<script" not in html and "<img" not in html and "<u>" not in html
