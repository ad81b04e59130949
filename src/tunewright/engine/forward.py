"""One pass through the model: rows in, log-probabilities of the labels out. The only place that calls the model during training.

Two layouts of the same batch. `tree` lays all branches into one row of tokens and computes shared beginnings once. `padded` gives every branch a row of
its own with stock attention: it serves models whose layers are not plain attention, and it is the oracle the tree is tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunewright.core.types import Sample, TokenTree
from tunewright.engine.tree import build_tree, padded_rows
from tunewright.models.head import Head, label_logprobs
from tunewright.models.tree_attention import TreePlan

KEEP_BYTES = 768 * 2**20


@dataclass
class PassOutput:
    """What an objective sees of one pass. L labels in the order of the samples' branches; weights are the data's."""

    logprob: Tensor
    """(L,) float32 or wider, in nats."""
    weight: Tensor
    """(L,)"""
    branch: Tensor
    """(L,) index of the branch."""
    branch_sample: list[int]
    samples: list[Sample]
    num_rows: int


def head_of(model: Any) -> Head:
    """The output head of a causal language model, with the scale and softcap its config asks for."""
    module = model.get_output_embeddings()
    config = model.config.get_text_config()
    # Granite divides by `logits_scaling`, HyperCLOVA X multiplies by it; Cohere multiplies by `logit_scale`.
    scale = (getattr(config, "logits_scaling", None) or 1.0) ** (1 if config.model_type == "hyperclovax" else -1) * (
        getattr(config, "logit_scale", None) or 1.0
    )
    # A method may have put layers on the head (LoRA on `head`): then its forward, not its weight, is the head.
    own = None if type(module) is nn.Linear else module
    return Head(module.weight, getattr(module, "bias", None), scale, getattr(config, "final_logit_softcapping", None), own)


class Policy(nn.Module):
    """The root module of training: a pass of samples in, `PassOutput` out. Nobody touches the head outside of its forward."""

    def __init__(self, model: Any, causal: Any, layout: str):
        """`model` is what trains (a PEFT model, or the causal model itself), `causal` the causal language model inside it."""
        super().__init__()
        self.model = model
        self.causal = [causal]  # in a list, so that its parameters are not registered twice
        self.layout = layout

    @property
    def device(self) -> torch.device:
        return next(self.causal[0].parameters()).device

    def forward(self, samples: list[Sample]) -> PassOutput:
        """Log-probabilities of every label of `samples`, with gradient where the model has trainable parameters."""
        tree = build_tree(samples) if self.layout == "tree" else padded_rows(samples)
        hidden_TD = self._tree_hidden(tree) if self.layout == "tree" else self._padded_hidden(tree)
        device = hidden_TD.device
        source, target = torch.tensor(tree.source, device=device), torch.tensor(tree.target, device=device)
        logprob_L = label_logprobs(hidden_TD, source, target, head_of(self.causal[0]))
        weight_L = torch.tensor(tree.weight, device=device, dtype=logprob_L.dtype)
        rows = tree.num_rows if self.layout == "tree" else len(tree.branch_sample) * (max(tree.depth) + 1)
        return PassOutput(logprob_L, weight_L, torch.tensor(tree.branch, device=device), tree.branch_sample, samples, rows)

    def _body(self) -> Any:
        causal = self.causal[0]
        return getattr(causal, causal.base_model_prefix)

    def _tree_hidden(self, tree: TokenTree) -> Tensor:
        plan = TreePlan(tree, self.device, KEEP_BYTES, self.causal[0].config.get_text_config().num_hidden_layers)
        ids = torch.tensor([tree.token], device=self.device)
        positions = torch.tensor([tree.position], device=self.device)
        return self._body()(input_ids=ids, position_ids=positions, tree_plan=plan, use_cache=False).last_hidden_state[0]

    def _padded_hidden(self, tree: TokenTree) -> Tensor:
        """(T, D): the rows of all branches one after the other, without the padding."""
        starts = [i for i, depth in enumerate(tree.depth) if depth == 0]
        lengths = [b - a for a, b in zip(starts, [*starts[1:], tree.num_rows], strict=True)]
        ids = torch.zeros(len(starts), max(lengths), dtype=torch.long)
        positions, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            ids[row, :length] = torch.tensor(tree.token[start : start + length])
            positions[row, :length] = torch.tensor(tree.position[start : start + length])
            mask[row, :length] = 1
        ids, positions, mask = ids.to(self.device), positions.to(self.device), mask.to(self.device)
        hidden_BTD = self._body()(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).last_hidden_state
        return hidden_BTD[mask.bool()]
