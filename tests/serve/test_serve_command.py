"""`tunewright serve` as a command: what it refuses before a weight is read, and how it ends."""

from __future__ import annotations

import builtins
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers import story

from tunewright.core.errors import UsageError
from tunewright.core.telling import Quiet
from tunewright.serve.asking import Limits, of_chat
from tunewright.serve.launch import serve
from tunewright.serve.pool import Pool
from tunewright.serve.refusals import Refused
from tunewright.serve.requests import Chat

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("place") / "tiny")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--host", "192.168.1.7"], "E-SERVE-04"),
        (["--host", "192.168.1.7", "--api-key", "short"], "E-SERVE-05"),
        (["--api-key", "a key with spaces"], "E-SERVE-05"),
        (["--name", "a", "--name", "b"], "E-SERVE-06"),
        (["--adapters", "nowhere"], "E-SERVE-07"),
        (["--host", "203.0.113.9", "--api-key", "long-enough"], "E-SERVE-03"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_read(words: list[str], code: str) -> None:
    done = story.tunewright("serve", "no-such-model", "--port", "0", *words)
    assert done.returncode == 2 and code in done.stderr


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = story.tunewright("serve", "no-such-model", "--port", port)
        chinese = story.tunewright("serve", "no-such-model", "--port", port, TUNEWRIGHT_LANG="zh")
    assert done.returncode == 2 and "E-SERVE-03" in done.stderr and port in done.stderr
    assert "another program already listens there" in done.stderr
    assert "端口已被别的程序占用" in chinese.stderr and "Address" not in chinese.stderr


def test_a_name_stands_for_one_model(model: Path) -> None:
    pool = Pool(Quiet(), dtype="float32", device="cpu", threads=1)
    pool.open(str(model))
    with pytest.raises(UsageError, match="E-SERVE-01"):
        pool.open(str(model))
    assert pool.open(str(model), "other").name == "other"
    assert list(pool.models) == ["tiny", "other"]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name)
    )
    with pytest.raises(UsageError, match=r"E-SERVE-02.*uvicorn.*tunewright\[serve\]"):
        serve(["no-such-model"], Quiet())


def test_grammars_need_their_library(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunewright.serve.grammar import form_of

    own = builtins.__import__

    def without(name: str, *more: Any, **how: Any) -> Any:
        if name.startswith("llguidance"):
            raise ImportError(name)
        return own(name, *more, **how)

    pool = Pool(Quiet(), dtype="float32", device="cpu", threads=1)
    served = pool.open(str(model))
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="E-SERVE-02"):
        form_of(served, {"type": "object"}, "response_format")
    body: Any = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    body["response_format"] = {"type": "json_object"}
    with pytest.raises(Refused, match="llguidance"):
        of_chat(served, Chat(**body), Limits())


def started(*words: str) -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its address."""
    env = {**os.environ, "TUNEWRIGHT_LANG": "en", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tunewright", "serve", *words, "--port", "0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Listening at" in line:
            return process, line.split("Listening at ")[1].split(";")[0]
    raise AssertionError("the server did not come up")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)]
)
def test_a_signal_ends_it_although_a_stream_is_open(model: Path, number: signal.Signals) -> None:
    process, url = started(str(model), "--dtype", "float32")
    try:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "who learns"}],
            stream=True,
            max_tokens=200,
            logit_bias={"2": -100},
        )
        next(iter(stream))
        health = url.replace("/v1", "/health")
        assert urllib.request.urlopen(health).status == 200  # noqa: S310
        process.send_signal(number)
        began = time.monotonic()
        assert process.wait(30) == 128 + number
        assert time.monotonic() - began < 25
        stream.close()
    finally:
        process.kill()
        process.communicate()
