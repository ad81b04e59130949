"""Log-probabilities of given answers, computed in as few rows as they need.

Scoring is almost nothing but matrix products over rows, so what counts is how many rows there are
(docs/LOG.md has the arithmetic). Three kinds are never computed:

- the beginning that all samples share (system prompt, instruction): once for the whole set, kept as
  keys and values before every pass;
- in the last block, rows from which nothing is predicted (`models.last_block`);
- the head, on rows without a label.

Each changes the order of roundings and nothing else; the tests compare with plain Transformers, one
option a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from tunewright.core.types import Branch, Sample, TokenTree, VirtualPrompt
from tunewright.engine import opening
from tunewright.engine.loaded import computing_in
from tunewright.engine.policy import KEEP_BYTES, Policy, head_of
from tunewright.engine.tree import build_tree, common_prefix, cut_passes, padded_rows
from tunewright.models.kernels.fused import fused_without_gradient
from tunewright.models.kernels.label_head import Head
from tunewright.models.kernels.tree_attention import TreePlan

HEAD_ROWS = 1024
"""Labelled rows that wait for one visit to the head: the head's weights are as large as many
layers, and are read once for all of them."""
VOCABULARY_CHUNK = 16384
SHORTEST_BEGINNING = 8
"""Tokens of a shared beginning that are worth keeping."""

Logprobs = list[list[list[float]]]
"""[sample][branch][label], in nats."""
Likeliest = list[list[list[bool]]]
"""[sample][branch][label]: whether no token was likelier than the label."""
T = TypeVar("T")


# ---- fewer rows


def shared_beginning(samples: list[Sample]) -> list[int]:
    """The tokens with which every branch of every sample begins, short enough that each branch
    keeps the row that predicts its first label."""
    branches = [branch for sample in samples for branch in sample.branches]
    if not branches or any(
        branch.positions is not None or not branch.learnt for branch in branches
    ):
        return []
    first = branches[0].tokens
    length = min(
        min(min(branch.learnt) for branch in branches) - 1,
        *(common_prefix(first, branch.tokens) for branch in branches),
    )
    return first[: max(0, length)]


def without_beginning(samples: list[Sample], length: int) -> list[Sample]:
    """The same samples with the first `length` tokens of every branch taken off."""

    def shorter(branch: Branch) -> Branch:
        return replace(
            branch, tokens=branch.tokens[length:], learnt=[i - length for i in branch.learnt]
        )

    return (
        [
            replace(sample, branches=[shorter(branch) for branch in sample.branches])
            for sample in samples
        ]
        if length
        else samples
    )


class RowReader(Policy):
    """A policy for measuring: it keeps a shared beginning, and hands out the hidden rows of labels
    in place of their log-probabilities."""

    def __init__(self, model: Any, causal: Any, layout: str):
        super().__init__(model, causal, layout)
        self.beginning: VirtualPrompt | None = None

    def keep(self, tokens: list[int]) -> bool:
        """Compute the keys and values of `tokens`, which then stand before every branch. Returns
        whether the model gives any that can be kept."""
        if self.layout != "tree" or len(tokens) < SHORTEST_BEGINNING or self.virtual() is not None:
            return False
        tree = build_tree([Sample([Branch(tokens, [], [])], 0)])
        layers = self.causal[0].config.get_text_config().num_hidden_layers
        ids, positions = (
            torch.tensor([tree.token], device=self.device),
            torch.tensor([tree.position], device=self.device) + self.first_position,
        )
        plan, cache = TreePlan(tree, self.device, KEEP_BYTES, layers), DynamicCache()
        self.body(
            input_ids=ids,
            position_ids=positions,
            tree_plan=plan,
            past_key_values=cache,
            use_cache=True,
        )
        found: list[tuple[Any, Any]] = [
            (getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers
        ]
        if len(found) != layers or any(
            part is None or part.ndim != 4 or part.shape[2] != len(tokens)
            for pair in found
            for part in pair
        ):
            return False  # layers that share keys, or keep a state of their own
        self.beginning = VirtualPrompt(len(tokens), keys_values=found)
        return True

    def virtual(self) -> VirtualPrompt | None:
        return self.beginning or super().virtual()

    def labelled_rows(
        self, samples: list[Sample]
    ) -> tuple[tuple[Tensor, Tensor, Tensor, TokenTree], torch.dtype]:
        """(hidden_UD in float32 or wider, row_L, target_L, tree): each label's row among the U
        distinct rows, and its token; and the dtype in which the model gave the rows."""
        tree = build_tree(samples) if self.layout == "tree" else padded_rows(samples)
        hidden_TD = self.hidden(tree, tree.source)
        rows, row_L = torch.unique(
            torch.tensor(tree.source, device=hidden_TD.device), return_inverse=True
        )
        wide = torch.promote_types(hidden_TD.dtype, torch.float32)
        target_L = torch.tensor(tree.target, device=hidden_TD.device)
        return (hidden_TD[rows].to(wide), row_L, target_L, tree), hidden_TD.dtype


# ---- the head


def exact_logprobs(
    hidden_UD: Tensor, row_L: Tensor, target_L: Tensor, head: Head, takes: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(log p(target | row), whether no token is likelier), both (L,), with logits in the dtype of
    `hidden_UD` whatever the head is stored in. A head with layers of its own gets rows in the dtype
    that it `takes`, the model's: its weight may be held in another.

    A bfloat16 logit of 20 is a multiple of 0.125, so two options of one prompt would often tie. The
    vocabulary is visited in pieces of 16,384 tokens.
    """
    gold_L = torch.empty(len(target_L), dtype=hidden_UD.dtype, device=hidden_UD.device)
    total_U = torch.full(
        (len(hidden_UD),), -math.inf, dtype=hidden_UD.dtype, device=hidden_UD.device
    )
    best_U = total_U.clone()
    if (
        head.module is not None
    ):  # the head carries layers of its own: only they know what it computes
        z = head.logits(hidden_UD.to(takes)).to(hidden_UD.dtype)
        gold_L = z[row_L, target_L]
        return gold_L - torch.logsumexp(z, -1)[row_L], gold_L >= z.amax(-1)[row_L]
    for start in range(0, len(head.weight), VOCABULARY_CHUNK):
        piece = slice(start, start + VOCABULARY_CHUNK)
        bias = None if head.bias is None else head.bias[piece].to(hidden_UD.dtype)
        z = Head(head.weight[piece].to(hidden_UD.dtype), bias, head.scale, head.softcap).logits(
            hidden_UD
        )
        total_U = torch.logaddexp(total_U, torch.logsumexp(z, -1))
        best_U = torch.maximum(best_U, z.amax(-1))
        inside = (target_L >= start) & (target_L < start + z.shape[1])
        gold_L[inside] = z[row_L[inside], target_L[inside] - start]
    return gold_L - total_U[row_L], gold_L >= best_U[row_L]


@dataclass
class _Waiting:
    """Rows of passes that have been through the model and not yet through the head."""

    parts: list[tuple[Tensor, Tensor, Tensor, TokenTree]] = field(default_factory=list)
    rows: int = 0
    takes: torch.dtype = torch.float32
    """The dtype in which the model gave them."""

    def flush(self, head: Head, into: Logprobs, likeliest: Likeliest | None) -> None:
        """One visit to the head for everything that waits."""
        if not self.parts:
            return
        offsets = [0]
        for hidden, _, _, _ in self.parts:
            offsets.append(offsets[-1] + len(hidden))
        row = torch.cat(
            [part[1] + offset for part, offset in zip(self.parts, offsets, strict=False)]
        )
        logprob, is_best = exact_logprobs(
            torch.cat([p[0] for p in self.parts]),
            row,
            torch.cat([p[2] for p in self.parts]),
            head,
            self.takes,
        )
        values, bests, start = logprob.tolist(), is_best.tolist(), 0
        for _, _, target, tree in self.parts:
            piece = slice(start, start + len(target))
            _hand_out(values[piece], tree.branch, tree.samples, into)
            if likeliest is not None:
                _hand_out(bests[piece], tree.branch, tree.samples, likeliest)
            start += len(target)
        self.parts, self.rows = [], 0


def _hand_out(
    values: list[T], branch_L: list[int], samples: list[Sample], into: list[list[list[T]]]
) -> None:
    """What one pass found for each label to its samples. `branch_L` counts branches through the
    samples in order."""
    where = [(sample.index, b) for sample in samples for b in range(len(sample.branches))]
    for sample in samples:
        into[sample.index] = [[] for _ in sample.branches]
    for value, b in zip(values, branch_L, strict=True):
        index, place = where[b]
        into[index][place].append(value)


@torch.no_grad()
def logprobs_of(
    opened: opening.Loaded,
    samples: list[Sample],
    *,
    layout_name: str,
    rows_per_pass: int,
    exact: bool,
    on_samples: Callable[[int], None] | None = None,
    likeliest: Likeliest | None = None,
) -> Logprobs:
    """Log-probability of every learnt token of every branch. Sample i has index i.

    `exact` computes the head in float32 and reads it once for many passes: right for few labels a
    row (options). Without it the engine's own head is used, as in training. `likeliest`, a list
    that is filled, says whether greedy decoding would have written each label; it needs `exact`.
    """
    assert exact or likeliest is None
    found: Logprobs = [[] for _ in samples]
    if likeliest is not None:
        likeliest[:] = [[] for _ in samples]
    waiting, done = _Waiting(), 0
    opened.model.eval()
    with computing_in(opened.causal, layout_name), fused_without_gradient():
        reader = RowReader(opened.model, opened.causal, layout_name)
        head = head_of(opened.causal)
        beginning = shared_beginning(samples) if len(samples) > 1 else []
        shorter = without_beginning(samples, len(beginning) if reader.keep(beginning) else 0)
        for group in cut_passes(shorter, rows_per_pass, padded=layout_name == "padded"):
            if exact:
                part, waiting.takes = reader.labelled_rows(group)
                waiting.parts.append(part)
                waiting.rows += len(part[0])
                if waiting.rows >= HEAD_ROWS:
                    waiting.flush(head, found, likeliest)
            else:
                out = reader(group)
                _hand_out(out.logprob.tolist(), out.branch.tolist(), group, found)
            done += len(group)
            if on_samples:
                on_samples(done)
        waiting.flush(head, found, likeliest)
    return found
