"""Which language a text is in, as far as its script tells: English and French look alike, Chinese
and Japanese do not."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

from tunewright.rewards.base import words_of
from tunewright.rewards.measuring import SCRIPTS

FEWEST_WORDS = 3
"""Shorter texts have no language: "OK", "H2O" and "42" belong to all of them."""
CLEAR = 0.6
"""Share of the words that must be in one script. In Chinese every character is a word, so a Chinese
sentence with a few English names in it is clearly Chinese."""
_code = re.compile(r"```.*?(?:```|\Z)|`[^`]*`|https?://\S+|\\\(.*?\\\)|\$[^$]*\$", re.DOTALL)


def language_of(text: str) -> str | None:
    """`zh`, `ja`, `en` (for every language in Latin letters), `ru` ...; None where the text is too
    short or mixed. Code, addresses and formulas do not count."""
    counts: Counter[str] = Counter()
    for word in words_of(_code.sub(" ", text)):
        letters = [char for char in word if char.isalpha()]
        if letters:
            counts[_script(letters[0])] += 1
    total = counts.total()
    if counts["kana"]:  # Chinese has no kana, Japanese is full of them
        counts["ja"] = counts.pop("kana") + counts.pop("zh", 0)
    if total < FEWEST_WORDS:
        return None
    language, most = counts.most_common(1)[0]
    return language if language != "other" and most >= CLEAR * total else None


@cache
def _script(char: str) -> str:
    code = ord(char)
    for language, ranges in SCRIPTS.items():
        if any(first <= code <= last for first, last in ranges):
            return "kana" if language == "ja" else language
    return "other"
