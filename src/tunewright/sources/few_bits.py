"""Checkpoints that are quantised already: which matrices are stored in few bits, and how.

Names, dtypes and shapes of the stored tensors decide, and `quantization_config` says what they
cannot: whether GPTQ's zero points are one too small. Nothing is guessed from the name of a model.
No weight is read, only the shapes and settings that some formats keep in small tensors of their
own. Decoding is `models.stored_bits`.

    gptq     qweight (I*bits/32, O), qzeros (G, O*bits/32), scales (G, O), maybe g_idx (I): 2 to 8
             bits (Frantar et al. 2022, arXiv 2210.17323; AutoGPTQ's and GPTQModel's files)
    awq      qweight (I, O/8), qzeros (G, O/8), scales (G, O): 4 bits, words of eight columns in the
             order 0 2 4 6 1 3 5 7 (Lin et al. 2023, arXiv 2306.00978; the `gemm` layout)
    fp8      weight in 8-bit floats, with a scale for the matrix, each row or each block
    int8     weight in int8, with scales, maybe zero points (compressed-tensors)
    packed   weight_packed, weight_scale, weight_shape, maybe weight_zero_point and weight_g_idx
             (compressed-tensors)
    bnb4     weight in bytes of two codes, absmax, quant_map (bitsandbytes nf4 and fp4)
    bnb8     weight in int8, SCB (bitsandbytes LLM.int8)
    mxfp4    *_blocks, *_scales: experts in 4-bit floats, 32 to a power of two (OCP MX; gpt-oss)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from tunewright.core.config import BaseConfig
from tunewright.core.errors import ModelError, Problem, problem
from tunewright.core.files import readable_size
from tunewright.sources import headers

WORD = 32
READ = "GPTQ, AWQ (gemm), bitsandbytes, FP8, compressed-tensors (packed integers, int8, FP8), MXFP4"
"""What is read, as it is told."""
FP8 = ("F8_E4M3", "F8_E5M2")
WIDE = ("F64", "F32", "F16", "BF16")
NO_WEIGHTS = (
    "input_scale",
    "activation_scale",
    "input_global_scale",
    "k_scale",
    "v_scale",
    "q_scale",
    "output_scale",
    "weight_format",
)
"""Last names of tensors by which servers round activations and caches: no part of a weight."""

Header = tuple[str, tuple[int, ...], int]
"""(dtype, shape, bytes) of a tensor."""


@dataclass(frozen=True)
class StoredMatrix:
    """One weight in few bits. `name` is what Transformers calls it, `shape` what it stands for,
    `parts` the names of the stored tensors by what they are, `facts` numbers for decoding."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parts: dict[str, str]
    num_bytes: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """The layer whose weight it is; empty for a tensor without a layer of its own."""
        return self.name.removesuffix(".weight") if self.name.endswith(".weight") else ""


@dataclass(frozen=True)
class FewBits:
    """What a folder holds in few bits. `method` is the word of its configuration."""

    method: str
    matrices: dict[str, StoredMatrix]
    """By the name of the weight."""
    unused: frozenset[str]
    """Stored tensors that are parts of matrices or no weights at all."""

    @property
    def kinds(self) -> str:
        """`gptq (4 bits)`, for a sentence."""
        found = {
            f"{m.kind} ({m.facts['bits']} bits)" if "bits" in m.facts else m.kind: None
            for m in self.matrices.values()
        }
        return ", ".join(found)

    @property
    def numbers(self) -> int:
        """Weights that the matrices stand for."""
        return sum(prod(m.shape) for m in self.matrices.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of a weight, its share of scales and zero points among them."""
        return 8 * sum(m.num_bytes for m in self.matrices.values()) / max(1, self.numbers)

    @property
    def without_layer(self) -> list[str]:
        """Names of weights that no layer of their own holds: experts in one tensor."""
        return [m.name for m in self.matrices.values() if not m.module or len(m.shape) != 2]


def find(folder: Path) -> FewBits | None:
    """What a folder holds in few bits; None for a checkpoint of plain weights.

    Raises ModelError (E-MODEL-91) where weights are stored in a way that is not read here, and
    ValueError for a header that cannot be believed.
    """
    folder = Path(folder)
    stated = stated_by(folder)
    tensors: dict[str, Header] = {}
    places: dict[str, tuple[Path, int, int]] = {}
    for path in headers.weight_files(folder)[0]:
        for name, (dtype, shape, start, stop) in headers.places_of(path).items():
            tensors[name] = (dtype, shape, stop - start)
            places[name] = (path, start, stop)
    if not stated and all(dtype in (*WIDE, "BOOL", "I64") for dtype, _, _ in tensors.values()):
        return None

    def content(name: str) -> bytes:
        path, start, stop = places[name]
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(min(stop - start, 1 << 16))

    return _Finder(folder, stated, tensors, content).found()


def stated_by(folder: Path) -> dict[str, Any]:
    """The settings by which a folder says that it is quantised; empty where it says nothing."""
    config = headers.config_of(folder, "config.json")
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if isinstance(place.get(key), dict) and place[key]:
                return dict(place[key])
    own = headers.config_of(folder, "quantize_config.json")
    if own:
        return {"quant_method": "gptq", **own}
    return headers.config_of(folder, "hf_quant_config.json").get("quantization") or {}


def problems(folder: Path, few: FewBits, base: BaseConfig) -> list[Problem]:
    """What speaks against holding weights as they are stored, as far as files say."""
    if base.dequantise:
        return []
    found = []
    if base.bits is not None:
        found.append(problem("E-MODEL-93", "base.bits", bits=base.bits, kind=few.kinds))
    if few.without_layer:
        found.append(no_layers(folder, few, few.without_layer))
    return found


def no_layers(folder: Path, few: FewBits, names: list[str]) -> Problem:
    """What is said of weights in few bits that no linear layer of the model holds."""
    about = {"name": names[0], "count": len(names), "size": readable_size(2 * few.numbers)}
    return problem("E-MODEL-94", str(folder), kind=few.kinds, **about)


class _Finder:
    """Goes through the tensors of a folder once."""

    def __init__(
        self,
        folder: Path,
        stated: dict[str, Any],
        tensors: dict[str, Header],
        content: Callable[[str], bytes],
    ) -> None:
        self.folder, self.stated, self.tensors, self.content = folder, stated, tensors, content
        self.method = str(stated.get("quant_method") or stated.get("quant_algo") or "").lower()
        self.matrices: dict[str, StoredMatrix] = {}
        self.unused: set[str] = set()

    def found(self) -> FewBits | None:
        """Raises as `find` does."""
        for name, (dtype, shape, _) in self.tensors.items():
            module, _, last = name.rpartition(".")
            if last == "qweight":
                self._words(module)
            elif last == "weight_packed":
                self._compressed(module, dtype)
            elif last.endswith("_blocks") and f"{name[: -len('blocks')]}scales" in self.tensors:
                self._mxfp4(name.removesuffix("_blocks"), shape)
            elif dtype in FP8 and len(shape) >= 2:
                self._fp8(name, shape)
            elif dtype == "I8" and last == "weight":
                self._int8(module, shape)
            elif dtype == "U8" and last == "weight":
                self._bnb4(name)
        left = [
            name
            for name, (dtype, shape, _) in self.tensors.items()
            if name not in self.unused
            and name not in self.matrices
            and dtype not in (*WIDE, "BOOL", "I64")
            and len(shape) >= 2
        ]
        if left:
            raise self._refused(left[0])
        if not self.matrices:
            return None
        self.unused |= {n for n in self.tensors if n.rpartition(".")[2] in NO_WEIGHTS}
        return FewBits(self.method, self.matrices, frozenset(self.unused))

    def _refused(self, name: str) -> ModelError:
        dtype, shape, _ = self.tensors[name]
        told = f"{name}: {dtype} {list(shape)}"
        method = self.method or "?"
        return ModelError(
            problem("E-MODEL-91", str(self.folder), method=method, found=told, known=READ)
        )

    def _add(
        self, name: str, kind: str, shape: tuple[int, ...], parts: dict[str, str], **facts: Any
    ) -> None:
        there = {role: stored for role, stored in parts.items() if stored in self.tensors}
        self.unused |= set(there.values()) - {name}
        size = sum(self.tensors[stored][2] for stored in there.values())
        self.matrices[name] = StoredMatrix(name, kind, shape, there, size, facts)

    def _words(self, module: str) -> None:
        """GPTQ packs inputs into words, AWQ outputs: the shapes say which."""
        roles = ("qweight", "qzeros", "scales", "g_idx")
        parts = {role: f"{module}.{role}" for role in roles}
        if not {parts["qzeros"], parts["scales"]} <= self.tensors.keys():
            raise self._refused(parts["qweight"])
        rows, columns = self.tensors[parts["qweight"]][1]
        outputs = self.tensors[parts["scales"]][1][1]
        bits = WORD * self.tensors[parts["qzeros"]][1][1] // outputs
        weight = f"{module}.weight"
        form = str(self.stated.get("checkpoint_format") or "gptq").lower()
        version = str(self.stated.get("version") or "gemm").lower()
        if columns == outputs and form in ("gptq", "gptq_v2") and self._is_gptq():
            size = (outputs, rows * WORD // bits)
            self._add(weight, "gptq", size, parts, bits=bits, offset=int(form == "gptq"))
        elif columns * WORD == outputs * bits and bits == 4 and version == "gemm":
            self._add(weight, "awq", (outputs, rows), parts, bits=bits)
        else:
            raise self._refused(parts["qweight"])

    def _is_gptq(self) -> bool:
        """AutoRound writes GPTQ's layout under a word of its own."""
        if self.method == "auto-round":
            return str(self.stated.get("packing_format")) == "auto_round:auto_gptq"
        return self.method == "gptq"

    def _compressed(self, module: str, dtype: str) -> None:
        roles = ("packed", "scale", "zero_point", "g_idx", "shape")
        parts = {role: f"{module}.weight_{role}" for role in roles}
        if dtype != "I32" or not {parts["scale"], parts["shape"]} <= self.tensors.keys():
            raise self._refused(parts["packed"])
        stored = self.content(parts["shape"])
        code = "q" if self.tensors[parts["shape"]][0] == "I64" else "i"
        outputs, inputs = struct.unpack(f"<2{code}", stored)
        bits = self.tensors[parts["packed"]][1][1] * WORD // inputs
        self._add(f"{module}.weight", "packed", (outputs, inputs), parts, bits=bits)

    def _mxfp4(self, name: str, shape: tuple[int, ...]) -> None:
        parts = {"blocks": f"{name}_blocks", "scales": f"{name}_scales"}
        if len(shape) != 4 or self.tensors[parts["blocks"]][0] != "U8":
            raise self._refused(parts["blocks"])
        experts, outputs, blocks, half = shape
        # Transformers lays the experts of gpt-oss the other way round.
        self._add(name, "mxfp4", (experts, blocks * half * 2, outputs), parts)

    def _fp8(self, name: str, shape: tuple[int, ...]) -> None:
        module, _, last = name.rpartition(".")
        names = [f"{name}_scale_inv", f"{name}_scale", f"{module}.{last}.scale"]
        if last == "weight":
            names.append(f"{module}.scale")
        scale = next((n for n in names if n in self.tensors), "")
        grid = self.tensors[scale][1] if scale else ()
        facts = {}
        if len(grid) >= 2 and prod(grid) > 1:
            facts["block"] = self._block(name, shape[-2:], grid[-2:])
        self._add(name, "fp8", shape, {"weight": name, "scale": scale}, **facts)

    def _block(self, name: str, shape: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, ...]:
        """Rows and columns that share a scale: as stated where that gives as many scales as there
        are, else what divides the weight evenly."""
        stated = self.stated.get("weight_block_size") or ()
        if len(stated) == 2 and grid == tuple(
            -(-size // int(block)) for size, block in zip(shape, stated, strict=True)
        ):
            return tuple(int(block) for block in stated)
        if any(size % count for size, count in zip(shape, grid, strict=True)):
            raise self._refused(name)
        return tuple(size // count for size, count in zip(shape, grid, strict=True))

    def _int8(self, module: str, shape: tuple[int, ...]) -> None:
        name = f"{module}.weight"
        if f"{module}.SCB" in self.tensors:
            self._add(name, "bnb8", shape, {"weight": name, "scale": f"{module}.SCB"})
            return
        if f"{module}.weight_scale" not in self.tensors:
            raise self._refused(name)
        roles = {"scale": f"{module}.weight_scale", "zero_point": f"{module}.weight_zero_point"}
        self._add(name, "int8", shape, {"weight": name, **roles})

    def _bnb4(self, name: str) -> None:
        state = next(
            (n for n in self.tensors if n.startswith(f"{name}.quant_state.bitsandbytes__")), ""
        )
        if not state:
            raise self._refused(name)
        stated = json.loads(self.content(state))
        roles = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        parts = {"weight": name, **{role: f"{name}.{role}" for role in roles}}
        facts = {
            "inputs": int(stated["shape"][1]),
            "block": int(stated["blocksize"]),
            "nested_block": int(stated.get("nested_blocksize") or 0),
            "nested_offset": float(stated.get("nested_offset") or 0.0),
        }
        self._add(name, "bnb4", tuple(stated["shape"]), parts, **facts)
        self.unused.add(state)
