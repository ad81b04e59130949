"""What a step does that ran out of memory: it is taken again with less at once.

Smaller passes first, while the rows of the step can be cut finer; then blocks that compute again
what they kept (`engine.recompute`). Neither changes the numbers by more than the order of
roundings, no weight has been changed yet, and the step's random draws start again where they
started. What helped stays for the rest of the run and is in its checkpoints, so that a resumed run
computes the same.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from tunewright.core.faults import cause_of, is_memory
from tunewright.core.machine import return_freed_memory
from tunewright.core.types import Sample
from tunewright.core.words import say
from tunewright.engine import ranks, recompute
from tunewright.engine.tree import build_tree, rows_needed

if TYPE_CHECKING:
    from tunewright.engine.step import Stepper

Result = TypeVar("Result")


@dataclass
class Relief:
    """Serves one stepper. `told` is given each change with its sentence and its figures."""

    stepper: Stepper
    told: Callable[[str, dict[str, Any]], None] = lambda text, figures: None
    changed: bool = False

    def fit(
        self, work: Callable[[], Result], samples: Sequence[Sample], *, learns: bool = True
    ) -> Result:
        """What `work` gives, which computes passes over `samples` and may be done again from its
        start; `learns`: with gradients. Raises what it raises, of memory only where nothing is left
        to try."""
        while True:
            try:
                return work()
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
                # Several ranks meet in the middle of a step: one cannot begin it again alone.
                if not is_memory(e) or ranks.current().is_many:
                    raise
                cause = cause_of(e)
                if not self._less(samples, cause, learns):
                    raise
            # The exception held the frames, and they the tensors; now both are gone.
            self._let_go()

    def state(self) -> dict[str, Any]:
        """What was changed, for a checkpoint."""
        if not self.changed:
            return {}
        return {"relief": [self.stepper.rows_per_pass, self.stepper.policy.recompute]}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        if "relief" in state:
            rows, level = state["relief"]
            self.changed, self.stepper.rows_per_pass = True, int(rows)
            recompute.install(self.stepper.policy, str(level))

    def _less(self, samples: Sequence[Sample], cause: str, learns: bool) -> bool:
        """Let the next try hold less; False where nothing is left."""
        policy, stepper = self.stepper.policy, self.stepper
        largest = self._largest_pass(samples, stepper.rows_per_pass)
        smaller = largest // 2
        if smaller and self._largest_pass(samples, smaller) < largest:
            stepper.rows_per_pass = smaller
            self._tell("relief.rows", cause, rows=smaller)
            return True
        levels = recompute.LEVELS
        if not learns or policy.recompute == levels[-1]:
            return False
        recompute.install(policy, levels[levels.index(policy.recompute) + 1])
        self._tell("relief.recompute", cause, level=policy.recompute)
        return True

    def _largest_pass(self, samples: Sequence[Sample], rows: int) -> int:
        """Token rows of the largest of the passes that `samples` are cut into."""
        passes = self.stepper.policy.cut(list(samples), rows)
        if self.stepper.policy.layout == "padded":
            return max(
                sum(len(s.branches) for s in group)
                * max(rows_needed(b) for s in group for b in s.branches)
                for group in passes
            )
        return max(build_tree(group).num_rows for group in passes)

    def _tell(self, key: str, cause: str, **fields: Any) -> None:
        self.changed, step = True, self.stepper.number
        self.told(say(key, step=step, cause=cause, **fields), {"step": step, **fields})

    def _let_go(self) -> None:
        for p in self.stepper.parameters():
            p.grad = None
        gc.collect()
        if self.stepper.policy.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            return_freed_memory()
