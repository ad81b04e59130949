"""Weights of checkpoints that are quantised already, made wide: a whole one when the model is
loaded, or the rows of a frozen layer each time it is used.

The formats are described in `sources.few_bits`. They are decoded here in plain PyTorch, because the
libraries that wrote them decode on a GPU alone (GPTQ, AWQ), or a whole matrix at once where a
frozen layer needs some rows; the tests compare with what those libraries and Transformers decode.
MXFP4 is Transformers' own. Values are computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tunewright.models.limits import WIDE_NUMBERS
from tunewright.models.quantised import QuantLinear
from tunewright.sources.few_bits import WORD, FewBits, StoredMatrix

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Column of a word -> the four bits that hold it."""


def decode(
    kind: str, parts: Mapping[str, Tensor], facts: Mapping[str, Any], first: int, after: int
) -> Tensor:
    """Rows [first, after) of a weight, (after - first, I) in float32."""
    return _DECODERS[kind](parts, facts, first, after)


def whole(matrix: StoredMatrix, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """A weight of any number of dimensions in `dtype`."""
    if matrix.kind == "mxfp4":
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        return convert_moe_packed_tensors(parts["blocks"], parts["scales"], dtype=dtype)
    if len(matrix.shape) > 2:
        return _fp8_many(parts, matrix.facts).to(dtype)
    outputs, inputs = matrix.shape
    out = torch.empty(matrix.shape, dtype=dtype)
    for first in range(0, outputs, step := max(1, WIDE_NUMBERS // inputs)):
        after = min(outputs, first + step)
        out[first:after] = decode(matrix.kind, parts, matrix.facts, first, after)
    return out


def unpacked(words_WN: Tensor, bits: int, count: int) -> Tensor:
    """(W, N) int32 words -> (count, N) int32: numbers of `bits` bits that follow one another down a
    column, the lowest bits first."""
    if WORD % bits == 0:
        shifts = torch.arange(0, WORD, bits, dtype=torch.int32, device=words_WN.device)
        many = (words_WN[:, None] >> shifts[:, None]) & ((1 << bits) - 1)
        return many.flatten(0, 1)[:count]
    start = torch.arange(count, device=words_WN.device) * bits
    word, shift_C1 = start // WORD, (start % WORD)[:, None]
    wide = words_WN.long() & 0xFFFFFFFF
    # A number may begin in one word and end in the next.
    low_CN = wide[word] >> shift_C1
    high_CN = wide[(word + 1).clamp(max=len(wide) - 1)] << (WORD - shift_C1)
    return ((low_CN | high_CN) & ((1 << bits) - 1)).int()


def _gptq(parts: Mapping[str, Tensor], facts: Mapping[str, Any], first: int, after: int) -> Tensor:
    bits, scale_GO = facts["bits"], parts["scales"]
    groups, outputs = scale_GO.shape
    words = parts["qweight"]
    inputs = len(words) * WORD // bits
    code_IN = unpacked(words[:, first:after], bits, inputs)
    zero_GO = unpacked(parts["qzeros"].t(), bits, outputs).t()
    # The first form of the format stores zero points less one; the largest comes round to 0.
    zero_GN = (zero_GO[:, first:after] + facts["offset"]) & ((1 << bits) - 1)
    group_I = parts.get("g_idx")
    if group_I is None:
        group_I = torch.arange(inputs, device=words.device) // -(-inputs // groups)
    group_I = group_I.long()
    scale_GN = scale_GO[:, first:after].float()
    return ((code_IN - zero_GN[group_I]).float() * scale_GN[group_I]).t()


def _awq(parts: Mapping[str, Tensor], facts: Mapping[str, Any], first: int, after: int) -> Tensor:
    per_word = WORD // 4
    low, high = first // per_word, -(-after // per_word)
    words = parts["qweight"]
    shifts = torch.tensor([4 * place for place in AWQ_PLACES], device=words.device).int()

    def columns(packed: Tensor) -> Tensor:
        wide = (packed[:, low:high, None] >> shifts) & 15
        return wide.flatten(1)[:, first - low * per_word : after - low * per_word]

    scale_GN = parts["scales"][:, first:after].float()
    size = -(-len(words) // len(scale_GN))
    group_I = torch.arange(len(words), device=words.device) // size
    difference_IN = columns(words) - columns(parts["qzeros"])[group_I]
    return (difference_IN.float() * scale_GN[group_I]).t()


def _scale(scale: Tensor) -> Tensor:
    """Scales as float32; bytes are exponents of two with a bias of 127."""
    if scale.dtype == torch.uint8:
        return torch.exp2(scale.float() - 127)
    return scale.float()


def _spread(scale: Tensor, facts: Mapping[str, Any], rows: Tensor, shape: torch.Size) -> Tensor:
    """The scale of each number of `rows` of a weight of `shape`, as something that multiplies."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() == 1:
        return scale[rows, None]
    high, wide = facts.get("block") or (shape[0] // scale.shape[0], -(-shape[1] // scale.shape[1]))
    return scale[rows // high].repeat_interleave(wide, 1)[:, : shape[1]]


def _fp8(parts: Mapping[str, Tensor], facts: Mapping[str, Any], first: int, after: int) -> Tensor:
    weight = parts["weight"]
    found = weight[first:after].float()
    if "scale" not in parts:
        return found
    rows = torch.arange(first, after, device=weight.device)
    return found * _spread(_scale(parts["scale"]), facts, rows, weight.shape)


def _fp8_many(parts: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Tensor:
    """A weight of three dimensions, a matrix for each expert."""
    weight, scale = parts["weight"], parts.get("scale")
    found = []
    for i, one in enumerate(weight):
        own = {"weight": one}
        if scale is not None:
            own["scale"] = scale if scale.numel() == 1 else scale[i]
        found.append(_fp8(own, facts, 0, len(one)))
    return torch.stack(found)


def _int8(parts: Mapping[str, Tensor], facts: Mapping[str, Any], first: int, after: int) -> Tensor:
    weight = parts["weight"]
    rows = torch.arange(first, after, device=weight.device)
    found = weight[first:after].float()
    if "zero_point" in parts:
        found = found - _spread(parts["zero_point"].float(), facts, rows, weight.shape)
    return found * _spread(parts["scale"].float(), facts, rows, weight.shape)


def _packed(
    parts: Mapping[str, Tensor], facts: Mapping[str, Any], first: int, after: int
) -> Tensor:
    bits, words = facts["bits"], parts["packed"]
    outputs, inputs = parts["shape"].tolist()
    middle = 1 << (bits - 1)
    code_NI = unpacked(words[first:after].t(), bits, inputs).t() - middle
    scale = parts["scale"].float()
    scale_NG = (scale if scale.dim() == 2 else scale.reshape(-1, 1).expand(outputs, 1))[first:after]
    groups = scale_NG.shape[1]
    group_I = parts.get("g_idx")
    if group_I is None or bool((group_I < 0).any()):
        group_I = torch.arange(inputs, device=words.device) // -(-inputs // groups)
    group_I = group_I.long()
    found = code_NI.float()
    if "zero_point" in parts:
        zero = parts["zero_point"]
        if zero.dtype == torch.int32:  # packed down the outputs
            zero = unpacked(zero, bits, outputs) - middle
        zero_OG = zero.float().reshape(outputs, -1)
        found = found - zero_OG[first:after][:, group_I if zero_OG.shape[1] > 1 else group_I * 0]
    return found * scale_NG[:, group_I]


def _bnb4(parts: Mapping[str, Tensor], facts: Mapping[str, Any], first: int, after: int) -> Tensor:
    inputs, size = facts["inputs"], facts["block"]
    begin, end = first * inputs, after * inputs
    codes = parts["weight"].flatten()[begin // 2 : -(-end // 2)]
    pairs = torch.stack([codes >> 4, codes & 15], 1).flatten()
    levels = parts["quant_map"].float()[pairs[begin % 2 :][: end - begin].int()]
    block = torch.arange(begin, end, device=codes.device) // size
    largest = parts["absmax"].flatten()
    if "nested_absmax" in parts:
        wide = parts["nested_quant_map"].float()[largest.int()]
        nested = torch.arange(len(largest), device=codes.device) // facts["nested_block"]
        largest = wide * parts["nested_absmax"].float()[nested] + facts["nested_offset"]
    return (levels * largest.float()[block]).view(after - first, inputs)


def _bnb8(parts: Mapping[str, Tensor], facts: Mapping[str, Any], first: int, after: int) -> Tensor:
    scale_N = parts["scale"].float().flatten()[first:after] / 127
    return parts["weight"][first:after].float() * scale_N[:, None]


_DECODERS = {
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "int8": _int8,
    "packed": _packed,
    "bnb4": _bnb4,
    "bnb8": _bnb8,
}


class StoredLinear(QuantLinear):
    """A frozen linear layer whose weight stays as the checkpoint stores it. `weight` is a new
    (O, I) tensor in `wide_dtype` each time it is read."""

    def __init__(self, matrix: StoredMatrix, bias: Any, dtype: torch.dtype) -> None:
        """Made without its weight, which `fill` brings. `bias`: a parameter, on any device."""
        nn.Module.__init__(self)
        self.out_features, self.in_features = matrix.shape
        self.matrix, self.wide_dtype = matrix, dtype
        self.number_type, self.doubled = matrix.kind, False
        self.bias = bias

    def fill(self, parts: Mapping[str, Tensor]) -> None:
        """Take the stored tensors, by what they are."""
        for role, tensor in parts.items():
            self.register_buffer(f"stored_{role}", tensor)

    def rows(self, first: int, after: int, dtype: torch.dtype) -> Tensor:
        """Rows [first, after) of the weight, wide."""
        parts = {name.removeprefix("stored_"): b for name, b in self.named_buffers()}
        if not parts:  # Transformers looks at the weights of a model while it fills it
            return torch.empty(after - first, self.in_features, dtype=dtype, device="meta")
        return decode(self.matrix.kind, parts, self.matrix.facts, first, after).to(dtype)


class WideWhenRead:
    """A weight in few bits that is decoded when it is asked for, `stored[...]`; stands among the
    tensors from which Transformers fills a model."""

    def __init__(self, matrix: StoredMatrix, parts: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.matrix, self.parts, self.dtype = matrix, parts, dtype
        self.shape = torch.Size(matrix.shape)

    def get_dtype(self) -> str:
        """As safetensors' own slices name it."""
        names = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
        return names.get(self.dtype, "F32")

    def get_shape(self) -> list[int]:
        """As safetensors' own slices give it."""
        return list(self.shape)

    def __getitem__(self, index: Any) -> Tensor:
        read = {role: stored[...] for role, stored in self.parts.items()}
        return whole(self.matrix, read, self.dtype)[index]


def with_wide(stored: dict[str, Any], found: FewBits, dtype: torch.dtype) -> dict[str, Any]:
    """The tensors of a checkpoint with its weights in few bits in their wide form."""
    plain = {name: t for name, t in stored.items() if name not in found.unused}
    return plain | {
        name: WideWhenRead(m, {role: stored[n] for role, n in m.parts.items()}, dtype)
        for name, m in found.matrices.items()
    }


def read(stored: dict[str, Any], matrix: StoredMatrix) -> dict[str, Tensor]:
    """The stored tensors of one matrix, read now."""
    return {role: stored[name][...] for role, name in matrix.parts.items()}
