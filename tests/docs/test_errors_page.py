"""The pages of error codes are those of the locale files, and every code is both raised and written
about."""

from __future__ import annotations

import json
from pathlib import Path

import errors_page
import pytest

from tunewright.core.words import ASSETS, LANGUAGES

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ASSETS.parent


def codes_of(lang: str) -> set[str]:
    found: set[str] = set()
    for path in (ASSETS / "locales" / lang).glob("*.json"):
        found |= {
            key for key in json.loads(path.read_text(encoding="utf-8")) if key.startswith("E-")
        }
    return found


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_committed_page_is_current(lang):
    path = ROOT / "docs" / errors_page.NAMES[lang]
    assert path.read_text(encoding="utf-8") == errors_page.page(lang), (
        "run: python tools/errors_page.py docs"
    )


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_code_of_the_source_has_texts_and_every_text_a_code(lang):
    raised, written = errors_page.codes_in(SOURCE), codes_of(lang)
    assert raised - written == set(), "codes without a text"
    assert written - raised == set(), "texts that no code uses"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_code_says_what_happened_and_why_it_exists(lang):
    for path in sorted((ASSETS / "locales" / lang).glob("*.json")):
        for code, entry in json.loads(path.read_text(encoding="utf-8")).items():
            if code.startswith("E-"):
                assert set(entry) == {"what", "do", "page"}, code
                assert entry["what"] and entry["page"], code


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_page_holds_every_code_once(lang):
    page = errors_page.page(lang)
    for code in codes_of(lang):
        assert page.count(f"### {code}\n") == 1


def test_both_pages_are_written(tmp_path, capsys):
    assert errors_page.main([str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["errors.md", "errors.zh-CN.md"]
    assert capsys.readouterr().out.count("errors") == 2


def test_a_template_is_shown_as_people_read_it():
    assert (
        errors_page._markdown("{value!r} in {{file: path}} <b>") == "{value} in {file: path} &lt;b>"
    )
