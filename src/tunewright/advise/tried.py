"""What a few blocks of a model took on this machine (`trial.py` lets them): seconds and bytes, from
which `timing.py` and `memory.py` go on to all blocks and all steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """What a few blocks took. Rows are token rows of a step as it was tried."""

    blocks: int
    rows: float
    """Mean of the steps after the first."""
    labels: float
    passes: float
    seconds: float
    """Of a step without its update, all tried blocks; mean of the steps after the first."""
    block_seconds: float
    """Of it, in one block that learns or lets a gradient through."""
    learning_blocks: int
    """Blocks among the tried ones that `block_seconds` and `block_bytes` are the mean of."""
    still_blocks: int
    """Blocks of the tried ones that are only passed forward."""
    still_seconds: float
    """In one of these."""
    first_seconds: float
    """What the first step took longer."""
    update_seconds: float
    trainable: int
    read_seconds: float
    """Of reading `read_samples` samples without learning, all tried blocks."""
    read_first_seconds: float
    """What that took longer the first time."""
    read_samples: float
    read_block_seconds: float
    """Of it, in one block; drawing answers apart."""
    start_seconds: float
    """Of reading `read_samples` samples for what the model at step 0 says of them, all tried
    blocks; 0 where the objective does not ask."""
    start_first_seconds: float
    """What that took longer the first time."""
    start_block_seconds: float
    draw_seconds: float
    """Of drawing answers in a step, where the objective does."""
    read_draw_seconds: float
    """Of drawing answers while reading samples without learning."""
    ask_seconds: float
    """Of beginning to answer a few questions: reading them, and laying out the weights."""
    token_seconds: float
    """Of one more token of all their answers."""
    block_bytes: float
    """What autograd keeps of one block in the largest pass of the first step."""
    rest_bytes: float
    """What it keeps outside of the blocks that stand for all."""
    pass_rows: float
    """Rows of that pass."""
    peak_rows: float = 0.0
    """Rows of the pass of `peak_bytes`."""
    process_bytes: int = 0
    """Resident set of this process before the blocks were made; 0 where the system does not say."""
    peak_bytes: int = 0
    """Most bytes that live in a pass of `peak_rows` rows beside weights, moments and compiled
    products: activations, gradients, temporaries of head and loss. 0 where the system does not say.
    """
    first_kernels: float = 0.0
    """Bytes of the products that are compiled in the first pass."""
    pass_kernels: float = 0.0
    """Of those that a later pass compiles, for its new number of rows."""
    read_kernels: float = 0.0
    """Of those that passes which learn nothing, and answers, compile besides."""
    kernel_bytes: float = 0.0
    """Bytes of one compiled product."""
    gradient_bytes: float = 0.0
    """Of the gradients, for all tried blocks; a part of `state_bytes`."""
    block_weights: float = 0.0
    """Bytes of one block, with what the method puts into it."""
    rest_weights: float = 0.0
    """Bytes of everything outside of the blocks."""
    state_bytes: float = 0.0
    """Of gradients, moments and wide copies of what trains, for all tried blocks."""
    layout: str = "tree"
    busy: bool = False
    """Other programs held the processors meanwhile."""
