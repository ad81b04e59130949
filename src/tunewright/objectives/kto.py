"""Learning from single judgements: answers marked good become more likely, answers marked bad less
likely.

Legend: B answers. `reward_B` is the change of an answer's summed log-probability since step 0, in
nats. The point from which gain and loss are felt is `z0`, the Kullback-Leibler divergence of the
model from where it started: the mean change over answers put under another row's question, never
below zero, measured without gradient over the whole optimiser step. So how a step is cut into
passes changes nothing.

Which question gets whose answer is fixed for a run: each row's question meets the answer of a row
before it. So the values under the model of step 0 are computed once, with the others. TRL 1.16
pairs them so too, inside blocks of rows as large as a batch.

Source: Ethayarajh et al. 2024 (arXiv 2402.01306), equations 7 and 8; `apo_zero`: D'Oosterlinck et
al. 2024 (arXiv 2408.06266), equation 7, unpaired.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.errors import DataError, problem
from tunewright.core.key_index import KEY_BYTES, KeyIndex
from tunewright.core.moves import later, to_device
from tunewright.core.registry import objectives
from tunewright.core.types import Branch, Objective, Passes, PassOutput, Sample, Term
from tunewright.objectives.branches import per_branch, roles

if TYPE_CHECKING:
    from torch import Tensor

ROWS = ("judged", "preference")
GOOD = ("good", "chosen")
LOOK_BACK = 64
"""Rows before a row among which one with another question is looked for."""


class KtoConfig(Section):
    """Good answers become likelier and bad ones less likely, each judged by itself. Data: judged
    answers; pairs count as one good and one bad."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is kept near its starting point; larger moves it less."""
    good_weight: float = Field(default=1.0, ge=0)
    """Weight of answers marked good. If they are rare, raise it until this weight times their
    number is 1 to 4/3 times `bad_weight` times the number of bad ones."""
    bad_weight: float = Field(default=1.0, ge=0)
    """Weight of answers marked bad."""
    loss: Literal["kto", "apo_zero"] = "kto"
    """kto measures gains from the KL divergence to the start; apo_zero from zero, which saves a
    pass without gradient in each step."""


class Mismatched:
    """Questions under other rows' answers. `gather` is told the rows of a run; `of` gives each row
    its partner's answers."""

    def __init__(self) -> None:
        self.rows: Sequence[Sample] = ()
        self.partner = KeyIndex()
        self.room: int | None = None

    def gather(self, rows: Sequence[Sample], room: int | None = None) -> Iterator[Sample]:
        """Choose every row's partner: the nearest row before it with another question, else the row
        before it. `room` is the most tokens that a branch may have. Raises DataError for a single
        row."""
        if len(rows) < 2:
            raise DataError(problem("E-OBJ-01", "data.train", rows=len(rows)))
        self.rows, self.room = rows, room
        # Only digests stay in memory: there may be millions of rows.
        digests = b"".join(_digest(question(row.branches[0])) for row in rows)

        def asked(i: int) -> bytes:
            return digests[i * KEY_BYTES : (i + 1) * KEY_BYTES]

        for i, row in enumerate(rows):
            near = (j % len(rows) for j in range(i - 1, max(i - LOOK_BACK, i - len(rows)) - 1, -1))
            self.partner.add(
                _key(row), next((j for j in near if asked(j) != asked(i)), (i - 1) % len(rows))
            )
        return (self.of(row) for row in rows)

    def of(self, row: Sample) -> Sample:
        """The questions of `row` with its partner's answers. Raises KeyError for a row that was not
        gathered: that cannot happen in a run."""
        partner = self.partner.find(_key(row))
        if partner is None:
            raise KeyError(str(row.origin))
        other = self.rows[partner].branches
        branches = [
            self._put(branch, other[b % len(other)]) for b, branch in enumerate(row.branches)
        ]
        return replace(row, branches=branches, facts={})

    def _put(self, asked: Branch, answered: Branch) -> Branch:
        before, first = question(asked), answered.learnt[0]
        answer = answered.tokens[
            first : None if self.room is None else first + max(1, self.room - len(before))
        ]
        shift = len(before) - first
        learnt = [i + shift for i in answered.learnt if i < first + len(answer)]
        return Branch(
            before + answer, learnt, [max(asked.weights)] * len(learnt), role="mismatched"
        )


def question(branch: Branch) -> list[int]:
    """The tokens before the answer."""
    return branch.tokens[: branch.learnt[0]]


def _digest(tokens: list[int]) -> bytes:
    return hashlib.blake2b(array("q", tokens).tobytes(), digest_size=KEY_BYTES).digest()


def _key(row: Sample) -> bytes:
    return hashlib.blake2b(
        b"".join(_digest(branch.tokens) for branch in row.branches), digest_size=KEY_BYTES
    ).digest()


def rewards(output: PassOutput) -> tuple[Tensor, Tensor]:
    """(B,) change of each branch's log-probability since step 0, and (B,) weight of each branch."""
    assert output.reference is not None
    total = per_branch(output.logprob * (output.weight > 0), output)
    weights = [max(branch.weights) for sample in output.samples for branch in sample.branches]
    return total - output.reference.to(total.dtype), total.new_tensor(weights)


def kto_loss(reward_B: Tensor, good_B: Tensor, z0: float, beta: float, loss: str = "kto") -> Tensor:
    """One value an answer, (B,), between 0 and 1. `good_B` is True for good answers."""
    import torch

    z = beta * (reward_B - (z0 if loss == "kto" else 0.0))
    return torch.where(good_B, torch.sigmoid(-z), torch.sigmoid(z))


@objectives.register("kto", KtoConfig, source="arXiv 2402.01306", rows=ROWS, usual_for=("judged",))
def kto(config: KtoConfig) -> Objective:
    """loss = sum_b w_b * side_b * sigmoid(-+ beta * (reward_b - z0)) / sum_b w_b; minus for good
    answers, plus for bad ones; side_b is their weight."""
    mismatched = Mismatched()
    baseline = {"z0": 0.0}

    def measure(samples: list[Sample], run: Passes) -> None:
        total = weights = 0.0
        for output in run([mismatched.of(sample) for sample in samples]):
            reward_B, weight_B = rewards(output)
            total += float((reward_B * weight_B).double().sum())
            weights += float(weight_B.double().sum())
        baseline["z0"] = max(0.0, total / weights) if weights else 0.0

    def plan(samples: list[Sample]) -> dict[str, float]:
        return {"kto": sum(max(branch.weights) for sample in samples for branch in sample.branches)}

    def terms(output: PassOutput) -> dict[str, Term]:
        import torch

        reward_B, weight_B = rewards(output)
        is_good = [role in GOOD for role in roles(output)]
        device = reward_B.device
        good_B = to_device(is_good, device, torch.bool)
        good, bad = (
            to_device([i for i, one in enumerate(is_good) if one is side], device, torch.long)
            for side in (True, False)
        )
        side_B = torch.where(good_B, config.good_weight, config.bad_weight)
        value = kto_loss(reward_B, good_B, baseline["z0"], config.beta, config.loss)
        found, count = reward_B.detach(), len(reward_B)
        right = torch.where(good_B, found > baseline["z0"], found < baseline["z0"])
        output.figures |= {
            "rewards_good": (config.beta * later(found[good].sum()), len(good)),
            "rewards_bad": (config.beta * later(found[bad].sum()), len(bad)),
            "right": (later(right.sum()), count),
            "z0": (baseline["z0"] * count, count),
        }
        return {"kto": ((weight_B * side_B * value).sum(), 1.0)}

    needs_baseline = config.loss == "kto"
    return Objective(
        plan,
        terms,
        reference=True,
        rate_factor=0.25,
        measure=measure if needs_baseline else None,
        companions=mismatched.gather if needs_baseline else None,
    )
