"""Text to token ids: control tokens that somebody typed are spelt, never meant, and a question's
ids do not depend on what follows it.

A typed control token arrives wrapped in two private-use marks. It is cut after its first character,
so that no part of it is the token any more; the result is checked. Pieces from the middle of a text
are tokenised without the space that some tokenizers put before a first word.

The library cuts a text at control tokens before anything else, so ids between two of them depend on
that piece alone. Many texts are tokenised at once, each piece of them once, between its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


class ControlTokens:
    """The tokens of a model that are never meant when somebody types them: `special` ones, and
    `written` ones, which the template writes."""

    def __init__(self, special: set[str], written: set[str]):
        self.special, self.written = special, written
        self.in_answers = pattern_of(special)
        self.anywhere = pattern_of(special | written)

    @classmethod
    def of(cls, tokenizer: Any, template: str, ends: Sequence[int]) -> ControlTokens:
        """Of a tokenizer, the source of its template, and the ids that end an answer."""
        added = {str(t.content): bool(t.special) for t in tokenizer.added_tokens_decoder.values()}
        stops = {str(tokenizer.convert_ids_to_tokens(i)) for i in ends}
        special = {token for token, is_special in added.items() if is_special}
        return cls(
            special | (stops & added.keys()), {token for token in added if token in template}
        )

    def all(self) -> set[str]:
        """Every one of them."""
        return self.special | self.written

    def find_stop(self, text: str) -> re.Match[str] | None:
        """The first special token in what a template writes after an answer."""
        found = self.in_answers.search(text)
        if found is None and (found := pattern_of(self.written).search(text)):
            # A ChatML token that was added without the special flag still ends answers.
            self.special.add(found.group())
            self.in_answers = pattern_of(self.special)
        return found

    def special_at_end(self, text: str) -> str | None:
        """The longest special token that `text` ends with."""
        return max(filter(text.endswith, self.special), key=len, default=None)


@dataclass(frozen=True)
class Written:
    """A text to be tokenised. `cuts` are characters at which a token must begin, ascending; typed
    control tokens stand between `marks`."""

    text: str
    cuts: list[int]
    marks: Marks


@dataclass(frozen=True)
class Tokens:
    """The ids of a text; `edges` is, for each cut and the end, the number of ids before it."""

    ids: list[int]
    edges: dict[int, int]


_Piece = tuple[str, str, str]
"""Control token before, text, control token after ("" at an end of the text)."""


class Speller:
    """Token ids with one tokenizer, no special tokens added. `control` are the tokens that are
    never meant when typed."""

    def __init__(self, tokenizer: Any, control: ControlTokens):
        self.tokenizer, self.control = tokenizer, control
        self._spelt: dict[str, list[int]] = {}
        self._pieces: Pieces | None = None
        self._newline = self._raw("\n")
        self._adds_space = self._raw("\nx")[len(self._newline) :] != self._raw("x")
        bare, dressed = self._raw("x"), list(tokenizer.encode("x", add_special_tokens=True))
        self.lead: list[int] = next(
            (dressed[:i] for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare), []
        )
        """Ids that the tokenizer puts before running text (bos, for most); templates write their
        own."""

    def ids(self, text: str, marks: Marks, *, inside: bool = False) -> list[int]:
        """Ids of a text whose marked control tokens are plain characters. Raises ValueError for a
        control token that cannot be spelt."""
        if marks[0] not in text:
            return self._inside(text) if inside else self._raw(text)
        ids: list[int] = []
        for number, piece in enumerate(re.split(f"[{marks[0]}{marks[1]}]", text)):
            if number % 2:
                ids += self._as_characters(piece)
            else:
                ids += self._inside(piece) if number or inside else self._raw(piece)
        return ids

    def many(self, wanted: Sequence[Written]) -> list[Tokens | ValueError]:
        """The tokens of each text, or why there are none.

        By induction the ids up to a cut are the ids of the text up to that cut taken alone: the
        question's ids never depend on the answer.
        """
        if self._pieces is None:
            self._pieces = Pieces.of(self.tokenizer)
        plain = [
            one.text[:cut]
            for one in wanted
            if one.marks[0] not in one.text
            for cut in (*one.cuts, len(one.text))
        ]
        known = self._pieces.ids(plain) if self._pieces is not None else {}
        return [self._tokens(one, known) for one in wanted]

    def _tokens(self, one: Written, known: dict[str, list[int]]) -> Tokens | ValueError:
        before: list[int] = []
        begin, edges = 0, {}
        for cut in (*one.cuts, len(one.text)):
            text = one.text[:cut]
            try:
                plain = one.marks[0] not in text
                ids = known[text] if plain and text in known else self.ids(text, one.marks)
                if ids[: len(before)] != before:
                    ids = before + self.ids(one.text[begin:cut], one.marks, inside=True)
            except ValueError as error:
                return error
            before, begin = ids, cut
            edges[cut] = len(ids)
        return Tokens(before, edges)

    def _raw(self, text: str) -> list[int]:
        """Ids of plain text; control tokens in it are meant."""
        if not text:
            return []
        return list(
            self.tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=False, verbose=False
            )
        )

    def _inside(self, text: str) -> list[int]:
        """Ids of a piece from the middle of a text: without the space that some tokenizers put
        before the first word."""
        if self._adds_space and text:
            ids = self._raw("\n" + text)
            if ids[: len(self._newline)] == self._newline:
                return ids[len(self._newline) :]
        return self._raw(text)

    def _as_characters(self, token: str) -> list[int]:
        """Ids that spell a control token without being it."""
        if token not in self._spelt:
            # A character outside the vocabulary is the unknown token; that is a loss, not a control
            # token.
            control = {self.tokenizer.convert_tokens_to_ids(s) for s in self.control.all()} - {
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


class Pieces:
    """Texts tokenised piece by piece with a `tokenizers.Tokenizer`."""

    def __init__(self, backend: Any):
        self.backend = backend
        self.controls = _places_to_cut(backend.get_added_tokens_decoder())
        self._pattern = pattern_of(self.controls)

    @classmethod
    def of(cls, tokenizer: Any) -> Pieces | None:
        """None for a tokenizer of another library, and for one that tokenises at random."""
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer) or getattr(tokenizer, "split_special_tokens", False):
            return None
        return None if getattr(backend.model, "dropout", None) else cls(backend)

    def ids(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """The ids of every text."""
        cut_up = {text: self._cut_up(text) for text in texts}
        # Whoever asked the tokenizer before may have left them on.
        self.backend.no_truncation()
        self.backend.no_padding()
        pieces = list(dict.fromkeys(p for parts in cut_up.values() for p, _ in parts if p[1]))
        many = self.backend.encode_batch_fast(
            ["".join(p) for p in pieces], add_special_tokens=False
        )
        known: dict[_Piece, list[int]] = {}
        for piece, one in zip(pieces, many, strict=True):
            ids = one.ids
            known[piece] = ids[1 if piece[0] else 0 : len(ids) - 1 if piece[2] else len(ids)]
        found: dict[str, list[int]] = {}
        for text, parts in cut_up.items():
            found[text] = []
            for piece, control in parts:
                found[text] += known.get(piece, ())
                if control is not None:
                    found[text].append(control)
        return found

    def _cut_up(self, text: str) -> list[tuple[_Piece, int | None]]:
        """The pieces of a text, each with the id of the control token behind it."""
        parts: list[tuple[_Piece, int | None]] = []
        before, at = "", 0
        for found in self._pattern.finditer(text):
            control = found.group()
            parts.append(((before, text[at : found.start()], control), self.controls[control]))
            before, at = control, found.end()
        return [*parts, ((before, text[at:], ""), None)]


def _places_to_cut(added: dict[int, Any]) -> dict[str, int]:
    """Added tokens at which a text is cut whatever stands around them: no other added token
    overlaps one from the left or holds it."""
    contents = [str(token.content) for token in added.values()]
    firsts: dict[str, list[str]] = {}
    for other in contents:
        for at in range(len(other)):
            firsts.setdefault(other[at], []).append(other[at:])
    found = {}
    for number, token in added.items():
        text = str(token.content)
        if token.normalized or token.single_word or len(text) < 2 or text.isspace():
            continue
        # Every ending of every added token that begins like this one: only the token itself, once,
        # may be among them.
        endings = firsts.get(text[0], [])
        if sum(text.startswith(ending) or ending.startswith(text) for ending in endings) == 1:
            found[text] = number
    return found
