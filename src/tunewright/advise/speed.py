"""Seconds of a run: floating-point operations of its passes, divided by what this machine's matrix
products really reach.

Symbols as in `docs/fit.md`: N_b numbers of the blocks, N_h of the head, n_l of the adapter, c keys
seen on average. A row of a frozen base costs 2 N_b forward and 2 N_b backward: its weights get no
gradient. Source of the arithmetic: Kaplan et al. 2020 (2 N a token), Hu et al. 2021 (frozen base).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tunewright.models.shape import BYTES, ModelShape

EFFICIENCY = 0.65
"""Share of the probe's rate that a whole step reaches: norms, attention, copies and the optimiser
are not matrix products (docs/fit.md)."""
SPREAD = 1.6
"""The range that is told: other programs on the machine change the rate by more than the arithmetic
is off."""
PROBE_SECONDS = 0.1
READING_SIDE = 4096
"""Rows and columns of the matrix that is read: 32 MiB in half precision, more than caches hold."""
DECODE_EFFICIENCY = 0.5
"""Share of the reading rate that writing an answer reaches."""
ASKINGS = 2
"""Times that the questions are asked: before, and of what was saved."""
START_SECONDS = 6.0
"""Libraries, checks and tokenizer, whatever the model: mostly imports, on two cores of 2024."""
FILE_BYTES_PER_SECOND = 0.8e9
"""At which weights are read from the disk's cache and turned into another dtype."""


def run_flops(
    shape: ModelShape,
    *,
    rows: int,
    label_rows: int,
    trainable: int,
    frozen: bool,
    mean_keys: float,
    unread: float = 0.0,
) -> float:
    """Operations for `rows` token rows and `label_rows` rows through the head, forward and
    backward. The share `unread` of the rows passes by the attention and the MLP of the last block
    (`models.last_block`)."""
    linear = (4 if frozen else 6) * shape.active_weights + (6 * trainable if frozen else 0)
    attention = 3 * 4 * shape.heads * shape.head_dim * shape.layers * mean_keys
    head = (4 if frozen else 8) * shape.head_weights
    mlp = (
        sum(m.weights for role, m in shape.matrices.items() if role.startswith("mlp."))
        if shape.experts <= 1
        else 0
    )
    passed_by = unread * ((4 if frozen else 6) * mlp + attention) / max(1, shape.layers)
    return float(rows * (linear + attention - passed_by) + label_rows * head)


@dataclass(frozen=True)
class Rates:
    """What this machine was seen to reach."""

    flops: float
    """Operations a second of the model's matrix products."""
    bytes: float
    """Bytes of weights a second that a product of one row reads."""


def load_seconds(shape: ModelShape) -> float:
    """Seconds to start and to read the weights, at the beginning and again for the proof at the
    end."""
    return START_SECONDS + 2 * shape.file_bytes / FILE_BYTES_PER_SECOND


def ask_seconds(shape: ModelShape, dtype: str, tokens: int, rates: Rates) -> float:
    """Seconds to write answers of `tokens` tokens before and after, all questions side by side:
    each token reads the weights once."""
    read = (shape.active_weights + shape.head_weights) * BYTES.get(dtype, 4)
    return ASKINGS * tokens * read / (DECODE_EFFICIENCY * rates.bytes)


def measured_rates(shape: ModelShape, world: Any) -> Rates:
    """What this machine reaches where and how `world` computes. Takes about 0.2 s."""
    how: dict[str, Any] = {"dtype": world.dtype, "device": world.device, "threads": world.threads}
    return Rates(measured_rate(shape, **how), measured_reading(**how))


def measured_rate(
    shape: ModelShape, *, dtype: str, device: str, threads: int | None = None, rows: int = 512
) -> float:
    """Operations a second of a matrix product as the model's feed-forward part makes it, in
    `dtype`, with `threads`. Takes about 0.1 s."""
    limit = 4096 if device == "cpu" else 16384
    m = max(16, min(rows, 1024 if device == "cpu" else 4096))
    k, n = min(shape.hidden, limit), min(shape.inner, limit)
    return 2.0 * m * k * n / _product_seconds(m, k, n, dtype, device, threads)


def measured_reading(*, dtype: str, device: str, threads: int | None = None) -> float:
    """Bytes of weights a second that a product of one row reads. Takes about 0.1 s."""
    side = READING_SIDE if device == "cpu" else 4 * READING_SIDE
    seconds = _product_seconds(1, side, side, dtype, device, threads)
    return side * side * BYTES.get(dtype, 4) / seconds


def _product_seconds(m: int, k: int, n: int, dtype: str, device: str, threads: int | None) -> float:
    """Seconds of an (m, k) by (k, n) product, of which this machine takes so long now."""
    import torch

    before = torch.get_num_threads()
    if threads and device == "cpu":
        torch.set_num_threads(threads)
    try:
        kind = getattr(torch, dtype)
        a, b = (torch.full(sizes, 0.01, dtype=kind, device=device) for sizes in ((m, k), (k, n)))
        torch.mm(a, b)
        spent: list[float] = []
        end = time.perf_counter() + PROBE_SECONDS
        while not spent or time.perf_counter() < end:
            _synchronise(torch, device)
            start = time.perf_counter()
            torch.mm(a, b)
            _synchronise(torch, device)
            spent.append(time.perf_counter() - start)
        # The median: the fastest is what an idle machine could do, and the run will share the
        # machine as the probe does.
        return sorted(spent)[len(spent) // 2]
    finally:
        torch.set_num_threads(before)


def _synchronise(torch: Any, device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
