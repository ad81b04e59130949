"""A server's life: the socket is taken before a weight is read, and a signal ends it cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunewright.core.errors import UsageError, problem
from tunewright.serve.refusals import Refused

HEADER_SECONDS = 10.0
"""Until the head of a request is there as a whole."""
GRACE = 3
"""Seconds that open streams get when the server is asked to stop."""


class _Protocol(H11Protocol):
    """uvicorn's, which does not wait for ever for the head of a request and says no in JSON."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._watch()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        begun = self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]
        if begun and self._late is None:  # the beginning of another head was sent along
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._late = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        body = _json(Refused("http", 400, reason=msg).body())
        head = h11.Response(
            status_code=400,
            headers=[
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ],
            reason=b"Bad Request",
        )
        with contextlib.suppress(h11.LocalProtocolError):
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _json(body: dict[str, Any]) -> bytes:
    import json

    return json.dumps(body, ensure_ascii=False).encode()


class Server(uvicorn.Server):
    """uvicorn's, which remembers the signal instead of raising it again, and says when it is up."""

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        ending: Callable[[], None] | None = None,
    ) -> None:
        """`ready` is called when it is up, `ending` with the first signal."""
        super().__init__(config)
        self.ready, self.ending = ready, ending
        self.signal: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.signal is None:
            self.signal = sig
            if self.ending is not None:
                self.ending()
        super().handle_exit(signal.SIGINT if self.should_exit else sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


NO_SOCKET = (OSError, OverflowError, UnicodeError)
"""What `socket_at` may raise."""


def socket_at(host: str, port: int) -> socket.socket:
    """A socket bound to host and port (0: a free one). Raises what `NO_SOCKET` names."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A port whose last connections are still being closed may be taken again (not on Windows,
        # where this would take one that is in use).
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except NO_SOCKET:
        found.close()
        raise
    return found


def bind(host: str, port: int) -> socket.socket:
    """`socket_at` for `tunewright serve`. Raises UsageError."""
    try:
        return socket_at(host, port)
    except NO_SOCKET as error:
        raise UsageError(problem("E-SERVE-03", f"{host}:{port}", reason=error)) from error


def config_of(app: Any) -> uvicorn.Config:
    """How uvicorn runs here: quiet, and gone `GRACE` seconds after a signal."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE,
        h11_max_incomplete_event_size=64 * 1024,
        backlog=256,
    )


def run(app: Any, listening: socket.socket, ready: Callable[[], None]) -> int | None:
    """Serve `app` until a signal comes; the signal, or None where it ended otherwise."""
    server = Server(config_of(app), ready)
    asyncio.run(server.serve([listening]))
    return server.signal
