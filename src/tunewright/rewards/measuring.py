"""What can be measured on an answer alone: its length, its repetitions, its script, whether it
ended."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Literal

from pydantic import Field, model_validator

from tunewright.core.config import Section
from tunewright.core.refusals import refused
from tunewright.core.registry import rewards
from tunewright.core.types import Answer
from tunewright.rewards.base import RewardFunction, TextConfig, each, text_of, words_of

_HAN = (
    (0x2E80, 0x2FDF),
    (0x3005, 0x3005),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)
_LATIN = (
    (0x41, 0x7A),
    (0xC0, 0x2AF),
    (0x1E00, 0x1EFF),
    (0x2C60, 0x2C7F),
    (0xA722, 0xA7FF),
    (0xAB30, 0xAB64),
    (0xFB00, 0xFB06),
    (0xFF21, 0xFF5A),
)
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "zh": _HAN,
    "ja": (*_HAN, (0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "ko": (
        (0x1100, 0x11FF),
        (0x3131, 0x318E),
        (0xA960, 0xA97C),
        (0xAC00, 0xD7A3),
        (0xD7B0, 0xD7FB),
    ),
    "en": _LATIN,
    "ru": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "el": ((0x370, 0x3E1), (0x3F0, 0x3FF), (0x1F00, 0x1FFF)),
    "ar": ((0x620, 0x6FF), (0x750, 0x77F), (0x870, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC)),
    "he": ((0x5D0, 0x5F2), (0xFB1D, 0xFB4F)),
    "hi": ((0x900, 0x97F), (0xA8E0, 0xA8FF)),
    "th": ((0xE01, 0xE5B),),
}
"""Code points of the script of a language, from the Unicode blocks. Only characters that are
letters are looked up."""


class LengthConfig(Section):
    """1 where the answer's length lies in a range, falling to 0 outside of it."""

    unit: Literal["tokens", "words", "characters"] = "tokens"
    """What is counted: tokens as the model wrote them, the stop token among them; words (in Chinese
    and Japanese, characters); or characters."""
    min: int = Field(default=0, ge=0)
    """Shortest length that is worth 1."""
    max: int | None = Field(default=None, ge=0)
    """Longest length that is worth 1; null: no bound."""
    slope: int = Field(default=0, ge=0)
    """How far outside the range the value reaches 0, falling linearly; 0: at once."""

    @model_validator(mode="after")
    def _a_range(self) -> LengthConfig:
        if self.max is not None and self.max < self.min:
            raise refused("range_order")
        if self.max is None and self.min == 0:
            raise refused("range_empty")
        return self


class RepetitionConfig(TextConfig):
    """A penalty from 0 to -1: the share of n-grams of words that had come before in the same
    answer."""

    ngram: int = Field(default=3, ge=1)
    """Length of the word sequences that are compared."""


class LanguageConfig(TextConfig):
    """The share of letters that belong to the script of a language. Scripts, not languages: English
    and French look alike."""

    language: Literal["zh", "ja", "ko", "en", "ru", "el", "ar", "he", "hi", "th"]
    """The language whose script is counted; en stands for every language in Latin letters."""
    at_least: float | None = Field(default=None, gt=0, le=1)
    """1 from this share on and 0 below it; default: the share itself."""


class FinishedConfig(Section):
    """1 where the answer ended with its stop token, 0 where it was cut off."""


@rewards.register("length", LengthConfig)
def length(config: LengthConfig) -> RewardFunction:
    """From 0 to 1 an answer."""

    def judge(answer: Answer) -> float:
        count = {
            "tokens": lambda: answer.num_tokens,
            "words": lambda: len(words_of(answer.text)),
            "characters": lambda: len(answer.text),
        }[config.unit]()
        outside = max(config.min - count, count - config.max if config.max is not None else 0, 0)
        return max(0.0, 1 - outside / config.slope) if config.slope else float(outside == 0)

    return each(judge)


@rewards.register("repetition", RepetitionConfig)
def repetition(config: RepetitionConfig) -> RewardFunction:
    """From -1 to 0 an answer; 0 for one that is too short to repeat anything."""

    def judge(answer: Answer) -> float:
        words = words_of((text_of(answer, config.inside) or "").casefold())
        grams = [tuple(words[i : i + config.ngram]) for i in range(len(words) - config.ngram + 1)]
        return len(set(grams)) / len(grams) - 1 if grams else 0.0

    return each(judge)


def share_in_script(text: str, language: str) -> float:
    """Share of the letters of a text that belong to a language's script; 0 for a text without
    letters."""
    ranges = sorted(SCRIPTS[language])
    starts = [first for first, _ in ranges]

    def inside(char: str) -> bool:
        place = bisect_right(starts, ord(char)) - 1
        return place >= 0 and ord(char) <= ranges[place][1]

    letters = [char for char in text if char.isalpha()]
    return sum(map(inside, letters)) / len(letters) if letters else 0.0


@rewards.register("language", LanguageConfig)
def language(config: LanguageConfig) -> RewardFunction:
    """From 0 to 1 an answer."""

    def judge(answer: Answer) -> float:
        share = share_in_script(text_of(answer, config.inside) or "", config.language)
        return share if config.at_least is None else float(share >= config.at_least)

    return each(judge)


@rewards.register("finished", FinishedConfig)
def finished(config: Any) -> RewardFunction:
    """1 or 0 an answer."""
    return each(lambda answer: float(answer.finished))
