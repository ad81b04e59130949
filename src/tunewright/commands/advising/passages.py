"""Passages of documents, and which of them a question is about (BM25).

A passage is a paragraph of a document, short ones together and long ones cut, with the headings
that it stands under, so that "It opens at nine" is found and understood. Ranking is BM25 (Robertson
and Zaragoza 2009) by bm25s (Lu 2024). Terms are words in lower case; in scripts without spaces
characters and pairs of characters, which needs no dictionary and finds names that none has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunewright.core.comparing import folded
from tunewright.core.errors import DataError, UsageError, problem

PASSAGE_WORDS, SHORT_WORDS = 60, 8
"""Most words of a passage, some 80 tokens; and a shorter paragraph stands with the next. Small
passages are found and read better: SmolLM2-135M reads a name out of one paragraph and fails on
three (docs/LOG.md)."""
K1, B = 0.9, 0.4
"""How much repeating a term counts, and how much a long passage loses: for short passages less than
in whole documents (Anserini's values for MS MARCO's passages, Yang et al. 2017)."""
LONG_WORD = 20
"""Characters."""
MOST_PASSAGES = 200_000
"""A larger collection wants a search engine of its own; what is beyond is counted and said."""
DOCUMENT_ENDINGS = (".txt", ".md", ".jsonl", ".json")
TEXT_KEYS = ("text", "content", "document", "passage", "body", "page_content", "contents")
TITLE_KEYS = ("title", "name", "heading", "source")
_WORD = re.compile(r"[^\W_]+(?:[.,:'’-][^\W_]+)*")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af]+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])")
_ITEM = re.compile(r"[-*+•·]\s|\d{1,3}[.)、]\s?|\|")
_HEADING = re.compile(r"(#{1,6})\s+(.*\S)")


def terms(text: str) -> list[str]:
    """The terms of a text, in order."""
    found: list[str] = []
    for word in _WORD.findall(folded(text)):
        place = 0
        for run in _UNSPACED.finditer(word):
            found += [word[place : run.start()]] if run.start() > place else []
            signs = run[0]
            found += [*signs, *(signs[i : i + 2] for i in range(len(signs) - 1))]
            place = run.end()
        found += [word[place:]] if place < len(word) else []
    return found


def num_words(text: str) -> int:
    """About how many words a text has; three signs of a script without spaces are taken for two,
    and what has no end for as many as have its length."""
    signs = sum(len(run) for run in _UNSPACED.findall(text))
    words = len(_WORD.findall(_UNSPACED.sub(" ", text))) + signs * 2 // 3
    return max(words, len(text) // LONG_WORD)


@dataclass(frozen=True)
class Passage:
    """A piece of a document. `place` says where it stands."""

    text: str
    place: str


@dataclass(frozen=True)
class Collection:
    """The passages of some documents."""

    passages: list[Passage]
    documents: int
    skipped: list[str]
    """Files of other kinds, left out."""
    cut: bool = False
    """There were more than `MOST_PASSAGES`."""


def read_documents(place: Path) -> Collection:
    """The passages of a file or of all files below a folder. Raises UsageError for what is not
    there or holds no text (E-ADVISE-02), DataError for a file that cannot be read."""
    if not place.exists():
        raise UsageError(problem("E-ADVISE-02", str(place), endings=", ".join(DOCUMENT_ENDINGS)))
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if _is_seen(p))
    wanted = [path for path in files if path.suffix.lower() in DOCUMENT_ENDINGS]
    found: list[Passage] = []
    documents = 0
    for path in wanted:
        if not path.stat().st_size or len(found) > MOST_PASSAGES:
            continue
        name = path.name if place.is_file() else path.relative_to(place).as_posix()
        for text, where in _texts(path, name):
            documents += 1
            found += [Passage(piece, where) for piece in passages_of(text)]
    if not found:
        raise UsageError(problem("E-ADVISE-02", str(place), endings=", ".join(DOCUMENT_ENDINGS)))
    skipped = [path.name for path in files if path not in wanted]
    return Collection(found[:MOST_PASSAGES], documents, skipped, len(found) > MOST_PASSAGES)


def _is_seen(path: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.parts[-3:])


def _texts(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """(text, where) of every document in a file."""
    from tunewright.data.files.reading import stream

    for row in stream(path, whole=True).rows:
        text = _text_of(row.value)
        if text.strip():
            several = path.suffix.lower() in (".jsonl", ".json")
            yield text, f"{name}:{row.origin.row}" if several else name


def _text_of(value: Any) -> str:
    """The text of a row: the column that is called so, under its title; else every text in it."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise DataError(problem("E-ADVISE-02", "", endings=", ".join(DOCUMENT_ENDINGS)))
    texts = {key: one for key, one in value.items() if isinstance(one, str) and one.strip()}
    body = next((texts[key] for key in TEXT_KEYS if key in texts), None)
    if body is None:
        return "\n\n".join(f"{key}: {one}" for key, one in texts.items())
    title = next((texts[key] for key in TITLE_KEYS if key in texts), "")
    return f"# {title}\n\n{body}" if title else body


def passages_of(text: str) -> list[str]:
    """A document cut at paragraphs, and long paragraphs at sentences, under their headings."""
    found: list[str] = []
    headings: dict[int, str] = {}
    block: list[str] = []
    length = 0

    def close() -> None:
        nonlocal block, length
        if block:
            found.append("\n".join([*headings.values(), *block]))
        block, length = [], 0

    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = paragraph.strip().split("\n")
        while lines and (heading := _HEADING.fullmatch(lines[0].strip())):
            close()
            depth = len(heading[1])
            headings = {d: h for d, h in headings.items() if d < depth} | {depth: heading[2]}
            lines.pop(0)
        for piece in [piece for part in _units(lines) for piece in _pieces(part)]:
            size = num_words(piece)
            if block and (length >= SHORT_WORDS or length + size > PASSAGE_WORDS):
                close()
            block.append(piece)
            length += size
    close()
    return found


def _units(lines: list[str]) -> list[str]:
    """A paragraph whole; its lines by themselves where each is an item of a list or ends a
    sentence, as in a file with one fact a line."""
    lines = [line.strip() for line in lines if line.strip()]
    alone = all(_ITEM.match(line) or line[-1] in ".!?。！？；:：" for line in lines)
    return lines if len(lines) > 1 and alone else ["\n".join(lines)]


def _pieces(paragraph: str) -> list[str]:
    """A paragraph, or sentences of it together as long as they are short enough."""
    if not paragraph:
        return []
    if num_words(paragraph) <= PASSAGE_WORDS:
        return [paragraph]
    found: list[str] = []
    for sentence in _SENTENCE.split(paragraph):
        words = sentence.split(" ")
        # A sentence without an end (a table, a log) is cut at words; Chinese has none: at signs.
        step = PASSAGE_WORDS if len(words) > PASSAGE_WORDS else len(words)
        parts = [" ".join(words[i : i + step]) for i in range(0, len(words), step)]
        for part in parts:
            count = num_words(part)
            signs = len(part) if count <= 2 * PASSAGE_WORDS else len(part) * PASSAGE_WORDS // count
            cut = [part[i : i + signs] for i in range(0, len(part), max(1, signs))]
            for one in cut:
                fits = found and num_words(found[-1] + " " + one) <= PASSAGE_WORDS
                if fits:
                    found[-1] += ("" if _UNSPACED.match(one[:1]) else " ") + one
                else:
                    found.append(one)
    return [one.strip() for one in found if one.strip()]


class Index:
    """Texts that can be searched."""

    def __init__(self, texts: Sequence[str]):
        self.texts = list(texts)
        self.terms = [terms(text) for text in self.texts]

    @cached_property
    def _ranking(self) -> Any:
        import bm25s

        # Without one term in all there is nothing to index, and bm25s divides by zero.
        if not any(self.terms):
            return None
        made = bm25s.BM25(k1=K1, b=B, backend="numpy")
        made.index([list(one) or [""] for one in self.terms], show_progress=False)
        return made

    def search(self, question: str, count: int, *, without: int | None = None) -> list[int]:
        """The places of the `count` texts that answer best, best first, of equal ones the first.
        `without` is left out: a row must not find itself."""
        import numpy as np

        asked = list(dict.fromkeys(terms(question)))
        if self._ranking is None or not asked:
            return []
        scores = np.asarray(self._ranking.get_scores(asked), dtype=np.float64)
        if without is not None:
            scores[without] = -1.0
        order = np.argsort(-scores, kind="stable")[:count]
        return [int(i) for i in order if scores[i] > 0]
