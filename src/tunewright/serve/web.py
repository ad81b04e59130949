"""The server's routes, OpenAI's: FastAPI in front of the one thread that computes.

This file and `running.py` are the only ones that import FastAPI and uvicorn (extra `serve`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from tunewright.core import faults
from tunewright.core.errors import TunewrightError
from tunewright.core.publish import cache_root
from tunewright.serve import asking, doors, shapes
from tunewright.serve.asking import Limits
from tunewright.serve.generation import Ended, Event, Failed, Generation, Said, Wanted
from tunewright.serve.metrics import Metrics
from tunewright.serve.pool import Pool, Served
from tunewright.serve.refusals import Refused
from tunewright.serve.requests import Chat, Completion, Loading, Unloading, parse
from tunewright.serve.worker import Worker

T = TypeVar("T")
Events = AsyncGenerator["Said | Ended | None", None]
PING = 15.0
"""Seconds of silence in a stream after which a comment keeps the connection open."""
ROUTES = frozenset(
    {
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    }
)


class Hub:
    """Carries events from the worker's thread to those that wait for them, a step's at once."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._pending: list[tuple[asyncio.Queue[Event], Event]] = []

    def to(self, inbox: asyncio.Queue[Event]) -> Callable[[Event], None]:
        """What the worker tells events that `inbox` gets."""
        return lambda event: self._pending.append((inbox, event))

    def flush(self) -> None:
        """Hand over what has gathered; called by the worker after each step."""
        if self._pending and self.loop is not None:
            pending, self._pending = self._pending, []
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self.loop.call_soon_threadsafe(_deliver, pending)


def _deliver(pending: list[tuple[asyncio.Queue[Event], Event]]) -> None:
    for inbox, event in pending:
        inbox.put_nowait(event)


class Service:
    """What answers requests. `adapters` is the folder from which adapters may be loaded while it
    runs; None: from none."""

    def __init__(
        self, pool: Pool, limits: Limits | None = None, *, adapters: Path | None = None
    ) -> None:
        self.pool, self.limits, self.adapters = pool, limits or Limits(), adapters
        self.metrics, self.hub = Metrics(), Hub()
        self.worker = Worker(self.hub.flush, rows=self.limits.rows)
        # Prompts are rendered one after the other, beside the loop that serves connections.
        self.renders = ThreadPoolExecutor(1, "tunewright-renders")
        self.preparing = 0

    async def beside(self, work: Callable[[], T]) -> T:
        """Do work that takes a while in the thread for that."""
        return await asyncio.get_running_loop().run_in_executor(self.renders, work)

    def find(self, name: str) -> Served:
        """The model of that name. Raises Refused."""
        served = self.pool.models.get(name)
        if served is None:
            known = ", ".join(self.pool.models) or "-"
            raise Refused(
                "model", 404, param="model", code="model_not_found", name=name[:80], known=known
            )
        return served

    def require_place(self) -> None:
        """Raise Refused where as many requests are under way as may be."""
        if len(self.worker.under_way) + self.preparing >= self.limits.waiting:
            raise Refused("busy", 429, code="rate_limit_exceeded", wait=1)

    async def prepared(self, work: Callable[[], T]) -> T:
        """`beside` for a request: it counts among those under way."""
        self.require_place()
        self.preparing += 1
        try:
            return await self.beside(work)
        finally:
            self.preparing -= 1

    async def events(self, served: Served, wanted: Wanted) -> Events:
        """What is said to one prompt, until every answer has ended; None after `PING` seconds of
        silence. Who stops listening costs nothing any more. Raises Refused."""
        inbox: asyncio.Queue[Event] = asyncio.Queue()
        generation = Generation(served, wanted, self.hub.to(inbox))
        loop = asyncio.get_running_loop()
        deadline, left = loop.time() + self.limits.seconds, wanted.n
        self.worker.submit(generation.ticket)
        self.metrics.tokens["prompt"] += len(wanted.prompt)
        try:
            while left:
                try:
                    wait = max(0.0, min(PING, deadline - loop.time()))
                    event = (
                        await asyncio.wait_for(inbox.get(), wait)
                        if inbox.empty()
                        else inbox.get_nowait()
                    )
                except asyncio.TimeoutError:
                    if loop.time() >= deadline:
                        seconds = f"{self.limits.seconds:g}"
                        raise Refused("time", 504, code="timeout", seconds=seconds) from None
                    yield None
                    continue
                if isinstance(event, Failed):
                    raise _failure(event.error)
                if isinstance(event, Ended):
                    left -= 1
                    self.metrics.tokens["generation"] += event.count
                yield event
            self.metrics.whole.add(loop.time() - deadline + self.limits.seconds)
            if generation.first is not None:
                self.metrics.first_token.add(generation.first)
        finally:
            if left:
                self.metrics.cancelled += 1
                self.worker.cancel(generation.ticket)


def _failure(error: Exception) -> Refused:
    """What a client is told about an error of ours; whoever runs the server finds its traceback."""
    if isinstance(error, Refused):
        return error
    faults.keep(error, cache_root() / "tracebacks")
    key = "memory" if faults.is_memory(error) else "failed"
    return Refused(key, 503 if faults.is_memory(error) else 500, code="server_error")


def make_app(service: Service, *, host: str = "127.0.0.1", key: str | None = None) -> Any:
    """The application. Its worker computes from its start to its end."""

    @contextlib.asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        service.hub.loop = asyncio.get_running_loop()
        service.worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.worker.stop)
            service.renders.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(lifespan=living, docs_url=None, redoc_url=None, openapi_url=None)
    _routes(app, service)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        close = {"Connection": "close"} if error.status in (408, 413) else {}
        return JSONResponse(error.body(), error.status, {**error.headers(), **close})

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        name = "method" if error.status_code == 405 else "route"
        path = f"{request.method} {request.url.path}"[:120]
        no = Refused(name, error.status_code, code=f"{name}_not_found", path=path)
        return JSONResponse(no.body(), error.status_code)

    @app.exception_handler(doors.Gone)
    async def gone(_: Request, error: doors.Gone) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        no = _failure(error)
        return JSONResponse(no.body(), no.status)

    return doors.Doors(app, host.lower(), key, service.metrics, ROUTES)


def _routes(app: FastAPI, service: Service) -> None:
    _routes_of_state(app, service)
    _routes_of_answers(app, service)
    _routes_of_adapters(app, service)


async def _read(service: Service, request: Request) -> bytes:
    """The body of a request, within its limits. Raises Refused."""
    limits = service.limits
    return await doors.body_of(
        request.headers, request.receive, limits.body_bytes, limits.body_seconds
    )


def _routes_of_state(app: FastAPI, service: Service) -> None:
    """Whether it is well, what it has done, which models there are."""

    @app.get("/health")
    async def health() -> Response:
        well = service.worker.alive
        return JSONResponse({"status": "ok" if well else "stopped"}, 200 if well else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        worker = service.worker
        text = service.metrics.text(
            requests_running=worker.running,
            requests_waiting=sum(len(x.batch.queue) for x in list(worker.lanes.values())),
            requests_under_way=len(worker.under_way),
            models=len(service.pool.models),
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> Response:
        shown = [_card(served) for served in list(service.pool.models.values())]
        return JSONResponse({"object": "list", "data": shown})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return JSONResponse(_card(service.find(name)))


def _routes_of_answers(app: FastAPI, service: Service) -> None:
    """Chat and texts that are gone on with."""

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = parse(await _read(service, request), Chat)
        served = service.find(body.model)
        wanted = await service.prepared(lambda: asking.of_chat(served, body, service.limits))
        reply = shapes.Reply(served, chat=True, logprobs=bool(body.logprobs))
        return await _answer(service, request, body, reply, [(wanted, "")])

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = parse(await _read(service, request), Completion)
        served = service.find(body.model)
        asked = await service.prepared(lambda: asking.of_completion(served, body, service.limits))
        reply = shapes.Reply(served, chat=False, logprobs=body.logprobs is not None)
        return await _answer(service, request, body, reply, asked)


def _routes_of_adapters(app: FastAPI, service: Service) -> None:
    """Models that come and go while it runs, as vLLM has it."""

    @app.post("/v1/load_lora_adapter")
    async def load(request: Request) -> Response:
        body = parse(await _read(service, request), Loading)
        folder = _inside(service.adapters, body.lora_path)
        if body.lora_name in service.pool.models:
            raise Refused("loaded", param="lora_name", name=body.lora_name[:80])
        try:
            await service.beside(lambda: service.pool.open(str(folder), body.lora_name))
        except TunewrightError as error:
            text = "; ".join(one.what() for one in error.problems)
            raise Refused("load", param="lora_path", reason=text) from error
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> Response:
        body = parse(await _read(service, request), Unloading)
        if service.adapters is None:
            raise Refused("loading", 403)
        service.find(body.lora_name)
        served = service.pool.drop(body.lora_name)
        if served is not None:
            service.worker.release(served)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _card(served: Served) -> dict[str, Any]:
    """A model as /v1/models shows it."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "tunewright",
        "root": Path(served.path).name,
        "parent": served.parent,
        "max_model_len": served.context,
    }


def _inside(root: Path | None, given: str) -> Path:
    """The folder of a path that lies in `root`. Raises Refused."""
    if root is None:
        raise Refused("loading", 403)
    try:
        folder = (root / given).resolve()
        there = folder.is_relative_to(root.resolve()) and folder.is_dir()
    except (OSError, ValueError):
        there = False
    if not there:
        raise Refused("place", 404, param="lora_path", path=given[:80])
    return folder


# ---- answering


async def _answer(
    service: Service,
    request: Request,
    body: Chat | Completion,
    reply: shapes.Reply,
    asked: list[tuple[Wanted, str]],
) -> Response:
    """All answers to all prompts, streamed or whole."""
    service.require_place()
    if body.stream:
        chunks = _chunks(service, body, reply, asked)
        first = await anext(chunks)  # what fails before the first token is an error, not a stream
        return _Stream(_joined(first, chunks), service.limits.seconds)
    work = asyncio.ensure_future(_whole(service, reply, asked))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise doors.Gone
        return JSONResponse(work.result())
    finally:
        for task in (work, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(
    service: Service, reply: shapes.Reply, asked: list[tuple[Wanted, str]]
) -> dict[str, Any]:
    """The reply that is not streamed; the answers to prompt p are numbered from p * n on."""

    async def of(place: int, wanted: Wanted, before: str) -> list[shapes.Choice]:
        start = place * wanted.n
        found = [shapes.Choice(start + i, text=before) for i in range(wanted.n)]
        async with contextlib.aclosing(service.events(reply.served, wanted)) as events:
            async for event in events:
                if event is not None:
                    found[event.index].add(event)
        return found

    groups = await _all([of(i, *one) for i, one in enumerate(asked)])
    prompt = sum(len(wanted.prompt) for wanted, _ in asked)
    return reply.whole([choice for group in groups for choice in group], prompt)


async def _all(work: list[Any]) -> list[Any]:
    """The results of all, at the same time; when one fails the others are given up."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _chunks(
    service: Service, body: Chat | Completion, reply: shapes.Reply, asked: list[tuple[Wanted, str]]
) -> AsyncGenerator[str, None]:
    """The lines of a stream. Prompts of one request are answered one after the other."""
    written = 0
    for place, (wanted, before) in enumerate(asked):
        start = place * wanted.n
        begun = False
        async with contextlib.aclosing(service.events(reply.served, wanted)) as events:
            async for event in events:
                if event is None:
                    yield ": waiting\n\n"
                    continue
                if not begun:
                    begun = True
                    for i in range(start, start + wanted.n):
                        if reply.chat:
                            yield _line(reply.begin(i))
                        elif before:
                            yield _line(reply.piece(i, "text", before, []))
                index = start + event.index
                if isinstance(event, Said):
                    yield _line(reply.piece(index, event.kind, event.text, event.tokens))
                else:
                    written += event.count
                    ended = Ended(index, event.reason, event.count, event.tokens, event.calls)
                    for chunk in reply.end(ended):
                        yield _line(chunk)
    if body.wants_usage:
        prompt = sum(len(wanted.prompt) for wanted, _ in asked)
        yield _line(reply.counts(prompt, written))
    yield "data: [DONE]\n\n"


def _line(chunk: Any) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _joined(first: str, rest: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """A stream whose first line is there already; an error in it is its last line."""
    try:
        yield first
        async for line in rest:
            yield line
    except Refused as refused:
        yield _line(refused.body())
    finally:
        await rest.aclose()


class _Stream(StreamingResponse):
    """A stream that a client which does not read cannot hold open for ever."""

    def __init__(self, lines: AsyncIterator[str], seconds: float) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self.seconds = seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(super().__call__(scope, receive, send), self.seconds + PING)
