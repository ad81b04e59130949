"""What the server says no to: always in the shape that clients read, and it goes on afterwards."""

from __future__ import annotations

import gc
import json
import os
import random
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import serving, story
from helpers.serving import Running

from tunewright.serve.asking import Limits
from tunewright.serve.worker import Worker

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
CHAT, KEY = "/v1/chat/completions", "a-long-enough-key"
USER = {"role": "user", "content": "who learns"}
GOOD: dict[str, Any] = {"model": "tiny", "messages": [USER], "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("place") / "tiny")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    limits = Limits(body_bytes=1 << 20, waiting=4, rows=8, seconds=5.0, body_seconds=0.7)
    with serving.serving([(model, "tiny")], limits) as running:
        yield running


def is_refusal(answer: dict[str, Any]) -> bool:
    error = answer.get("error")
    return (
        isinstance(error, dict)
        and set(error) == {"message", "type", "param", "code"}
        and bool(error["message"])
        and not error["message"].startswith("serve.no.")
        and not re.search(r"\{[a-z]+\}", error["message"])
    )


def tool(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **more}}


WRONG: list[tuple[dict[str, Any], int, str | None]] = [
    ({"model": "gpt-4"}, 404, "model"),
    ({"model": None}, 400, "model"),
    ({"messages": []}, 400, "messages"),
    ({"messages": "hi"}, 400, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0]"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0]"),
    ({"messages": [{"role": "user", "content": 7}]}, 400, "messages[0].content"),
    ({"messages": [{**USER, "mood": "good"}]}, 400, "messages[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages[0].content",
    ),
    ({"messages": [{"role": "user", "content": "word " * 4000}]}, 400, "messages"),
    ({"max_tokens": 10**9}, 400, "max_tokens"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": "many"}, 400, "max_tokens"),
    ({"max_tokens": True}, 400, "max_tokens"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "max_tokens"),
    ({"temperature": -1}, 400, "temperature"),
    ({"temperature": 99}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"n": 9}, 400, "n"),
    ({"n": 0}, 400, "n"),
    ({"stop": ["x"] * 17}, 400, "stop"),
    ({"stop": [1]}, 400, "stop"),
    ({"top_logprobs": 3}, 400, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    ({"logit_bias": {"99999": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"5": 101}}, 400, "logit_bias"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"response_format": {"type": "xml"}}, 400, "response_format"),
    ({"response_format": {"type": "json_schema"}}, 400, "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "what"}}}},
        400,
        "response_format",
    ),
    ({"tools": [tool()]}, 400, "tools"),
    ({"tools": [{"type": "web"}]}, 400, "tools"),
    ({"tool_choice": "required"}, 400, "tool_choice"),
    (
        {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        400,
        "tool_choice",
    ),
    ({"chat_template_kwargs": {"enable_thinking": True}}, 400, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"mood": 1}}, 400, "chat_template_kwargs"),
    ({"reasoning_effort": "high"}, 400, "reasoning_effort"),
    ({"repetition_penalty": 1.2}, 400, "repetition_penalty"),
    ({"functions": [{"name": "f"}]}, 400, "functions"),
    ({"frobnicate": 1}, 400, "frobnicate"),
]


@pytest.mark.parametrize(("change", "status", "param"), WRONG, ids=lambda x: str(x)[:40])
def test_a_wrong_field_is_named(
    server: Running, change: dict[str, Any], status: int, param: str | None
) -> None:
    got, answer = server.post(CHAT, {**GOOD, **change})
    assert (got, answer["error"]["param"]) == (status, param) and is_refusal(answer)


@pytest.mark.parametrize(
    "change",
    [
        {"user": "me", "store": False, "n": 1, "metadata": {"a": "b"}, "service_tier": "auto"},
        {"temperature": None, "top_p": None, "stop": None, "tools": None, "logit_bias": None},
        {"max_tokens": None, "max_completion_tokens": 3, "stop": []},
        {"messages": [{"role": "developer", "content": "be brief"}, USER]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "who learns"}]}]},
        {"messages": [USER, {"role": "assistant", "content": "x", "refusal": None}, USER]},
        {"response_format": {"type": "text"}, "tool_choice": "none", "reasoning_effort": "none"},
    ],
)
def test_what_changes_nothing_is_taken(server: Running, change: dict[str, Any]) -> None:
    status, answer = server.post(CHAT, {**GOOD, **change})
    assert status == 200, answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": NaN}',
        b"[" * 100_000,
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
    ],
    ids=lambda body: str(body[:12]),
)
def test_a_body_that_is_no_request_is_refused(server: Running, body: bytes) -> None:
    for path in (CHAT, "/v1/completions", "/v1/load_lora_adapter"):
        status, answer = server.post(path, body)
        assert status == 400 and is_refusal(answer)


def test_completions_look_at_their_own_fields(server: Running) -> None:
    body = {"model": "tiny", "prompt": "who", "max_tokens": 2}
    for change, param in (
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"messages": [USER]}, "messages"),
    ):
        status, answer = server.post("/v1/completions", {**body, **change})
        assert (status, answer["error"]["param"]) == (400, param) and is_refusal(answer)
    assert server.post("/v1/completions", body)[0] == 200


def test_too_much_and_too_slow_are_refused(server: Running) -> None:
    big = json.dumps({**GOOD, "messages": [{"role": "user", "content": "x" * 10 * 2**20}]})
    status, answer = server.post(CHAT, big.encode())
    assert status == 413 and is_refusal(answer) and answer["error"]["code"] == "request_too_large"
    chunked = b"".join(b"10000\r\n" + b"x" * 65536 + b"\r\n" for _ in range(32)) + b"0\r\n\r\n"
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert server.raw(head.encode() + chunked)[0] == 413
    began = time.monotonic()
    slow = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"
    status, answer = server.raw(slow.encode())
    assert status == 408 and is_refusal(answer) and time.monotonic() - began < 10
    stated = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2**40}\r\n\r\n"
    assert server.raw(stated.encode())[0] == 413


def test_a_head_that_never_ends_is_not_waited_for(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.serve import running

    monkeypatch.setattr(running, "HEADER_SECONDS", 0.3)
    for begun in (b"", b"POST /v1/chat/compl", b"GET /health HTTP/1.1\r\nHost: loc"):
        began = time.monotonic()
        assert server.raw(begun)[0] in (0, 400)
        assert time.monotonic() - began < 10
    # A second head on a connection that was answered is not waited for either.
    again = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal"
    began = time.monotonic()
    assert server.raw(again)[0] == 200 and time.monotonic() - began < 10


def test_no_more_are_under_way_than_may_be(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Worker._step

    def slow(self: Worker, served: Any) -> None:
        time.sleep(0.02)
        step(self, served)

    monkeypatch.setattr(Worker, "_step", slow)
    client = server.client()
    tokenizer = server.service.pool.models["tiny"].model.tokenizer
    letter = tokenizer.encode("a", add_special_tokens=False)[0]
    long = {**GOOD, "max_tokens": 200, "logit_bias": {str(letter): 100}, "n": 2}
    streams = [client.chat.completions.create(**long, stream=True) for _ in range(4)]
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**GOOD)
    assert refused.value.response.headers["Retry-After"] == "1"
    for stream in streams:
        stream.close()
    worker = server.service.worker
    assert serving.until(lambda: not worker.under_way)
    client.chat.completions.create(**GOOD)


def test_an_answer_that_takes_too_long_is_given_up(model: Path) -> None:
    with serving.serving([(model, "tiny")], Limits(seconds=0.05)) as server:
        long = {**GOOD, "max_tokens": 200, "logit_bias": {"2": -100}, "n": 32}
        status, answer = server.post(CHAT, long)
        assert status == 504 and is_refusal(answer)
        assert serving.until(lambda: not server.service.worker.under_way)


def test_every_route_wants_the_key(model: Path) -> None:
    with serving.serving([(model, "tiny")], key=KEY) as server:
        from tunewright.serve.web import ROUTES

        for route in [*ROUTES - {"/health"}, "/v1/models/tiny", "/", "/docs", "/openapi.json"]:
            for given in (None, "Bearer wrong", f"Basic {KEY}", "Bearer ", f"Bearer {KEY}x"):
                headers = {} if given is None else {"Authorization": given}
                for method in ("GET", "POST"):
                    head = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
                    text = f"{method} {route} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}"
                    status, answer = server.raw(
                        f"{text}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
                    )
                    assert status == 401 and is_refusal(answer), (route, given)
                    assert KEY not in json.dumps(answer)
        with pytest.raises(openai.AuthenticationError):
            server.client().models.list()
        assert server.client(api_key=KEY).models.list().data[0].id == "tiny"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost:1234"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
    ],
)
def test_pages_of_others_do_not_get_in(
    server: Running, headers: dict[str, str], status: int
) -> None:
    got, answer = server.post(CHAT, GOOD, headers)
    assert got == status and (status == 200 or is_refusal(answer))


def test_unknown_places_and_methods_are_refused_alike(server: Running) -> None:
    for request, status in (
        (b"GET /v1/chat/completions HTTP/1.1", 405),
        (b"DELETE /v1/models HTTP/1.1", 405),
        (b"GET /v1/embeddings HTTP/1.1", 404),
        (b"GET /../../etc/passwd HTTP/1.1", 404),
        (b"GET /docs HTTP/1.1", 404),
        (b"GET /v1/models/%2e%2e%2f HTTP/1.1", 404),
    ):
        got, answer = server.raw(request + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert got == status and is_refusal(answer), request
    got, answer = server.raw(b"nonsense\r\n\r\n")
    assert got == 400 and is_refusal(answer)
    got, _ = server.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "."})
    assert got == 403


def mangled(draw: random.Random) -> bytes:
    """A request that is wrong in some way."""
    body = json.dumps({**GOOD, **draw.choice(WRONG)[0]}).encode()
    path = draw.choice([CHAT, "/v1/completions", "/v1/models", "/metrics", "/" + "a" * 99])
    kind = draw.randrange(6)
    if kind == 0:
        return draw.randbytes(draw.randint(1, 400)) + b"\r\n\r\n"
    if kind == 1:
        cut = draw.randint(0, len(body))
        body = body[:cut] + draw.randbytes(draw.randint(0, 8)) + body[cut + draw.randint(0, 9) :]
    if kind == 2:
        body = body[: draw.randint(0, len(body))]
    if kind == 3:
        body = body.replace(b'"', draw.choice([b"", b"'", b'""', b"\\"]), draw.randint(1, 6))
    length = len(body) + (draw.choice([-3, 0, 0, 0]) if kind == 4 else 0)
    method = draw.choice(["POST", "POST", "POST", "GET", "PUT", "\x7f"])
    host = draw.choice(["localhost", "localhost", "127.0.0.1", "x.example", "\xff"])
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n"
    odd = draw.choice(
        ["", "", "Authorization: Bearer x\r\n", "X\r\n", "Content-Encoding: gzip\r\n"]
    )
    return f"{head}{odd}Connection: close\r\n\r\n".encode("latin-1") + body


def resident() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def bombard(server: Running, count: int, seed: int) -> dict[int, int]:
    draw, found = random.Random(seed), {}
    for _ in range(count):
        status, answer = server.raw(mangled(draw), seconds=10)
        found[status] = found.get(status, 0) + 1
        assert status in (0, 200, 400, 401, 403, 404, 405, 408, 413, 429), answer
        assert status in (0, 200) or is_refusal(answer), answer
    return found


def test_a_hail_of_wrong_requests_changes_nothing(server: Running) -> None:
    before = server.post(CHAT, GOOD)[1]["choices"]
    found = bombard(server, 150, 1)
    assert found[400] > 40 and found[403] > 10
    assert server.post(CHAT, GOOD)[1]["choices"] == before
    assert not server.service.worker.under_way


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its own memory in /proc")
def test_ten_thousand_wrong_requests_take_no_memory(server: Running) -> None:
    bombard(server, 1500, 2)
    middle = resident()
    bombard(server, 8500, 3)
    assert resident() - middle < 24 * 2**20
    assert server.post(CHAT, GOOD)[0] == 200
    with socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))):
        pass
