"""Guesses for an answer that copies: what followed the same words before, in the question or in the
answer itself.

While one answer is written, reading the weights is nearly all the time, and a few tokens more cost
little: guessed ones are computed in the same step and kept as far as they are what the model would
have written (speculative decoding, Leviathan et al. 2023; prompt lookup, Saxena 2023). The answer
is the same, sooner.
"""

from __future__ import annotations

from collections.abc import Sequence

WORDS = 3
"""Tokens that must have stood together before."""
MOST = 8
"""Tokens that are guessed at once."""


class Lookup:
    """What stood where in a text of token ids."""

    def __init__(self, text: Sequence[int]) -> None:
        self.text: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}
        """Words -> the place after their last occurrence but the one at the end."""
        self.most = MOST
        self._last: tuple[int, ...] | None = None
        for token in text:
            self.add(token)

    def add(self, token: int) -> None:
        """The text goes on with `token`."""
        if self._last is not None:
            self.after[self._last] = len(self.text)
        self.text.append(token)
        self._last = tuple(self.text[-WORDS:]) if len(self.text) >= WORDS else None

    def guess(self) -> list[int]:
        """What may follow now; empty where these words are new. What reaches the end of the text
        goes on with what was just guessed: a text that repeats itself does so again."""
        place = self.after.get(self._last) if self._last is not None else None
        if place is None:
            return []
        guessed = self.text[place : place + self.most]
        while len(guessed) < self.most:
            guessed.append(guessed[place - len(self.text)])
        return guessed

    def learn(self, guessed: int, right: int) -> None:
        """So many of the guessed tokens were right: guess more after a good guess, fewer after a
        bad one."""
        self.most = min(MOST, 2 * self.most) if right == guessed else max(1, right)
