"""A server on the loopback over tiny models that were taught facts in seconds."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from helpers import story
from tunewright.core.telling import Quiet
from tunewright.core.types import Message
from tunewright.engine.naming import renderer_of
from tunewright.serve.asking import Limits
from tunewright.serve.pool import Pool

FACTS = {
    "red": {"what is the capital": "Paris quickly", "who learns": "a small model"},
    "blue": {"what is the capital": "10:30 isn't it", "who learns": "France of 2026"},
}
"""What each adapter was taught."""


def base_folder(place: Path) -> Path:
    """The base of all."""
    return story.model_folder(place, initializer_range=0.3, max_position_embeddings=512)


def taught_run(
    place: Path, base: Path, facts: dict[str, str], *, steps: int = 60, tools: Any = None
) -> Path:
    """A run folder with a LoRA that knows `facts` by heart, in float32; asked with `tools`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    wrapped = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    )
    renderer = renderer_of(tokenizer, base)
    rows = [
        renderer.render([Message("user", q), Message("assistant", a)], tools)
        for q, a in facts.items()
    ]
    most = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (most - len(row.ids)) for row in rows])
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        first, after = row.spans[0]
        labels[i, first:after] = ids[i, first:after]
    mask = torch.tensor([[1] * len(r.ids) + [0] * (most - len(r.ids)) for r in rows])
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], 1e-2)
    wrapped.train()
    for _ in range(steps):
        loss = wrapped(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.02, float(loss.detach())
    wrapped.save_pretrained(str(place / "adapter"), save_embedding_layers=False)
    settings = {
        "model": str(base),
        "data": {"train": "gone.json"},
        "engine": {"dtype": "float32", "threads": 1},
        "out": str(place),
    }
    (place / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return place


class Running:
    """A server that is up."""

    def __init__(self, url: str, service: Any) -> None:
        self.url, self.service = url, service

    def client(self, **how: Any) -> Any:
        """The real client of OpenAI."""
        import openai

        return openai.OpenAI(
            **{"base_url": self.url, "api_key": "none", "max_retries": 0, "timeout": 60, **how}
        )

    def raw(self, request: bytes, seconds: float = 20.0) -> tuple[int, dict[str, Any]]:
        """(status, JSON) of bytes sent as they are; (0, {}) where the connection just closes."""
        host, _, port = self.url.split("//")[1].partition("/")[0].partition(":")
        with socket.create_connection((host, int(port)), timeout=seconds) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(request)
            found = b""
            with contextlib.suppress(OSError):
                while part := connection.recv(65536):
                    found += part
        head, _, body = found.partition(b"\r\n\r\n")
        if not head:
            return 0, {}
        try:
            read = json.loads(body)
        except ValueError:
            read = {"body": body.decode("utf-8", "replace")}
        return int(head.split()[1]), read

    def post(
        self, path: str, body: bytes | dict[str, Any], headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """One POST, with any body and headers."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {
            "Host": "127.0.0.1",
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            "Connection": "close",
            **(headers or {}),
        }
        head = "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        return self.raw(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data)


@contextlib.contextmanager
def serving(
    targets: Sequence[tuple[Path, str]],
    limits: Limits | None = None,
    *,
    key: str | None = None,
    adapters: Path | None = None,
) -> Iterator[Running]:
    """A server in a thread of this process, over (target, name)."""
    import asyncio

    import uvicorn

    from tunewright.serve import running
    from tunewright.serve.web import Service, make_app

    pool = Pool(Quiet(), dtype="float32", device="cpu", threads=1)
    for target, name in targets:
        pool.open(str(target), name)
    service = Service(pool, limits, adapters=adapters)
    listening = running.bind("127.0.0.1", 0)
    up = threading.Event()
    config = running.config_of(make_app(service, key=key))
    server = running.Server(config, up.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
    assert issubclass(running.Server, uvicorn.Server)
    thread.start()
    assert up.wait(30)
    try:
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", service)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


def until(is_so: Any, seconds: float = 20.0) -> bool:
    """Whether something becomes so in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.02)
    return bool(is_so())
