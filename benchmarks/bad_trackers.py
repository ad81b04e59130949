"""What a tracker that misbehaves costs a run: seconds of `tunewright.train` without a tracker, and
with one that raises, that hangs for 60 s, and that fills the disk; and whether the adapters are the
same files.

The fake stands where a tracker's library would (`tests/helpers/trackers.py`). All runs are made in
one process, in turns, so that the seconds of importing torch are in none of them; the trackers'
processes start afresh each time, as they do for a person. What is compared is the whole call, from
reading the rows to the report.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import HERE, in_turns, middle, ratio, say

SECONDS = 60
"""How long the one that hangs does so."""


def main() -> None:
    """Print one JSON line a run, then medians, the least seconds (what other programs on the
    machine add stands in all but those), and the ratios to no tracker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="Alpaca rows")
    parser.add_argument("--model", required=True, help="a folder or pypi:PACKAGE")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "tests"))
    from helpers import trackers

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        sys.path.insert(0, str(trackers.fake(place / "library")))
        os.environ["FAKE_TRACKER_SECONDS"] = str(SECONDS)
        # The one that hangs goes on after its run: it is ended before the next one starts.
        os.environ["TUNEWRIGHT_TRACK_PATIENCE"] = "1"
        os.environ["TUNEWRIGHT_TRACK_BYTES"] = str(10 << 20)
        count = iter(range(10_000))
        train(args, place / "warm", None)
        found = in_turns(
            args.runs,
            {
                how or "no tracker": lambda how=how: train(  # type: ignore[misc]
                    args, place / f"run-{next(count)}", how
                )
                for how in (None, "raises", "hangs", "fills")
            },
        )
    plain = found["no tracker"]
    for what in ("seconds", "cpu"):
        say({what: {name: middle(runs)[what] for name, runs in found.items()}})
    least = {name: min(one["seconds"] for one in runs) for name, runs in found.items()}
    say({"least seconds": least})
    others = {name: runs for name, runs in found.items() if name != "no tracker"}
    say(
        {
            "of no tracker": {
                name: {
                    "seconds": ratio(runs, plain, "seconds"),
                    "cpu": ratio(runs, plain, "cpu"),
                    "least": least[name] / least["no tracker"],
                }
                for name, runs in others.items()
            },
            "same adapter": len({one["sha256"] for runs in found.values() for one in runs}) == 1,
        }
    )


def train(args: argparse.Namespace, out: Path, how: str | None) -> dict[str, Any]:
    """Seconds on the clock and of the processors of one run, the SHA-256 of its adapter, and what became of its tracker."""
    import tunewright
    from tunewright.core.telling import Quiet

    os.environ["FAKE_TRACKER"] = how or ""
    began, used = time.perf_counter(), time.process_time()
    tunewright.train(
        model=args.model,
        data={"train": str(args.rows), "held_out": 0},
        engine={"steps": args.steps, "batch_size": args.batch, "threads": args.threads},
        out=str(out),
        probes=2,
        forgetting="off",
        tell=Quiet(),
        track=["comet"] if how else [],
    )
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    weights = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    told = {"seconds": seconds, "cpu": cpu, "sha256": hashlib.sha256(weights).hexdigest()[:16]}
    return {**told, "tracker": outcome(out)} if how else told


def outcome(run: Path) -> str:
    """The code with which the tracker ended, once it has; empty where it did not fail."""
    until = time.monotonic() + 2 * SECONDS
    while time.monotonic() < until:
        found = json.loads((run / "track" / "comet.json").read_text(encoding="utf-8"))
        if found["status"] in ("done", "failed"):
            return (found["problem"] or {}).get("code", "")
        time.sleep(0.1)
    raise SystemExit(f"the tracker of {run} goes on")


if __name__ == "__main__":
    main()
