"""UTF-8 that was decoded as another encoding: found, and undone where every byte comes back.

"cafÃ©" is "café" read as Latin-1 or Windows-1252, "ÅŸ" and "Åž" hide Turkish letters, "浣犲ソ" is
"你好" read as GBK; a text may have gone through it twice. The way back is exact or not taken: the
whole text (or each of its lines) is encoded again and must be valid UTF-8. That alone would still
change innocent text ("caf茅台" and “groß“ happen to have valid bytes), so both readings get a cost
for what nobody writes (control characters, a capital inside a word, a symbol after an accented
letter, rare Chinese characters, scripts mixed in a word), and only a cheaper reading is taken. A
text that looks damaged and cannot be undone as a whole is `lost`: it is named and never changed by
halves. Source: the byte tables of the encodings; the 3,755 common characters of GB 2312-80.

ftfy undoes Western readings as well, but no text that was read as GBK (none of 952 of four
mixtures), and takes five times as long.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Literal

Damage = Literal["", "repairable", "lost"]
MOST_ROUNDS = 3
"""A text read wrongly three times has grown eightfold; nobody keeps it longer."""


def _table() -> dict[int, int]:
    """Characters of Windows-1252 and -1254 to the code points of Latin-1 for the same byte."""
    found: dict[int, int] = {}
    for codec in ("cp1252", "cp1254"):
        for byte in range(0x80, 0x100):
            char = bytes([byte]).decode(codec, "ignore")
            if char and ord(char) != byte:
                found[ord(char)] = byte
    return found


_WESTERN = _table()
_HIGH = "".join(map(chr, [*range(0x80, 0x100), *_WESTERN]))
_SYMBOLS = "¡¢£¤¥¦§¨©ª¬®¯°±²³´µ¶·¸¹º¼½¾¿†‡ˆ˜‰€™ƒ"
_ACCENTED = "À-ÖØ-öø-ÿĞİŞğışŒœŠšŽžŸ"
_AFTER = re.escape("".join(c for c in _HIGH if _WESTERN.get(ord(c), ord(c)) < 0xC0))
"""Every character that a byte 80 to BF, a continuation of UTF-8, is read as."""
_pair = re.compile(f"[À-ßĞİŞ][{_AFTER}]|[à-ïğ][{_AFTER}]{{2}}|[ðğ][{_AFTER}]{{3}}")
"""What any multi-byte character of UTF-8 looks like in the western encodings."""
_inside = re.compile(r"(?<=[a-z])[\u4e00-\u9fa5](?=[a-z])|[鈥馃]")
"""A Chinese character inside a Latin word is an accented letter read as GBK; 鈥 begins every
typographic quote or dash, 馃 every emoji."""
_EVIDENCE = (
    (3.0, re.compile(r"[\x80-\x9f]")),
    (2.0, re.compile("[a-zß-öø-ÿğışœšž][À-ÖØ-ÞĞİŞŒŠŽŸ]")),
    (1.0, re.compile(f"(?<![A-ZÀ-Þ])[ÃÂ][{_AFTER}]")),
    (1.0, re.compile(f"[{_ACCENTED}][{_SYMBOLS}]")),
    (1.0, re.compile(f"[{_ACCENTED}][“”„‚…–—‹›«»•‘’\xa0\xad](?=[^\\W\\d_])")),
    (1.0, re.compile("[À-ßĞİŞ][œšžŸƒŠŒŽ](?![A-Z])")),
    (1.0, re.compile(f"â[\x80-\x8f€‚ƒ„†‡ˆ‰][{_AFTER}]")),
    (2.0, re.compile(f"(?:[ä-é][{_AFTER}]{{2}}){{2}}")),
    (2.0, _inside),
)
_HAN = re.compile(r"[\u4e00-\u9fff]")
_glued = re.compile(
    "(?<=[a-zA-Zà-ÿ])([\u4e00-\u9fff])(?![\u4e00-\u9fff])|(?<![\u4e00-\u9fff])([\u4e00-\u9fff])(?=[a-z])"
)
_MARKS = frozenset(
    "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0323\u0327\u0328\u0331\ufe0f\u20e3"
)
_LATIN_B = frozenset("ƠơƯưƏəȘșȚțǍǎǏǐǑǒǓǔǕǖǗǘǙǚǛǜƒǾǿǼǽ")
_replaced = re.compile("\ufffd|锟斤拷|锟斤|ï¿½")
_typical = re.compile(
    f"(?<![A-ZÀ-Þ])(?:Ã[{_SYMBOLS}\x80-\x9f]|â€[{_AFTER}]|Â[£§©«»°·\xa0])|ðŸ[{_AFTER}]|(?:[äåæçèé][{_AFTER}]{{2}}){{2}}|(?:[ÐÑ][{_AFTER}]){{3}}"
)
_typical_gbk = re.compile("[锛銆鈥鐨绗璇鍙鏄浣涓鎴杩鍦鍜鏈浜鍒鑰]")


def repair(text: str) -> str:
    """The text as it was written, or the same text where nothing is wrong or not everything can be
    brought back."""
    if text.isascii():
        return text
    whole = _undone(text)
    if whole is None and "\n" in text:
        whole = "\n".join(_undone(line) or line for line in text.split("\n"))
    return text if whole is None or _looks_damaged(whole) else whole


def damage(text: str) -> Damage:
    """Whether a text was read in the wrong encoding, and whether `repair` brings all of it back."""
    if text.isascii():
        return ""
    if repair(text) != text:
        return "repairable"
    return "lost" if _looks_damaged(text) else ""


def _undone(text: str) -> str | None:
    """The text with every wrong reading undone; None where there is none to undo."""
    readings = [text]
    while len(readings) <= MOST_ROUNDS:
        before = _from_western(readings[-1]) or _from_chinese(readings[-1])
        if before is None or before == readings[-1]:
            break
        readings.append(before)
    if len(readings) == 1:
        return None
    cost, best = min(
        ((_cost(reading), reading) for reading in readings[1:]), key=lambda found: found[0]
    )
    written = _cost(text)
    # The bytes of Chinese text are pairs that chance fills more easily than it writes "Ã©", so more
    # must speak for the other reading.
    if _pair.search(text):
        needed = 0.0
    elif _HAN.search(best):
        needed = 0.7
    elif sum(c > "\x7f" for c in best) > 4:
        needed = 1.0
    else:
        # Two rare characters alone may be a word of traditional Chinese; inside a Latin word they
        # are not.
        needed = 2.0 if _inside.search(text) or _glued.search(text) else float("inf")
    return best if written > cost and written - cost >= needed else None


def _from_western(text: str) -> str | None:
    if not _pair.search(text):
        return None
    try:
        return text.translate(_WESTERN).encode("latin-1").decode("utf-8")
    except UnicodeError:
        return None


def _from_chinese(text: str) -> str | None:
    if not _HAN.search(text):
        return None
    for codec in ("gbk", "gb18030"):
        try:
            return text.encode(codec).decode("utf-8")
        except UnicodeError:
            continue
    return None


def _cost(text: str) -> float:
    """How unlike anything that somebody writes a text is; 0 for ordinary text of any language."""
    total = sum(weight * len(pattern.findall(text)) for weight, pattern in _EVIDENCE)
    before = " "
    for char in text:
        if char > "\x7f" or before > "\x7f":
            total += _odd(char) + (
                _mixed(before, char) if before.isalpha() and char.isalpha() else 0.0
            )
        before = char
    return total + _lonely(text)


@cache
def _odd(char: str) -> float:
    """The cost of a single character."""
    code = ord(char)
    if code < 0x180:
        return 0.0
    if 0x4E00 <= code <= 0x9FFF:
        return _rare(char)
    category = unicodedata.category(char)
    if category in ("Cn", "Co", "Cs") or (category == "Mn" and char not in _MARKS and code < 0x590):
        return 3.0
    # Letters of phonetics, African and ancient alphabets: what chance makes of two bytes.
    if code < 0x300:
        return 0.0 if char in _LATIN_B else 3.0
    return 3.0 if 0x700 <= code < 0x900 or 0x3400 <= code < 0x4E00 else 0.0


def _rare(char: str) -> float:
    """0 for the common characters of GB 2312, a little for its others, 1 for all the rest."""
    try:
        lead = char.encode("gb2312")[0]
    except UnicodeError:
        return 1.0
    return 0.0 if lead <= 0xD7 else 0.4


@cache
def _script(char: str) -> str:
    if ord(char) < 0x250:
        return "LATIN"
    return unicodedata.name(char, "?").split()[0]


def _mixed(left: str, right: str) -> float:
    """Two letters side by side that belong to different scripts; Chinese beside Latin is usual,
    Greek is in formulas."""
    scripts = {_script(left), _script(right)}
    if len(scripts) == 1 or scripts & {
        "CJK",
        "HIRAGANA",
        "KATAKANA",
        "KATAKANA-HIRAGANA",
        "HANGUL",
        "IDEOGRAPHIC",
        "FULLWIDTH",
    }:
        return 0.0
    return 0.5 if scripts == {"LATIN", "GREEK"} else 3.0


def _lonely(text: str) -> float:
    """A single rare Chinese character glued to a Latin word: chance, not writing."""
    return 3.0 * sum(_rare(m.group(1) or m.group(2)) > 0 for m in _glued.finditer(text))


def _looks_damaged(text: str) -> bool:
    """Sure signs of a wrong reading, also in text that cannot be undone."""
    if _replaced.search(text) or _typical.search(text):
        return True
    odd = len(_typical_gbk.findall(text))
    return odd >= 3 and sum(_rare(c) > 0 for c in text if "\u4e00" <= c <= "\u9fff") * 3 >= len(
        _HAN.findall(text)
    )
