"""Who may speak to the server, and how much at a time: around every route, before it is looked up.

A page in a browser must not reach a server on the same machine: the name that was called (Host) has
to be this machine's, against names that were made to point here, and a request that a page of
another site makes (Origin) is refused. Nothing allows other origins.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tunewright.serve.metrics import Metrics
from tunewright.serve.refusals import Refused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
LOCAL = ("127.0.0.1", "localhost", "::1")
OPEN_ROUTES = ("/health",)
"""Answered without a key: they say nothing about anybody."""
DRAINED = 64 * 2**20
"""Bytes of a body that is too long which are read and thrown away, so that its sender reads the
answer."""


@dataclass(frozen=True)
class Doors:
    """`host` is where the server listens; `key` None lets everybody on this machine in."""

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    host: str
    key: str | None
    metrics: Metrics
    routes: frozenset[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application around another."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        path = str(scope["path"])
        route = path if path in self.routes else "other"
        begun = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.metrics.request(route, int(message["status"]))
            await send(message)

        try:
            self._look(scope, path)
            await self.app(scope, receive, watched)
        except Refused as refused:
            if not begun:
                await refuse(refused, watched)

    def _look(self, scope: Scope, path: str) -> None:
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        called = _name(headers.get("host", ""))
        named = {*LOCAL, self.host}
        anywhere = self.host not in LOCAL and self.key is not None
        if not anywhere and called not in named:
            raise Refused("host", 403, code="wrong_host", host=called[:80] or "-")
        if "origin" in headers:
            origin = (urlsplit(headers["origin"]).hostname or "").lower()
            if origin not in {*named, called} or not origin:
                raise Refused("origin", 403, code="cross_origin", origin=headers["origin"][:80])
        if self.key is not None and path not in OPEN_ROUTES:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            given = given.strip() if scheme.lower() == "bearer" else ""
            if not hmac.compare_digest(given.encode(), self.key.encode()):
                key = "wrong_key" if given else "no_key"
                raise Refused(key, 401, code="invalid_api_key")


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower().rstrip(".")
    except ValueError:
        return ""


async def refuse(refused: Refused, send: Send, *, close: bool = False) -> None:
    """Send an error as the whole answer."""
    body = json.dumps(refused.body(), ensure_ascii=False).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= {name.lower(): value for name, value in refused.headers().items()}
    if close or refused.status in (408, 413):
        headers["connection"] = "close"
    await send(
        {
            "type": "http.response.start",
            "status": refused.status,
            "headers": [(k.encode(), v.encode("latin-1", "replace")) for k, v in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


class Gone(Exception):
    """The client left before its request was whole."""


async def body_of(headers: Any, receive: Receive, most: int, seconds: float) -> bytes:
    """A request's body. Raises Refused where it is longer than `most` or takes longer than
    `seconds`, Gone where the client leaves."""
    try:
        stated = int(headers.get("content-length") or 0)
    except ValueError:
        stated = 0
    if stated > DRAINED:
        raise Refused("body", 413, code="request_too_large", most=f"{most >> 20} MiB")
    try:
        found = await asyncio.wait_for(_read(receive, most), seconds)
    except asyncio.TimeoutError as error:
        raise Refused("slow", 408, code="request_timeout", seconds=f"{seconds:g}") from error
    if found is None:
        raise Refused("body", 413, code="request_too_large", most=f"{most >> 20} MiB")
    return found


async def _read(receive: Receive, most: int) -> bytes | None:
    """The whole body; None where it is longer than `most`."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        part = message.get("body", b"")
        size += len(part)
        if size <= most:
            parts.append(part)
        else:
            parts.clear()
        if not message.get("more_body") or size > DRAINED:
            return b"".join(parts) if size <= most else None
