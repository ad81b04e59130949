"""Number types of a GGUF file: what each tensor becomes, how numbers are rounded, and how near to
the run a file of a type must be.

The plain types are written by the library `gguf`; the K types by the quantiser inside the wheel of
llama.cpp, a C function that takes numbers and gives bytes. Norms and biases stay in float32. Below
8 bit the embedding, which is the head of a tied model, keeps 8 bit, as everybody does: its rounding
costs more answers than all other matrices together. Source: ggml-quants.c, llama-quant.cpp.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from tunewright.core.errors import UsageError
from tunewright.export import llamacpp

HEAD = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Type:
    """A type. `matrix` is what most matrices become, `more` what a share of the attention's values
    and the feed-forward's outputs become, `head` the embedding and the head."""

    name: str
    file_type: str
    matrix: str
    head: str
    more: str = ""
    expected: float = 0.95
    """Share of positions with the same most likely token as the run: below, a warning."""

    @property
    def is_rounded(self) -> bool:
        """Whether blocks of numbers share a scale; llama.cpp then rounds activations, too."""
        return self.matrix not in ("F32", "F16", "BF16")

    @property
    def needs_quantiser(self) -> bool:
        """Whether only llama.cpp's own quantiser writes it."""
        return "_K" in self.matrix


TYPES: dict[str, Type] = {
    one.name: one
    for one in (
        Type("f32", "ALL_F32", "F32", "F32", expected=0.995),
        Type("f16", "MOSTLY_F16", "F16", "F16", expected=0.99),
        Type("bf16", "MOSTLY_BF16", "BF16", "BF16", expected=0.98),
        Type("q8_0", "MOSTLY_Q8_0", "Q8_0", "Q8_0"),
        Type("q6_k", "MOSTLY_Q6_K", "Q6_K", "Q6_K"),
        Type("q5_k_m", "MOSTLY_Q5_K_M", "Q5_K", "Q6_K", "Q6_K"),
        Type("q5_k_s", "MOSTLY_Q5_K_S", "Q5_K", "Q6_K"),
        Type("q5_1", "MOSTLY_Q5_1", "Q5_1", "Q8_0"),
        Type("q5_0", "MOSTLY_Q5_0", "Q5_0", "Q8_0"),
        Type("q4_k_m", "MOSTLY_Q4_K_M", "Q4_K", "Q6_K", "Q6_K"),
        Type("q4_k_s", "MOSTLY_Q4_K_S", "Q4_K", "Q6_K"),
        Type("q4_1", "MOSTLY_Q4_1", "Q4_1", "Q8_0"),
        Type("q4_0", "MOSTLY_Q4_0", "Q4_0", "Q8_0"),
    )
}
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What rows become that are no multiple of 256 numbers; of 32, F16."""
LEAST = {"exact": 0.97, "rounded": 0.85}
"""Share of positions at which the file, run afresh, must have the most likely token of the run's
weights rounded alike. Not 1: where two tokens are nearly as likely, the order of sums decides, and
llama.cpp rounds activations to 8 bit."""


def type_of(name: str) -> Type:
    """The type of a name, ready to be written. Raises UsageError."""
    found = TYPES.get(name.lower())
    if found is None:
        raise UsageError.of("E-EXPORT-21", "--type", type=name, known=", ".join(TYPES))
    if found.needs_quantiser and llamacpp.library() is None:
        plain = ", ".join(one.name for one in TYPES.values() if not one.needs_quantiser)
        raise UsageError.of("E-EXPORT-25", "--type", type=name, known=plain)
    return found


def stored_as(kind: Type, name: str, shape: tuple[int, ...], blocks: int) -> str:
    """The ggml type that the tensor `name` of a model of `blocks` blocks gets."""
    import gguf

    if len(shape) < 2 or "_norm" in name or name.startswith("rope_"):
        return "F32"
    wanted = kind.head if name in HEAD else kind.matrix
    if kind.more and _gets_more(name, blocks):
        wanted = kind.more
    while wanted not in ("F32", "F16", "BF16"):
        block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[wanted]][0]
        if shape[-1] % block == 0:
            break
        wanted = FALLBACK.get(wanted, "F16")
    return wanted


def _gets_more(name: str, blocks: int) -> bool:
    """The first and last eighth of the blocks, and every third between them."""
    if not name.endswith(("attn_v.weight", "ffn_down.weight")):
        return False
    number = int(name.split(".")[1])
    edge = blocks // 8
    return number < edge or number >= 7 * blocks // 8 or (number - edge) % 3 == 2


def rounded(values: Any, stored: str) -> Any:
    """Numbers (rows, columns) in float32 as the bytes or numbers of a ggml type."""
    import gguf

    kind = gguf.GGMLQuantizationType[stored]
    if "_K" in stored:
        return _by_llamacpp(values, kind)
    return gguf.quants.quantize(values, kind)


def number_of_bytes(shape: tuple[int, ...], stored: str) -> int:
    """Bytes of a tensor in a ggml type."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[stored]]
    count = 1
    for one in shape:
        count *= one
    return count // block * size


def read(data: Any, kind: Any) -> Any:
    """The numbers of a tensor that lies in a file, in float32."""
    import gguf
    import numpy as np

    return np.asarray(gguf.quants.dequantize(data, kind), dtype=np.float32)


def _by_llamacpp(values: Any, kind: Any) -> Any:
    """A matrix through the quantiser of the wheel."""
    import numpy as np

    path = llamacpp.library()
    assert path is not None
    quantise = ctypes.CDLL(str(path)).ggml_quantize_chunk
    quantise.restype = ctypes.c_size_t
    given, number = ctypes.c_void_p, ctypes.c_int64
    quantise.argtypes = [ctypes.c_int, given, given, number, number, number, given]
    values = np.ascontiguousarray(values, dtype=np.float32)
    rows, columns = values.shape
    out = np.empty((rows, number_of_bytes((columns,), kind.name)), dtype=np.uint8)
    done = quantise(int(kind), values.ctypes.data, out.ctypes.data, 0, rows, columns, None)
    assert done == out.nbytes
    return out
