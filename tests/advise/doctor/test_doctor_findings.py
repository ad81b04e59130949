"""Findings as sentences, as JSON, in the run folder and in the report, in both languages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.fake_run import write_run

from tunewright.advise.doctor.judging import all_codes
from tunewright.core.words import LANGUAGES, catalogue
from tunewright.record.diagnosis import Examination, Finding, last_word, lines, read, spoken
from tunewright.report.html import render

RATE = Finding(
    "rate_too_small",
    "bad",
    {"first": 3.0, "last": 2.99, "fall_share": 0.003, "steps": 1200, "rate": 1e-7, "usual": 2e-4, "try_rate": 2e-4},
)  # fmt: skip
TWICE = Finding(
    "duplicates", "warn", {"count": 30, "rows": 100, "repeated_share": 0.3, "distinct": 70}
)
FOUND = Examination([RATE, TWICE], ["rate_too_small", "duplicates"], ["labels_shifted"])


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_code_has_its_sentences(lang: str) -> None:
    for code in all_codes():
        for part in ("name", "what", "cause", "do"):
            assert catalogue(lang).get(f"doctor.{code}.{part}"), (code, part)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_sentence_belongs_to_a_code_that_nobody_finds(lang: str) -> None:
    written = {
        found[1]
        for key in catalogue(lang)
        if (found := re.fullmatch(r"doctor\.(\w+)\.(?:name|what|cause|do)", key))
    }
    assert written - {"label"} == set(all_codes())


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("count", 1234, "1,234"),
        ("fall_share", 0.5, "50 %"),
        ("fall_share", 0.0031, "0.31 %"),
        ("fall_share", 0.0, "0 %"),
        ("rate", 1e-7, "1e-7"),
        ("rate", 2e-4, "0.0002"),
        ("rate", None, "-"),
        ("settings", ["a=1", "b=2"], "a=1, b=2"),
        ("value", True, "true"),
        ("loss", float("nan"), "nan"),
    ],
)
def test_figures_as_people_read_them(name: str, value: object, text: str) -> None:
    assert spoken(name, value) == text


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    FOUND.write(tmp_path)
    told = json.loads((tmp_path / "doctor.json").read_text(encoding="utf-8"))
    assert told["version"] == 1
    assert set(told["findings"][0]) >= {"code", "severity", "evidence", "cause", "remedy"}
    again = read(tmp_path)
    assert again is not None
    assert list(again.findings) == [RATE, TWICE]
    assert again.is_bad


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"findings": [{}], "checked": []}', "[" * 9999])
def test_a_damaged_file_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "doctor.json").write_text(text, encoding="utf-8")
    assert read(tmp_path) is None


def test_lines_for_people() -> None:
    text = "\n".join(lines("runs/a", FOUND))
    assert "BAD  rate_too_small" in text
    assert "from 3 to 2.99 (a fall of 0.3 %) in 1,200 steps" in text
    assert "engine.learning_rate=0.0002" in text
    assert "labels_shifted" in text
    assert "nothing is wrong" in lines("runs/a", Examination([], ["collapse"]))[0]


def test_the_last_word_is_the_worst_finding() -> None:
    assert "rate_too_small, and 1 more" in (last_word(FOUND, Path("runs/a")) or "")
    assert last_word(Examination([], ["collapse"]), Path("runs/a")) is None


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_report_tells_it_in_its_own_language(tmp_path: Path, lang: str) -> None:
    run = write_run(tmp_path / "run")
    assert 'id="doctor"' not in render(run, lang)
    FOUND.write(run)
    page = render(run, lang)
    assert 'id="doctor"' in page and "rate_too_small" in page
    assert ("学习率过小" in page) == (lang == "zh")
    Examination([], ["collapse"]).write(run)
    assert 'id="doctor"' in render(run, lang)
