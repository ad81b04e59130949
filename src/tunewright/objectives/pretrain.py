"""Pretraining on running text: every token of a document is learnt, and none is predicted from
another document.

The data room cuts a document that is longer than the context into windows that follow one another,
and puts short ones side by side into samples of about equal size (`data.store.documents`). Side by
side they are branches of one token tree, of which none sees another, so packing mixes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.registry import objectives
from tunewright.core.types import Objective
from tunewright.objectives.sft import likelihood


class PretrainConfig(Section):
    """Learning from running text, whole documents long. Data: plain text."""

    pack: int = Field(default=1024, ge=0)
    """Short documents are put side by side into samples of up to this many tokens, so that steps
    are of even size; 0: every document is a sample."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over the whole vocabulary."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the squared logarithm of the softmax's denominator; 1e-4 keeps the scale of the
    logits steady in long runs. 0: none."""


@objectives.register(
    "pretrain", PretrainConfig, source="maximum likelihood", rows=("text",), usual_for=("text",)
)
def pretrain(config: PretrainConfig) -> Objective:
    """loss = mean of -log p(token) over all tokens of all documents of the step but the first of
    each."""
    learning = likelihood("pretrain", config.label_smoothing, config.z_loss)
    return replace(learning, pack=config.pack)
