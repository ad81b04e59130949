"""A dialogue as tokens, why one cannot be, and when two texts count as the same."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

MODELS_OWN, PLAIN = "model's own", "plain"
"""What `Renderer.template_name` may be."""


class CannotRender(Exception):
    """This dialogue has no provable rendering. `reason` is a short key of the data report, `detail`
    the cause in the template's own words."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass
class Rendered:
    """One dialogue as tokens. `spans[k]` is the token range [a, b) of the k-th assistant turn, stop
    token included."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    stop_index: list[int | None]
    """Index of each turn's stop token in `ids`; None where the template writes none between two
    turns."""
    turns: list[int]
    """Index of each span's message in the messages that were given."""
    neutralised: int = 0
    """Control tokens that stood in the data as text and were kept as text."""
    notes: list[str] = field(default_factory=list)
    """`system_merged`, `thinking_stripped`, `prompt_differs`: what the template made of this row.
    `empty_thought`, once for each that is not learnt."""


def compact(text: str) -> str:
    return "".join(text.split())


def same(left: str, right: str) -> bool:
    """Equal up to whitespace and to what a tokenizer's normaliser may change (Unicode form, case,
    the metaspace)."""
    if compact(left) == compact(right):
        return True
    one, two = (
        unicodedata.normalize("NFKC", t.replace("\u2581", " ")).casefold() for t in (left, right)
    )
    return compact(one) == compact(two)
