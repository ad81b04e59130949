"""Personal data and secrets in a text, and how they are shown: masked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tunewright.data.checks.wording import personal_values

_secret = re.compile(
    r"\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}|\bhf_[A-Za-z0-9]{30,}"
    r"|\bAIza[0-9A-Za-z_-]{35}|\bxox[baprs]-[0-9A-Za-z-]{10,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----\s*[A-Za-z0-9+/=]{16,}"
)


class Private(NamedTuple):
    """A private value of a training row, masked, and the probability that the model goes on with it
    when it is given the row up to there, before and after."""

    kind: str
    value: str
    row: str
    before: float = 0.0
    after: float | None = None


def private_values(text: str) -> list[tuple[str, str]]:
    """(kind, value) of personal data and secrets in a text: `email`, `phone`, `id_number` (with its
    check character), `card` (with its check digit), `key`."""
    return [*personal_values(text), *(("key", m.group()) for m in _secret.finditer(text))]


def masked(value: str) -> str:
    """A private value that can be recognised by whoever knows it and by nobody else: its first two
    and last two characters, fewer of a short one."""
    keep = 2 if len(value) >= 8 else 1
    host = value.partition("@")[2]
    if host:
        return f"{value[:keep]}***@{host[:1]}***"
    return f"{value[:keep]}{'*' * min(8, max(3, len(value) - 2 * keep))}{value[-keep:]}"


def bare(value: str) -> str:
    """A value without the spacing that people vary."""
    return re.sub(r"[\s().+-]", "", value).casefold()


def hidden(text: str) -> str:
    """A text with its private values masked."""
    for _, value in private_values(text):
        text = text.replace(value, masked(value))
    return text


def count_in(texts: Iterable[str]) -> int:
    """How many private values stand in some texts."""
    return sum(len(private_values(text)) for text in texts)


def hidden_pieces(pieces: Sequence[str]) -> list[str]:
    """The pieces of one text with its private values masked, also those that begin in one piece and
    end in another: their mask stands where they begin."""
    text = "".join(pieces)
    places = [m.span() for _, v in private_values(text) for m in re.finditer(re.escape(v), text)]
    found, start = [], 0
    for piece in pieces:
        end, out, at = start + len(piece), [], start
        for low, high in sorted(places):
            if high <= at or low >= end:
                continue
            out.append(text[at : max(at, low)])
            if low >= at:
                out.append(masked(text[low:high]))
            at = min(high, end)
        found.append("".join([*out, text[at:end]]))
        start = end
    return found
