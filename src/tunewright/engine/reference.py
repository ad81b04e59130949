"""Log-probabilities under the model at step 0, computed once before the first update and kept in the run folder.

Computed at every step they would cost a third of a DPO step, in every epoch again, and a resumed run would compute them in other passes, whose last
digits differ. So all samples, held-out ones too, are visited once, and a resume reads the file. Those of the first step are visited by that step itself,
where learning and measuring compute alike: before the first update the policy is the reference. It is bound to the data by the content of every branch and
to the model by a description of what was loaded: another model or another row finds no value, and that is an error, never a zero.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunewright.core.errors import CheckpointError, problem
from tunewright.core.types import Branch, Sample
from tunewright.engine.tree import cut_passes
from tunewright.models.fast import fused_without_gradient

FILE = "reference.safetensors"
KEY_BYTES = 16


def key_of(branch: Branch) -> bytes:
    """What identifies a branch: its tokens and which of them count."""
    digest = hashlib.blake2b(array("q", branch.tokens).tobytes(), digest_size=KEY_BYTES)
    digest.update(array("q", branch.learnt).tobytes())
    return digest.digest()


def weights_digest(folder: Path) -> str:
    """A digest of the weight files of a model: all bytes up to 1 GiB a file, beyond that its size, its header and a MiB at sixteen places."""
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
    """Branch -> summed log-probability of its learnt tokens, in nats. `about` describes the model at step 0."""

    def __init__(self, about: dict[str, Any], values: dict[bytes, float] | None = None):
        self.about, self.values = about, values if values is not None else {}
        self.taking = False
        """While True, passes that learn leave their own values here: the weights are those of step 0."""

    def of(self, samples: Sequence[Sample], device: Any) -> Tensor:
        """(B,) float64, in the order of the branches. Raises KeyError for a branch nobody computed: that cannot happen in a run."""
        return torch.tensor([self.values[key_of(b)] for s in samples for b in s.branches], dtype=torch.float64, device=device)

    @torch.no_grad()
    def fill(self, policy: Any, samples: Iterable[Sample], rows_per_pass: int, *, on_pass: Callable[[int], None] | None = None) -> None:
        """Add the values of all samples, `policy` being the model at step 0. `on_pass` is told how many samples are done and may raise."""
        policy.model.eval()
        done = 0
        for group in cut_passes(list(samples), rows_per_pass, padded=policy.layout == "padded"):
            missing = any(key_of(b) not in self.values for s in group for b in s.branches)
            if missing:
                with fused_without_gradient():
                    out = policy(group)
                self.take(group, out.logprob, out.weight, out.branch)
            done += len(group)
            if on_pass:
                on_pass(done)

    def take(self, samples: Sequence[Sample], logprob_L: Tensor, weight_L: Tensor, branch_L: Tensor) -> None:
        """Add the values of `samples` from a pass over them: log-probability and weight of every label, and the branch it lies in."""
        branches = [b for s in samples for b in s.branches]
        learnt = (weight_L > 0).double()
        total = torch.zeros(len(branches), dtype=torch.float64, device=learnt.device).index_add(0, branch_L, logprob_L.detach().double() * learnt)
        for branch, value in zip(branches, total.tolist(), strict=True):
            self.values[key_of(branch)] = value

    def save(self, folder: Path) -> None:
        """Write `FILE` in one rename."""
        import os

        from safetensors.torch import save_file

        keys = torch.frombuffer(bytearray(b"".join(self.values)), dtype=torch.uint8).reshape(-1, KEY_BYTES)
        temporary = folder / f".{FILE}"
        save_file(
            {"keys": keys, "values": torch.tensor(list(self.values.values()), dtype=torch.float64)},
            temporary, metadata={"about": json.dumps(self.about, sort_keys=True)},
        )  # fmt: skip
        os.replace(temporary, folder / FILE)

    @classmethod
    def load(cls, folder: Path, about: dict[str, Any]) -> ReferenceStore | None:
        """What a run kept, or None where it kept nothing. Raises CheckpointError for a file that cannot be read or belongs to another model."""
        from safetensors import safe_open

        if not (folder / FILE).is_file():
            return None
        try:
            with safe_open(folder / FILE, framework="pt") as stored:
                stated = json.loads((stored.metadata() or {}).get("about", "null"))
                keys, values = stored.get_tensor("keys"), stored.get_tensor("values")
        except Exception as e:
            raise CheckpointError(problem("E-CKPT-05", str(folder / FILE), cause=str(e).splitlines()[0][:160])) from e
        if stated != about:
            raise CheckpointError(problem("E-CKPT-06", str(folder / FILE), stated=stated, found=about))
        return cls(about, {bytes(k): v for k, v in zip(keys.numpy(), values.tolist(), strict=True)})
