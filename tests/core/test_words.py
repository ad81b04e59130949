"""English and Chinese say the same: same files, same keys, same placeholders, each in its own
script."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tunewright.core.words import ASSETS, catalogue, said_again, say, speaking

LOCALES = ASSETS / "locales"
FILES = sorted(path.name for path in (LOCALES / "en").glob("*.json"))
CJK = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff01-\uff5e]")
PLACEHOLDER = re.compile(r"(?<!\{)\{(\w+)(?:![rs])?(?::[^{}]*)?\}(?!\})")


def texts(lang: str, name: str) -> dict[str, str]:
    """Every sentence of a file, the three of an error code as three."""
    out: dict[str, str] = {}
    for key, value in json.loads((LOCALES / lang / name).read_text(encoding="utf-8")).items():
        out |= (
            {f"{key}.{part}": text for part, text in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
    return out


def is_only_code(text: str) -> bool:
    """Whether nothing is left to translate once placeholders, code, numbers, signs and names of
    formats are taken away."""
    left = PLACEHOLDER.sub("", re.sub(r"`[^`]*`", "", text))
    return not re.search(r"[a-z]{3,} +[a-z]{2,}", left)


def test_both_languages_have_the_same_files():
    assert FILES and sorted(path.name for path in (LOCALES / "zh").glob("*.json")) == FILES


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_no_key_stands_in_two_places(lang):
    found: dict[str, str] = {}
    for name in FILES:
        pairs = json.loads(
            (LOCALES / lang / name).read_text(encoding="utf-8"), object_pairs_hook=list
        )
        for key, _ in pairs:
            assert key not in found, f"{key} stands in {name} and in {found.get(key)}"
            found[key] = name


@pytest.mark.parametrize("name", FILES)
def test_keys_are_the_same(name):
    assert list(texts("en", name)) == list(texts("zh", name)) or set(texts("en", name)) == set(
        texts("zh", name)
    )


@pytest.mark.parametrize("name", FILES)
def test_placeholders_are_the_same(name):
    english, chinese = texts("en", name), texts("zh", name)
    for key in english:
        if key.endswith(".page"):  # a page is shown as it stands; its braces are examples
            continue
        assert sorted(set(PLACEHOLDER.findall(english[key]))) == sorted(
            set(PLACEHOLDER.findall(chinese[key]))
        ), key


@pytest.mark.parametrize("name", FILES)
def test_english_has_no_chinese_and_chinese_has_some(name):
    english, chinese = texts("en", name), texts("zh", name)
    for key, text in english.items():
        assert not CJK.search(text), f"{key}: {text}"
    for key, text in chinese.items():
        assert (
            not text
            or CJK.search(text)
            or (is_only_code(text) and text == english[key])
            or is_only_code(text)
        ), f"{key}: {text}"


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", FILES)
def test_every_sentence_can_be_filled_in(lang, name):
    for key, text in texts(lang, name).items():
        if not key.endswith(".page"):
            fields = dict.fromkeys(PLACEHOLDER.findall(text), 1)
            assert text.format(**fields) or not text, key


def test_chinese_sentences_end_as_chinese_ones():
    for name in FILES:
        for key, text in texts("zh", name).items():
            # A half-width comma or full stop between two Chinese characters is a slip of the
            # keyboard.
            assert not re.search(r"[\u4e00-\u9fff][,;?!.][\u4e00-\u9fff]", text), f"{key}: {text}"


def test_locales_are_where_the_package_looks():
    assert Path(LOCALES / "en").is_dir() and Path(LOCALES / "zh").is_dir()


def test_the_reader_is_addressed_alike_in_every_chinese_sentence() -> None:
    said = json.dumps(catalogue("zh"), ensure_ascii=False).replace("你好", "")
    assert "你" not in said


def test_a_sentence_that_a_record_keeps_is_said_in_the_readers_language() -> None:
    keys = ("layout.backend", "layout.layers")
    with speaking("en"):
        kept = say("layout.layers", kinds="linear_attention, mamba")
    with speaking("zh"):
        assert said_again(kept, *keys) == say("layout.layers", kinds="linear_attention, mamba")
        assert said_again("something else", *keys) == "something else"
