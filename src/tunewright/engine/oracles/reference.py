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

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunewright.core.errors import CheckpointError, problem
from tunewright.core.sequences import blocks
from tunewright.core.types import Sample
from tunewright.engine.oracles.kept import KEY_BYTES, KeptValues, about_of
from tunewright.engine.tree import cut_passes
from tunewright.models.kernels.fused import fused_without_gradient

FILE = "reference.safetensors"
COLUMNS = {"values": ("<f8", 0)}


def weights_digest(folder: Path) -> str:
    """A digest of the weight files of a model: all bytes up to 1 GiB a file, beyond that its size,
    its header and a MiB at sixteen places."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as handle:
            places = range(0, size, 1 << 20) if size <= 1 << 30 else range(0, size, size // 16)
            for place in places:
                handle.seek(place)
                digest.update(handle.read(1 << 20))
    return digest.hexdigest()


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
        policy: Any,
        samples: Iterable[Sample],
        rows_per_pass: int,
        *,
        on_pass: Callable[[int], None] | None = None,
        again: bool = False,
    ) -> None:
        """Add the values of all samples, `policy` being the model at step 0; with `again` also of
        those that have one.

        `on_pass` is told how many samples are done and may raise.
        """
        policy.model.eval()
        done = 0
        for block in blocks(samples):
            for group in cut_passes(block, rows_per_pass, padded=policy.layout == "padded"):
                if again or not self.kept.has(group):
                    with fused_without_gradient():
                        out = policy(group)
                    self.take(group, out.logprob, out.weight, out.branch, again=again)
                done += len(group)
                if on_pass:
                    on_pass(done)

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
        """Write `FILE` in one rename."""
        self.kept.save(folder / FILE, self.about)

    @classmethod
    def load(cls, folder: Path, about: dict[str, Any]) -> ReferenceStore | None:
        """What a run kept, or None where it kept nothing. Raises CheckpointError for a file that
        cannot be read or belongs to another model."""
        if not (folder / FILE).is_file():
            return None
        found = cls(about, folder)
        try:
            stated = about_of(folder / FILE)
            if stated == about:
                found.kept = KeptValues.load(folder / FILE, COLUMNS)
        except Exception as e:
            raise CheckpointError(
                problem("E-CKPT-05", str(folder / FILE), cause=str(e).splitlines()[0][:160])
            ) from e
        if stated != about:
            raise CheckpointError(
                problem("E-CKPT-06", str(folder / FILE), stated=stated, found=about)
            )
        return found
