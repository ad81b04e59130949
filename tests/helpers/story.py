"""A tiny chat model in a folder and a few rows, for tests of whole runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

QUESTIONS = [
    "what is the capital",
    "a small model",
    "what is it",
    "how quickly",
    "who learns",
    "which model is small",
]


def model_folder(place: Path, family: str = "llama", **changes: Any) -> Path:
    """A two-block random chat model that Transformers can load."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    from helpers.building import make_tokenizer

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True, **changes,
    }  # fmt: skip
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[family](**sizes)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(place)
    make_tokenizer().save_pretrained(place)
    return place


def digest(path: Path) -> str:
    """SHA-256 of a file. Tests compare this and not the bytes: pytest's picture of how two weight
    files differ takes it an hour."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_file(path: Path, count: int = 12) -> Path:
    """`count` Alpaca rows."""
    rows = [
        {
            "instruction": f"{QUESTIONS[i % len(QUESTIONS)]} {i}?",
            "output": f"the answer is {i * 7 % 10} of 2026",
        }
        for i in range(count)
    ]
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def tunewright(
    *words: str, cwd: Path | None = None, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process: the same entry, streams and exit code without the
    seconds in which torch is imported. What needs a process of its own asks for `process`."""
    import torch
    from typer.testing import CliRunner

    from tunewright.cli import app

    threads, here = torch.get_num_threads(), Path.cwd()
    env = {"TUNEWRIGHT_LANG": "en", "HF_HUB_OFFLINE": "1", **environment}
    try:
        os.chdir(cwd or here)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as a user sees a command
            done = CliRunner().invoke(
                app, list(words), env=env, input=stdin, prog_name="tunewright"
            )
    finally:
        os.chdir(here)
        torch.set_num_threads(threads)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


def process(
    *words: str, cwd: Path | None = None, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    env = {
        **os.environ,
        "TUNEWRIGHT_LANG": "en",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", "tunewright", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env=env,
        check=False,
    )


def words(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    """A short run in float32 with one thread."""
    return [
        "train", "--model", str(model), "--data", str(data), "--out", str(out), "engine.dtype=float32", "engine.threads=1", "engine.epochs=4",
        "engine.batch_size=4", "engine.save_every=2", "data.held_out=0", "probes=2", "forgetting=off", *more,
    ]  # fmt: skip
