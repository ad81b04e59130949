"""Running text as documents: long ones cut into windows, short ones put side by side, nothing left
out and nothing mixed.

A window is as long as the context, and the next one starts with the last token of the one before,
so that every token but a document's first is predicted exactly once; the last window ends with the
stop token. Windows are rows of their own from then on: each may be trained on or held out.
Documents side by side in one sample are branches of it, and no branch sees another. They are put
together in the order of the rows, the next one into the sample before it as long as it fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tunewright.core.types import PlainText, Sample
from tunewright.data.labels import EncodedBranch, EncodedRow
from tunewright.data.store.columns import Samples
from tunewright.text.renderer import Renderer

PIECES = "pieces"
"""Note of the data report: samples that a document longer than the context was cut into, beyond its
first."""


def windows(
    row: PlainText, made: EncodedRow, max_tokens: int | None, renderer: Renderer
) -> list[tuple[PlainText, EncodedRow]]:
    """The windows of a document, each with the part of the text it holds; the document itself where
    it is short enough."""
    branch = made.branches[0]
    total = len(branch.tokens)
    if max_tokens is None or total <= max_tokens:
        return [(row, made)]
    (first, _, weight) = branch.spans[0]
    found = []
    for start in range(0, total - 1, max_tokens - 1):
        tokens = branch.tokens[start : start + max_tokens]
        learnt = (max(first - start, 1), len(tokens))
        last = start + len(tokens) == total
        facts = {"answers": int(last), "stops_learnt": int(last), "last_span": learnt}
        notes = [*made.notes] if not start else [PIECES]
        piece = EncodedRow([EncodedBranch(tokens, [(*learnt, weight)], branch.role)], facts, notes)
        found.append((replace(row, text=renderer.decode(tokens)), piece))
    return found


class Packed(Sequence[Sample]):
    """Samples of several short documents each. `limit` is the most tokens they have together; a
    longer one stays alone."""

    def __init__(self, samples: Samples, limit: int):
        self.samples = samples
        self.starts = [0] if len(samples) else []
        held = 0
        for place, tokens in enumerate(_lengths(samples)):
            if place and held + tokens > limit:
                self.starts.append(place)
                held = 0
            held += tokens

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        found = place + len(self) if place < 0 else place
        if not 0 <= found < len(self):
            raise IndexError(place)
        after = self.starts[found + 1] if found + 1 < len(self) else len(self.samples)
        parts = self.samples[self.starts[found] : after]
        return Sample(
            [branch for part in parts for branch in part.branches],
            found,
            parts[0].origin,
            facts={"documents": len(parts)},
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))


def _lengths(samples: Samples) -> list[int]:
    """Tokens of each sample, without reading it."""
    import numpy as np

    columns, rows = samples.store.columns, np.asarray(samples.which)
    if not len(rows):
        return []
    ends = np.concatenate([[0], columns["token_end"]])
    last = np.concatenate([[0], columns["branch_end"]])
    found: list[int] = (ends[last[rows + 1]] - ends[last[rows]]).tolist()
    return found
