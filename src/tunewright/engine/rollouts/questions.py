"""Rows as questions: what a run that learns from its own answers asks, whatever kind of rows it was
given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from tunewright.core.types import (
    Branch,
    Conversation,
    Judged,
    Message,
    Preference,
    Prompt,
    Row,
    Sample,
)
from tunewright.engine.rollouts.on_policy import OnPolicyStepper
from tunewright.engine.rollouts.rounds import Asking, RoundStepper
from tunewright.engine.rollouts.sampling import Sampler
from tunewright.text.thinking import without_thoughts


def facts_of(row: Row) -> dict[str, Any]:
    """What reward functions may know of a row: its own columns, and the answer it came with,
    without its thoughts, as `answer`."""
    if isinstance(row, Prompt):
        return dict(row.facts)
    if isinstance(row, (Conversation, Preference, Judged)):
        return {"answer": without_thoughts(row.answer())}
    return {}


class Questions(Sequence[Sample]):
    """The rows as samples of one branch without a learnt token: the prompt. Rendered when asked
    for."""

    def __init__(self, rows: Sequence[Any], renderer: Any):
        self.rows, self.renderer = rows, renderer

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> Sample: ...
    @overload
    def __getitem__(self, i: slice) -> list[Sample]: ...
    def __getitem__(self, i: int | slice) -> Sample | list[Sample]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        row = self.rows[i]
        tokens = self.renderer.prompt(row.question(), row.tools)
        return Sample(
            [Branch(tokens, [], [], role="prompt")],
            i,
            row.origin,
            getattr(row, "weight", 1.0),
            {"row": row},
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))


def equip(stepper: Any, renderer: Any, check: Callable[[], None] | None = None) -> None:
    """Give a stepper that draws answers what it needs of words, and its sampler; other steppers are
    left alone."""
    if isinstance(stepper, (RoundStepper, OnPolicyStepper)):
        stepper.asking = asking(renderer, answered=isinstance(stepper, OnPolicyStepper))
        stepper.sampler = Sampler(stepper.policy, stepper.asking.stop_ids, check=check)


def asking(renderer: Any, answered: bool = False) -> Asking:
    """How a run's samples are asked, with its own template and stop tokens. `answered`: the samples
    are rows with their last answer, not `Questions`."""

    def question(sample: Sample) -> list[Message]:
        found: list[Message] = sample.facts["row"].question()
        return found

    def prompt(sample: Sample) -> list[int]:
        tokens = sample.branches[0].tokens
        return tokens[: sample.facts["last_span"][0]] if answered else tokens

    return Asking(
        prompt=prompt,
        question=question,
        facts=lambda sample: facts_of(sample.facts["row"]),
        decode=renderer.read,
        stop_ids=frozenset(renderer.stop_ids),
        parts=renderer.parts,
    )
