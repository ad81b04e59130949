"""Resolve every `auto` of the engine once, with its reason: device, threads, dtype, pass size."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tunewright.core import findings
from tunewright.core.config import EngineConfig
from tunewright.core.errors import ConfigError, problem
from tunewright.core.machine import available_processors, processor_flags, processors, versions
from tunewright.core.types import Sample
from tunewright.core.words import say
from tunewright.engine import ranks
from tunewright.engine.tree import largest_sample
from tunewright.models.limits import KEEP_BYTES

CPU_ROWS, GPU_ROWS = 1024, 4096
"""Token rows of a pass."""
MOST_CPU_ROWS = 4096
"""Rows up to which passes follow the largest sample; beyond it larger passes make no row cheaper.
"""
BFLOAT16_WORTH_IT = 1.25
"""Measured speed ratio over float32 from which bfloat16 is chosen on a CPU."""


@dataclass
class World:
    """Where and how this run computes. `reasons` maps a dotted key to a sentence; both are printed
    and written to run.yaml."""

    device: str
    dtype: str
    threads: int
    rows_per_pass: int
    recompute: str = "auto"
    """`auto` until the memory of the run was estimated."""
    processes: int = 1
    """Processes that share each step."""
    parallel: str = "none"
    """`ddp` or `fsdp` with several processes; `auto` until the memory was estimated."""
    holds_whole: bool = True
    """A process has room for the whole model, to answer questions with it."""
    keep_bytes: int = KEEP_BYTES
    """Attention probabilities are kept for the backward pass up to here."""
    offload: str = "auto"
    """As `recompute`."""
    attention: str = "auto"
    """`auto` until the model was there to be tried."""
    reasons: dict[str, str] = field(default_factory=dict)

    def torch_dtype(self) -> Any:
        import torch

        return getattr(torch, self.dtype)


def bfloat16_instructions() -> str | None:
    """The name of the processor's bfloat16 matrix instructions ("amx_bf16", "avx512_bf16" ...), or
    None where none is reported.

    Both were measured faster than float32 by far more than `BFLOAT16_WORTH_IT`, so that nothing
    needs to be timed: a clock on a busy machine gave the same run two dtypes.
    """
    import torch

    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return next((name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)), None)


def bfloat16_speedup() -> float:
    """How many times as fast a matrix product is in bfloat16 as in float32 on this processor. Takes
    about 100 ms.

    The two take turns, and the fastest of each counts: whatever else the machine does in these
    milliseconds hits both.
    """
    import torch

    best: dict[torch.dtype, float] = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    pairs = {
        dtype: (torch.randn(384, 576).to(dtype), torch.randn(576, 1536).to(dtype)) for dtype in best
    }
    for _ in range(12):
        for dtype, (a, b) in pairs.items():
            start = time.perf_counter()
            torch.mm(a, b)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]


def resolve_device(wanted: str) -> tuple[str, str]:
    """(device, reason). Raises ConfigError for a device this machine does not have."""
    if wanted == "auto" and not may_have_cuda():
        return "cpu", say("placement.cpu")
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda:0", say("placement.cuda", name=torch.cuda.get_device_name(0))
        return "cpu", say("placement.cpu")
    kind = wanted.split(":")[0]
    index = wanted.split(":")[1] if ":" in wanted else "0"
    known = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": bool(getattr(torch.backends, "mps", None)) and torch.backends.mps.is_available(),
    }
    here = [
        "cpu",
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
        *(["mps"] if known["mps"] else []),
    ]
    if (
        not known.get(kind)
        or not index.isdigit()
        or (kind == "cuda" and int(index) >= torch.cuda.device_count())
    ):
        raise ConfigError(
            problem("E-CONFIG-16", "engine.device", device=wanted, known=", ".join(here))
        )
    return (f"cuda:{index}" if kind == "cuda" else kind), say("placement.asked")


def may_have_cuda() -> bool:
    """Whether torch must be asked: a build for the CPU, and every build for macOS, knows no CUDA.
    Loading torch takes longer than all the rest of a dry run."""
    try:
        return sys.platform != "darwin" and not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return True


def start(
    engine: EngineConfig,
    data: tuple[Sequence[Sample], Mapping[str, Any]] | None = None,
    *,
    will_compute: bool = True,
) -> World:
    """Resolve device, threads, dtype and rows per pass, and set the thread count of this process;
    not that where it `will_compute` nothing.

    `data` are the samples that a run learns from and their report. A sample is never cut, so its
    largest one decides the memory of a pass: on a CPU the other passes may be as large as that one,
    which makes them fewer and each row cheaper.
    """
    reasons: dict[str, str] = {}
    team = ranks.current()
    device, reasons["engine.device"] = resolve_device(engine.device)
    if team.place is not None and device.startswith("cuda"):
        device = f"cuda:{team.place.local}"
    if engine.threads == "auto":
        threads = processors() if team.is_many else available_processors()
        reasons["engine.threads"] = say("placement.threads", count=threads)
    else:
        threads = engine.threads
    if will_compute:
        import torch

        torch.set_num_threads(threads)
    dtype: str = engine.dtype
    if dtype == "auto":
        dtype, reasons["engine.dtype"] = _choose_dtype(device)
    if engine.rows_per_pass != "auto":
        rows: int = engine.rows_per_pass
    else:
        usual = CPU_ROWS if device == "cpu" else GPU_ROWS
        largest = (
            largest_sample(*data, enough=MOST_CPU_ROWS)
            if data is not None and device == "cpu"
            else 0
        )
        rows = max(usual, largest)
        reasons["engine.rows_per_pass"] = say(
            "placement.rows_largest"
            if rows > usual
            else "placement.rows_cpu"
            if device == "cpu"
            else "placement.rows_gpu",
            rows=rows,
        )
    parallel = engine.parallel if team.is_many else "none"
    return World(
        device,
        dtype,
        threads,
        rows,
        engine.recompute,
        team.world,
        parallel,
        offload=engine.offload,
        attention=engine.attention,
        reasons=reasons,
    )


def _choose_dtype(device: str) -> tuple[str, str]:
    if device == "mps":
        return "float32", say("placement.fp32_gpu")
    if device != "cpu":
        import torch

        return (
            ("bfloat16", say("placement.bf16_gpu"))
            if torch.cuda.is_bf16_supported()
            else ("float32", say("placement.fp32_gpu"))
        )
    # Found out once for a processor and a version of torch: a clock is not asked twice.
    key = {"by": versions(), "processor": processor_flags()}
    known = findings.once("dtype", key, _judge_bfloat16)
    if known["instructions"]:
        return "bfloat16", say("placement.instructions", name=known["instructions"])
    chosen = "bfloat16" if known["speedup"] >= BFLOAT16_WORTH_IT else "float32"
    return chosen, say("placement.probe", ratio=f"{known['speedup']:.1f}")


def _judge_bfloat16() -> dict[str, Any]:
    name = bfloat16_instructions()
    return {"instructions": name, "speedup": None if name else bfloat16_speedup()}
