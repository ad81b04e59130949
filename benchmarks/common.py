"""What the benchmarks share: a child process with its figures, runs in turns, medians, and another
checkout of Tunewright beside this one."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"


@dataclass(frozen=True)
class Done:
    """A finished child: what it printed, seconds on the clock, processor seconds of it and of its
    own children, largest resident set in bytes."""

    out: str
    wall: float
    cpu: float
    peak_bytes: int

    @property
    def last(self) -> dict[str, Any]:
        """The last line, which is JSON."""
        found: dict[str, Any] = json.loads(self.out.strip().splitlines()[-1])
        return found

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Every line that is JSON."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


def child(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Done:
    """Run a command to its end; its standard error goes to `log`. Exits with the end of the log
    where the command fails."""
    start = time.perf_counter()
    with open(log, "w") as err:
        process = subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=err, text=True, env=env, cwd=cwd
        )
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        sys.exit(f"{list(command)[:4]} failed:\n{out[-1000:]}\n{log.read_text()[-3000:]}")
    return Done(out, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def tunewright(*words: str) -> list[str]:
    """The command line of Tunewright in this interpreter."""
    return [sys.executable, "-m", "tunewright", *words]


def environment(checkout: Path | None = None, cache: Path | None = None) -> dict[str, str]:
    """The environment in which `tunewright` is this checkout's or that of `checkout`. `cache` holds
    what the command keeps between runs; None is the person's own."""
    source = SOURCE if checkout is None else checkout.resolve() / "src"
    given = {**os.environ, "PYTHONPATH": str(source), "TUNEWRIGHT_LANG": "en"}
    return given if cache is None else {**given, "TUNEWRIGHT_CACHE": str(cache)}


def versions(before: Path | None) -> dict[str, Path | None]:
    """What is compared, by name: `now`, and `before` where another checkout is given."""
    return {"now": None} if before is None else {"now": None, "before": before}


def generator() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`answer` and `answering` of the version that is in this process."""
    try:
        from tunewright.engine.decoding.answers import answer, answering
    except ModuleNotFoundError:  # a version from before there was one generator
        from tunewright.models.generate import answer, answering
    return answer, answering


def in_turns(
    runs: int, ways: Mapping[str, Callable[[], dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Every way once, then again, `runs` times; each prints a JSON line when it is done. Every
    other turn goes backwards, so that none always comes first."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for run in range(runs):
        for name in list(ways)[:: -1 if run % 2 else 1]:
            figures = ways[name]()
            found[name].append(figures)
            say({"run": run + 1, "who": name, **figures})
    return found


def middle(figures: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of every number that all of `figures` have."""
    names = [
        name
        for name, value in figures[0].items()
        if isinstance(value, int | float) and all(name in one for one in figures)
    ]
    return {name: statistics.median(float(one[name]) for one in figures) for name in names}


def ratio(of: Sequence[Mapping[str, Any]], to: Sequence[Mapping[str, Any]], name: str) -> float:
    """The median over the turns of one figure's ratio."""
    return statistics.median(a[name] / b[name] for a, b in zip(of, to, strict=True))


def rounded(value: Any) -> Any:
    """Numbers with four digits that matter, wherever they stand in `value`."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return value


def say(line: Mapping[str, Any]) -> None:
    """Print one JSON line."""
    print(json.dumps(rounded(dict(line))), flush=True)


LORA = ("method.kind=lora", "method.rank=8", "method.targets=[attention.query,attention.value]")


def sft_words(rows: Path, limit: int) -> list[str]:
    """The supervised run that is compared: rank 8 on query and value, bfloat16, 16 samples a
    step."""
    return [
        "--data", str(rows), f"data.limit={limit}", "data.held_out=0", "engine.dtype=bfloat16", "engine.epochs=1", "engine.batch_size=16", *LORA,
    ]  # fmt: skip


def pair_words(rows: Path, objective: str = "dpo") -> list[str]:
    """The run on pairs that is compared: 8 pairs a step."""
    return [
        "--data", str(rows), "data.held_out=0", "engine.dtype=bfloat16", "engine.epochs=1", "engine.batch_size=8", *LORA,
        f"objective.kind={objective}", "engine.learning_rate=5e-5",
    ]  # fmt: skip


def train(
    words: Sequence[str], out: Path, log: Path, env: Mapping[str, str]
) -> tuple[Done, dict[str, Any], list[dict[str, Any]]]:
    """(child, summary, events) of `tunewright train` into the folder `out`."""
    done = child(tunewright("train", *words, "--out", str(out)), log, env)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    events = (out / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return done, summary, [json.loads(line) for line in events]


def trl(
    kind: str, python: str, place: Path, settings: Mapping[str, Any]
) -> tuple[Done, dict[str, Any]]:
    """(child, what it printed) of TRL's whole script (`trl_peer.py`)."""
    path = place / f"trl-{kind}.json"
    path.write_text(json.dumps({"out": str(place / "trl"), "threads": threads(), **settings}))
    done = child([python, str(HERE / "trl_peer.py"), kind, str(path)], place / "trl.log")
    return done, done.last


SFT_TRL = {"dtype": "bfloat16", "batch": 4, "accumulate": 4}
PAIRS_TRL = {"dtype": "bfloat16", "batch": 4, "accumulate": 2}
