"""Products of a few rows with weights that are laid out once for them (oneDNN), on a CPU.

While answers are written every weight is read at every token, for a handful of rows; PyTorch's
general product lays the weight out anew each time. Here modules that read the same rows (query, key
and value; gate and up) are one product, with bias, activation, residual and a LoRA update in it.
What is no plain linear layer is called as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 32
"""The number of rows that a weight is laid out for. Any number is right; 1 to 128 were tried."""
FUSED = {"silu": ("swish", ""), "gelu_pytorch_tanh": ("gelu", "tanh"), "gelu": ("gelu", "none")}
"""Transformers' name of an activation to oneDNN's."""


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of this dtype have such a layout here."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def base_of(module: Any) -> nn.Linear | None:
    """The frozen linear layer of a module that is one, or is one with a plain LoRA update that may
    be computed apart (`methods.peft.fuse` says so); None for anything else."""
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if type(module) is nn.Linear:
        return None if "forward" in vars(module) else module
    if getattr(module, "plain_low_rank", False) and not module.merged:
        if not module.disable_adapters and len(module.active_adapters) != 1:
            return None
        base = module.get_base_layer()
        return base if type(base) is nn.Linear and "forward" not in vars(base) else None
    return None


def _update_of(module: Any) -> tuple[Tensor, Tensor, float] | None:
    """(A, B, scale) of the LoRA update that is on, or None."""
    if type(module) is nn.Linear or module.disable_adapters:
        return None
    name = module.active_adapters[0]
    return module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]


class Packed:
    """Linear layers that read the same rows, as one product. Raises nothing; `of` gives None where
    a module is more than that."""

    def __init__(self, modules: Sequence[Any], bases: Sequence[nn.Linear], packs: Packs) -> None:
        self.widths = [base.weight.shape[0] for base in bases]
        self.weight, self.bias = packs.weight(bases)
        dtype, device = bases[0].weight.dtype, bases[0].weight.device
        updates = [_update_of(module) for module in modules]
        self.low: tuple[Tensor, Tensor] | None = None
        if any(update is not None for update in updates):
            found = [u for u in updates if u is not None]
            ranks = sum(len(a) for a, _, _ in found)
            rise = torch.zeros(ranks, sum(self.widths), dtype=dtype, device=device)
            row = column = 0
            for update, width in zip(updates, self.widths, strict=True):
                if update is not None:
                    a, b, scale = update
                    rise[row : row + len(a), column : column + width] = (b * scale).t().to(dtype)
                    row += len(a)
                column += width
            fall = torch.cat([a for a, _, _ in found]).to(dtype)
            self.low = _packed(fall), _packed(rise.t().contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        """x (R, I) -> (R, sum of the widths)."""
        y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return self._updated(y, x)

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """`residual` + the product."""
        y = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return self._updated(y, x)

    def activated(self, x: Tensor, name: str) -> Tensor:
        """The activation of the product. Only without an update."""
        how, algorithm = FUSED[name]
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, how, [], algorithm
        )
        return y

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The product times `factor`, number by number. Only without an update."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, factor, self.weight, self.bias, "mul"
        )
        return y

    def _updated(self, y: Tensor, x: Tensor) -> Tensor:
        if self.low is None:
            return y
        low = torch.ops.mkldnn._linear_pointwise(x, self.low[0], None, "none", [], "")
        whole: Tensor = torch.ops.mkldnn._linear_pointwise.binary(low, y, self.low[1], None, "add")
        return whole


def _packed(weight: Tensor) -> Tensor:
    """A weight (O, I) in the layout of products of few rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return packed


class Packs:
    """Weights in that layout, kept while the weights they were made of stay as they are. Twice the
    memory of what is packed: whoever makes one says when it goes."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], tuple[Any, Tensor, Tensor | None]] = {}

    def weight(self, bases: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
        """(packed weight, bias) of layers side by side."""
        # By weight: modules of two trees over the same weights share what is packed.
        key = tuple(id(base.weight) for base in bases)
        parts = [p for base in bases for p in (base.weight, base.bias) if p is not None]
        state = [(p.data_ptr(), p._version if not p.is_inference() else 0) for p in parts]
        found = self._kept.get(key)
        if found is None or found[0] != state:
            one = len(bases) == 1
            wide = bases[0].weight if one else torch.cat([base.weight for base in bases])
            bias: Tensor | None = None
            if any(base.bias is not None for base in bases):
                bias = torch.cat(
                    [
                        base.bias if base.bias is not None else wide.new_zeros(len(base.weight))
                        for base in bases
                    ]
                )
            found = self._kept[key] = (state, _packed(wide.detach()), bias)
        return found[1], found[2]

    def forget(self) -> None:
        """Free what is kept."""
        self._kept.clear()


def product_of(modules: Sequence[Any], packs: Packs | None) -> Packed | None:
    """The modules as one product, or None where one of them is more than a linear layer, trains in
    another dtype, or nothing may be packed."""
    if packs is None:
        return None
    bases = [base_of(module) for module in modules]
    found = [base for base in bases if base is not None]
    if len(found) < len(bases) or len({base.weight.dtype for base in found}) != 1:
        return None
    weight = found[0].weight
    if not can_pack(weight.device, weight.dtype):
        return None
    return Packed(modules, found, packs)
