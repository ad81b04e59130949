"""Who may speak to the Studio, and how much at a time: around every route, static files too.

Order: the name that was called (Host) against names that were made to point here, then the page
that asks (Origin), then the token, then the size and kind of the body. A browser keeps the token as
a cookie that scripts cannot read and other sites cannot send; programs send it as a bearer. Nothing
allows other origins, and every reply forbids the page to load anything from elsewhere.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tunewright.core.errors import Problem, problem
from tunewright.core.words import LANGUAGES, say, speaking

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

COOKIE = "tunewright_studio"
LOCAL = ("127.0.0.1", "localhost", "::1")
JSON_BYTES, UPLOAD_BYTES = 2**20, 512 * 2**20
UPLOAD = "/api/data/upload"
SAFE = ("GET", "HEAD", "OPTIONS")
POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self'; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'; sandbox"
)
"""Of documents made from answers of models: shown, never run. A sandboxed page has no origin, so
not even a hole in the report reaches the API."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


class Refusal(Exception):
    """A request that does not come in."""

    def __init__(self, status: int, why: Problem):
        super().__init__(why.code)
        self.status, self.problem = status, why


class TooLong(Exception):
    """A body grew beyond what it may; `problem` says so."""

    def __init__(self, most: int):
        super().__init__(most)
        self.problem = too_long(most).problem


@dataclass(frozen=True)
class Guard:
    """An ASGI application around another. `port` None takes any port in Host (tests)."""

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    host: str
    port: int | None
    token: str
    upload_bytes: int = UPLOAD_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or say why not."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = _headers(scope)
        with speaking(language_of(headers, scope)):

            async def dressed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": _dressed(message.get("headers") or [])}
                await send(message)

            try:
                self._look(scope, headers)
                if await self._entered(scope, headers, dressed):
                    return
                most = self.upload_bytes if scope["path"] == UPLOAD else JSON_BYTES
                await self.app(scope, _limited(receive, most), dressed)
            except Refusal as refusal:
                await _refuse(refusal, scope, dressed)

    def _look(self, scope: Scope, headers: dict[str, str]) -> None:
        if not self._is_ours(headers.get("host", "")):
            raise Refusal(403, problem("E-STUDIO-05", host=headers.get("host", "-")[:80] or "-"))
        origin = headers.get("origin")
        if origin is not None and origin != f"{scope.get('scheme', 'http')}://{headers['host']}":
            raise Refusal(403, problem("E-STUDIO-06", origin=origin[:80]))
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not _is_visit(scope):
            raise Refusal(403, problem("E-STUDIO-06", origin=headers["sec-fetch-site"]))
        if not self._knows(headers) and not self._brings(scope):
            raise Refusal(401, problem("E-STUDIO-04"))
        if scope["method"] not in SAFE:
            self._require_body(scope, headers)

    def _require_body(self, scope: Scope, headers: dict[str, str]) -> None:
        """A form of another site can send neither of these kinds without asking first."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        kinds = ["application/json"]
        if scope["path"] == UPLOAD:
            kinds.append("application/octet-stream")
        if kind not in kinds:
            raise Refusal(415, problem("E-STUDIO-08", "Content-Type", wanted=" / ".join(kinds)))
        most = self.upload_bytes if scope["path"] == UPLOAD else JSON_BYTES
        try:
            stated = int(headers.get("content-length") or 0)
        except ValueError:
            stated = 0
        if stated > most:
            raise too_long(most)

    def _is_ours(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name, port = (parts.hostname or "").lower().rstrip("."), parts.port
        except ValueError:
            return False
        anywhere = self.host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
        if name not in {*LOCAL, self.host.lower()} and not (anywhere and _is_address(name)):
            return False
        return self.port is None or port == self.port or (port is None and self.port == 80)

    def _knows(self, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), self.token):
            return True
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and _same(morsel.value, self.token)

    def _brings(self, scope: Scope) -> bool:
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        return scope["path"] == "/" and scope["method"] == "GET" and _same(given, self.token)

    async def _entered(self, scope: Scope, headers: dict[str, str], send: Send) -> bool:
        """The address of the terminal was opened: keep the token as a cookie and take it out of the
        address, where the history would hold it."""
        if not self._brings(scope):
            return False
        cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        await _answer(send, 303, b"", "text/plain", {"location": "/", "set-cookie": cookie})
        return True


def language_of(headers: dict[str, str], scope: Scope) -> str | None:
    """The language a request asks for: X-Language, `?language=` (an EventSource sends no headers),
    then the browser's; None where none is ours."""
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    asked = headers.get("x-language") or query.get("language", [""])[0]
    if asked in LANGUAGES:
        return asked
    for part in headers.get("accept-language", "").split(","):
        first = part.partition(";")[0].strip().lower()[:2]
        if first in LANGUAGES:
            return first
    return None


def too_long(most: int) -> Refusal:
    """The refusal of a body over `most` bytes."""
    return Refusal(413, problem("E-STUDIO-07", most=f"{most >> 20} MiB"))


def _headers(scope: Scope) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return found


def _is_visit(scope: Scope) -> bool:
    """A link from elsewhere may lead here; what a page of elsewhere loads or sends may not."""
    mode = dict(scope["headers"]).get(b"sec-fetch-mode", b"")
    return scope["path"] == "/" and scope["method"] == "GET" and mode == b"navigate"


def _is_address(name: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _dressed(given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    there = {name.lower() for name, _ in given}
    more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in there]
    return [*given, *more]


def _limited(receive: Receive, most: int) -> Receive:
    """A `receive` that counts: a body sent in pieces states no length."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > most:
                raise TooLong(most)
        return message

    return counted


async def _refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    """A refusal as JSON, or for somebody who opened the address without its token as a page."""
    headers = {"connection": "close"} if refusal.status == 413 else {}
    if refusal.status == 401 and scope["path"] == "/" and scope["method"] == "GET":
        await _answer(send, 401, door_page().encode(), "text/html; charset=utf-8", headers)
        return
    body = json.dumps({"problems": [refusal.problem.as_dict()]}, ensure_ascii=False).encode()
    await _answer(send, refusal.status, body, "application/json", headers)


def door_page() -> str:
    """What stands at the address without the token: where to find it, in both languages."""
    parts = [
        f'<section lang="{lang}"><h1>{say("studio.door.title", lang=lang)}</h1>'
        f"<p>{say('studio.door.text', lang=lang)}</p>"
        f"<pre>http://127.0.0.1:8090/?token=...</pre><p>{say('studio.door.file', lang=lang)}</p>"
        "</section>"
        for lang in LANGUAGES
    ]
    return page_of("Tunewright Studio", "".join(parts))


def page_of(title: str, body: str) -> str:
    """A small page of our own words, without scripts."""
    style = (
        "body{font:16px/1.6 system-ui,sans-serif;max-width:40rem;margin:12vh auto;padding:0 24px;"
        "color:#17232b;background:#f7f9fa}h1{font-size:1.35rem;color:#0b6e8f}"
        "section+section{margin-top:40px}pre{background:#e8eef1;padding:8px 16px;"
        "border-radius:10px;overflow-x:auto}@media(prefers-color-scheme:dark){body{color:#dde5ea;"
        "background:#11181d}h1{color:#4cc2e6}pre{background:#1d282f}}"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body>{body}</body></html>"
    )


async def _answer(
    send: Send, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None
) -> None:
    shown = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
    pairs = [(k.encode(), v.encode("latin-1", "replace")) for k, v in shown.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
