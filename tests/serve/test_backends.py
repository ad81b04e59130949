"""Other engines: what they cannot do is said, and what they are started with is what was asked."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import serving, story
from helpers.building import make_model, make_tokenizer, write_gguf


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("engines")
    base = serving.base_folder(folder / "base")
    story.model_folder(folder / "other")
    for name, how in {"red": {"r": 24}, "dora": {"use_dora": True}}.items():
        model = AutoModelForCausalLM.from_pretrained(base)
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **how))
        wrapped.peft_config["default"].base_model_name_or_path = str(base)
        wrapped.save_pretrained(str(folder / name), save_embedding_layers=False)
    write_gguf(folder / "tiny.gguf", make_model(), make_tokenizer())
    return folder


def serve(place: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return story.tunewright("serve", *words, cwd=place, **environment)


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["base", "--backend", "sglang"], "E-SERVE-08", "vllm"),
        (["base", "--backend", "vllm", "--adapters", "."], "E-SERVE-09", "--adapters"),
        (["base", "--backend", "vllm", "--temperature", "0"], "E-SERVE-09", "--temperature"),
        (["base", "other", "--backend", "vllm"], "E-SERVE-09", "one"),
        (["dora", "--backend", "vllm"], "E-SERVE-09", "DoRA"),
        (["base", "--backend", "llamacpp"], "E-SERVE-09", "GGUF"),
        (["red", "--backend", "llamacpp"], "E-SERVE-09", "export gguf"),
        (["tiny.gguf", "red", "--backend", "llamacpp"], "E-SERVE-09", "one model"),
        (["tiny.gguf", "--backend", "llamacpp", "--dtype", "float32"], "E-SERVE-09", "--dtype"),
        (["tiny.gguf", "--backend", "vllm", "--host", "192.168.1.7"], "E-SERVE-04", "key"),
        (["base", "--backend", "vllm", "--name", "a", "--name", "b"], "E-SERVE-06", "2"),
    ],
)
def test_what_an_engine_cannot_do_is_said(
    place: Path, words: list[str], code: str, why: str
) -> None:
    pytest.importorskip("xllamacpp")
    done = serve(place, *words)
    assert done.returncode == 2 and code in done.stderr and why in done.stderr


def test_vllm_gets_the_base_and_its_adapters_by_name(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["red", "base", "--backend", "vllm", "--name", "tuned", "--port", "9000"]
    done = serve(place, *words)
    assert done.returncode == 2 and "E-SERVE-10" in done.stderr
    command = shlex.split(done.stderr[done.stderr.index("vllm serve") :].splitlines()[0])
    pairs = dict(itertools.pairwise(command))
    assert command[2] == str((place / "base").resolve()) and pairs["--port"] == "9000"
    assert pairs["--served-model-name"] == "base" and pairs["--max-lora-rank"] == "32"
    assert json.loads(pairs["--lora-modules"]) == {
        "name": "tuned",
        "path": str((place / "red").resolve()),
    }


def test_vllm_takes_over_and_the_key_is_not_in_its_words(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "execve", lambda *given: seen.append(given))
    done = serve(place, "base", "--backend", "vllm", "--api-key", "a-long-enough-key")
    assert done.returncode == 0
    (found, words, env) = seen[0]
    assert found == str(program) and words[:2] == ["vllm", "serve"]
    assert "a-long-enough-key" not in words and env["VLLM_API_KEY"] == "a-long-enough-key"
