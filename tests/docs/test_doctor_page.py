"""The doctor's pages are those of the locale files and hold every code once."""

from __future__ import annotations

from pathlib import Path

import doctor_page
import pytest

from tunewright.advise.doctor.judging import all_codes
from tunewright.core.words import LANGUAGES

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_committed_page_is_current(lang: str) -> None:
    text = (DOCS / doctor_page.NAMES[lang]).read_text(encoding="utf-8")
    assert text == doctor_page.page(lang), "run: python tools/doctor_page.py docs"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_page_holds_every_code_once(lang: str) -> None:
    page = doctor_page.page(lang)
    assert all(page.count(f"### {code}\n") == 1 for code in all_codes())


def test_both_pages_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor_page.main([str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["doctor.md", "doctor.zh-CN.md"]
    assert capsys.readouterr().out.count("doctor") == 2
