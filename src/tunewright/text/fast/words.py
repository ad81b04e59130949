"""Token ids of ordinary text word by word, from a cache of words: several times as fast as the
library, and the same ids.

Byte-level BPE cuts a text into words with a regular expression and tokenises each word alone, so a
word's ids never change. Where the expression is one that `re` can follow for the characters at
hand, the words are found here and each is looked up; a new one is tokenised by the library's own
model. Only text of characters whose class is beyond doubt is taken (ASCII, Latin-1 letters,
Cyrillic, kana, the common ideographs, usual punctuation): for those `\\p{L}`, `\\p{N}` and `\\s`
are plain sets, and no normal form changes them. Everything else, and every tokenizer that is built
another way or fails the comparison with the library on the probes below, is left to the library.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any

LETTERS = "a-zA-Z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff\u0410-\u044f\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5"
DIGITS = "0-9"
OTHERS = "\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u3001\u3002\u300a-\u300d\u3010\u3011\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
SPACES = " \\t\\n\\r\\f\\v"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MOST_WORDS = 300_000
LONGEST_KEPT = 24
"""Characters: longer words hardly come twice."""
_known = re.compile(f"[\\x00-\\x1b !-~{LETTERS}{OTHERS}]*")
PROBES = (
    "Hello world, it's 12345 o'clock  and\n\n  the    end.\t\tx\r\n y \n",
    " leading",
    "trailing  ",
    "don't DON'T we'LL I'd",
    "a1b22c333 4444 5,000.25",
    "def f(x):\n    return x[0] + {'a': 1}\n\n\n# done!!!...",
    "\n\n\n",
    "   ",
    " \n \n x",
    "http://a.b/c?d=e&f=%20 <tag> </tag>\\n",
    "----====____****",
    "\u4ec0\u4e48\u662f\u673a\u5668\u5b66\u4e60\uff1f 3 \u4e2a\u4f8b\u5b50\uff1a\u4e00\u3001\u4e8c\u3002",
    "caf\u00e9 na\u00efve \u2014 \u201cquoted\u201d\u2026 it\u2019s",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 42",
    "\u3053\u3093\u306b\u3061\u306f\u30c6\u30b9\u30c8",
    "x\x0b\x0cy \x1b z",
    "A  B   C\n D",
    "'sx 'S 'rex",
    "1 2  3   4",
)


def _translated(pattern: str) -> str | None:
    """A pattern of the library for `re`, or None where it holds something that is not known to mean
    the same."""
    out, at, in_class, counted = "", 0, False, False
    while at < len(pattern):
        here, after_count, counted = pattern[at], counted, False
        if here == "\\":
            name = pattern[at : at + 5]
            if name in ("\\p{L}", "\\p{N}"):
                inner = LETTERS if name == "\\p{L}" else DIGITS
                out, at = out + (inner if in_class else f"[{inner}]"), at + 5
                continue
            two = pattern[at : at + 2]
            if two == "\\s":
                out += SPACES if in_class else f"[{SPACES}]"
            elif two == "\\S" and not in_class:
                out += f"[^{SPACES}]"
            elif two in ("\\r", "\\n", "\\t"):
                out += two
            else:
                return None
            at += 2
            continue
        if here == "[":
            if in_class or pattern[at + 1 : at + 2] == "[":
                return None
            in_class = True
        elif here == "]":
            in_class = False
        elif here in "+*?}" and not in_class:
            if after_count or (here == "?" and pattern[at - 1] == "("):
                # A possessive or lazy count is None; `(?` opens a group.
                if pattern[at - 1] != "(":
                    return None
            else:
                counted = True
        elif here in ".&" or ord(here) > 126:
            return None
        out, at = out + here, at + 1
    return out


def _byte_names() -> dict[int, str]:
    """Byte -> the character that stands for it in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def _pattern_of(tokenizer: dict[str, Any]) -> str | None:
    """The expression whose matches are the words, for `re`; None for a pipeline that is not plain
    byte-level BPE."""
    model, normalizer, before = (
        tokenizer["model"],
        tokenizer.get("normalizer"),
        tokenizer.get("pre_tokenizer") or {},
    )
    pieces = bool(model.get("continuing_subword_prefix")) or bool(model.get("end_of_word_suffix"))
    if (
        model.get("type") != "BPE"
        or model.get("dropout")
        or pieces
        or model.get("byte_fallback")
        or normalizer not in (None, {"type": "NFC"})
    ):
        return None
    steps = before.get("pretokenizers", [before])
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    if steps[-1].get("use_regex", True):
        if len(steps) == 1:
            return _translated(GPT2)
        if len(steps) == 2 and steps[0] == {"type": "Digits", "individual_digits": True}:
            # Every digit is a word and an end of the text before it.
            return f"[{DIGITS}]|" + (_translated(GPT2) or "").replace(
                f"(?![^{SPACES}])", f"(?![^{SPACES}{DIGITS}])"
            )
        return None
    if (
        len(steps) != 2
        or steps[0].get("type") != "Split"
        or steps[0].get("invert")
        or steps[0].get("behavior") not in ("Isolated", "Removed")
    ):
        return None
    pattern = (
        steps[0].get("pattern", {}).get("Regex") if steps[0]["behavior"] == "Isolated" else None
    )
    return _translated(pattern) if pattern is not None else None


class _Unspelt(Exception):
    """The tokens of a word do not spell it."""


class _Memory(dict[str, list[int]]):
    """Words and their ids; a new word is tokenised by the model, and with `spellings` proven: its
    tokens spell it."""

    def __init__(self, model: Any, spellings: Spellings | None):
        super().__init__()
        self._model = model
        self._names = _byte_names()
        self._spellings = spellings

    def __missing__(self, word: str) -> list[int]:
        found = [
            token.id
            for token in self._model.tokenize(
                word.encode().decode("latin-1").translate(self._names)
            )
        ]
        if self._spellings is not None and not self._spellings.spell(found, word):
            raise _Unspelt
        if len(word) <= LONGEST_KEPT:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = found
        return found


class Spellings:
    """The bytes of every token of a byte-level vocabulary: joined, they are what the library
    decodes, at a fraction of its time."""

    def __init__(self, tokens: dict[int, bytes]):
        self._tokens = tokens

    @classmethod
    def of(cls, backend: Any, described: dict[str, Any] | None = None) -> Spellings | None:
        """For a backend that decodes bytes and nothing else; None for any other. `described` is its
        own JSON, where that is at hand."""
        described = described or json.loads(backend.to_str())
        if (described.get("decoder") or {}).get("type") != "ByteLevel":
            return None
        values = {name: byte for byte, name in _byte_names().items()}
        added = {
            int(t["id"]): str(t["content"]).encode() for t in described.get("added_tokens", [])
        }
        plain = {
            number: name
            for name, number in backend.get_vocab(with_added_tokens=True).items()
            if number not in added
        }
        known = {
            number: bytes(map(values.__getitem__, name))
            for number, name in plain.items()
            if all(c in values for c in name)
        }
        made = cls(known | added)
        probes = [
            backend.encode(text, add_special_tokens=False).ids
            for text in (*PROBES, "\U0001f642 e\u0301")
        ]
        if all(made.spell(ids, backend.decode(ids, skip_special_tokens=False)) for ids in probes):
            return made
        return None

    def spell(self, ids: list[int], text: str) -> bool:
        """Whether the tokens spell exactly `text`. False also where that cannot be told here."""
        try:
            return b"".join(map(self._tokens.__getitem__, ids)) == text.encode()
        except (KeyError, UnicodeEncodeError):
            return False


class Words:
    """Ids of pieces of text for one backend. `ids` gives None for text that the library must take."""

    def __init__(
        self,
        words: re.Pattern[str],
        backend: Any,
        added: re.Pattern[str],
        firsts: str,
        spellings: Spellings | None = None,
    ):
        """`firsts` are the characters with which added tokens begin."""
        self._words, self._added = words, added
        self._firsts = firsts
        self.proves = spellings is not None
        """Whether ids that are given are known to spell their text: each word was proven when it
        first came."""
        self._memory = _Memory(backend.model, spellings)

    @classmethod
    def of(
        cls,
        backend: Any,
        spellings: Spellings | None = None,
        described: dict[str, Any] | None = None,
    ) -> Words | None:
        """For a backend whose words can be found here; None for any other. With `spellings`, ids
        are given only for text that they are proven to spell."""
        described = described or json.loads(backend.to_str())
        pattern = _pattern_of(described)
        if pattern is None:
            return None
        contents = sorted(
            (t["content"] for t in described.get("added_tokens", [])), key=lambda c: (-len(c), c)
        )
        made = cls(
            re.compile(pattern),
            backend,
            re.compile("|".join(map(re.escape, contents)) or r"(?!)"),
            "".join({c[:1] for c in contents}),
            spellings,
        )
        for probe in PROBES:
            found = made.ids(probe)
            if found is not None and found != list(
                backend.encode(probe, add_special_tokens=False).ids
            ):
                return None
        return made

    def ids(self, text: str) -> list[int] | None:
        """Ids of a text between two control tokens, or None."""
        # Looking for one character is far cheaper than trying every added token at every place.
        if not _known.fullmatch(text) or (
            any(c in text for c in self._firsts) and self._added.search(text)
        ):
            return None
        words = self._words.findall(text)
        if "".join(words) != text:
            return None
        try:
            return list(chain.from_iterable(map(self._memory.__getitem__, words)))
        except _Unspelt:
            return None
