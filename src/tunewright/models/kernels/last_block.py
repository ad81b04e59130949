"""The last block of a model, computed only for rows whose output is used.

Every row of a token tree must give its keys and values to the last block, and nothing more: its
attention output and its MLP are read by nobody unless a label or a score hangs on it. With 30
blocks and prompts that are not learnt, leaving them out saves up to 3 % of a step, and nothing that
is read changes by more than the order of roundings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunewright.core.errors import ModelError
from tunewright.core.moves import to_device
from tunewright.models import anatomy

WORTH_IT = 0.9
"""Above this share of rows read, picking rows out costs what it saves."""


class LastBlock:
    """What of a model's last block can leave rows out: its attention (asked by
    `models.tree_attention`) and its MLP.

    `mlp` is None where the block has no module that is an MLP by name and treats rows one by one,
    which is tried on random rows. `modules` is empty where the blocks cannot be told apart or share
    modules: then nothing is left out.
    """

    def __init__(self, causal: Any):
        self.modules: frozenset[int] = frozenset()
        self.mlp: Any = None
        try:
            parts = anatomy.of(causal)
        except ModelError:
            return
        by_name = dict(causal.named_modules())
        *others, last = (by_name[name] for name in parts.blocks)
        own = {id(module) for module in last.modules()}
        if _runs_again(by_name, parts, last) or _mixes_twice(parts):
            return
        if own.isdisjoint(id(module) for block in others for module in block.modules()):
            self.modules = frozenset(own)
            self.mlp = _row_wise_mlp(causal, parts)

    def worth(self, read: Sequence[int], num_rows: int) -> bool:
        """Whether leaving out all rows but `read` of `num_rows` saves more than it costs."""
        return bool(self.modules) and 0 < len(read) <= WORTH_IT * num_rows

    @contextlib.contextmanager
    def only(self, read: Sequence[int], num_rows: int, device: torch.device) -> Iterator[None]:
        """Inside, the MLP computes `read` (distinct rows) alone of an input of exactly `num_rows`
        rows; the others get zeros."""
        if self.mlp is None:
            yield
            return
        own, had_one = self.mlp.forward, "forward" in vars(self.mlp)
        wanted = to_device(list(read), device)

        def forward(x: Tensor) -> Tensor:
            if x.shape[:-1] != (1, num_rows):
                return own(x)
            y: Tensor = own(x.index_select(1, wanted))
            return y.new_zeros(1, num_rows, y.shape[-1]).index_copy(1, wanted, y)

        self.mlp.forward = forward
        try:
            yield
        finally:
            if had_one:
                self.mlp.forward = own
            else:
                del self.mlp.forward


def _runs_again(by_name: dict[str, Any], parts: anatomy.Anatomy, last: Any) -> bool:
    """Whether another list holds blocks of the same kind: HRM goes through two stacks in turns, and
    the last block of one is not the last that runs."""
    stack = parts.blocks[-1].rpartition(".")[0]
    return any(
        type(module).__name__ == "ModuleList"
        and name != stack
        and any(type(block) is type(last) for block in module)
        for name, module in by_name.items()
    )


def _mixes_twice(parts: anatomy.Anatomy) -> bool:
    """Whether the last block has more than one part that asks other rows: LongCat-Flash goes
    through two attentions in a block, and the second reads all rows of the first."""
    last = f"{parts.blocks[-1]}."
    asking = {
        name.rpartition(".")[0]
        for role in ("attention.query", "attention.qkv")
        for name in parts.roles.get(role, [])
        if name.startswith(last)
    }
    return len(asking) > 1


@torch.no_grad()
def _row_wise_mlp(causal: Any, parts: anatomy.Anatomy) -> Any:
    last = f"{parts.blocks[-1]}."
    down = next(
        (name for name in reversed(parts.roles.get("mlp.down", [])) if name.startswith(last)), ""
    )
    parent = down.rpartition(".")[0]
    if not parent.startswith(last):
        return None
    module = causal.get_submodule(parent)
    if not type(module).__name__.lower().endswith(("mlp", "feedforward")):
        return None
    table = causal.get_input_embeddings().weight
    x = torch.randn(1, 6, table.shape[1], generator=torch.Generator().manual_seed(0)).to(
        table.device, causal.dtype
    )
    dropping = [
        inner for inner in module.modules() if isinstance(inner, nn.Dropout) and inner.training
    ]
    try:
        for inner in dropping:
            # a resumed run must find what the run found at its start, and draw what it drew
            inner.training = False
        whole, part = module(x), module(x[:, [1, 4]])
    except RuntimeError:
        # Weights of another type or on another device than the model says: it is not known what
        # this module takes.
        return None
    finally:
        for inner in dropping:
            inner.training = True
    if not isinstance(whole, Tensor) or whole.shape != x.shape:
        return None
    return (
        module
        if float((whole[:, [1, 4]] - part).float().norm()) <= 0.05 * float(part.float().norm())
        else None
    )
