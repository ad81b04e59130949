"""Rows of data as lines of tokens for the doctor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunewright.advise.doctor.decoding import Line
from tunewright.core.types import Sample


def line_of(sample: Sample, stops: Iterable[int]) -> Line | None:
    """The last learnt answer of a sample (of a pair the chosen one) and all before it; None for a
    sample without an answer."""
    branch = sample.branches[0]
    first, after = sample.facts.get("last_span", (0, 0))
    if not branch.learnt or first >= after or after > len(branch.tokens):
        return None
    answer = branch.tokens[first:after]
    stop = answer[-1] if answer[-1] in set(stops) else None
    return Line(branch.tokens[:first], answer[:-1] if stop is not None else answer, stop)


def spread(count: int, most: int) -> list[int]:
    """Up to `most` places of `count`, from everywhere."""
    if count <= most:
        return list(range(count))
    return [i * count // most for i in range(most)]


def lines_from(samples: Sequence[Sample], stops: Iterable[int], most: int) -> list[Line]:
    """Lines of up to `most` samples from everywhere in the data."""
    known = set(stops)
    found = (line_of(samples[i], known) for i in spread(len(samples), most))
    return [line for line in found if line is not None]
