"""What `tunewright plan` says before a run, beside what the run then took: memory and time on a grid
of model shapes, methods, objectives, dtypes and batch sizes.

Every cell is two commands from outside, one after the other: `tunewright plan RUN.yaml --json` and
`tunewright train RUN.yaml`. Models have random weights in the sizes given below and SmolLM2's
tokenizer; the last rows are SmolLM2-135M itself. Rows are made up from a seed. What `plan` learns
from finished runs is kept out: every cell has an empty cache, unless `--learn` keeps one for all.

Each cell is one JSON line in the results file; cells that are there already are not run again, so
the grid can be taken in pieces (`--only 3-8`). `--table` prints the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import child, environment, tunewright

MARK, END_MARK = "<!-- plan_grid.py -->", "<!-- end of plan_grid.py -->"
MEMORY_BOUND, TIME_BOUND, SHARE = 0.15, 0.25, 0.9
SIZES: dict[str, dict[str, Any]] = {
    # name: model type and sizes; the vocabulary is the tokenizer's
    "llama-17M": {
        "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 704,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "llama-48M": {
        "model_type": "llama", "hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408,
        "num_attention_heads": 8, "num_key_value_heads": 4,
    },
    "qwen2-94M": {
        "model_type": "qwen2", "hidden_size": 640, "num_hidden_layers": 12, "intermediate_size": 2560,
        "num_attention_heads": 10, "num_key_value_heads": 2,
    },
    "gpt2-50M": {"model_type": "gpt2", "n_embd": 512, "n_layer": 8, "n_head": 8, "n_positions": 1024},
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    size: str
    method: str
    objective: str
    dtype: str
    batch: int
    steps: int
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is, in one line."""
        words = [self.size, self.method, self.objective, self.dtype, f"batch {self.batch}"]
        return " · ".join([*words, *(f"{k}={v}" for k, v in self.more.items())])


CELLS = [
    Cell("llama-17M", "lora", "sft", "float32", 4, 20),
    Cell("llama-17M", "full", "sft", "bfloat16", 16, 10),
    Cell("llama-17M", "full", "pretrain", "float32", 8, 8),
    Cell("llama-17M", "dora", "dpo", "bfloat16", 4, 12),
    Cell("llama-17M", "lora", "grpo", "bfloat16", 4, 5),
    Cell("llama-48M", "lora", "sft", "bfloat16", 16, 12),
    Cell("llama-48M", "full", "sft", "float32", 4, 8),
    Cell("llama-48M", "lora", "dpo", "float32", 4, 8),
    Cell("llama-48M", "freeze", "sft", "bfloat16", 8, 16),
    Cell("llama-48M", "lora", "orpo", "bfloat16", 8, 10),
    Cell("llama-48M", "houlsby", "sft", "bfloat16", 32, 6),
    Cell("llama-48M", "norms", "pretrain", "float32", 8, 6),
    Cell("qwen2-94M", "lora", "reward", "bfloat16", 4, 12),
    Cell("qwen2-94M", "ia3", "sft", "float32", 8, 8),
    Cell("qwen2-94M", "full", "pretrain", "bfloat16", 8, 6),
    Cell("qwen2-94M", "bitfit", "sft", "bfloat16", 16, 10),
    Cell("qwen2-94M", "lora", "simpo", "float32", 2, 8),
    Cell("gpt2-50M", "bitfit", "sft", "float32", 8, 10),
    Cell("gpt2-50M", "lora", "kto", "bfloat16", 8, 10),
    Cell("gpt2-50M", "full", "sft", "bfloat16", 4, 10),
    Cell("gpt2-50M", "prompt_tuning", "sft", "bfloat16", 8, 12),
    Cell("smollm2-135M", "lora", "sft", "bfloat16", 4, 10),
    Cell("smollm2-135M", "lora", "sft", "float32", 2, 6),
    Cell("smollm2-135M", "lora", "dpo", "bfloat16", 2, 6),
    Cell("smollm2-135M", "full", "sft", "bfloat16", 4, 6),
    Cell("smollm2-135M", "freeze", "sft", "float32", 8, 8),
    Cell("smollm2-135M", "p_tuning_v2", "sft", "bfloat16", 8, 6),
    Cell("smollm2-135M", "lora", "sft", "bfloat16", 4, 6, {"base.bits": 4}),
]
COMMON = "the of and to in a is that for it as was with be by on not he his at this"
RARE = "machine river window garden number answer winter market paper signal engine"
ROWS_OF = {"dpo": "pairs", "orpo": "pairs", "simpo": "pairs", "reward": "pairs", "kto": "judged"}


def words(draw: random.Random, count: int) -> str:
    """Made-up text of `count` words."""
    common = COMMON.split()
    rare = RARE.split()
    return " ".join(draw.choice(rare if draw.random() < 0.4 else common) for _ in range(count))


def make_data(folder: Path) -> dict[str, Path]:
    """Files of rows, answers of 10 to 120 words."""
    draw = random.Random(7)

    def length() -> int:
        return min(120, 10 + int(draw.expovariate(1 / 35)))

    def row() -> dict[str, str]:
        return {"instruction": words(draw, draw.randint(5, 30)), "input": ""}

    rows = [{**row(), "output": words(draw, length())} for _ in range(400)]
    pairs = [
        {**row(), "chosen": words(draw, length()), "rejected": words(draw, length())}
        for _ in range(200)
    ]
    judged = [
        {**row(), "output": words(draw, length()), "label": draw.random() < 0.5} for _ in range(200)
    ]
    texts = [{"text": words(draw, 40 + length())} for _ in range(400)]
    found = {"rows": rows, "pairs": pairs, "judged": judged, "texts": texts}
    for name, made in found.items():
        lines = "".join(json.dumps(one) + "\n" for one in made)
        (folder / f"{name}.jsonl").write_text(lines)
    return {name: folder / f"{name}.jsonl" for name in found}


def make_model(size: str, folder: Path, tokenizer: Path) -> Path:
    """A model folder with random weights of one of `SIZES`."""
    target = folder / size
    if (target / "config.json").is_file():
        return target
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = json.loads((tokenizer / "config.json").read_text())
    ids = {k: raw[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in raw}
    sizes = {"max_position_embeddings": 2048, "tie_word_embeddings": True, **SIZES[size], **ids}
    kind = sizes.pop("model_type")
    config = AutoConfig.for_model(kind, vocab_size=raw["vocab_size"], **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, target / name)
    for extra in tokenizer.glob("*.jinja"):
        shutil.copy(extra, target / extra.name)
    return target


def given_of(cell: Cell, model: Path, data: dict[str, Path], out: Path) -> dict[str, Any]:
    """The keys of its run file."""
    kind = "texts" if cell.objective == "pretrain" else ROWS_OF.get(cell.objective, "rows")
    given: dict[str, Any] = {
        "model": str(model),
        "data.train": str(data[kind]),
        "data.held_out": 16,
        "method.kind": cell.method,
        "objective.kind": cell.objective,
        "engine.dtype": cell.dtype,
        "engine.batch_size": cell.batch,
        "engine.steps": cell.steps,
        "out": str(out),
        "probes": 4,
    }
    if cell.objective == "grpo":
        given |= {
            "objective.reward": {"kind": "regex", "name": "the", "pattern": "the"},
            "objective.generations": 4,
            "objective.max_new_tokens": 32,
        }
    return given | cell.more


def run_cell(cell: Cell, number: int, args: argparse.Namespace) -> dict[str, Any]:
    """Plan it, run it, compare."""
    work = args.work / f"cell-{number}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    data = make_data(args.work)
    model = (
        args.model if cell.size == "smollm2-135M" else make_model(cell.size, args.work, args.model)
    )
    given = given_of(cell, model, data, work / "run")
    if args.threads:
        given["engine.threads"] = args.threads
    cache = args.work / "cache" if args.learn else work / "cache"
    env = environment(cache=cache)
    env.pop("OMP_NUM_THREADS", None)
    told = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    planned = child(tunewright("plan", *told, "--json"), work / "plan.log", env)
    plan = json.loads(planned.out)
    ran = child(tunewright("train", *told), work / "train.log", env)
    summary = json.loads((work / "run" / "summary.json").read_text())
    if not args.keep:
        shutil.rmtree(work / "run")
    return {
        "cell": number,
        "name": cell.name,
        "plan": plan,
        "plan_wall": round(planned.wall, 2),
        "memory": summary["peak_memory_bytes"],
        "train": summary["train_seconds"],
        "whole": round(ran.wall, 2),
        "cpu": round(ran.cpu, 2),
        "seconds": summary["seconds"],
        "threads": summary["threads"],
        "at": round(time.time()),
    }


def judged(found: dict[str, Any]) -> dict[str, float]:
    """Estimated over measured."""
    plan = found["plan"]
    return {
        "memory": plan["peak_memory_bytes"] / found["memory"],
        "time": plan["train_seconds"] / found["train"],
        "whole": plan["wall_seconds"] / found["whole"],
    }


def table(results: list[dict[str, Any]]) -> list[str]:
    """A Markdown table, and the share within the bounds."""
    lines = [
        "| model · method · objective · dtype · batch | memory, MiB: measured | planned | ratio "
        "| training, s: measured | planned | ratio | whole command, s: measured | planned | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    good = {"memory": 0, "time": 0, "whole": 0, "both": 0}
    for one in results:
        ratio, plan = judged(one), one["plan"]
        fits = {
            "memory": abs(ratio["memory"] - 1) <= MEMORY_BOUND,
            "time": abs(ratio["time"] - 1) <= TIME_BOUND,
            "whole": abs(ratio["whole"] - 1) <= TIME_BOUND,
        }
        fits["both"] = fits["memory"] and fits["time"]
        for name, fit in fits.items():
            good[name] += fit
        mark = {name: "" if fit else " !" for name, fit in fits.items()}
        lines.append(
            f"| {one['name']} | {one['memory'] / 2**20:,.0f} "
            f"| {plan['peak_memory_bytes'] / 2**20:,.0f} | {ratio['memory']:.2f}{mark['memory']} "
            f"| {one['train']:.1f} | {plan['train_seconds']:.1f} | {ratio['time']:.2f}{mark['time']} "
            f"| {one['whole']:.1f} | {plan['wall_seconds']:.1f} "
            f"| {ratio['whole']:.2f}{mark['whole']} |"
        )
    count = len(results)
    said = ", ".join(f"{name} {number} of {count}" for name, number in good.items())
    lines += ["", f"Within 15 % of the memory and 25 % of the time: {said}."]
    return lines


def write_into(page: Path, lines: list[str]) -> None:
    """Put the table between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(f"{MARK}\n")
    _, found, after = rest.partition(f"{END_MARK}\n")
    if not found:
        sys.exit(f"{page} has no place for the table: {MARK} ... {END_MARK}")
    page.write_text("\n".join([before + MARK, *lines, END_MARK, after]), encoding="utf-8")


def wanted(text: str | None) -> list[int]:
    """`3-8,12` as numbers; everything for none."""
    if not text:
        return list(range(len(CELLS)))
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return [n for n in found if n < len(CELLS)]


def main() -> None:
    """Run the cells that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2's folder")
    parser.add_argument("--work", type=Path, default=Path("runs/plan-grid"))
    parser.add_argument("--results", type=Path, help="default: WORK/results.jsonl")
    parser.add_argument("--only", help="cells, like 3-8,12")
    parser.add_argument("--seconds", type=float, help="start no further cell after this many")
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--learn", action="store_true", help="one cache for all cells")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    parser.add_argument("--write", type=Path, nargs="*", default=[], help="pages for the table")
    parser.add_argument("--keep", action="store_true", help="keep the run folders")
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.results or args.work / "results.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    results = {one["cell"]: one for one in map(json.loads, lines)}
    begin = time.monotonic()
    for number in [] if args.table else wanted(args.only):
        if number in results or (args.seconds and time.monotonic() - begin > args.seconds):
            continue
        results[number] = run_cell(CELLS[number], number, args)
        with path.open("a") as handle:
            handle.write(json.dumps(results[number]) + "\n")
        ratio = {name: round(value, 2) for name, value in judged(results[number]).items()}
        print(number, CELLS[number].name, ratio, file=sys.stderr, flush=True)
    lines = table([results[n] for n in sorted(results)])
    print("\n".join(lines))
    for page in args.write:
        write_into(page, lines)


if __name__ == "__main__":
    main()
