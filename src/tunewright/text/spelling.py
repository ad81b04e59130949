"""Text to token ids, piece by piece where it must be: control tokens typed into a text are encoded
as text, never as control tokens.

A typed control token arrives wrapped in two private-use marks. It is cut after its first character,
so that no part of it is the token any more; the result is checked. Pieces from the middle of a text
are tokenised without the space that some tokenizers put before a first word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

Marks = tuple[str, str]


def pattern_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Matches any of `strings`, longest first. One character (some models pad with "!") or white
    space is ordinary text, never control."""
    longest_first = sorted(
        {s for s in strings if len(s) > 1 and not s.isspace()}, key=lambda s: (-len(s), s)
    )
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def mark(value: Any, pattern: re.Pattern[str], marks: Marks) -> tuple[Any, int]:
    """`value` with every match in its strings (dictionary keys too: tools are written as JSON)
    wrapped in `marks`, and how many there were."""
    if isinstance(value, str):
        return pattern.subn(lambda m: marks[0] + m.group() + marks[1], value)
    if isinstance(value, dict):
        pairs = [(mark(k, pattern, marks), mark(v, pattern, marks)) for k, v in value.items()]
        return {k: v for (k, _), (v, _) in pairs}, sum(a + b for (_, a), (_, b) in pairs)
    if isinstance(value, (list, tuple)):
        parts = [mark(v, pattern, marks) for v in value]
        return [v for v, _ in parts], sum(n for _, n in parts)
    return value, 0


def unmark(text: str, marks: Marks) -> str:
    """`text` without its marks."""
    return text.replace(marks[0], "").replace(marks[1], "")


class Speller:
    """Token ids of marked text with one tokenizer, no special tokens added. `control` are the
    strings that are never meant when typed."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.control: set[str] = set()
        self._spelt: dict[str, list[int]] = {}
        self._newline = self.raw("\n")
        self._adds_space = self.raw("\nx")[len(self._newline) :] != self.raw("x")
        bare, dressed = self.raw("x"), list(tokenizer.encode("x", add_special_tokens=True))
        self.lead: list[int] = next(
            (dressed[:i] for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare), []
        )
        """Ids that the tokenizer puts before running text (bos, for most); templates write their
        own."""

    def raw(self, text: str) -> list[int]:
        """Ids of plain text; control tokens in it are meant."""
        return (
            list(
                self.tokenizer.encode(
                    text, add_special_tokens=False, split_special_tokens=False, verbose=False
                )
            )
            if text
            else []
        )

    def _inside(self, text: str) -> list[int]:
        """Ids of a piece from the middle of a text: without the space that some tokenizers put
        before the first word."""
        if self._adds_space and text:
            ids = self.raw("\n" + text)
            if ids[: len(self._newline)] == self._newline:
                return ids[len(self._newline) :]
        return self.raw(text)

    def ids(self, text: str, marks: Marks, *, inside: bool = False) -> list[int]:
        """Ids of a text whose marked control tokens are plain characters."""
        if marks[0] not in text:
            return self._inside(text) if inside else self.raw(text)
        ids: list[int] = []
        for number, piece in enumerate(re.split(f"[{marks[0]}{marks[1]}]", text)):
            if number % 2:
                ids += self._as_characters(piece)
            else:
                ids += self._inside(piece) if number or inside else self.raw(piece)
        return ids

    def _as_characters(self, token: str) -> list[int]:
        """Ids that spell a control token without being it."""
        if token not in self._spelt:
            # A character outside the vocabulary is the unknown token; that is a loss, not a control
            # token.
            control = {self.tokenizer.convert_tokens_to_ids(s) for s in self.control} - {
                self.tokenizer.unk_token_id
            }
            for pieces in ([token[:1], token[1:]], list(token)):
                ids = [i for piece in pieces for i in self._inside(piece)]
                if not control & set(ids):
                    break
            else:
                raise ValueError(f"{token!r} cannot be written as text")
            self._spelt[token] = ids
        return self._spelt[token]
