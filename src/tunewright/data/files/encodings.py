"""Which encoding a text file has: found, never assumed, and always said.

In this order: a byte order mark; zero bytes at every second or fourth place (UTF-16 and UTF-32
without a mark); strict UTF-8; then GB18030 (which contains GBK and GB2312) and Big5 where they fit
strictly *and* the characters that come out are those that Chinese text is made of. Latin-1 fits any
bytes at all, so it is never guessed. The whole file is decoded once before its first row is given
out, a piece at a time.

Plausible means: nine in ten characters beyond ASCII stand in the rows of frequent characters or
punctuation of the national standard (GB 2312 level 1, Big5 level 1), and enough of them are among
the few hundred most used ones. Korean in EUC-KR passes the first test as GB 2312 and fails the
second.
"""

from __future__ import annotations

import codecs
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from tunewright.core.errors import DataError
from tunewright.core.words import say

CHUNK_BYTES = 2**18
SAMPLED_CHARACTERS = 2_000_000
COMMON_SHARE, FREQUENT_SHARE = 0.9, 0.2
FEW_CHARACTERS, FREQUENT_SHARE_OF_FEW = 20, 0.3
CLEARLY = 1.5

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# How files begin that are no text at all, whatever their name says.
BINARY = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"PAR1", "parquet"),
    (b"ARROW1", "arrow"),
    (b"%PDF-", "pdf"),
    (b"SQLite format 3\x00", "sqlite"),
    (b"\x80\x02", "pickle"),
    (b"\x80\x03", "pickle"),
    (b"\x80\x04", "pickle"),
    (b"\x80\x05", "pickle"),
    (b"\x89PNG", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x7fELF", "program"),
)
# The characters that make up most of written Chinese, simplified and traditional; single ones are
# public knowledge of any frequency list.
FREQUENT = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都同现当没动"
    "面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向"
    "头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活"
    "请是否回答什么如何怎样一句话使用数据模型语言问题例子以下请写出给出描述症状治疗患者药"
    "這個們來為國說時會對過發後裡種經麼學現當沒動還進樣開從實軍無與長機關點業將兩間問應戰頭體見產話內門東聲員論處義幾認條係氣題請寫數據語藥"
    "，。、；：？！“”‘’（）《》「」『』…—·"
)


@dataclass(frozen=True)
class Encoding:
    """A Python codec, how many bytes its mark takes, and whether it was told from the characters
    instead of from a mark or from being UTF-8."""

    codec: str
    mark_bytes: int = 0
    was_told: bool = False

    @property
    def name(self) -> str:
        """What the report says: `utf-8`, `utf-16-le+bom`, `gb18030`."""
        return f"{self.codec}+bom" if self.mark_bytes else self.codec


UTF8 = Encoding("utf-8")


@dataclass
class _Misfit:
    """The first byte that a codec cannot read: its offset in the file, value and 1-based line."""

    offset: int
    value: int
    line: int


def find_encoding(opener: Callable[[], BinaryIO], name: str) -> Encoding:
    """The encoding of a text file. `opener` gives its bytes from the start. Raises DataError naming
    the first byte and line that do not fit."""
    with opener() as content:
        head = content.read(4096)
    marked = next(((mark, codec) for mark, codec in BOMS if head.startswith(mark)), None)
    if marked is not None:
        found = Encoding(marked[1], len(marked[0]))
        misfit = _first_misfit(opener, found)
        if misfit is None:
            return found
        raise _no_fit(opener, name, found.codec, misfit)
    _refuse_binary(head, name)
    wide = _by_zero_bytes(head)
    if wide is not None and _first_misfit(opener, wide) is None:
        return wide
    misfit = _first_misfit(opener, UTF8)
    if misfit is None:
        return UTF8
    chinese = _chinese(opener)
    if chinese is not None:
        return chinese
    raise _no_fit(opener, name, "utf-8", misfit)


def decode(data: bytes, name: str) -> tuple[str, str]:
    """Text and encoding of a file's bytes. Raises DataError naming the first byte and line that do
    not fit."""
    found = find_encoding(lambda: io.BytesIO(data), name)
    return data[found.mark_bytes :].decode(found.codec), found.name


def _first_misfit(
    opener: Callable[[], BinaryIO], encoding: Encoding, tally: Counter[str] | None = None
) -> _Misfit | None:
    """Where the file stops being text of this encoding; None: nowhere. `tally` counts the
    characters of its beginning."""
    decoder = codecs.getincrementaldecoder(encoding.codec)("strict")
    line, seen = 1, 0
    with opener() as content:
        read = len(content.read(encoding.mark_bytes))
        while True:
            piece = content.read(CHUNK_BYTES)
            waiting = decoder.getstate()[0]
            try:
                text = decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                good = (waiting + piece)[: error.start].decode(encoding.codec, errors="ignore")
                start = min(error.start, len(waiting) + len(piece) - 1)
                return _Misfit(
                    read - len(waiting) + start, (waiting + piece)[start], line + good.count("\n")
                )
            if tally is not None and seen < SAMPLED_CHARACTERS:
                tally.update(text)
            seen += len(text)
            line += text.count("\n")
            read += len(piece)
            if not piece:
                return None


def _refuse_binary(head: bytes, name: str) -> None:
    kind = next((kind for start, kind in BINARY if head.startswith(start)), None)
    if kind is None and head.count(0) > len(head) // 2 and _by_zero_bytes(head) is None:
        kind = "zero_bytes"
    if kind is not None:
        raise DataError.of("E-DATA-34", name, file=name, kind=say(f"data.kind.{kind}"))


def _by_zero_bytes(head: bytes) -> Encoding | None:
    """UTF-16 or UTF-32 by where the zero bytes stand: the high half of every ASCII character, and
    nearly nowhere else."""
    even = len(head) - len(head) % 4
    zeros = [head[place:even:4].count(0) for place in range(4)]
    quarter = even // 4
    if quarter == 0 or not any(zeros):
        return None
    # Beyond U+FFFF (emoji) the third byte is 1, in few characters.
    if zeros[3] == quarter and 10 * zeros[2] > 9 * quarter and zeros[0] < quarter // 2:
        return Encoding("utf-32-le", was_told=True)
    if zeros[0] == quarter and 10 * zeros[1] > 9 * quarter and zeros[3] < quarter // 2:
        return Encoding("utf-32-be", was_told=True)
    high, low = zeros[1] + zeros[3], zeros[0] + zeros[2]
    # A character such as U+4E00 has a zero low byte, so a few may stand on the other side.
    if high > quarter // 5 and high > 8 * low:
        return Encoding("utf-16-le", was_told=True)
    if low > quarter // 5 and low > 8 * high:
        return Encoding("utf-16-be", was_told=True)
    return None


@dataclass(frozen=True)
class _Fit:
    encoding: Encoding
    common: float
    frequent: float
    characters: int

    def is_plausible(self) -> bool:
        needed = FREQUENT_SHARE_OF_FEW if self.characters < FEW_CHARACTERS else FREQUENT_SHARE
        return self.common >= COMMON_SHARE and self.frequent >= needed


def _chinese(opener: Callable[[], BinaryIO]) -> Encoding | None:
    """The Chinese encoding that fits and gives plausible text; None where none does, or two do
    about equally well."""
    fits: list[_Fit] = []
    for codec in ("gb18030", "big5", "cp950", "utf-16-le", "utf-16-be"):
        if codec == "cp950" and any(fit.encoding.codec == "big5" for fit in fits):
            continue
        tally: Counter[str] = Counter()
        encoding = Encoding(codec, was_told=True)
        if _first_misfit(opener, encoding, tally) is None:
            fits.append(_fit(encoding, tally))
    plausible = sorted((fit for fit in fits if fit.is_plausible()), key=lambda fit: -fit.frequent)
    if not plausible or (
        len(plausible) > 1 and plausible[0].frequent < CLEARLY * plausible[1].frequent
    ):
        return None
    return plausible[0].encoding


def _fit(encoding: Encoding, tally: Counter[str]) -> _Fit:
    standards = ("big5",) if encoding.codec in ("big5", "cp950") else ("gb2312", "big5")
    beyond = {character: count for character, count in tally.items() if character > "\x7f"}
    total = sum(beyond.values())
    common = sum(
        count
        for character, count in beyond.items()
        if any(_is_common(character, one) for one in standards)
    )
    frequent = sum(count for character, count in beyond.items() if character in FREQUENT)
    return _Fit(
        encoding, common / total if total else 0.0, frequent / total if total else 0.0, total
    )


def _is_common(character: str, standard: str) -> bool:
    """Whether a character stands in the rows of frequent characters or of punctuation of its
    standard."""
    try:
        lead = character.encode(standard)[0]
    except UnicodeEncodeError:
        return False
    last = 0xD7 if standard == "gb2312" else 0xC6
    first = 0xB0 if standard == "gb2312" else 0xA4
    return 0xA1 <= lead <= 0xA3 or first <= lead <= last


def _no_fit(opener: Callable[[], BinaryIO], name: str, codec: str, misfit: _Misfit) -> DataError:
    where = f"{name}, line {misfit.line}"
    with opener() as content:
        guess = _guess(content.read(CHUNK_BYTES))
    told = {"byte": misfit.offset, "value": f"0x{misfit.value:02x}", "guess": guess}
    return DataError.of("E-DATA-05", where, codec=codec, **told)


def _guess(data: bytes) -> str:
    """What the bytes may be, for the message only."""
    if data[:4000].count(0) > len(data[:4000]) // 4:
        return "UTF-16"
    for codec in ("gb18030", "big5", "shift_jis", "cp1252"):
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        # Latin text in a Chinese codec comes out as rare characters; real Chinese is mostly common
        # ones.
        if (
            codec == "cp1252"
            or sum("\u4e00" <= c <= "\u9fff" for c in text[:4000]) > len(text[:4000]) // 20
        ):
            return {"gb18030": "GBK", "cp1252": "Windows-1252"}.get(codec, codec)
    return "?"
