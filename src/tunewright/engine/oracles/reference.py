"""Log-probabilities under the model at step 0, computed once before the first update and kept in
the run folder.

Computed at every step they would cost a third of a DPO step, in every epoch again, and a resumed
run would compute them in other passes, whose last digits differ. So all samples that are learnt or
measured are visited once, and a resume reads the file. Those of the first step are visited by that
step itself, where learning and measuring compute alike: before the first update the policy is the
reference. It is bound to the data by the content of every branch and to the model by a description
of what was loaded: another model or another row finds no value, and that is an error, never a zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tunewright.core.errors import CheckpointError, problem
from tunewright.core.sequences import Joined, blocks
from tunewright.core.types import Sample
from tunewright.engine import ranks, sharding
from tunewright.engine.oracles.kept import KeptValues, load_bound
from tunewright.models.kernels.fused import fused_without_gradient
from tunewright.sources.fingerprint import weights_digest

if TYPE_CHECKING:
    from tunewright.engine.policy import Policy
    from tunewright.engine.schedule import Schedule
    from tunewright.engine.step import Stepper

FILE = "reference.safetensors"
COLUMNS = {"values": ("<f8", 0)}


def describe(folder: Path, adapter: Path | None, dtype: str) -> dict[str, str]:
    """What a model is, for values that are kept: digests of its files, and what it computes in."""
    return {
        "weights": weights_digest(folder),
        "adapter": weights_digest(adapter) if adapter is not None else "",
        "dtype": dtype,
    }


class ReferenceStore:
    """Branch -> summed log-probability of its learnt tokens, in nats. `about` describes the model
    at step 0; values wait in `folder` until `save`."""

    def __init__(self, about: dict[str, Any], folder: Path | None = None):
        self.about = about
        self.kept = KeptValues(COLUMNS, folder)
        self.taking = False
        """While True, passes that learn leave their own values here: the weights are those of step
        0."""

    def __len__(self) -> int:
        return len(self.kept)

    def of(self, samples: Sequence[Sample], device: Any) -> Tensor:
        """(B,) float64, in the order of the branches. Raises KeyError for a branch nobody computed:
        that cannot happen in a run."""
        return torch.from_numpy(self.kept.get(samples)["values"].copy()).to(device)

    @torch.no_grad()
    def fill(
        self,
        policy: Policy,
        samples: Iterable[Sample],
        rows_per_pass: int,
        *,
        on_pass: Callable[[int], None] | None = None,
        again: bool = False,
        before: int = 0,
    ) -> int:
        """Add the values of all samples, `policy` being the model at step 0; with `again` also of
        those that have one. Gives how many samples are done, `before` others counted.

        `on_pass` is told so after each pass and may raise.
        """
        policy.model.eval()
        done = before
        if ranks.current().is_many:
            return self._fill_by_ranks(policy, samples, rows_per_pass, on_pass, again, done)
        for group in policy.visit(samples, rows_per_pass):
            if again or not self.kept.has(group):
                with fused_without_gradient():
                    out = policy(group)
                self.take(group, out.logprob, out.weight, out.branch, again=again)
            done += len(group)
            if on_pass:
                on_pass(done)
        return done

    def _fill_by_ranks(
        self,
        policy: Policy,
        samples: Iterable[Sample],
        rows_per_pass: int,
        on_pass: Callable[[int], None] | None,
        again: bool,
        done: int,
    ) -> int:
        """The same, of which every rank computes a part; all have all values afterwards."""
        for block in blocks(samples):
            wanted = [one for one in block if again or not self.kept.has([one])]
            own = [
                sample
                for group in policy.own_passes(wanted, rows_per_pass)
                for sample in self._computed(policy, group, again)
            ]
            place = {id(sample): i for i, sample in enumerate(wanted)}
            told = [(place[id(one)], self.kept.get([one])["values"].tolist()) for one in own]
            for part in ranks.current().gather(told):
                for i, values in part:
                    for branch, value in zip(wanted[i].branches, values, strict=True):
                        if branch not in self.kept or (again and wanted[i] not in own):
                            self.kept.add(branch, values=np.array([value]))
            done += len(block)
            if on_pass:
                on_pass(done)
        return done

    def _computed(self, policy: Policy, group: list[Sample], again: bool) -> list[Sample]:
        """The samples of a pass, whose values were computed now."""
        with fused_without_gradient():
            out = policy(group)
        self.take(group, out.logprob, out.weight, out.branch, again=again)
        return group

    def after_first_step(
        self, policy: Policy, chosen: list[Sample], rows_per_pass: int, run: Path, applied: bool
    ) -> None:
        """What the passes of the first step left is the last of the values: keep them in `run`. A
        step that was not applied is measured again, as it changed nothing."""
        if not self.taking:
            return
        self.taking = False
        if not applied:
            policy.reference = None
            self.fill(policy, chosen, rows_per_pass, again=True)
            policy.reference = self
        self.save(run)

    def take(
        self,
        samples: Sequence[Sample],
        logprob_L: Tensor,
        weight_L: Tensor,
        branch_L: Tensor,
        *,
        again: bool = False,
    ) -> None:
        """Add the values of `samples` from a pass over them: log-probability and weight of every
        label, and the branch it lies in.

        Branches that have a value keep it, unless `again`.
        """
        branches = [b for s in samples for b in s.branches]
        learnt = (weight_L > 0).double()
        total = torch.zeros(len(branches), dtype=torch.float64, device=learnt.device).index_add(
            0, branch_L, logprob_L.detach().double() * learnt
        )
        for branch, value in zip(branches, total.tolist(), strict=True):
            if again or branch not in self.kept:
                self.kept.add(branch, values=np.array([value]))

    def save(self, folder: Path) -> None:
        """Write `FILE` in one rename; of several ranks the first does."""
        self.kept.save_for_all(folder / FILE, self.about)

    @classmethod
    def load(cls, folder: Path, about: dict[str, Any]) -> ReferenceStore | None:
        """What a run kept, or None where it kept nothing. Raises CheckpointError for a file that
        cannot be read or belongs to another model."""
        kept = load_bound(folder / FILE, COLUMNS, about, "E-CKPT-05", "E-CKPT-06")
        if kept is None:
            return None
        found = cls(about, folder)
        found.kept = kept
        return found


def prepare(
    stepper: Stepper,
    schedule: Schedule,
    samples: Sequence[Sample],
    measured: Sequence[Sample],
    run: Path,
    about: dict[str, Any],
    started: bool,
    watch: Callable[[int, Callable[[Callable[[int], None]], int]], None],
) -> ReferenceStore:
    """The values of all samples that are learnt or measured, from the run folder or computed now,
    while the weights are those of step 0. `about` describes the model at step 0.

    `watch(total, compute)` calls `compute(on_pass)`, which gives the number of branches; nobody is
    called where the run folder has the values. Raises CheckpointError where the run has `started`
    and what it kept is gone.
    """
    policy, rows = stepper.policy, stepper.rows_per_pass
    also = stepper.objective.companions
    everything = Joined(samples, measured)
    extra: Iterable[Sample] = (
        also(everything, sharding.room(policy)) if also else ()
    )  # also in a run that is taken up again: partners are chosen here
    found = ReferenceStore.load(run, about)
    # Several ranks share a step: no pass of it knows the values of all samples.
    takes = learns_as_it_measures(stepper) and not ranks.current().is_many
    if found is None:
        if started:
            raise CheckpointError(problem("E-CKPT-05", str(run / FILE), cause="-"))
        store = found = ReferenceStore(about, run)
        # In the passes in which the first epoch will learn, so that half precision rounds both
        # alike: at step 1 nothing differs.
        last = min(schedule.steps_per_epoch, schedule.total_steps)
        steps = [schedule.samples_of(number) for number in range(1 + takes, last + 1)]

        def compute(on_pass: Callable[[int], None]) -> int:
            done = 0
            learnt = ([samples[i] for i in step] for step in steps)
            for part in chain(learnt, [measured, extra]):
                done = store.fill(policy, part, rows, on_pass=on_pass, before=done)
            if len(store):
                store.save(run)
            return len(store)

        total = sum(map(len, steps)) + len(measured) + (len(everything) if also else 0)
        watch(total, compute)
    found.taking = not started and takes
    return found


def learns_as_it_measures(stepper: Stepper) -> bool:
    """Whether a pass that learns computes what a pass that measures does: no dropout, no noise on
    embeddings or gates. An objective that measures the rows of a step before it learns them needs
    their values earlier."""
    objective = stepper.objective
    if objective.measure is not None and objective.companions is None:
        return False
    drops = any(
        "Dropout" in type(m).__name__ and getattr(m, "p", 0) for m in stepper.policy.model.modules()
    )
    return not drops and not stepper.neftune and stepper.attached.penalties is None
