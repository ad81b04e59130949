"""Text read in a wrong encoding comes back whole or stays as it is; text in which nothing is wrong
is never changed."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tunewright.data.files.mojibake import damage, repair

# The common characters of GB 2312 (rows 16 to 55) and the punctuation of Chinese text: an oracle
# that knows nothing of the code under test.
COMMON = [
    bytes([lead, trail]).decode("gb2312")
    for lead in range(0xB0, 0xD7)
    for trail in range(0xA1, 0xFF)
]
CHINESE = st.text(st.sampled_from([*COMMON, *"，。！？：；“”（）《》"]), min_size=3, max_size=40)
EUROPEAN_WORDS = (
    "für Straße Mädchen größer schön Übung Äpfel café été garçon naïve où élève cœur niño años corazón São ação não pão İstanbul şimdi ağaç güneş çocuk "
    "łódź żółty święty mąka Žluťoučký kůň řeka ændring smørrebrød blåbær það œuvre Привет мир хорошо всё".split()
)
EUROPEAN = st.lists(
    st.sampled_from([*EUROPEAN_WORDS, *"the and 12 is it (see) –".split()]), min_size=3, max_size=14
).map(" ".join)
# What people write that comes close to damaged text: accents beside punctuation, single rare
# characters, scripts side by side.
INNOCENT = [
    "groß“", "„Er ist groß“", "le café\xa0»", "« café »", "SMÅ…", "CAFÉ…", "CAFÉ—the", "AMANHÃ…", "COSÌ…", "HAYIR DAĞ”", "İ”", "ÇOK İYİ…", "DEĞİL”", "Straße—so",
    "VOILÀ…", "“café…”", "São João", "NÃO É", "x² + y³ = 5 µm", "Nº 1ª", "±5 °C", "£5 · ©2020", "l’été à Paris", "Türkçe ğüşıöç İĞŞ", "Ça va\xa0?", "à\xa0la fin",
    "茅台", "茅台酒", "一些", "C位", "联通", "app没", "ok么", "脫", "亘", "負責", "訓計", "A股上涨", "K歌", "T恤", "鏡子", "犬馬之勞", "浣熊", "日本語テキスト", "한국어", "αβγ Ωμ",
    "😀👍🏽🇨🇳", "def f(x):\n    return x  # π", "naïve Привет", "“引号”——破折号……", "ﬁn", "①②③", "→ ≤ ≥ ≠", "שלום עולם", "مرحبا بالعالم", "Tiếng Việt rất đẹp", "ไทย",
]  # fmt: skip


@given(
    text=st.one_of(CHINESE, EUROPEAN, st.tuples(CHINESE, EUROPEAN).map(" ".join)),
    codec=st.sampled_from(["latin-1", "cp1252", "cp1254"]),
)
@example(text="“quoted” – it’s 5 €", codec="cp1252")
@example(text="emoji 😀 ok", codec="cp1252")
@settings(max_examples=250, deadline=None)
def test_text_read_in_a_western_encoding_comes_back(text, codec):
    assume(not text.isascii())
    try:
        wrong = text.encode("utf-8").decode(codec)
    except UnicodeDecodeError:
        assume(False)
    assert repair(wrong) == text
    assert damage(wrong) == "repairable"


# Most texts are no valid GBK once they are UTF-8.
@given(text=CHINESE, codec=st.sampled_from(["gbk", "gb18030"]))
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_chinese_read_as_gbk_comes_back(text, codec):
    try:
        wrong = text.encode("utf-8").decode(codec)
    except UnicodeDecodeError:
        assume(False)
    assert repair(wrong) == text


@pytest.mark.parametrize(
    "text",
    [
        "déjà vu été naïve",
        "Straße für Mädchen",
        "Watson’s class",
        "it is “quoted”a words",
        "emoji 😀 ok",
        "Привет, мир",
        "Österreich",
        "你好AI世界",
    ],
)
def test_european_text_read_as_gbk_comes_back_where_it_is_told_apart(text):
    assert repair(text.encode("utf-8").decode("gbk")) == text


@given(text=st.one_of(CHINESE, EUROPEAN))
@settings(max_examples=100, deadline=None)
def test_text_that_went_through_it_twice_comes_back(text):
    assume(not text.isascii())
    assert repair(text.encode("utf-8").decode("latin-1").encode("utf-8").decode("latin-1")) == text


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_text_stays(text):
    assert repair(text) == text
    assert damage(text) == ""


@given(
    text=st.one_of(
        CHINESE,
        EUROPEAN,
        st.tuples(EUROPEAN, CHINESE).map("".join),
        st.text(st.characters(codec="ascii")),
    )
)
@settings(max_examples=300, deadline=None)
def test_random_sound_text_stays(text):
    assert repair(text) == text
    assert damage(text) == ""


def test_no_short_piece_of_sound_text_is_changed():
    """Single words and pairs of characters carry least evidence: every one of the common
    characters, and 40,000 random pairs with Latin letters beside them."""
    draw = random.Random(5)
    pieces = [*COMMON, *(a + b for a, b in (draw.choices(COMMON, k=2) for _ in range(20_000)))]
    pieces += [
        draw.choice(["a", "b ", "X", "(", ""])
        + draw.choice(COMMON)
        + draw.choice(["", "s", " ", "C", ")"])
        for _ in range(20_000)
    ]
    # A common character between two small letters without a space is the one form given up: it is
    # how accents look when read as GBK.
    wrong = [
        p
        for p in pieces
        if repair(p) != p and not (len(p) >= 3 and p[0].islower() and p[-1].islower())
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    ["caf\ufffd au lait", "锟斤拷锟斤拷", "cafÃ© und groß", "Ã©tÃ© 你好", "â€œhelloâ€\x9d 世界", "it’s cafÃ©", "ï¿½"],
)  # fmt: skip
def test_what_cannot_be_brought_back_whole_is_named_and_left_alone(text):
    assert repair(text) == text
    assert damage(text) == "lost"


def test_lines_are_brought_back_one_by_one_where_every_line_is_sound_then():
    good, bad = "Straße", "Mädchen".encode().decode("latin-1")
    assert repair(f"{good}\n{bad}\n") == "Straße\nMädchen\n"
    assert repair(f"{bad}\ncaf\ufffd") == f"{bad}\ncaf\ufffd"


@given(text=st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_repair_ends_where_nothing_is_left_to_repair(text):
    assert repair(repair(text)) == repair(text)
