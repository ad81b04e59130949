"""Log-probabilities that were computed, kept in `scores.jsonl` while a long measurement runs, so
that one that was stopped goes on.

A line is named by what computed it and by the tokens of its row; a line that cannot be read counts
as none. It is a cache: deleting it costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from tunewright.core.types import Sample
from tunewright.evaluate.answer_table import digest, writing

NAME = "scores.jsonl"
ROWS_AT_ONCE = 256
"""Rows that are computed between two visits to the disk."""


class ScoreTable:
    """The scores in `folder` by the model `who`; None keeps nothing."""

    def __init__(self, folder: Path | None, who: str):
        self.path = None if folder is None else folder / NAME
        self.who = who
        self._stored: dict[str, list[list[float]]] = {}
        if self.path is not None and self.path.is_file():
            with writing(self.path):
                text = self.path.read_text(encoding="utf-8", errors="replace")
            for line in text.split("\n"):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    stored = json.loads(line)
                    self._stored[stored["key"]] = stored["logprobs"]

    def find(self, sample: Sample) -> list[list[float]] | None:
        """The log-probabilities of every branch; None where they are not there."""
        found = self._stored.get(self._name(sample)) if self._stored else None
        wanted = [len(branch.learnt) for branch in sample.branches]
        whole = isinstance(found, list) and [len(one) for one in found] == wanted
        return found if whole else None

    def add(self, samples: Sequence[Sample], found: Sequence[list[list[float]]]) -> None:
        """Keep those that are numbers. Raises UsageError where nothing can be written."""
        if self.path is None:
            return
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # A line that was cut off must not swallow the next.
                file.write("\n" if self.path.stat().st_size else "")
                for sample, one in zip(samples, found, strict=True):
                    if all(math.isfinite(value) for branch in one for value in branch):
                        line = {"key": self._name(sample), "logprobs": one}
                        file.write(json.dumps(line) + "\n")

    def _name(self, sample: Sample) -> str:
        return digest([self.who, [[b.tokens, b.learnt] for b in sample.branches]])
