"""Answers of the model that a run starts from, kept between runs: it answers the same each time.

An answer is kept under everything that decides it: the bytes of the model's and the adapter's
folders, what computes (device, dtype, quantisation, versions), the tokens of the question (so the
template, the system prompt and the question), the stop tokens and the most tokens. One file a
model (`core/findings.py`): it appears whole, one that cannot be read counts as none, and one that
nobody asked for is removed in time.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, get_args

from tunewright.core import findings
from tunewright.engine.decoding.answers import Answer, AnsweringModel, End

KIND = "answers"
MOST_ANSWERS = 1000
"""Answers kept of one model; the oldest give way."""


class KeptAnswers:
    """The kept answers of one model. `about` are plain values (JSON) that say which it is; None:
    nothing is kept."""

    def __init__(self, about: dict[str, Any] | None):
        self.about = about

    def find(
        self, model: AnsweringModel, prompts: list[list[int]], limits: list[int]
    ) -> list[Answer | None]:
        """The kept answer to each prompt (token ids), None where there is none."""
        if self.about is None:
            return [None] * len(prompts)
        stored = self._stored()
        return [
            _read(stored.get(_name(model, prompt, most)))
            for prompt, most in zip(prompts, limits, strict=True)
        ]

    def keep(
        self,
        model: AnsweringModel,
        prompts: list[list[int]],
        limits: list[int],
        answers: list[Answer],
    ) -> None:
        """Keep answers beside those that are there."""
        if self.about is None or not prompts:
            return
        stored = self._stored()
        for prompt, most, answer in zip(prompts, limits, answers, strict=True):
            name = _name(model, prompt, most)
            stored.pop(name, None)  # the newest stand last
            stored[name] = {"text": answer.text, "end": answer.end, "tokens": answer.tokens}
        findings.keep(KIND, self.about, dict(list(stored.items())[-MOST_ANSWERS:]))

    def _stored(self) -> dict[str, Any]:
        found = findings.read(KIND, self.about)
        return found if isinstance(found, dict) else {}


def _name(model: AnsweringModel, prompt: list[int], most: int) -> str:
    """What an answer is kept under."""
    text = json.dumps([prompt, most, model.stop_ids, model.vocabulary])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read(value: Any) -> Answer | None:
    """An answer from what was kept; None for anything else."""
    if not isinstance(value, dict) or set(value) != {"text", "end", "tokens"}:
        return None
    tokens = value["tokens"]
    whole = isinstance(tokens, list) and all(isinstance(token, int) for token in tokens)
    if not whole or not isinstance(value["text"], str) or value["end"] not in get_args(End):
        return None
    return Answer(**value)
