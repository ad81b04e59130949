"""Walk a model block by block over real rows, changing each block before the next one reads it.

What a block gets besides hidden states (positions, masks) is noted in one pass through the whole
model; then only one block computes at a time, on what the blocks before it, already changed, gave.
So every matrix is judged by the inputs that it will really have (GPTQ section 4, Wanda section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunewright.models import anatomy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Inputs:
    """What reached a linear module: the sum of x xT (I, I) or only its diagonal (I,), float32."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    last: tuple[Any, Any] = (None, None)

    def add(self, name: str, given: Tensor, whole: bool) -> None:
        """Add the inputs (..., I) of one call."""
        # Query, key and value read the same tensor: its products are computed once.
        if self.last[0] is given:
            product = self.last[1]
        else:
            x = given.detach().reshape(-1, given.shape[-1]).float()
            product = x.T @ x if whole else x.square().sum(0)
            self.last = (given, product)
        if name in self.sums:
            self.sums[name] += product
        else:
            self.sums[name] = product.clone()
        self.rows[name] = self.rows.get(name, 0) + given.numel() // given.shape[-1]

    def strength(self, name: str) -> Tensor:
        """Mean square of each input, (I,)."""
        found = self.sums[name]
        return (found.diagonal() if found.ndim == 2 else found) / max(self.rows[name], 1)


class Walk:
    """The blocks of a causal model with what reaches them on `rows` of token ids."""

    def __init__(self, causal: Any, rows: list[list[int]]):
        self.causal, self.names = causal, anatomy.of(causal).blocks
        self.blocks = [causal.get_submodule(name) for name in self.names]
        self.hidden: list[Tensor] = []
        self.given: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        for row in rows:
            self._note(row)

    def _note(self, row: list[int]) -> None:
        import torch

        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if not seen:
                self.hidden.append(args[0] if args else named["hidden_states"])
            rest = {key: value for key, value in named.items() if key != "hidden_states"}
            seen.append((args[1:], rest))

        hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in self.blocks]
        try:
            with torch.no_grad():
                self.causal(input_ids=torch.tensor([row]), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        self.given.append(seen)

    def blocks_with_inputs(self, names: list[str], *, whole: bool) -> Iterator[tuple[int, Inputs]]:
        """(number of a block, what reached the modules `names` in it), block after block; what is
        changed before the next is asked for changes what the next ones get. `whole`: all products
        and not only squares."""
        import torch

        for number, (block, prefix) in enumerate(zip(self.blocks, self.names, strict=True)):
            inputs = Inputs()
            inside = [n for n in names if n.startswith(f"{prefix}.")]
            hooks = [
                self.causal.get_submodule(name).register_forward_pre_hook(
                    lambda _, args, name=name, inputs=inputs: inputs.add(name, args[0], whole)
                )
                for name in inside
            ]
            try:
                with torch.no_grad():
                    for i in range(len(self.hidden)):
                        self._through(block, number, i)
            finally:
                for hook in hooks:
                    hook.remove()
            inputs.last = (None, None)
            yield number, inputs
            if number + 1 < len(self.blocks):
                with torch.no_grad():
                    for i in range(len(self.hidden)):
                        self.hidden[i] = self._through(block, number, i)

    def _through(self, block: Any, number: int, row: int) -> Tensor:
        args, named = self.given[row][number]
        out = block(self.hidden[row], *args, **named)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found
