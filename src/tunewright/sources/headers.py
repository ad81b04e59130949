"""What is in a model folder: its configuration files, the list of its weight files, and their
headers. Nothing is loaded or allocated by what a file claims."""

from __future__ import annotations

import json
import re
import shlex
import struct
from math import prod
from pathlib import Path
from typing import Any, Literal

from tunewright.core.errors import Problem, first_line, problem

CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "adapter_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "quantize_config.json",
    "hf_quant_config.json",
    "tunewright_method.json",
)
OWN_METHOD = "tunewright_method.json"
"""Describes the weights of a method that PEFT does not know; they lie beside it in
`method.safetensors`."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".mdl", ".joblib")
MAX_CONFIG_BYTES = 16 << 20
MAX_HEADER_BYTES = 100 << 20
"""The limit of the safetensors format itself."""
DTYPE_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits of one element of each type a safetensors header may name."""
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")


def read_config(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The JSON object of a configuration file, and what is wrong with it. A broken file gives an
    empty object and one problem."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        return {}, [problem("E-MODEL-03", str(path), file=path.name, cause=first_line(e))]
    if not isinstance(config, dict):
        return {}, [problem("E-MODEL-03", str(path), file=path.name, cause=type(config).__name__)]
    return config, []


def config_of(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object of a file of `folder`; empty where there is none or it is broken."""
    path = Path(folder) / name
    return read_config(path)[0] if path.is_file() else {}


def weight_files(
    folder: Path, kind: Literal["model", "adapter"] = "model"
) -> tuple[list[Path], list[Problem]]:
    """The safetensors files that Transformers (or PEFT) would read from `folder`, and what is wrong
    with the list."""
    if kind == "adapter":
        own = (folder / OWN_METHOD).is_file() and not (folder / "adapter_config.json").is_file()
        single = folder / ("method.safetensors" if own else "adapter_model.safetensors")
        return ([single], []) if single.is_file() else ([], [])
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"], []
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [], []
    table, trouble = read_index(index, SHARD_NAME)
    return [folder / name for name in sorted(set(table.values()))], trouble


def read_index(index: Path, part: re.Pattern[str]) -> tuple[dict[str, str], list[Problem]]:
    """Tensor -> file of a table of parts, and what is wrong with it: no table, a name that is not
    like `part`, a file that is not there. A wrong table is empty."""

    def wrong(cause: str) -> list[Problem]:
        return [problem("E-MODEL-03", str(index), file=index.name, cause=cause)]

    content, trouble = read_config(index)
    table = content.get("weight_map")
    if trouble or not isinstance(table, dict) or not table:
        return {}, trouble or wrong("no weight_map")
    table = {str(tensor): str(name) for tensor, name in table.items()}
    names = sorted(set(table.values()))
    unsafe = [name for name in names if not part.fullmatch(name)]
    if unsafe:
        return {}, wrong(f"shard name {unsafe[0]!r}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if not missing:
        return table, []
    shown = ", ".join(missing[:3])
    counts = {"count": len(missing), "total": len(names)}
    return {}, [problem("E-MODEL-13", str(index.parent), names=shown, **counts)]


def read_safetensors_header(path: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Name -> (type, shape, bytes) of every tensor, from the header alone.

    Raises ValueError when the header is unreadable, names an unknown type, or its offsets do not
    fill the file exactly (a truncated download, or a header that lies). Reads at most the header,
    which must be smaller than the file. Source: the safetensors format.
    """
    return {
        name: (dtype, shape, end - begin)
        for name, (dtype, shape, begin, end) in places_of(path).items()
    }


def places_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Name -> (type, shape, first byte in the file, byte after the last) of every tensor. Raises as
    `read_safetensors_header` does."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"header length {length}, file size {size}")
        try:
            header = json.loads(handle.read(length))
        except (ValueError, RecursionError) as e:
            raise ValueError(f"header is not JSON ({first_line(e)})") from e
    if not isinstance(header, dict):
        raise ValueError("header is not an object")
    tensors: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, begin, end = _tensor_entry(name, entry)
        spans.append((begin, end))
        tensors[name] = (dtype, shape, 8 + length + begin, 8 + length + end)
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise ValueError(f"hole or overlap at byte {begin}")
        position = end
    if position != size - 8 - length:
        raise ValueError(
            f"header promises {position} bytes of weights, the file holds {size - 8 - length}"
        )
    return tensors


def _tensor_entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        bits = DTYPE_BITS[dtype]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"entry of {name[:80]!r} is malformed") from e
    if not whole or len(shape) > 16 or (end - begin) * 8 != prod(shape) * bits:
        raise ValueError(f"size of {name[:80]!r} does not fit its shape")
    return dtype, shape, begin, end


def command_for(folder: str, out: str | None = None) -> str:
    """The command that converts a folder, as a person would type it."""
    bare = folder.rstrip("/\\") or folder
    target = out or f"{bare}-safetensors"
    return f"tunewright export safetensors {shlex.quote(bare)} {shlex.quote(target)}"
