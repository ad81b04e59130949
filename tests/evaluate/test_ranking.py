"""How a reward model is measured: its own scores read apart, and judges that understand nothing."""

from __future__ import annotations

import pytest

from tunewright.core.types import Message, Origin, Preference
from tunewright.evaluate.ranking import WordCounter, by_length, prefers_longer, words_of


def pair(chosen: str, rejected: str) -> Preference:
    return Preference(
        [Message("user", "q")],
        [Message("assistant", chosen)],
        [Message("assistant", rejected)],
        Origin("f", 1, 1),
    )


def test_the_length_judge_counts_words_and_chinese_characters() -> None:
    assert (
        words_of("Ein Haus, 3 Türen") == ["ein", "haus", "3", "türen"]
        and len(words_of("你好，世界")) == 4
    )
    pairs = [pair("a b c", "a"), pair("a", "a b"), pair("x y", "y x")]
    assert (
        by_length(pairs, True) == pytest.approx(0.5)
        and prefers_longer(pairs[:1])
        and not prefers_longer(pairs[1:2])
    )


def test_the_word_judge_learns_which_words_are_chosen_and_ties_count_half() -> None:
    pairs = [pair(f"thank you for item {n}", f"go away item {n}") for n in range(12)]
    judge = WordCounter(pairs)
    assert judge.accuracy([pair("many thank s you", "away with it")]) == 1.0
    assert judge.accuracy([pair("go go", "thank")]) == 0.0
    assert judge.accuracy([pair("quite unknown", "other text")]) == 0.5
