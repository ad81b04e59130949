"""NEFTune: uniform noise on the input embeddings, while training only (Jain et al. 2023, arXiv 2310.05914).

Token i of a sample of L tokens gets `strength / sqrt(L * D)` times D numbers drawn evenly from -1 to 1. The draw is a function of seed, step, sample, branch
and i, so it does not depend on layout, on how the step is cut into passes, or on whether the run was resumed. A row that several samples of a step
share is computed once and therefore has one draw: that of the first sample of the step that has the row, with that sample's L. In the padded layout,
where every sample has its own copy of the row, each copy gets that same draw, so both layouts optimise the same loss.
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
    """The noise of one step. `owner[branch]` says for each of its rows whose draw it has: (branch, index of the token)."""

    strength: float
    width: int
    draws: dict[int, Tensor]
    """By identity of the branch: (rows, width), scaled."""
    owner: dict[int, list[tuple[int, int]]]

    @classmethod
    def of_step(cls, samples: list[Sample], strength: float, width: int, seed: int, step: int) -> Noise:
        """Draw for all samples of a step."""
        owners: dict[tuple[int, int, int], int] = {}
        """(node before, token, position) -> node; a node is a place in `first`."""
        first: list[tuple[int, int]] = []
        noise = cls(strength, width, {}, {})
        for sample in samples:
            for number, branch in enumerate(sample.branches):
                at, mine = -1, []
                for i in range(rows_needed(branch)):
                    key = (at, branch.tokens[i], i if branch.positions is None else branch.positions[i])
                    if key not in owners:
                        owners[key] = len(first)
                        first.append((id(branch), i))
                    at = owners[key]
                    mine.append(first[at])
                noise.owner[id(branch)] = mine
                noise.draws[id(branch)] = noise._draw(branch, stream_seed(seed, "neftune", step, sample.index, number))
        return noise

    def _draw(self, branch: Branch, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(rows_needed(branch), self.width, generator=generator) * 2 - 1
        return uniform * (self.strength / math.sqrt(len(branch.tokens) * self.width))

    def rows(self, tree: TokenTree, shared: bool) -> Tensor:
        """(T, D): the noise of every row of a pass."""
        found = torch.zeros(tree.num_rows, self.width)
        branches = [branch for sample in tree.samples for branch in sample.branches]
        for branch, rows in zip(branches, rows_of_branches(tree, shared), strict=True):
            for row, (whose, i) in zip(rows, self.owner[id(branch)], strict=True):
                found[row] = self.draws[whose][i]
        return found
