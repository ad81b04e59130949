"""One of two processes that go through a table of runs: the gradient of a step that both share
against that of one process. Started by `test_gradients.py`.

    python table.py FOLDER ROWS.json
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from tunewright.core import launched
from tunewright.core.runfile import parse_run
from tunewright.core.signals import StopFlag
from tunewright.core.telling import Quiet
from tunewright.engine import portions, ranks, sharding
from tunewright.engine.loop import Loop
from tunewright.engine.opening import to_train
from tunewright.engine.placement import World
from tunewright.engine.rank_watch import RankError
from tunewright.record.events import EventLog
from tunewright.run.prepare import Plan, prepare

DATA = {
    "sft": "rows.json", "dpo": "pairs.json", "reward": "pairs.json", "kto": "judged.json", "orpo": "pairs.json",
    "grpo": "prompts.json", "ppo": "prompts.json", "distill": "rows.json", "gkd": "rows.json", "rloo": "prompts.json", "reinforce": "prompts.json",
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "dpo": {}, "reward": {}, "kto": {},
    "grpo": {"reward": {"kind": "length", "min": 2, "max": 4, "slope": 3}, "generations": 3, "max_new_tokens": 6, "beta": 0.05},
    "ppo": {"reward": {"kind": "length", "min": 2, "max": 4, "slope": 3}, "max_new_tokens": 6},
    "rloo": {"reward": {"kind": "length", "min": 2, "max": 4, "slope": 3}, "generations": 3, "max_new_tokens": 6},
    "reinforce": {"reward": {"kind": "length", "min": 2, "max": 4, "slope": 3}, "max_new_tokens": 6},
    "distill": {"teacher": "TEACHER"}, "gkd": {"teacher": "TEACHER", "on_policy": 1.0, "max_new_tokens": 6},
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "targets": ["linear"]}, "full": {}, "freeze": {"blocks": 1}, "dora": {"rank": 2},
    "prompt_tuning": {"num_tokens": 3}, "adapter": {}, "adalora": {"rank": 2},
}  # fmt: skip


def keys(folder: Path, objective: str, method: str) -> dict[str, Any]:
    given = {
        "model": str(folder / "model"),
        "data.train": str(folder / DATA[objective]),
        "data.held_out": 0,
        "probes": 0,
        "forgetting": "off",
        "out": str(folder / "never"),
        "engine.dtype": "float32",
        "engine.threads": 1,
        "engine.clip": None,
        "engine.rows_per_pass": 90,
        "method.kind": method,
        "objective.kind": objective,
    }
    given |= {f"method.{name}": value for name, value in METHODS.get(method, {}).items()}
    given |= {f"objective.{name}": value for name, value in MORE.get(objective, {}).items()}
    return {k: str(folder / "teacher") if v == "TEACHER" else v for k, v in given.items()}


# The steps of this table are so small that one rank would take them all.
portions.LOST, portions.PASS_ROWS = 0.0, 0


def gradients(plan: Plan, parallel: str, count: int, run: Path) -> dict[str, torch.Tensor]:
    """Of the first update of a step over the first `count` samples; everything that trains gets
    noise first, so that none is zero. `objective` is made anew for each."""
    team = ranks.current()
    world = World("cpu", "float32", 1, 90, "none", team.world, parallel)
    opened = to_train(
        plan.config, plan.source.folder, plan.base_path, world, plan.objective,
        plan.data.train, [], plan.renderer, Quiet(),
    )  # fmt: skip
    stepper = opened.stepper
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, p in sorted(stepper.trained()):
            p.add_(sharding.like(p, torch.randn(p.shape, generator=noise) * 0.05))
    if hasattr(stepper, "__post_init__"):
        stepper.__post_init__()
    loop = Loop(
        stepper, opened.schedule, plan.data.train, [], plan.config.engine, run,
        EventLog(Path("/dev/null")), Quiet(), StopFlag(), "cpu",
    )  # fmt: skip
    run.mkdir(parents=True, exist_ok=True)
    loop.prepare_reference(lambda: {"start": "noise"})
    found: dict[str, torch.Tensor] = {}

    def note() -> None:
        if not found:
            for name, p in stepper.trained():
                if p.grad is not None:
                    found[name] = sharding.whole(p.grad).clone()

    stepper.optimizer.step = note  # type: ignore[method-assign]
    report = stepper.step(list(plan.data.train[:count]), 1, 1e-4)
    if parallel != "none" and count > 1:
        assert report.imbalance is not None and report.imbalance < team.world, "one rank did it all"
    found["loss"] = torch.tensor([report.loss])
    return found


def gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a tensor. A loss may be a sum of terms around 1 that
    nearly cancel (PPO's advantages), so it is taken relative to 1."""
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())[:3]
    least = {"loss": 1.0}
    gaps = {
        n: float((one[n] - other[n]).norm()) / max(float(one[n].norm()), least.get(n, 1e-12))
        for n in one
    }
    worst = max(gaps, key=lambda n: gaps[n])
    if gaps[worst] > 1e-5:
        print("worst", worst, gaps[worst], float(one[worst].norm()), flush=True)
    return gaps[worst]


def rows_of(folder: Path, number: int, row: list[Any]) -> list[list[Any]]:
    """What a row of the table found: [objective, method, parallel, samples, gap]."""
    objective, method, parallels, counts = row
    team, found = ranks.current(), []
    plan = prepare(parse_run(keys(folder, objective, method), {}), Quiet(), out_matters=False)
    for count in counts:
        run = folder / "runs" / f"{objective}-{method}-{count}"
        with ranks.alone():
            one = gradients(plan, "none", count, run / f"alone-{team.rank}")
        for parallel in parallels:
            try:
                many = gradients(plan, parallel, count, run / parallel)
            finally:
                team.sharded = False
            found.append([objective, method, parallel, count, gap(one, many)])
    return found


def main(folder: Path, table: Path) -> None:
    place = launched.here()
    assert place is not None
    torch.set_num_threads(1)
    found: list[list[Any]] = []
    with ranks.joined(place, "cpu", 60.0) as team:
        for number, row in enumerate(json.loads(table.read_text())):
            try:
                found += rows_of(folder, number, row)
            except (RankError, KeyboardInterrupt):
                raise
            except Exception as e:  # both fail alike; the table goes on
                found.append([*row, f"{type(e).__name__}: {e}"[:300]])
            team.wait()
    if place.rank == 0:
        (folder / f"{table.stem}.found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    # Where two processes wait for each other, both say where and end.
    faulthandler.dump_traceback_later(float(sys.argv[3]), exit=True)
    with contextlib.suppress(BrokenPipeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(Path(sys.argv[1]), Path(sys.argv[2]))
