"""What a step cost: memory and versions."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version


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


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers."""
    found = {"python": sys.version.split()[0]}
    for name in ("tunewright", "torch", "transformers", "peft", "tokenizers", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "?"
    return found
