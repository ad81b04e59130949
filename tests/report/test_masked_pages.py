"""Private values of rows and answers in pages that are handed on: masked, and the page says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_run import SUMMARY, write_run

from tunewright.commands.advising import page as advice
from tunewright.data.checks.driver import Checked
from tunewright.data.checks.private import hidden, hidden_pieces
from tunewright.report import evaluation as evaluation_section
from tunewright.report import evaluation_page, gate_review
from tunewright.report.comparison import lines, write_page
from tunewright.report.data_page import check_page
from tunewright.report.html import render
from tunewright.report.markup import join

MAIL, PHONE, KEY = "nadia.kern@brightharbour.io", "13958270461", "sk-" + "a1B2c3D4" * 4
PRIVATE = (MAIL, PHONE, KEY)


def row(**changes: Any) -> dict[str, Any]:
    asked = {
        "question": f"Who has {PHONE}?",
        "expected": f"Nadia, {MAIL}",
        "before": f"I know {KEY}",
        "after": f"That is Nadia, {MAIL}",
        "kind": "train",
    }
    return {**asked, **changes}


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_report_masks_and_says_so(tmp_path: Path, lang: str) -> None:
    page = render(write_run(tmp_path / "run", rows=[row()]), lang)
    assert not [value for value in PRIVATE if value in page]
    assert "before_after.jsonl</code>" in page and "na***@b***" in page
    assert "<mark>Nadia, na***@b***</mark>" in page  # the expected part is still found
    clean = row(question="Who?", expected="Nadia", before="I", after="Nadia")
    plain = render(write_run(tmp_path / "clean", rows=[clean]), lang)
    assert "***" not in plain


def comparison() -> dict[str, Any]:
    asked = row()
    subject = {
        "figures": {}, "loss": None, "tokens_per_second": None, "seconds_per_answer": None,
        "bytes_on_disk": None, "memory_bytes": None,
    }  # fmt: skip
    return {
        "n": 1, "rows_read": 1, "data": "rows.json", "metrics": [], "warnings": [], "seconds": 1.0,
        "subjects": [{"name": "a", **subject}, {"name": "b", **subject}],
        "pairs": [], "base_check": None,
        "rows": [{
            "origin": "rows.json:1", "question": asked["question"], "expected": asked["expected"],
            "answers": [asked["before"], asked["after"]], "scores": {}, "same": False,
        }],
    }  # fmt: skip


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_comparison_masks_and_says_so(tmp_path: Path, lang: str) -> None:
    page = write_page(tmp_path / "page.html", comparison(), lang).read_text(encoding="utf-8")
    assert not [value for value in PRIVATE if value in page]
    assert "(4" in page or "（4" in page  # what was masked is counted
    assert not [value for value in PRIVATE if value in "\n".join(lines(comparison()))]


def evaluation() -> dict[str, Any]:
    asked = row()
    return {
        "target": "run", "data": "rows.json", "data_report": {"rows_kept": 1, "rows_read": 1},
        "options": {"mistakes": [
            {"origin": "rows.json:1", "answer": PHONE, "chosen": KEY},
        ]},
        "exact_match": {"mistakes": [
            {"origin": "rows.json:1", "expected": asked["expected"], "answer": asked["after"]},
        ]},
    }  # fmt: skip


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_wrong_rows_of_an_evaluation_are_masked_and_it_is_said(lang: str) -> None:
    page = str(join(evaluation_page._wrong(evaluation(), lang)))
    assert not [value for value in PRIVATE if value in page]
    assert page.count("na***@b***") == 2 and "rows.json:1" in page
    assert page.count("(2") + page.count("（2") == 2  # what was masked is counted


def test_the_row_that_a_data_report_shows_is_masked_where_a_mark_cuts_a_value() -> None:
    """What is learnt begins in the middle of an address."""
    pieces = [("Who is nadia.kern", False), (f"@brightharbour.io? {PHONE}", True)]
    shown = [{"text": text, "learnt": learnt} for text, learnt in pieces]
    example = {"origin": "rows.json:1", "pieces": shown, "cut": False}
    counts = dict.fromkeys(("rows_read", "rows_kept", "rows_dropped"), 1)
    report = {**counts, "example": example, "tokens_total": None}
    page = check_page(Checked(report, [], 100), "rows.json")
    assert MAIL not in page and PHONE not in page and "brightharbour" not in page
    assert "na***@b***" in page and "***" in page.partition("<mark")[2]


@pytest.mark.parametrize(
    "pieces",
    [["a", MAIL[:4], MAIL[4:9], MAIL[9:], "z"], [f"{PHONE} and {MAIL}", ""], ["", "no", " value"],
     [f"{MAIL} {MAIL}", f" {KEY[:10]}", KEY[10:]]],
)  # fmt: skip
def test_pieces_are_masked_as_their_whole_text_is(pieces: list[str]) -> None:
    found = hidden_pieces(pieces)
    assert len(found) == len(pieces) and "".join(found) == hidden("".join(pieces))


def test_answers_that_training_broke_are_masked_in_the_report() -> None:
    page: Any = FakePage()
    table = str(evaluation_section.pairs(page, [row()]))
    assert not [value for value in PRIVATE if value in table] and "na***@b***" in table


class FakePage:
    """Says keys."""

    def say(self, key: str, **fields: Any) -> str:
        return key

    text = say


def test_an_advice_masks_its_examples() -> None:
    asked = row()
    ways = {"base": {"answer": asked["before"], "score": 0.0},
            "sql": {"answer": asked["after"], "score": 1.0, "query": f"select '{PHONE}'"}}  # fmt: skip
    made = {"examples": [{"question": asked["question"], "expected": MAIL, "ways": ways}]}
    text = str(join(advice._examples(made)))
    assert not [value for value in PRIVATE if value in text] and "(5" in text


VERDICT: dict[str, Any] = {
    "contract": "contract.yaml",
    "a": {"name": "new"},
    "b": {"name": "old"},
    "passed": False,
    "failed": ["secrets"],
    "undecided": ["skill"],
    "undecided_counts_as": "pass",
    "error_rate": 0.05,
    "seconds": 1.0,
    "seed": 0,
    "samples": 1,
    "temperature": 0.0,
    "questions": 3,
    "clauses": [
        {"name": "form", "section": "form", "verdict": "holds", "passed": True,
         "sentences": ["3 of 3"]},
        {"name": "skill", "section": "must_know", "verdict": "undecided", "passed": True,
         "sentences": ["2 of 3"]},
        {"name": "secrets", "section": "must_not_say", "verdict": "fails", "passed": False,
         "sentences": [f"said {MAIL}"]},
    ],
    "changes": [{
        "kind": "worse", "origin": "rows.json:1", "question": f"Who has {PHONE}?",
        "expected": f"not {KEY}", "before": "I cannot say.", "after": f"It is {MAIL}.",
        "clauses": [{"name": "secrets", "before": 1.0, "score": 0.0, "note": f"said {MAIL}"}],
    }],
}  # fmt: skip


def test_the_review_and_the_junit_file_mask() -> None:
    found = gate_review.review(VERDICT, "en"), gate_review.junit(VERDICT)
    for text in (*found, "\n".join(gate_review.lines(VERDICT))):
        assert not [value for value in PRIVATE if value in text]
        assert "@b" in text


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_verdict_of_a_gate_stands_in_the_report_worst_first(tmp_path: Path, lang: str) -> None:
    told = {"contract": "contract.yaml", "passed": False, "failed": ["secrets"]}
    folder = write_run(tmp_path / "run", summary={**SUMMARY, "gate": told})
    short = render(folder, lang)
    assert '<section id="gate">' in short and "secrets" in short  # from the summary alone
    (folder / "gate.json").write_text(json.dumps(VERDICT), encoding="utf-8")
    page = render(folder, lang)
    part = page.partition('<section id="gate">')[2].partition("</section>")[0]
    places = [part.index(f"{mark} {name}") for mark, name in (("✗", "secrets"), ("?", "skill"))]
    assert places == sorted(places) and places[-1] < part.index("✓ form")
    assert 'href="#gate"' in page and MAIL not in page


def test_a_contract_that_could_not_be_put_and_a_damaged_file(tmp_path: Path) -> None:
    told = {"contract": "contract.yaml", "passed": False, "problem": "E-GATE-13 no other model"}
    folder = write_run(tmp_path / "run", summary={**SUMMARY, "gate": told})
    assert "E-GATE-13" in render(folder, "en")
    whole = write_run(tmp_path / "whole", summary={**SUMMARY, "gate": {"passed": True}})
    for text in ("{", "[]", '{"clauses": [{}]}', '{"clauses": [{"verdict": "?", "passed": 1}]}'):
        (whole / "gate.json").write_text(text, encoding="utf-8")
        assert '<section id="gate">' in render(whole, "en")


def test_a_run_without_a_gate_has_no_such_section(tmp_path: Path) -> None:
    assert 'id="gate"' not in render(write_run(tmp_path / "run"), "en")
