"""Seconds to turn a JSONL file into token ids with their learnt spans: Tunewright's data room
against `datasets.map(batched=True, num_proc=2)`.

    python benchmarks/data_pipeline.py --data rows.jsonl --model FOLDER --peer-python
    VENV/bin/python [--repeat 3]

Both read the same file, use the same tokenizer and template and two processes, and write what they
made to disk. The peer's mapping renders each batch with `apply_chat_template` and tokenises it with
one call; it proves nothing about its rows and learns no span. Ours is measured twice: the same work
and the proof of every answer (`rows`), and everything `tunewright data check` does besides, checks
of the data included (`report`). Every measurement is a process of its own with empty caches; they
take turns, and the medians are compared. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

OURS = """
    import json, os, sys, time
    start = time.perf_counter()
    from pathlib import Path
    from tunewright.core.config import DataConfig
    from tunewright.data import inspect
    from tunewright.text.tokenizer import load_light
    from tunewright.text.chat_kind import stop_ids
    from tunewright.text.renderer import Renderer

    data, model, check = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "report"
    tokenizer, reason = load_light(model)
    assert reason is None, reason
    found = inspect(DataConfig(train=data), Renderer(tokenizer, stop_ids(tokenizer, model)), None, 0, workers=2, refuse=False, check=check)
    seconds = time.perf_counter() - start
    report = found.report
    assert not report["preparation"]["from_cache"]
    again = time.perf_counter()
    inspect(DataConfig(train=data), Renderer(tokenizer, stop_ids(tokenizer, model)), None, 0, workers=2, refuse=False, check=check)
    print(json.dumps({"seconds": seconds, "again": time.perf_counter() - again, "rows": report["rows_kept"],
                      "tokens": report["tokens_total"], "torch": "torch" in sys.modules}))
"""
PEER = """
    import json, os, sys, time
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    start = time.perf_counter()
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])

    def prepared(batch):
        columns = zip(batch["instruction"], batch["input"], batch["output"])
        turns = [[{"role": "user", "content": q + ("\\n" + i if i else "")}, {"role": "assistant", "content": a}] for q, i, a in columns]
        return {"input_ids": tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]}

    rows = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[4])
    made = rows.map(prepared, batched=True, num_proc=2, remove_columns=rows.column_names)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "rows": len(made), "tokens": sum(map(len, made["input_ids"]))}))
"""


def measured(python: str, program: str, *given: str) -> dict[str, float]:
    """One run in a process of its own, with caches that are empty and removed."""
    import os

    with tempfile.TemporaryDirectory() as folder:
        env = {
            **os.environ,
            "TUNEWRIGHT_CACHE": folder,
            "HF_HOME": folder,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [python, "-c", textwrap.dedent(program), *given, folder]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    """Take turns and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", required=True)
    options.add_argument("--model", required=True)
    options.add_argument(
        "--peer-python", required=True, help="a Python that has datasets and transformers"
    )
    options.add_argument("--repeat", type=int, default=3)
    given = options.parse_args()
    found: dict[str, list[dict[str, float]]] = {"rows": [], "report": [], "datasets.map": []}
    for number in range(given.repeat):
        for name, runs in found.items():
            if name == "datasets.map":
                runs.append(measured(given.peer_python, PEER, given.data, given.model, "-"))
            else:
                runs.append(measured(sys.executable, OURS, given.data, given.model, name))
            print(
                f"{number + 1}  {name:13} {runs[-1]['seconds']:7.2f} s  {runs[-1]['rows']:,} rows",
                file=sys.stderr,
            )
    medians = {
        name: statistics.median(run["seconds"] for run in runs) for name, runs in found.items()
    }
    result = {
        "data": Path(given.data).name, "rows": found["rows"][0]["rows"], "medians": medians,
        "faster": {name: round(medians["datasets.map"] / medians[name], 2) for name in ("rows", "report")}, "runs": found,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
