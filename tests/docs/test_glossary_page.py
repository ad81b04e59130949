"""The glossary pages are those of the data files, and every page an entry names is there."""

from __future__ import annotations

from pathlib import Path

import glossary_page
import pytest

from tunewright.advise import glossary
from tunewright.core.words import LANGUAGES

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_committed_page_is_current(lang):
    path = DOCS / glossary_page.NAMES[lang]
    assert path.read_text(encoding="utf-8") == glossary_page.page(lang), (
        "run: python tools/glossary_page.py docs"
    )


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_entry_stands_on_the_page_once_with_all_its_names(lang):
    page = glossary_page.page(lang)
    for term in glossary.terms(lang).values():
        assert page.count(f"### {term.name}\n") == 1, term.key
        assert term.text in page
        part = page.split(f"### {term.name}\n")[1].split("###")[0]
        assert all(word in part for word in term.aliases), term.key


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_page_that_an_entry_names_is_there(lang):
    assert [
        term.page
        for term in glossary.terms(lang).values()
        if term.page and not (DOCS / term.page).is_file()
    ] == []


def test_both_pages_are_written(tmp_path, capsys):
    assert glossary_page.main([str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["glossary.md", "glossary.zh-CN.md"]
    assert capsys.readouterr().out.count("glossary") == 2
