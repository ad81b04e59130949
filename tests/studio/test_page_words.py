"""The page's words: both languages say the same things, nothing is missing and nothing is left over.

The sources are read as text: a key stands in quotes (`t('train.start')`), or its beginning stands in
a template (`t(`status.${state}`)`), or its end (`t(`${room}.title`)`).
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "page" / "src"
LOCALES = SOURCES / "locales"
LANGUAGES = ("en", "zh")
CJK = re.compile(r"[\u2e80-\u303f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff00-\uffef]")
SENTENCE = re.compile(r"\b[A-Za-z]+(?:[ ,]+[A-Za-z]+){3,}")
PLACE = re.compile(r"\{(\w+)\}")
KEY = r"[a-z][a-z_]*(?:\.[A-Za-z0-9_-]+)+"
QUOTED = re.compile(rf"""(?P<q>['"`])(?P<key>{KEY})(?P=q)""")
STARTED = re.compile(r"`(?P<start>[a-z][a-z_]*\.(?:[A-Za-z0-9_-]+\.)*[A-Za-z0-9_-]*)\$\{")
CALLED = re.compile(r"\b(?:t|known)\(\s*(?P<argument>[^)]*?)(?=[,)])", re.DOTALL)


def _pairs(pairs):
    names = Counter(name for name, _ in pairs)
    doubled = [name for name, count in names.items() if count > 1]
    assert not doubled, f"stands twice: {doubled}"
    return dict(pairs)


def _pack(language):
    found = {}
    for path in sorted(LOCALES.glob(f"{language}*.json")):
        texts = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_pairs)
        again = found.keys() & texts.keys()
        assert not again, f"{path.name} says again: {sorted(again)}"
        found |= texts
    assert len(found) > 100
    return found


PACKS = {language: _pack(language) for language in LANGUAGES}


def _is_plural(key):
    return key.endswith(".one") and key.removesuffix(".one") in PACKS["en"]


def _code():
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in (".svelte", ".ts"):
            yield path, path.read_text(encoding="utf-8")


def test_both_languages_have_the_same_keys():
    english = {key for key in PACKS["en"] if not _is_plural(key)}
    chinese = set(PACKS["zh"])
    assert english - chinese == set()
    assert chinese - english == set()


def test_both_languages_have_files_of_the_same_rooms():
    rooms = {
        language: {path.name.removeprefix(language) for path in LOCALES.glob(f"{language}*.json")}
        for language in LANGUAGES
    }
    assert rooms["en"] == rooms["zh"]


def test_the_same_places_are_filled_in_both_languages():
    wrong = {}
    for key, text in PACKS["en"].items():
        other = PACKS["zh"][key.removesuffix(".one") if _is_plural(key) else key]
        mine, theirs = set(PLACE.findall(text)), set(PLACE.findall(other))
        # "1 row" needs no {count}.
        if mine != theirs and not (_is_plural(key) and mine | {"count"} == theirs | {"count"}):
            wrong[key] = (mine, theirs)
    assert wrong == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_empty_or_begins_or_ends_with_space(language):
    wrong = [key for key, text in PACKS[language].items() if not text or text != text.strip()]
    assert wrong == []


def test_english_has_no_chinese_characters():
    assert {key: text for key, text in PACKS["en"].items() if CJK.search(text)} == {}


def test_chinese_has_no_english_sentences():
    wrong = {}
    for key, text in PACKS["zh"].items():
        bare = PLACE.sub("", re.sub(r"`[^`]*`", "", text))
        if SENTENCE.search(bare):
            wrong[key] = text
    assert wrong == {}


def test_chinese_uses_chinese_punctuation():
    """A comma, colon, question mark or full stop between or after Chinese characters is a full-width
    one."""
    mark = re.compile(rf"{CJK.pattern}[,;:?!](?!\w)|{CJK.pattern}\.(?:\s|$)")
    assert {key: text for key, text in PACKS["zh"].items() if mark.search(text)} == {}


def test_every_key_that_is_asked_for_exists():
    missing = {}
    for path, code in _code():
        for call in CALLED.finditer(code):
            for word in QUOTED.finditer(call["argument"]):
                if word["key"] not in PACKS["en"]:
                    missing.setdefault(path.name, []).append(word["key"])
    assert missing == {}


def test_every_key_that_is_begun_in_a_template_leads_somewhere():
    lost = {}
    for path, code in _code():
        for call in re.finditer(r"\bt\(\s*`([^`$]*)\$\{", code):
            if not any(key.startswith(call[1]) for key in PACKS["en"]):
                lost.setdefault(path.name, []).append(call[1])
    assert lost == {}


def test_every_text_is_used():
    quoted, started, ended = set(), set(), set()
    for _, code in _code():
        quoted |= {word["key"] for word in QUOTED.finditer(code)}
        started |= {word["start"] for word in STARTED.finditer(code)}
        ended |= set(re.findall(r"\bt\(\s*`\$\{[^}]+\}(\.[a-z_.]+)`", code))
    unused = [
        key
        for key in PACKS["en"]
        if key not in quoted
        and not _is_plural(key)
        and not any(key.startswith(start) for start in started)
        and not key.endswith(tuple(ended))
    ]
    assert unused == []


def test_a_key_without_a_text_is_seen():
    """The patterns find what they are there for."""
    code = "t('no.such_key', { a }) + t(open ? 'shell.menu_close' : 'no.other')"
    found = [w["key"] for call in CALLED.finditer(code) for w in QUOTED.finditer(call["argument"])]
    assert found == ["no.such_key", "shell.menu_close", "no.other"]
