"""Checkpoints in few bits, made from plain ones by slow code that follows the description of each
format, value by value, and shares nothing with what reads them.

Each writer returns the tensors of one matrix and the numbers they stand for, in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Made = tuple[dict[str, torch.Tensor], torch.Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns lies in the first four bits of a word, in the next, and so on."""


def words(values: list[int], bits: int) -> list[int]:
    """int32 words that hold numbers of `bits` bits one after the other, lowest bits first."""
    stream = 0
    for place, value in enumerate(values):
        assert 0 <= value < 1 << bits
        stream |= value << (place * bits)
    count = -(-len(values) * bits // 32)
    found = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(count)]
    return [w - (1 << 32) if w >= 1 << 31 else w for w in found]


def grid(weight: torch.Tensor, bits: int, size: int, group_I: np.ndarray) -> Any:
    """(codes (I, O), zero points (G, O), scales (G, O) in float16) of a weight (O, I)."""
    w_IO = weight.t().double().numpy()
    groups = int(group_I.max()) + 1
    outputs = w_IO.shape[1]
    zero_GO, scale_GO = np.zeros((groups, outputs), int), np.zeros((groups, outputs), np.float16)
    code_IO = np.zeros(w_IO.shape, int)
    top = (1 << bits) - 1
    for g in range(groups):
        rows = group_I == g
        low, high = w_IO[rows].min(0), w_IO[rows].max(0)
        scale_GO[g] = ((np.maximum(high, 0) - np.minimum(low, 0)) / top).astype(np.float16)
        wide = scale_GO[g].astype(float)
        zero_GO[g] = np.clip(np.round(-np.minimum(low, 0) / wide), 1, top)
        code_IO[rows] = np.clip(np.round(w_IO[rows] / wide) + zero_GO[g], 0, top)
    return code_IO, zero_GO, scale_GO


def gptq(
    weight: torch.Tensor,
    *,
    bits: int = 4,
    size: int = 16,
    form: str = "gptq",
    shuffled: bool = False,
) -> Made:
    """AutoGPTQ's tensors. `form` gptq: zero points less one; `shuffled`: rows in groups by their
    importance (desc_act), so that `g_idx` is not in order."""
    outputs, inputs = weight.shape
    group_I = np.arange(inputs) // size
    if shuffled:
        group_I = np.random.default_rng(0).permutation(group_I)
    code_IO, zero_GO, scale_GO = grid(weight, bits, size, group_I)
    less = 1 if form == "gptq" else 0
    stored = [words([int(z) - less for z in row], bits) for row in zero_GO]
    wide = (code_IO - zero_GO[group_I]) * scale_GO[group_I].astype(np.float32)
    columns = [words([int(c) for c in code_IO[:, o]], bits) for o in range(outputs)]
    return {
        "qweight": torch.tensor(columns, dtype=torch.int32).t().contiguous(),
        "qzeros": torch.tensor(stored, dtype=torch.int32),
        "scales": torch.from_numpy(scale_GO),
        "g_idx": torch.from_numpy(group_I.astype(np.int32)),
        "bias": torch.zeros(outputs, dtype=torch.float16),
    }, torch.from_numpy(wide.T.astype(np.float32)).contiguous()


def awq(weight: torch.Tensor, *, size: int = 16) -> Made:
    """AutoAWQ's tensors in the `gemm` layout."""
    outputs, inputs = weight.shape
    group_I = np.arange(inputs) // size
    code_IO, zero_GO, scale_GO = grid(weight, 4, size, group_I)

    def rows(table: np.ndarray) -> torch.Tensor:
        packed = [
            [
                words([int(row[8 * w + AWQ_ORDER[i]]) for i in range(8)], 4)[0]
                for w in range(outputs // 8)
            ]
            for row in table
        ]
        return torch.tensor(packed, dtype=torch.int32)

    wide = (code_IO - zero_GO[group_I]) * scale_GO[group_I].astype(np.float32)
    return {
        "qweight": rows(code_IO),
        "qzeros": rows(zero_GO),
        "scales": torch.from_numpy(scale_GO),
    }, torch.from_numpy(wide.T.astype(np.float32)).contiguous()


def fp8(
    weight: torch.Tensor,
    *,
    block: tuple[int, int] | None = (32, 32),
    name: str = "weight_scale_inv",
) -> Made:
    """Scales for blocks; `block` None: one for the matrix; (1, I): one for each row."""
    outputs, inputs = weight.shape
    high, wide = block or weight.shape
    wide = min(wide, inputs)
    scales = torch.zeros(-(-outputs // high), -(-inputs // wide))
    codes = torch.zeros(weight.shape, dtype=torch.float8_e4m3fn)
    meant = torch.zeros(weight.shape)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            rows, columns = slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide)
            part = weight[rows, columns].float()
            scales[i, j] = part.abs().max() / 448
            codes[rows, columns] = (part / scales[i, j]).to(torch.float8_e4m3fn)
            meant[rows, columns] = codes[rows, columns].float() * scales[i, j]
    stored = scales if block is not None else scales.reshape(())
    return {"weight": codes, name: stored}, meant


def int8(weight: torch.Tensor) -> Made:
    """compressed-tensors' int-quantized, a scale for each row."""
    scales = weight.float().abs().amax(1, keepdim=True) / 127
    codes = torch.round(weight.float() / scales).to(torch.int8)
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales


def bnb8(weight: torch.Tensor) -> Made:
    """LLM.int8: the largest of each row stands for 127."""
    largest = weight.float().abs().amax(1)
    codes = torch.round(weight.float() * 127 / largest[:, None]).to(torch.int8)
    parts = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, codes.float() * largest[:, None] / 127


def packed(weight: torch.Tensor, *, bits: int = 4, size: int = 16, symmetric: bool = True) -> Made:
    """compressed-tensors' pack-quantized: codes around 0, stored from 0 on."""
    outputs, inputs = weight.shape
    group_I = np.arange(inputs) // size
    groups, middle = int(group_I.max()) + 1, 1 << (bits - 1)
    w = weight.double().numpy()
    scale_OG, zero_OG = np.zeros((outputs, groups), np.float32), np.zeros((outputs, groups), int)
    for g in range(groups):
        part = w[:, group_I == g]
        if symmetric:
            scale_OG[:, g] = np.abs(part).max(1) / (middle - 0.5)
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale_OG[:, g] = (high - low) / (2 * middle - 1)
            zero_OG[:, g] = np.clip(np.round(-low / scale_OG[:, g]) - middle, -middle, middle - 1)
    code = np.round(w / scale_OG[:, group_I]) + zero_OG[:, group_I]
    code = np.clip(code, -middle, middle - 1).astype(int)
    rows = [words([int(c) + middle for c in row], bits) for row in code]
    parts = {
        "weight_packed": torch.tensor(rows, dtype=torch.int32),
        "weight_scale": torch.from_numpy(scale_OG),
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    if not symmetric:
        down = [words([int(z) + middle for z in zero_OG[:, g]], bits) for g in range(groups)]
        parts["weight_zero_point"] = torch.tensor(down, dtype=torch.int32).t().contiguous()
    wide = (code - zero_OG[:, group_I]) * scale_OG[:, group_I]
    return parts, torch.from_numpy(wide.astype(np.float32))


def bnb4(weight: torch.Tensor, *, kind: str = "nf4", nested: bool = True) -> Made:
    """Written and read by bitsandbytes itself; rows are multiples of a block of 64."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(
        weight.float(), blocksize=64, compress_statistics=nested, quant_type=kind
    )
    parts = {"weight": codes}
    parts |= {f"weight.{name}": t for name, t in state.as_dict(packed=True).items()}
    return parts, dequantize_4bit(codes, state).float()


SAID: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "gptq"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"},
    "fp8": {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"},
    "int8": {"quant_method": "compressed-tensors", "format": "int-quantized"},
    "packed": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "bnb4": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bnb8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}
WRITERS: dict[str, Callable[..., Made]] = {
    "gptq": gptq, "awq": awq, "fp8": fp8, "int8": int8, "packed": packed, "bnb4": bnb4, "bnb8": bnb8,
}  # fmt: skip


def checkpoint(plain: Path, out: Path, kind: str, /, **how: Any) -> Path:
    """A copy of a model folder whose matrices in the blocks are in few bits; beside it, `-wide`,
    the same with the numbers that these stand for. Returns the second."""
    wide = out.with_name(out.name + "-wide")
    stored = load_file(plain / "model.safetensors")
    few, meant = {}, {}
    for name, tensor in stored.items():
        module, _, last = name.rpartition(".")
        if last != "weight" or tensor.ndim != 2 or ".layers." not in name:
            few[name] = meant[name] = tensor
            continue
        parts, numbers = WRITERS[kind](tensor, **how)
        few |= {f"{module}.{role}": part.contiguous() for role, part in parts.items()}
        meant[name] = numbers
    config = json.loads((plain / "config.json").read_text("utf-8"))
    said = {**SAID[kind]}
    said |= {"checkpoint_format": how["form"]} if "form" in how else {}
    for folder, tensors, more in ((out, few, {"quantization_config": said}), (wide, meant, {})):
        folder.mkdir(parents=True)
        for file in plain.iterdir():
            if file.suffix != ".safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({**config, **more}), "utf-8")
    return wide
