"""One of several processes that put a model in shares, take a step and say how many bytes of
weights each holds at rest. Started by `test_at_rest.py`.

    python at_rest.py MODEL ROWS.json DTYPE SECONDS
"""

from __future__ import annotations

import faulthandler
import json
import sys
import warnings
from typing import Any

import torch

from tunewright.core import launched
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.engine import ranks, sharding
from tunewright.engine.activation_cache import blocks_of
from tunewright.engine.opening import to_train
from tunewright.engine.placement import World
from tunewright.run.prepare import prepare


def bytes_at_rest(tensors: list[torch.Tensor]) -> int:
    """Bytes of the shares that this process holds."""
    return sum(sharding.local(one).numel() * one.element_size() for one in tensors)


def measured(model: str, rows: str, dtype: str) -> dict[str, Any]:
    team = ranks.current()
    given = {
        "model": model, "data.train": rows, "data.held_out": 0, "probes": 0, "forgetting": "off",
        "out": "never", "method.kind": "full", "engine.dtype": dtype, "engine.threads": 1,
    }  # fmt: skip
    plan = prepare(parse_run(given, {}), Quiet(), out_matters=False)
    world = World("cpu", dtype, 1, 4096, "none", team.world, "fsdp")
    opened = to_train(
        plan.config, plan.source.folder, plan.base_path, world, plan.objective,
        plan.data.train, [], plan.renderer, Quiet(),
    )  # fmt: skip
    stepper = opened.stepper
    policy = stepper.policy
    parameters = list(policy.parameters())
    found = {
        "whole": sum(p.numel() * p.element_size() for p in parameters),
        "block": max(
            sum(p.numel() * p.element_size() for p in block.parameters())
            for block in blocks_of(policy.causal[0])
        ),
        "before": bytes_at_rest(parameters),
    }
    stepper.step(list(plan.data.train[:4]), 1, 1e-4)
    sharding.rest(policy)
    found["after"] = bytes_at_rest(list(policy.parameters()))
    state = [v for s in stepper.optimizer.state.values() for v in s.values() if v.dim()]
    found["moments"] = bytes_at_rest(state)
    return found


def main(model: str, rows: str, dtype: str) -> None:
    place = launched.here()
    assert place is not None
    torch.set_num_threads(1)
    with ranks.joined(place, "cpu", 60.0) as team:
        told = team.gather(measured(model, rows, dtype))
    if place.rank == 0:
        print("FOUND " + json.dumps(told), flush=True)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(float(sys.argv[4]), exit=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(*sys.argv[1:4])
