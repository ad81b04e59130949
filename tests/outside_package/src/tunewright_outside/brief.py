"""A reward for short answers."""

from __future__ import annotations

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.registry import rewards
from tunewright.core.types import Answer
from tunewright.rewards.base import RewardFunction


class BriefConfig(Section):
    """1 for an empty answer, falling by half with every `half` characters."""

    half: int = Field(default=40, gt=0)
    """Characters after which an answer is worth half as much."""


@rewards.register("brief", BriefConfig)
def brief(config: BriefConfig) -> RewardFunction:
    """From 0 to 1 an answer."""

    def judge(answers: list[Answer]) -> list[float | None]:
        return [0.5 ** (len(answer.text) / config.half) for answer in answers]

    return judge
