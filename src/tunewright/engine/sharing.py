"""What the token tree will save in a run, counted before its first step from the steps and passes
as the engine will cut them.

The data report counts beginnings that are shared anywhere in the set; a step can only share among
its own samples, so that figure promises too much. Here the schedule's own steps are taken (all of
them, or some spread evenly over the run), cut into passes and laid out as rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from tunewright.core.types import Sample
from tunewright.engine.schedule import Schedule
from tunewright.engine.tree import build_tree, common_prefix, cut_passes, rows_needed

MOST_STEPS = 64
"""Steps that are counted; more change the figures by less than a percent and cost time before the
run."""


@dataclass(frozen=True)
class StepSharing:
    """Token rows of the counted steps. `logical` are the tokens of all samples, `needed` the rows
    that some label needs, `physical` those computed."""

    steps: int
    logical: int
    needed: int
    physical: int
    prompt: int
    """Tokens before the first learnt one, of all branches."""
    prompt_physical: int
    """Of these, what is left when a pass computes each beginning once."""
    labels: int = 0
    """Rows that predict a token."""
    passes: int = 0
    largest_pass: int = 0
    """Rows of the largest pass."""

    @property
    def physical_share(self) -> float:
        """Rows computed for each token of a sample: what `physical_rows` / `logical_tokens` of the
        summary will be."""
        return self.physical / self.logical if self.logical else 1.0

    @property
    def prompt_shared(self) -> float:
        """Share of the prompt tokens that need not be computed."""
        return 1 - self.prompt_physical / self.prompt if self.prompt else 0.0

    @property
    def speed_up(self) -> float:
        """Rows without sharing to rows with it: how much faster a step becomes, as far as its time
        goes with its rows."""
        return self.needed / self.physical if self.physical else 1.0

    def as_dict(self) -> dict[str, Any]:
        """For the data report."""
        derived = {
            "physical_share": self.physical_share,
            "prompt_shared": self.prompt_shared,
            "speed_up": self.speed_up,
        }
        return asdict(self) | {name: round(value, 4) for name, value in derived.items()}


def step_sharing(
    samples: Sequence[Sample],
    schedule: Schedule,
    rows_per_pass: int,
    layout: str = "tree",
    most_steps: int = MOST_STEPS,
) -> StepSharing:
    """Count what the steps of `schedule` compute, every one or `most_steps` spread evenly over the
    run."""
    total = schedule.total_steps
    count = min(total, most_steps)
    logical = needed = physical = prompt = prompt_physical = labels = passes = largest = 0
    for step in sorted({1 + i * total // count for i in range(count)}):
        chosen = [samples[i] for i in schedule.samples_of(step)]
        for group in cut_passes(chosen, rows_per_pass, padded=layout == "padded"):
            branches = [branch for sample in group for branch in sample.branches]
            rows = list(map(rows_needed, branches))
            logical += sum(len(branch.tokens) for branch in branches)
            needed += sum(rows)
            own = build_tree(group).num_rows if layout == "tree" else len(rows) * max(rows)
            physical += own
            largest, passes = max(largest, own), passes + 1
            labels += sum(len(branch.learnt) for branch in branches)
            asked = sorted(
                branch.tokens[: branch.learnt[0]] if branch.learnt else branch.tokens
                for branch in branches
            )
            length = sum(map(len, asked))
            prompt += length
            prompt_physical += length - (
                sum(common_prefix(a, b) for a, b in pairwise(asked)) if layout == "tree" else 0
            )
    return StepSharing(
        count, logical, needed, physical, prompt, prompt_physical, labels, passes, largest
    )
