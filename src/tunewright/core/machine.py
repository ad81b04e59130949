"""What this machine has: processors, memory, versions; and how a process keeps the memory it freed.

The one place that asks the system. A container's limits count as the machine's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

KERNELS = 512
"""Compiled products that oneDNN keeps. A pass over a tree needs up to about 400, and the same ones
in every block; each takes a third of a megabyte, and its own 1,024 filled up with the row counts of
earlier steps: 0.3 GiB of a small model's run, and holes between tensors."""

SERVING_KERNELS = 128
"""The same while answers are written: a token of every row needs some 15, and each new number of
rows brings others. With 1,024 a server's memory grew for minutes; it answers as fast with 64."""


def processor_flags() -> str:
    """What kind of processor this is: its name and, on Linux, its instructions. Two machines of
    which it says the same compute the same."""
    with (
        contextlib.suppress(OSError),
        open("/proc/cpuinfo", encoding="utf-8", errors="replace") as handle,
    ):
        first = handle.read().partition("\n\n")[0].splitlines()
        kinds = ("model name", "flags", "Features", "CPU part")
        return "; ".join(line.partition(":")[2].strip() for line in first if line.startswith(kinds))
    return platform.processor() or platform.machine()


def available_processors() -> int:
    """Processors this process may use: affinity and the container's quota, not what the machine
    has."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as handle:
            quota, period = handle.read().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(1, count)


def processors(threads: int | str | None = None) -> int:
    """Processors for this process: as told, else those it may use, shared with the other ranks of
    this machine."""
    if isinstance(threads, int):
        return max(1, threads)
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, available_processors() // max(1, int(ranks) if ranks.isdigit() else 1))


def total_memory() -> int:
    """Bytes of memory this process may use in all: the machine's, or the container's limit."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 8 * 2**30
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as handle:
            limit = handle.read().strip()
        return min(total, int(limit)) if limit != "max" else total
    except (OSError, ValueError):
        return total


def available_bytes(device: str) -> int:
    """Memory of the device in all, not what happens to be free now."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    return total_memory()


def free_bytes(device: str) -> int:
    """Memory that is free now: of the GPU, or of this machine within its container's limit."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    with (
        contextlib.suppress(OSError, ValueError, StopIteration),
        open("/proc/meminfo", encoding="ascii") as handle,
    ):
        line = next(line for line in handle if line.startswith("MemAvailable"))
        return min(total_memory(), 1024 * int(line.split()[1]))
    return total_memory() // 2


def peak_memory_bytes(device: str) -> int:
    """Peak bytes so far: of the GPU's allocator, or the resident set of this process."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak if sys.platform == "darwin" else peak * 1024)
    except ImportError:  # Windows
        return 0


def processor_name() -> str:
    """What the processor calls itself; the machine's architecture where the system does not say."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as f:
        line = next(line for line in f if line.startswith(("model name", "Hardware", "CPU part")))
        return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def fingerprint() -> dict[str, str | int]:
    """What makes figures that were measured here hold here: processor, how many of them, memory,
    system. No name of the machine, so that a copy of a container knows what the first one found."""
    return {
        "processor": processor_name(),
        "processors": available_processors(),
        "memory_gib": round(total_memory() / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
    }


def is_busy() -> bool:
    """Whether other programs hold a good part of the processors: the load of the last minute."""
    try:
        return os.getloadavg()[0] > 0.7 * available_processors()
    except (OSError, AttributeError):
        return False


def own_processor_seconds() -> float:
    """Processor seconds of this process and of everything that it started, so far."""
    spent = os.times()
    known = spent.user + spent.system + spent.children_user + spent.children_system
    return known + sum(map(_seconds_of, _children_of("self")))


def all_processor_seconds() -> float | None:
    """Processor seconds that all programs of this machine used since it started, with what other
    guests of its host took; None where the system does not say."""
    with (
        contextlib.suppress(OSError, ValueError, IndexError),
        open("/proc/stat", encoding="ascii") as handle,
    ):
        # user, nice, system, idle, iowait, irq, softirq, steal
        ticks = [int(n) for n in handle.readline().split()[1:9]]
        used = sum(ticks) - ticks[3] - ticks[4]
        return used / os.sysconf("SC_CLK_TCK") if used else None
    return None


def _children_of(process: int | str) -> list[int]:
    """Processes that a process started and that still run."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text(encoding="ascii").split())
    return found


def _seconds_of(process: int) -> float:
    """Processor seconds of a process and of all that it started; 0 where it is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        ticks = [int(n) for n in text.rpartition(")")[2].split()[11:15]]
    except (OSError, ValueError):
        return 0.0
    below = sum(map(_seconds_of, _children_of(process)))
    return sum(ticks) / os.sysconf("SC_CLK_TCK") + below


def resident_bytes() -> int:
    """The resident set of this process now; 0 where the system does not say."""
    with (
        contextlib.suppress(OSError, ValueError, IndexError),
        open("/proc/self/statm", encoding="ascii") as handle,
    ):
        return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


class _Mallinfo(ctypes.Structure):
    """What glibc tells of its heap (`man mallinfo2`)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def live_bytes() -> int:
    """Bytes that this process holds in the C heap now: tensors, compiled products, what libraries
    keep; nothing of what was freed and stays with the process. 0 where the system does not say
    (another system than Linux with glibc 2.33)."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        ask = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        return 0
    ask.restype = _Mallinfo
    found = ask()
    return int(found.uordblks + found.hblkhd)


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed blocks up to 32 MiB instead of returning them to the system, which
    costs a page fault per 4 KiB at the next use.

    Returns whether it was done (Linux with glibc only). Worth 5 to 8 % of a step (docs/LOG.md);
    costs a few per cent of resident memory. Where the user has not said otherwise and no product
    was computed before, oneDNN is told to keep `KERNELS` compiled products, which gives more than
    that back.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
        # 32 MiB is the largest threshold that glibc accepts.
        return bool(
            libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
            and libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
            and libc.mallopt(M_TOP_PAD, 64 << 20)
        )
    except (OSError, AttributeError):
        return False


def return_large_blocks() -> None:
    """Give freed blocks of 1 MiB and more back to the system at once, the opposite of
    `keep_freed_memory`: where weights come and go block by block, what lives on between them would
    tear holes into everything that is kept."""
    if sys.platform.startswith("linux"):
        try:
            libc = ctypes.CDLL("libc.so.6")
            M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)
            libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        except (OSError, AttributeError):
            return


def keep_few_kernels() -> None:
    """Keep `SERVING_KERNELS` compiled products, so that a server's memory ends growing soon. Where
    the user has not said otherwise and no product was computed before."""
    # Two caches hold a copy each, some 0.3 MB: oneDNN's own, and PyTorch's in front of it.
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(SERVING_KERNELS))


def return_freed_memory() -> None:
    """Give what glibc kept back to the system: once, between training and the fresh load that
    proves the saved files."""
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers."""
    found = {"python": sys.version.split()[0]}
    for name in ("tunewright", "torch", "transformers", "peft", "tokenizers", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "?"
    return found
