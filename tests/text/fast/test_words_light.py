"""Ids from the memory of words are the library's, for every kind of splitting it follows; the rest
is left to the library."""

from __future__ import annotations

import pytest
from helpers import families
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from tunewright.text.fast.words import LETTERS, OTHERS, Spellings, Words, _translated
from tunewright.text.tokenizer import QWEN_WORDS

LLAMA3 = QWEN_WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPLITS = {
    "gpt2": (pre_tokenizers.ByteLevel(add_prefix_space=False), None),
    "digits": (
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
        None,
    ),
    "qwen": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"), BYTES]
        ),
        normalizers.NFC(),
    ),
    "llama3": (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"), BYTES]),
        None,
    ),
}
texts = st.text(
    alphabet=st.sampled_from(
        list(
            "abzAZéüЖж你是テす '\"\n\r\t\x0b\x0c\x1b\x1c\x7f\u00a0\u3000\u0301Ⅷ²0123456789,.!?-_()<>[]\\，。“”’…🙂ſK"
        )
    ),
    max_size=30,
)
pieces = st.lists(
    st.sampled_from(
        [
            "'s",
            "'LL",
            " the",
            "  ",
            "\n\n",
            "\r\n",
            " 12",
            "don't",
            "你好。",
            "\t",
            "<|im_end|>",
            "!?",
            "   x",
        ]
    )
    | texts,
    max_size=6,
)


def backend_of(name):
    made = Tokenizer.from_str(families.tokenizer_of("chatml").backend_tokenizer.to_str())
    made.pre_tokenizer, normalizer = SPLITS[name]
    if normalizer is not None:
        made.normalizer = normalizer
    return made


BACKENDS = {name: backend_of(name) for name in SPLITS}
WORDS = {name: Words.of(backend) for name, backend in BACKENDS.items()}
SPELLINGS = {name: Spellings.of(backend) for name, backend in BACKENDS.items()}


@pytest.mark.parametrize("name", sorted(SPLITS))
@given(parts=pieces)
@settings(max_examples=150, deadline=None)
def test_ids_are_the_librarys(name, parts):
    text = "".join(parts)
    found = WORDS[name].ids(text)
    assert found is None or found == list(BACKENDS[name].encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_ordinary_text_is_taken_and_odd_text_is_left(name):
    assert all(
        WORDS[name].ids(text) is not None
        for text in ("It's 5 o'clock.\n\n你好，世界。", "Привет, café!", "")
    )
    assert all(
        WORDS[name].ids(text) is None
        for text in ("🙂", "a\u00a0b", "e\u0301", "x<|im_end|>", "\u3000", "²")
    )


def test_every_character_taken_has_the_class_that_is_assumed():
    """An oracle from the Unicode database: letters are letters, other marks neither letters,
    numbers nor spaces, and NFC leaves both alone."""
    import re
    import unicodedata

    for group, wanted in ((LETTERS, "L"), (OTHERS, "P")):
        for character in filter(re.compile(f"[{group}]").match, map(chr, range(0x10000))):
            assert unicodedata.category(character)[0] == wanted or (
                wanted == "P" and unicodedata.category(character)[0] == "S"
            ), hex(ord(character))
            assert unicodedata.normalize("NFC", character) == character


@pytest.mark.parametrize("change", ["prefix", "unknown regex", "normalizer", "dropout"])
def test_other_pipelines_are_left_to_the_library(change):
    made = backend_of("gpt2")
    if change == "prefix":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif change == "unknown regex":
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\p{Lu}+|."), behavior="isolated"), BYTES]
        )
    elif change == "normalizer":
        made.normalizer = normalizers.Lowercase()
    else:
        made.model.dropout = 0.1
    assert Words.of(made) is None


def test_sentencepiece_kinds_are_left_to_the_library():
    assert Words.of(families.tokenizer_of("llama2").backend_tokenizer) is None


@pytest.mark.parametrize("pattern", [r"\p{L}++", r"a*?", r".", r"\w+", r"[a&&b]", r"\p{Lu}", "é"])
def test_patterns_that_could_mean_something_else_are_not_translated(pattern):
    assert _translated(pattern) is None


@pytest.mark.parametrize("name", sorted(SPLITS))
@given(parts=pieces, other=pieces)
@settings(max_examples=80, deadline=None)
def test_tokens_are_spelt_as_the_library_decodes_them(name, parts, other):
    """`spell` is true exactly where the library's decoding is the text; half a character is left to
    the library."""
    ids = list(BACKENDS[name].encode("".join(parts), add_special_tokens=False).ids)
    theirs = BACKENDS[name].decode(ids, skip_special_tokens=False)
    assert SPELLINGS[name].spell(ids, theirs) == ("�" not in theirs)
    asked = "".join(other)
    assert SPELLINGS[name].spell(ids, asked) == (asked == theirs)
    assert not SPELLINGS[name].spell(ids, "\udcff") and not SPELLINGS[name].spell([10**6], "x")


@pytest.mark.parametrize("name", sorted(SPLITS))
@given(parts=pieces)
@settings(max_examples=60, deadline=None)
def test_ids_that_are_given_as_proven_spell_their_text(name, parts):
    """The oracle is the library's decoding, of the whole text at once."""
    text = "".join(parts)
    proving, plain = Words.of(BACKENDS[name], SPELLINGS[name]), WORDS[name]
    assert proving.proves and not plain.proves
    ids = proving.ids(text)
    assert ids == plain.ids(text)
    if ids is not None:
        assert BACKENDS[name].decode(ids, skip_special_tokens=False) == text


def test_a_word_whose_tokens_do_not_spell_it_is_left_to_the_library():
    backend = BACKENDS["gpt2"]
    word = WORDS["gpt2"].ids(" world")
    wrong = Spellings({**SPELLINGS["gpt2"]._tokens, word[0]: b"other"})
    words = Words.of(backend, wrong)
    assert words is None or words.ids("hello world") is None
    if words is not None:
        assert words.ids("hello world") is None, "asked again it is still not known"
        assert words.ids("hello") == WORDS["gpt2"].ids("hello")


def test_other_decoders_are_left_to_the_library():
    assert Spellings.of(families.tokenizer_of("llama2").backend_tokenizer) is None
