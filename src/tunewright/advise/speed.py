"""Seconds of a run: floating-point operations of its passes, divided by what this machine's matrix
products really reach.

Symbols as in `docs/fit.md`: N_b numbers of the blocks, N_h of the head, n_l of the adapter, c keys
seen on average. A row of a frozen base costs 2 N_b forward and 2 N_b backward: its weights get no
gradient. Source of the arithmetic: Kaplan et al. 2020 (2 N a token), Hu et al. 2021 (frozen base).
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from typing import Any

from tunewright.core import findings
from tunewright.core.machine import available_processors, processor_flags, versions
from tunewright.core.stopwatch import Laps
from tunewright.models.shape import BYTES, ModelShape

EFFICIENCY = 0.65
"""Share of the probe's rate that a whole step reaches: norms, attention, copies and the optimiser
are not matrix products (docs/fit.md)."""
SPREAD = 1.6
"""The range that is told: other programs on the machine change the rate by more than the arithmetic
is off."""
GENERAL_ROWS, GENERAL_TOKENS = 720, 16
"""Token rows of a pass over the general questions, and tokens of the longest answer to them
(`evaluate.forgetting`), counted for SmolLM2."""
MOST_HOURS, BUSY_SECONDS = 12, 600
"""For so long a measured rate serves commands that compute nothing themselves; a rate, or a trial,
that was measured while other programs held the processors."""
TRIED_SPREAD = 1.25
"""The same where a few blocks were tried."""
STATED_SPREAD = 2.0
"""The same for a machine that is not here."""
AROUND_SECONDS = 1.2
"""Of a command before and after what its parts count: Python's start, the data, the report."""
BLOCK_OPERATIONS, NEW_SHAPES = 220, 24
"""Short operations of a block forward and backward, and products of a pass whose number of rows is
new in nearly every step (docs/plan.md has the profile)."""
UPDATE_BYTES = 40
"""Bytes that an update reads and writes for each number that trains."""
HALF_GAIN = 1.6
"""How much faster half precision is than float32, at least, where it is worth taking."""
SMALLER_PASSES = 0.02
"""What passes of half as many rows cost, as a share."""
WRITE_BYTES_PER_SECOND, SAVE_SECONDS = 3e8, 0.05
"""At which a checkpoint is written, made durable and summed up, and what each costs besides."""
PROBE_SECONDS = 0.1
READ_BYTES = 64 << 20
NEW_SIZES = 12
DECODE_EFFICIENCY = 0.4
"""Share of the reading rate that writing an answer reaches."""
ASK_SHARE, ASK_LEAST_SECONDS = 0.1, 20.0
"""Asking takes at most this share of the estimated training, or so many seconds where that is more.
"""
ANSWERED = 0.9
"""Tokens that the longest answer of a round has, as a share of what it may have."""
ASKINGS = 2
"""Times that the questions are asked: before, and of what was saved."""
START_SECONDS = 4.0
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
    """Bytes a second that are read from memory."""
    operation_seconds: float = 0.0
    """Of an operation on a few numbers."""
    compile_seconds: float = 0.0
    """That a matrix product takes longer the first time it meets a number of rows."""
    busy: bool = False
    """Other programs held the processors meanwhile."""


def load_seconds(shape: ModelShape) -> float:
    """Seconds to start and to read the weights, at the beginning and again for the proof at the
    end."""
    return START_SECONDS + 2 * shape.file_bytes / FILE_BYTES_PER_SECOND


def ask_seconds(shape: ModelShape, dtype: str, tokens: int, rates: Rates) -> float:
    """Seconds to write answers of `tokens` tokens before and after, all questions side by side:
    each token reads the weights once."""
    read = (shape.active_weights + shape.head_weights) * BYTES.get(dtype, 4)
    return ASKINGS * tokens * read / (DECODE_EFFICIENCY * rates.bytes)


def general_seconds(shape: ModelShape, dtype: str, rates: Rates) -> float:
    """Seconds of the general questions, before and after: one pass that scores, and a few tokens
    that are written."""
    passes = ASKINGS * 2.0 * GENERAL_ROWS * shape.active_weights / (EFFICIENCY * rates.flops)
    return passes + ask_seconds(shape, dtype, GENERAL_TOKENS, rates)


def write_seconds(size: float, times: int) -> float:
    """Seconds to write `size` bytes in `times` pieces."""
    return size / WRITE_BYTES_PER_SECOND + times * SAVE_SECONDS


def seconds_allowed(train_seconds: float) -> float:
    """Seconds that asking may take, before and after together, beside so many of training."""
    return max(ASK_LEAST_SECONDS, ASK_SHARE * train_seconds)


def measured_rates(shape: ModelShape, world: Any) -> Rates:
    """What this machine reaches where and how `world` computes. Takes about 0.15 s."""
    how = {"dtype": world.dtype, "device": world.device, "threads": world.threads}
    laps = Laps()
    fixed = measured_fixed(**how) if world.device == "cpu" else (0.0, 0.0)
    reached = measured_rate(shape, **how), measured_reading(world.device)
    busy = laps.lap().disturbed(world.threads or available_processors(), computes=False)
    found = Rates(*reached, *fixed, busy)
    findings.keep("rates", _key(shape, world), {"at": time.time(), "rates": asdict(found)})
    return found


def kept_rates(shape: ModelShape, world: Any) -> Rates:
    """What a command measured here at most `MOST_HOURS` ago, for the same sizes, without loading
    torch; else it is measured now."""
    kept = findings.read("rates", _key(shape, world))
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if kept is not None:
            rates, age = Rates(**kept["rates"]), time.time() - float(kept["at"])
            if 0 <= age < (BUSY_SECONDS if rates.busy else 3600 * MOST_HOURS):
                return rates
    return measured_rates(shape, world)


def _key(shape: ModelShape, world: Any) -> dict[str, Any]:
    return {
        "by": versions(),
        "processor": processor_flags(),
        "world": [world.device, world.dtype, world.threads],
        "sizes": [shape.hidden, shape.inner],
    }


def measured_rate(
    shape: ModelShape, *, dtype: str, device: str, threads: int | None = None, rows: int = 512
) -> float:
    """Operations a second of a matrix product as the model's feed-forward part makes it, in
    `dtype`, with `threads`. Takes about 0.1 s."""
    import torch

    before = torch.get_num_threads()
    if threads and device == "cpu":
        torch.set_num_threads(threads)
    try:
        limit = 4096 if device == "cpu" else 16384
        m, k, n = (
            max(16, min(rows, 1024 if device == "cpu" else 4096)),
            min(shape.hidden, limit),
            min(shape.inner, limit),
        )
        kind = getattr(torch, dtype)
        a, b = torch.randn(m, k, device=device).to(kind), torch.randn(k, n, device=device).to(kind)
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
        return 2.0 * m * k * n / sorted(spent)[len(spent) // 2]
    finally:
        torch.set_num_threads(before)


def measured_fixed(*, dtype: str, device: str, threads: int | None = None) -> tuple[float, float]:
    """(seconds of an operation on a few numbers, seconds that a product of a new size takes longer
    than one of a known size). Takes about 50 ms."""
    import torch

    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        few = torch.ones(16, 16)
        start = time.perf_counter()
        for _ in range(500):
            few.add(1.0)
        operation = (time.perf_counter() - start) / 500
        kind = getattr(torch, dtype)
        b = torch.ones(192, 320, dtype=kind)
        new: list[float] = []
        again: list[float] = []
        # Sizes that no program uses, so that none was compiled before.
        for rows in range(201, 201 + 2 * NEW_SIZES, 2):
            a = torch.ones(rows, 192, dtype=kind)
            for spent in (new, again):
                start = time.perf_counter()
                torch.mm(a, b)
                spent.append(time.perf_counter() - start)
        middle = NEW_SIZES // 2
        return operation, max(0.0, sorted(new)[middle] - sorted(again)[middle])
    finally:
        torch.set_num_threads(before)


def measured_reading(device: str) -> float:
    """Bytes a second that this machine reads from memory. Takes about 50 ms."""
    import torch

    data = torch.ones(READ_BYTES // 4, device=device)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        float(data.sum())
        best = min(best, time.perf_counter() - start)
    return READ_BYTES / best


def _synchronise(torch: Any, device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
