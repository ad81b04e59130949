"""Read what a GGUF file says about itself, believing nothing that the file's own size does not
back.

Counts, lengths, dimensions and offsets of hostile files have crashed and leaked memory in native
readers (CVE-2026-7482, CVE-2025-53630), so the whole header is walked here, in Python, before any
library sees the file. Nothing is allocated by what a number claims. Source: the GGUF specification,
version 3.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, first_line, problem

MAX_ARRAY = 4_000_000
MAX_STRING_BYTES = 16 << 20
SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
STRING, ARRAY = 8, 9
BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 40),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}
"""ggml type -> (values in a block, bytes of a block)."""


@dataclass
class Header:
    """What a GGUF file says about itself, every size checked against the file. `tensors`: name ->
    (dimensions, innermost first, ggml type)."""

    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """llama, qwen2, gemma3 ... as llama.cpp names them."""
        return str(self.metadata.get("general.architecture", ""))

    def number(self, key: str) -> int:
        """An integer of the architecture's own section; the smallest of a list; 0 when absent."""
        value = self.metadata.get(f"{self.architecture}.{key}", 0)
        value = min(value, default=0) if isinstance(value, list) else value
        value = max(value, default=0) if isinstance(value, list) else value
        return value if isinstance(value, int) and value > 0 else 0

    @property
    def num_values(self) -> int:
        """Weights in the file, tables of rotary factors left out."""
        return sum(
            prod(dims) for name, (dims, _) in self.tensors.items() if not name.startswith("rope_")
        )


class _Reader:
    """Reads forward through the mapped file and raises ValueError at the first claim that does not
    fit."""

    def __init__(self, data: mmap.mmap):
        self.data, self.size, self.position = data, len(data), 0

    def take(self, form: str) -> Any:
        width = struct.calcsize(form)
        self._need(width, 1, "a number")
        (value,) = struct.unpack_from(form, self.data, self.position)
        self.position += width
        return value

    def string(self) -> str:
        length = self.take("<Q")
        if length > MAX_STRING_BYTES:
            raise ValueError(f"a text of {length} bytes")
        self._need(length, 1, "a text")
        raw = self.data[self.position : self.position + length]
        self.position += length
        return raw.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.take(SCALARS[kind])
        if kind == STRING:
            return self.string()
        inner, count = (self.take("<I"), self.take("<Q")) if kind == ARRAY else (kind, 0)
        if count > MAX_ARRAY or inner not in (*SCALARS, STRING):
            raise ValueError(f"a list of {count} values of type {inner}")
        self._need(8 if inner == STRING else struct.calcsize(SCALARS[inner]), count, "a list")
        if inner == STRING:
            return [self.string() for _ in range(count)]
        form = f"<{count}{SCALARS[inner][1]}"
        values = list(struct.unpack_from(form, self.data, self.position))
        self.position += struct.calcsize(form)
        return values

    def _need(self, width: int, count: int, what: str) -> None:
        if width * count > self.size - self.position:
            raise ValueError(
                f"{what} of {width * count} bytes at byte {self.position} of {self.size}"
            )


def read_header(path: Path) -> Header:
    """Walk the header of a GGUF file. Raises ModelError when any count, length, dimension or offset
    does not fit the file."""
    try:
        with (
            open(path, "rb") as handle,
            mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            header = _walk(_Reader(data))
        _check_claims(header)
    except (ValueError, OSError, struct.error, OverflowError) as e:
        raise ModelError(
            problem("E-MODEL-15", str(path), file=path.name, cause=first_line(e))
        ) from e
    return header


def _walk(reader: _Reader) -> Header:
    if reader.data[:4] != b"GGUF":
        raise ValueError("no GGUF signature")
    reader.position = 4
    version, num_tensors, num_keys = reader.take("<I"), reader.take("<Q"), reader.take("<Q")
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    # A tensor entry takes at least 24 bytes, a key at least 13: a count that cannot fit is refused
    # before the loop.
    reader._need(24, num_tensors, "a table")
    reader._need(13, num_keys, "a table")
    header = Header()
    for _ in range(num_keys):
        key = reader.string()
        if key in header.metadata:
            raise ValueError(f"{key[:80]!r} stands twice")
        header.metadata[key] = reader.value(reader.take("<I"))
    places = []
    for _ in range(num_tensors):
        name, rank = reader.string(), reader.take("<I")
        if name in header.tensors or not 1 <= rank <= 4:
            raise ValueError(f"tensor {name[:80]!r} stands twice or has {rank} dimensions")
        dims = tuple(reader.take("<Q") for _ in range(rank))
        kind, offset = reader.take("<I"), reader.take("<Q")
        if kind not in BLOCKS or not all(dims) or dims[0] % BLOCKS[kind][0]:
            raise ValueError(f"tensor {name[:80]!r} has type {kind} and dimensions {dims}")
        header.tensors[name] = dims, kind
        places.append((offset, prod(dims) // BLOCKS[kind][0] * BLOCKS[kind][1], name))
    alignment = header.metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 65536:
        raise ValueError(f"alignment {alignment}")
    start = -(-reader.position // alignment) * alignment
    for offset, num_bytes, name in places:
        if start + offset + num_bytes > reader.size:
            raise ValueError(
                f"tensor {name[:80]!r} ends at byte {start + offset + num_bytes} of {reader.size}"
            )
    return header


def _check_claims(header: Header) -> None:
    """The sizes in the metadata decide how much memory a model takes, so they must be backed by
    weights that are in the file."""
    embedding = header.tensors.get("token_embd.weight", ((0, 0), 0))[0]
    width, blocks = header.number("embedding_length"), header.number("block_count")
    if not header.architecture or not width or len(embedding) != 2 or embedding[0] != width:
        raise ValueError(f"embedding of {embedding} for a width of {width}")
    if not 1 <= blocks <= len(header.tensors):
        raise ValueError(f"{blocks} blocks, {len(header.tensors)} tensors")
    heads = header.number("attention.head_count")
    head_width = header.number("attention.key_length") or (width // heads if heads else 0)
    hybrid = any(
        part in key for key in header.metadata for part in ("kv_lora_rank", ".ssm.", ".shortconv.")
    )
    inner = header.number("feed_forward_length")
    experts = header.number("expert_count") * header.number("expert_feed_forward_length")
    dense = header.number("leading_dense_block_count") if experts else blocks
    # Every model has at least these: an embedding, query and output, two matrices of the
    # feed-forward part.
    least = header.number("vocab_size") * width + 2 * width * heads * head_width * (
        1 if hybrid else blocks
    )
    least += 2 * width * (inner * dense + experts * (blocks - dense))
    if least > 1.2 * header.num_values:
        raise ValueError(f"metadata describes {least} weights, the file holds {header.num_values}")
