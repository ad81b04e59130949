"""NEFTune: uniform noise on the input embeddings, while training only (Jain et al. 2023, arXiv
2310.05914).

Token i of a sample of L tokens gets `strength / sqrt(L * D)` times D numbers drawn evenly from -1
to 1. The draw is a function of seed, step, sample, branch and i, so it does not depend on layout,
on how the step is cut into passes, or on whether the run was resumed. A row that several samples of
a step share is computed once and therefore has one draw: that of the first sample of the step that
has the row, with that sample's L. In the padded layout, where every sample has its own copy of the
row, each copy gets that same draw, so both layouts optimise the same loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tunewright.core.seeds import stream_seed
from tunewright.core.types import Branch, Sample, TokenTree
from tunewright.engine.tree import rows_needed, rows_of_branches


@dataclass
class Noise:
    """The noise of one step. `owner[branch]` says for each of its rows whose draw it has: (branch,
    index of the token)."""

    strength: float
    width: int
    draws: dict[int, Tensor]
    """By identity of the branch: (rows, width), scaled."""
    owner: dict[int, list[tuple[int, int]]]

    @classmethod
    def of_step(
        cls,
        samples: list[Sample],
        strength: float,
        width: int,
        seed: int,
        step: int,
        *,
        whole: bool = False,
    ) -> Noise:
        """Draw for all samples of a step. `whole`: every token is read (`tree.read_whole`), not
        only up to the last learnt one."""
        owners: dict[tuple[int, int, int], int] = {}
        """(node before, token, position) -> node; a node is a place in `first`."""
        first: list[tuple[int, int]] = []
        noise = cls(strength, width, {}, {})
        for sample in samples:
            for number, branch in enumerate(sample.branches):
                at, mine = -1, []
                needed = len(branch.tokens) if whole else rows_needed(branch)
                for i in range(needed):
                    key = (
                        at,
                        branch.tokens[i],
                        i if branch.positions is None else branch.positions[i],
                    )
                    if key not in owners:
                        owners[key] = len(first)
                        first.append((id(branch), i))
                    at = owners[key]
                    mine.append(first[at])
                noise.owner[id(branch)] = mine
                noise.draws[id(branch)] = noise._draw(
                    branch, needed, stream_seed(seed, "neftune", step, sample.index, number)
                )
        return noise

    def _draw(self, branch: Branch, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(count, self.width, generator=generator) * 2 - 1
        return uniform * (self.strength / math.sqrt(len(branch.tokens) * self.width))

    def rows(self, tree: TokenTree, shared: bool, samples: list[Sample] | None = None) -> Tensor:
        """(T, D): the noise of every row of a pass. `samples` are those of the step, where the tree
        was built from copies of them."""
        found = torch.zeros(tree.num_rows, self.width)
        branches = [branch for sample in samples or tree.samples for branch in sample.branches]
        for branch, rows in zip(branches, rows_of_branches(tree, shared), strict=True):
            for row, (whose, i) in zip(rows, self.owner[id(branch)], strict=True):
                found[row] = self.draws[whose][i]
        return found
