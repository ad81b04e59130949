"""Peak host memory of opening a base in few bits, against the files it is read from.

`python benchmarks/quantised_load.py [FOLDER]` writes a random checkpoint in the shape of Qwen2-1.5B
(bfloat16, five files, 3.1 GB) into FOLDER (default: a temporary one), opens it with `base.bits: 4`
in a process of its own and prints by how much that process grew at most. The files are deleted
afterwards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPE = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 1536,
    "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
FILES = 5
CHILD = """
import json, sys, torch
from pathlib import Path
import transformers, peft
from tunewright.core.config import BaseConfig
from tunewright.models import load
from tunewright.models.quantised import QuantLinear

def status(name):
    text = Path("/proc/self/status").read_text()
    return int(text.split(name + ":")[1].split()[0]) * 1024

folder = Path(sys.argv[1])
load.load_config(folder)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model = load.load_model(folder, dtype="bfloat16", base=BaseConfig(bits=4))
seen = set()
held = 0
for t in (*model.parameters(), *model.buffers()):
    if t.data_ptr() not in seen:
        seen.add(t.data_ptr())
        held += t.numel() * t.element_size()
print(json.dumps({"before": before, "peak": status("VmHWM") - before,
                  "after": status("VmRSS") - before, "held": held,
                  "layers": sum(isinstance(m, QuantLinear) for m in model.modules())}))
"""


def write_checkpoint(folder: Path, shape: dict[str, Any] = SHAPE, files: int = FILES) -> int:
    """A random bfloat16 checkpoint of `shape` in `files` files; the bytes of the largest. Never
    holds more than one file."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape))
    config = AutoConfig.for_model(**shape)
    with torch.device("meta"):
        planned = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    names = [n for n in planned.state_dict() if n != "lm_head.weight"]
    sizes = {n: planned.state_dict()[n].shape for n in names}
    most = sum(s.numel() for s in sizes.values()) / files
    parts: list[list[str]] = [[]]
    held = 0
    for name in names:
        if held > most and len(parts) < files:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += sizes[name].numel()
    index, largest = {}, 0
    page = torch.randn((1 << 16) + 1, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    page = page.to(torch.bfloat16)
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        # One page of random numbers, repeated: drawing all of them would take minutes.
        tensors = {
            n: page.repeat(-(-sizes[n].numel() // len(page)))[: sizes[n].numel()].view(sizes[n])
            for n in part
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        largest = max(largest, (folder / file).stat().st_size)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    return largest


def measure(folder: Path) -> dict[str, int]:
    """What a process of its own saw when it opened the folder in 4 bits, in bytes."""
    out = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, check=False
    )
    if out.returncode:
        raise SystemExit(out.stderr)
    found: dict[str, int] = json.loads(out.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Write, measure, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    given = parser.parse_args().folder
    with tempfile.TemporaryDirectory(dir=given) as place:
        shard = write_checkpoint(Path(place))
        found = measure(Path(place))
    limit = 1.2 * found["held"] + shard
    gb = 1e9
    print(
        f"held {found['held'] / gb:.2f} GB · peak {found['peak'] / gb:.2f} GB above the start · "
        f"limit {limit / gb:.2f} GB (1.2 x held + one file of {shard / gb:.2f} GB)"
    )


if __name__ == "__main__":
    main()
