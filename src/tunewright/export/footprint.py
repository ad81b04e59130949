"""What a model folder takes in memory and how fast it answers, opened by plain Transformers in a
process of its own.

    python -m tunewright.export.footprint FOLDER

The difference of the resident set before and after is what the model takes; libraries are loaded
before. Answers of one request, greedy, with as many threads as the environment allows.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tunewright.core.files import readable_size

NEW_TOKENS = 32
ASKED = list(range(5, 69))
"""Token ids of a question; what it says does not matter."""
SECONDS = 300


def of(folder: Path) -> dict[str, Any] | None:
    """`loaded_bytes`, `answering_bytes` (after the first answer: some formats are unpacked then),
    `tokens_per_second`; None where it cannot be measured."""
    argv = [sys.executable, "-m", "tunewright.export.footprint", str(folder.absolute())]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
        found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
        return found
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def shown(facts: dict[str, Any]) -> dict[str, Any]:
    """The figures for a sentence."""
    return {
        "loaded": readable_size(facts["loaded_bytes"]),
        "answering": readable_size(facts["answering_bytes"]),
        "speed": facts["tokens_per_second"],
    }


def _measure(folder: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from tunewright.core.machine import resident_bytes, return_freed_memory
    from tunewright.sources.remote_code import place_of

    with contextlib.suppress(ImportError):
        import bitsandbytes  # noqa: F401  # its memory is not the model's
    place = place_of(folder)
    torch.zeros(256, 256) @ torch.zeros(256, 256)
    before = resident_bytes()
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(place.folder), dtype="auto", local_files_only=True, trust_remote_code=place.model
    ).eval()
    return_freed_memory()
    loaded = resident_bytes() - before
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[i % rows for i in ASKED]])
    with torch.inference_mode():
        model.generate(ids, max_new_tokens=2, do_sample=False, eos_token_id=None)
        started = time.perf_counter()
        made = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
        seconds = time.perf_counter() - started
    return_freed_memory()
    return {
        "loaded_bytes": loaded,
        "answering_bytes": resident_bytes() - before,
        "tokens_per_second": round((made.shape[1] - ids.shape[1]) / seconds, 1),
    }


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]))))
