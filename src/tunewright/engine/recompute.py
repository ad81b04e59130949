"""Activations that are computed again in the backward pass in place of being kept (Chen et al.
2016, arXiv 1604.06174), through PyTorch's own checkpointing.

| `engine.recompute` | kept of a block | computed twice |
| none | everything that its backward pass reads | nothing |
| selective | all but its MLP's rows and attention probabilities | those |
| full | its input | the block |

The last block is left alone: its backward pass comes first, so nothing would be saved. Numbers do
not change: the same operations run on the same inputs, and random draws are replayed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from tunewright.core.machine import resident_bytes, return_freed_memory
from tunewright.engine.activation_cache import blocks_of
from tunewright.models import anatomy

if TYPE_CHECKING:
    from tunewright.engine.policy import Policy

LEVELS = ("none", "selective", "full")
LEAST_HOLES = 16 * 2**20
"""Bytes of free memory between what lives that are not worth giving back to the system."""
WORTH_IT = 0.5
"""The same, in multiples of what a block touches: what is given back is paid in page faults. With 2
and 64 MiB the process held up to a sixth more (docs/LOG.md)."""


def install(policy: Policy, level: str) -> Callable[[], None]:
    """Let the blocks of `policy`'s model forget what `level` says while they learn, in place of
    what they forgot before; `auto` is `none` here. A level that the model has nothing for
    (`selective` without an MLP by name) changes nothing. What is returned undoes it."""
    policy.keep_everything()
    policy.recompute = level if level in LEVELS else "none"
    # What is kept of whole blocks is so little that holes between tensors would be most of it.
    holes = _Holes() if policy.recompute == "full" and policy.device.type == "cpu" else None
    if holes is not None:
        return_freed_memory()  # what reading the model left
    undo = [_forget(module, holes) for module in _modules(policy.causal[0], policy.recompute)]

    def remove() -> None:
        policy.recompute = "none"
        while undo:
            undo.pop()()

    policy.keep_everything = remove
    return remove


def _modules(causal: Any, level: str) -> Iterator[Any]:
    if level == "none":
        return
    *blocks, _ = blocks_of(causal)
    if level == "full":
        yield from blocks
        return
    by_name, inside = dict(causal.named_modules()), {id(m) for b in blocks for m in b.modules()}
    names = {name.rpartition(".")[0] for name in anatomy.of(causal).roles.get("mlp.down", [])}
    for name in sorted(names):
        module = by_name.get(name)
        if id(module) in inside and id(module) not in {id(block) for block in blocks}:
            yield module


class _Holes:
    """Gives memory back to the system that was freed between tensors which live on.

    The C library keeps what was freed, which is what training wants: the next block uses it again.
    But what is kept of each block, and every small object of the graph, lies somewhere between, so
    that over 30 blocks the process grows by several times what it holds (docs/LOG.md).
    """

    def __init__(self) -> None:
        self.after: int | None = None
        """Bytes of the process after memory was last given back."""
        self.one: int | None = None
        """The same when a block had been computed since."""

    def look(self) -> None:
        """Between two blocks: give back what has become too much."""
        now = resident_bytes()
        if self.after is None:
            self.after = now
        elif self.one is None:
            self.one = max(now, self.after)
        elif now > self.one + max(LEAST_HOLES, WORTH_IT * (self.one - self.after)):
            return_freed_memory()
            self.after, self.one = resident_bytes(), None


def _forget(module: Any, holes: _Holes | None = None) -> Callable[[], None]:
    own, had_one = module.forward, "forward" in vars(module)

    def forward(*given: Any, **named: Any) -> Any:
        # Without a gradient nothing is kept anyway.
        if not torch.is_grad_enabled() or not module.training:
            return own(*given, **named)
        return checkpoint(run, *given, use_reentrant=False, **named)

    def run(*given: Any, **named: Any) -> Any:
        if holes is not None:
            holes.look()
        return own(*map(_fresh, given), **{name: _fresh(value) for name, value in named.items()})

    def undo() -> None:
        if had_one:
            module.forward = own
        else:
            del module.forward

    module.forward = forward
    return undo


def _fresh(value: Any) -> Any:
    """A cache as it is before the block adds its own keys (a learnt prefix is one): computed again,
    the block would add them a second time. Its tensors are not copied; everything else is given
    back as it is."""
    layers = getattr(value, "layers", None)
    if not isinstance(layers, list):
        return value
    fresh = copy.copy(value)
    fresh.layers = [copy.copy(layer) for layer in layers]
    return fresh
