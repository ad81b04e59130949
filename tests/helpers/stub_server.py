"""A chat server on the loopback that answers what a test tells it, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Given = tuple[int, Any] | tuple[int, Any, dict[str, str]]
"""(status, body, headers): a body that is no text or bytes is sent as JSON."""


def chat(text: Any, finish: str = "stop") -> tuple[int, dict[str, Any]]:
    """What a chat server answers."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
    }
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


@dataclass
class Stub:
    """The server's address, and every request as (path, headers, body)."""

    url: str = ""
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)


@contextlib.contextmanager
def serving(answer: Callable[[str, Any], Given]) -> Iterator[Stub]:
    """A server that answers each request with `answer(path, body)`."""
    stub, lock = Stub(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            with lock:
                stub.asked.append((self.path, dict(self.headers), body))
            status, content, *more = answer(self.path, body)
            raw = content.encode() if isinstance(content, str) else content
            raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
            headers = {"Content-Length": str(len(raw)), **(more[0] if more else {})}
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

        do_GET = do_POST = _serve

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
