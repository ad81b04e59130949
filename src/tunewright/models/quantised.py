"""A frozen base in 4 or 8 bits: linear layers whose weights are stored as small integers and
dequantised, block by block, when they are used.

    nf4    16 levels at the quantiles of a normal distribution, times the largest magnitude of a
    block of weights. `double`: those magnitudes in 8 bits,
           too, 256 of them to one float: 4.13 bits a weight with blocks of 64, 4.5 with blocks of
           16 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314)
    int4   16 even steps between the smallest and the largest of 64 weights: 4.5 bits
    int8   255 even steps, times the largest magnitude of a row: 8 bits (the vector-wise part of
    LLM.int8, Dettmers et al. 2022, arXiv 2208.07339)

Runs use blocks of 16: untrained, a model as small as SmolLM2-135M loses 13 % with QLoRA's 64 and 8
% with 16 (docs/LOG.md). nf4 and int8 hold the same numbers as bitsandbytes, which is the oracle of
the tests. It is not used here, because on a CPU (version 0.50.2) it looks for kernels on a hub when
it computes, and makes nf4 matrices wide wrongly when their width is no multiple of 64 (relative
error 0.28 in place of 0.09).

The product keeps nothing for the backward pass but the layer itself, and makes the weights wide
again there: memory is what a quantised base is for. It costs time: 1.3 times the CPU time of a LoRA
step of 512 rows (SmolLM2-135M, bfloat16, one core), less with more rows. A layer is a
`torch.nn.Linear` to whoever asks (PEFT's layers stand on it unchanged); its `weight` is computed
when it is read and must not be written to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tunewright.core.types import Attached
from tunewright.core.words import say
from tunewright.models import anatomy
from tunewright.models.limits import WIDE_NUMBERS

BLOCK = 64
"""Weights that share one scale (int4; nf4 where nothing else is asked for)."""
SCALES_BLOCK = 256
"""Scales that share one scale (double)."""
CHUNK = 1 << 19
"""Weights that are looked up at once: they pass through float32 and should stay in the processor's
cache."""
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The levels of the paper's appendix E."""


def dynamic_levels() -> Tensor:
    """The 256 sorted levels of the signed dynamic 8-bit type (Dettmers et al. 2021, arXiv
    2110.02861, section 1.3): seven decades, the highest with most levels."""
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        levels += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(levels), dtype=torch.float32)


def _nearest(x: Tensor, levels: Tensor) -> Tensor:
    """Index of the nearest of sorted `levels`, uint8, same shape as x."""
    between = (levels[:-1] + levels[1:]) / 2
    if len(between) > 16:
        return torch.bucketize(x, between).to(torch.uint8)
    # As `bucketize`, in a third of the time: comparisons run over whole vectors.
    found = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    for edge in between.tolist():
        found += x > edge
    return found


def _blocks(flat: Tensor, size: int) -> Tensor:
    """(n,) -> (blocks, size), the last one filled with zeros."""
    return nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)


def _pack(codes: Tensor) -> Tensor:
    """Two codes a byte, the first in the high half."""
    pairs = codes.view(-1, 2)
    return (pairs[:, 0] << 4) | pairs[:, 1]


def quantise(
    weight: Tensor, number_type: str, double: bool = True, block: int = BLOCK
) -> dict[str, Tensor]:
    """The integers and scales of a weight (O, I). nf4 and int4 see it as one long row; int8 row by
    row. Works through it in pieces, so that what it takes besides the result stays small."""
    if number_type == "int8":
        return _int8(weight.detach())
    size = block if number_type == "nf4" else BLOCK
    flat = weight.detach().reshape(-1)
    count = -(-len(flat) // size)
    codes = torch.empty(count * size // 2, dtype=torch.uint8, device=flat.device)
    low, high = (torch.empty(count, device=flat.device) for _ in range(2))
    for a in range(0, count, CHUNK // size):
        b = min(count, a + CHUNK // size)
        blocks = _blocks(flat[a * size : b * size].float(), size)
        if number_type == "int4":
            low[a:b], high[a:b] = blocks.amin(1), blocks.amax(1)
            # Half precision carries scale and start; codes are chosen for the values that it really
            # holds. Below 1e-6 it would lose them.
            scales = ((high[a:b] - low[a:b]) / 15).clamp_(min=1e-6).half().float()
            steps = (blocks - low[a:b].half().float()[:, None]) / scales[:, None]
            some = torch.round(steps).clamp_(0, 15).to(torch.uint8)
        else:
            high[a:b] = blocks.abs().amax(1)
            levels = torch.tensor(NF4, device=flat.device)
            some = _nearest(blocks / high[a:b].clamp(min=1e-30)[:, None], levels)
        codes[a * size // 2 : b * size // 2] = _pack(some)
    if number_type == "int4":
        return {
            "codes": codes,
            "scales": ((high - low) / 15).clamp_(min=1e-6).half(),
            "starts": low.half(),
        }
    return {"codes": codes} | (_doubled(high) if double else {"scales": high})


def _int8(weight: Tensor) -> dict[str, Tensor]:
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), device=weight.device)
    step = max(1, CHUNK // weight.shape[1])
    for a in range(0, len(weight), step):
        wide = weight[a : a + step].float()
        scales[a : a + step] = wide.abs().amax(1).clamp_(min=1e-30) / 127
        codes[a : a + step] = torch.round(wide / scales[a : a + step, None]).to(torch.int8)
    return {"codes": codes, "scales": scales}


def _doubled(largest: Tensor) -> dict[str, Tensor]:
    """Scales in 8 bits: their mean, and 256 of them to one float."""
    mean = largest.mean()
    centred = _blocks(largest - mean, SCALES_BLOCK)
    peak = centred.abs().amax(1)
    small = _nearest(
        centred / peak.clamp(min=1e-30)[:, None], dynamic_levels().to(largest.device)
    ).flatten()[: len(largest)]
    return {"scale_codes": small, "scale_scales": peak, "scale_mean": mean[None]}


def stored_bytes(numbers: int, rows: int, number_type: str, double: bool, block: int) -> int:
    """An upper bound of the bytes of the integers and scales of a weight of `numbers` numbers in
    `rows` rows, each tensor rounded up to 64 bytes."""
    if number_type == "int8":
        return numbers + 4 * rows + 128
    size = block if number_type == "nf4" else BLOCK
    count = -(-numbers // size)
    scales = 4.0 if number_type == "int4" or not double else 1 + 4 / SCALES_BLOCK
    return count * size // 2 + int(count * scales) + 4 * 64 + 8


def _pairs(levels: tuple[float, ...]) -> Tensor:
    """(256,) int64: for each byte the two float32 levels it stands for, as one number."""
    table = torch.tensor(levels, dtype=torch.float32)
    return (
        torch.stack([table.repeat_interleave(16), table.repeat(16)], 1)
        .contiguous()
        .view(torch.int64)
        .flatten()
    )


class _Tables:
    """Look-up tables by device."""

    def __init__(self) -> None:
        self.made: dict[tuple[str, torch.device], Tensor] = {}

    def get(self, name: str, device: torch.device) -> Tensor:
        if (name, device) not in self.made:
            made = {
                "nf4": lambda: _pairs(NF4),
                "int4": lambda: _pairs(tuple(map(float, range(16)))),
                "dynamic": dynamic_levels,
            }[name]()
            self.made[name, device] = made.to(device)
        return self.made[name, device]


_tables = _Tables()


class QuantLinear(nn.Linear):
    """A frozen linear layer in few bits. `weight` is a new (O, I) tensor in `wide_dtype` each time
    it is read."""

    codes: Tensor
    scales: Tensor
    starts: Tensor
    scale_codes: Tensor
    scale_scales: Tensor
    scale_mean: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        number_type: str = "nf4",
        double: bool = True,
        block: int = BLOCK,
    ):
        """`weight` (O, I) is read and not kept; `wide_dtype` is its dtype."""
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.number_type, self.doubled, self.wide_dtype = (
            number_type,
            double and number_type == "nf4",
            weight.dtype,
        )
        self.block = block if number_type == "nf4" else BLOCK
        for name, tensor in quantise(weight, number_type, double, block).items():
            self.register_buffer(name, tensor)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.rows(0, self.out_features, self.wide_dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes of integers and scales."""
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def rows(self, first: int, after: int, dtype: torch.dtype) -> Tensor:
        """Rows [first, after) of the weight, wide."""
        if self.number_type == "int8":
            return (self.codes[first:after].float() * self.scales[first:after, None]).to(dtype)
        begin, end = first * self.in_features, after * self.in_features
        block = self.block
        low, high = begin // block, -(-end // block)
        out = torch.empty((high - low) * block, dtype=dtype, device=self.codes.device)
        table = _tables.get(self.number_type, self.codes.device)
        step = CHUNK // block if self.codes.device.type == "cpu" else high - low
        scales = self._scales(low, high)
        for a in range(low, high, max(1, step)):
            b = min(high, a + max(1, step))
            wide = (
                table.index_select(0, self.codes[a * block // 2 : b * block // 2].int())
                .view(torch.float32)
                .view(-1, block)
            )
            wide.mul_(scales[a - low : b - low, None])
            if self.number_type == "int4":
                wide.add_(self.starts[a:b, None].float())
            out[(a - low) * block : (b - low) * block] = wide.view(-1)
        return out[begin - low * block : end - low * block].view(after - first, self.in_features)

    def _scales(self, low: int, high: int) -> Tensor:
        """Float32 scales of blocks [low, high)."""
        if not self.doubled:
            return self.scales[low:high].float()
        levels = _tables.get("dynamic", self.codes.device)[self.scale_codes[low:high].int()]
        group = torch.arange(low, high, device=levels.device) // SCALES_BLOCK
        return levels * self.scale_scales[group] + self.scale_mean

    def row_blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that are made wide together."""
        step = max(1, WIDE_NUMBERS // self.in_features)
        for first in range(0, self.out_features, step):
            yield first, min(self.out_features, first + step)

    def forward(self, x: Tensor) -> Tensor:
        y = _FrozenProduct.apply(x.reshape(-1, self.in_features), self)
        y = y if self.bias is None else y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantLinear:
        """Move, but never change the dtype of the scales: `model.to(bfloat16)` is about what
        it computes in, and a scale is part of a weight."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            now = self._buffers[name]
            if tensor is not None and now is not None and now.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(now.device)
        if self.bias is not None:
            self.wide_dtype = self.bias.dtype
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.number_type}{', double' if self.doubled else ''}"


class _FrozenProduct(torch.autograd.Function):
    """y = x W^T for a quantised W. x (N, I), y (N, O). Keeps the layer and no tensor; the backward
    pass makes W wide again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantLinear) -> Tensor:
        ctx.layer = layer
        blocks = list(layer.row_blocks())
        if len(blocks) == 1:
            return x @ layer.rows(*blocks[0], x.dtype).t()
        y = x.new_empty(len(x), layer.out_features)
        for first, after in blocks:
            y[:, first:after] = x @ layer.rows(first, after, x.dtype).t()
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        g, layer = grads[0], ctx.layer
        dx: Tensor | None = None
        for first, after in layer.row_blocks():
            part = g[:, first:after] @ layer.rows(first, after, g.dtype)
            dx = part if dx is None else dx.add_(part)
        return dx, None


def quantise_model(
    model: Any, number_type: str, double: bool = True, block: int = BLOCK, device: Any = None
) -> int:
    """Replace every linear layer inside the blocks of `model`, one at a time, so that never two
    copies of the model are in memory. Returns how many.

    Embedding, norms, output head, routers and fused experts stay as they are. With a `device` each
    layer is quantised there and the rest is moved after.
    """
    names = anatomy.of(model).linear
    for name in names:
        parent, _, last = name.rpartition(".")
        owner = model.get_submodule(parent)
        old = getattr(owner, last)
        weight = (
            old.weight if isinstance(old, nn.Linear) else old.weight.t()
        )  # GPT-2 stores its weights turned
        if device is not None:
            weight = weight.to(device)
        setattr(owner, last, QuantLinear(weight.detach(), old.bias, number_type, double, block))
        old.weight = None
        del old, weight
    if device is not None:
        model.to(device)
    else:
        _move_together([model.get_submodule(name) for name in names])
    model.requires_grad_(False)
    return len(names)


def _move_together(layers: list[QuantLinear]) -> None:
    """Put all integers and scales into one piece of memory.

    They were allocated between weights that are gone, and the many small holes that these left
    cannot be given back: a tenth of the wide weights' bytes stayed resident (docs/LOG.md). A piece
    of this size is mapped by itself.
    """
    piece = Piece(
        sum(-(-t.numel() * t.element_size() // 64) * 64 for m in layers for t in m.buffers())
    )
    for layer in layers:
        piece.take(layer)


class Piece:
    """One piece of memory for the integers and scales of many layers. What is not written yet is
    not resident."""

    def __init__(self, num_bytes: int) -> None:
        self.memory = torch.empty(num_bytes, dtype=torch.uint8, device="cpu")
        self.end = 0

    def take(self, layer: QuantLinear) -> None:
        """Move the tensors of a layer here."""
        for name, tensor in list(layer.named_buffers()):
            stop = self.end + tensor.numel() * tensor.element_size()
            self.memory[self.end : stop] = tensor.contiguous().view(-1).view(torch.uint8)
            layer._buffers[name] = (
                self.memory[self.end : stop].view(tensor.dtype).view(tensor.shape)
            )
            self.end = -(-stop // 64) * 64


def keep_base(attached: Attached, model: Any) -> None:
    """Where `model` stands on quantised layers, let a method not be folded into them: what is
    written to their wide weights would be lost."""
    if is_quantised(model):
        attached.merge, attached.merge_reason = None, say("methods.merge_quantised")


def is_quantised(model: Any) -> bool:
    """Whether a model stands on quantised layers."""
    return any(isinstance(m, QuantLinear) for m in model.modules())


def parameter_count(model: Any) -> int:
    """Numbers of a model, what is quantised counted by the weights it stands for."""
    plain = sum(p.numel() for p in model.parameters())
    return plain + sum(
        math.prod(anatomy.shape_of(m)) for m in model.modules() if isinstance(m, QuantLinear)
    )
