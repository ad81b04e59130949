"""Keeping what a long job says."""

from __future__ import annotations

from tunewright.core.telling import Quiet


class Lines(Quiet):
    """Keeps every line in `said`; progress is not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)
