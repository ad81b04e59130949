"""The server: routes, errors as problems, and the built page. It never imports torch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from tunewright.core import faults
from tunewright.core.errors import Problem, TunewrightError, problem
from tunewright.core.words import LANGUAGES, say
from tunewright.studio import routes_chat, routes_learn, routes_runs, routes_work
from tunewright.studio.guard import Guard, TooLong, page_of
from tunewright.studio.state import Studio

PAGE = Path(__file__).parent / "page"
STATUS = {
    "E-STUDIO-04": 401,
    "E-STUDIO-05": 403,
    "E-STUDIO-06": 403,
    "E-STUDIO-07": 413,
    "E-STUDIO-08": 415,
    "E-STUDIO-09": 400,
    "E-STUDIO-11": 403,
    "E-STUDIO-12": 404,
    "E-STUDIO-13": 404,
    "E-STUDIO-14": 403,
    "E-STUDIO-15": 409,
    "E-STUDIO-17": 503,
    "E-STUDIO-19": 409,
    "E-STUDIO-21": 507,
    "E-STUDIO-25": 405,
    "E-STUDIO-27": 409,
}
WARM_RUNS = 12
KINDS = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain",
    ".webmanifest": "application/manifest+json",
}


def make_app(studio: Studio) -> Guard:
    """The guarded application of a workspace."""
    app = FastAPI(
        title="Tunewright Studio",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_life,
        default_response_class=JSONResponse,
    )
    app.state.studio = studio
    for module in (routes_learn, routes_runs, routes_work, routes_chat):
        app.include_router(module.router)
    app.add_exception_handler(TunewrightError, _problems)  # type: ignore[arg-type]
    app.add_exception_handler(TooLong, _too_long)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _unforeseen)
    app.add_api_route("/{path:path}", _page, methods=["GET", "HEAD"], include_in_schema=False)
    return Guard(app, studio.host, studio.port, studio.token, studio.upload_bytes)


@contextlib.asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    """Go on with a queue that was left, and end the children with the server."""
    studio: Studio = app.state.studio
    await asyncio.to_thread(studio.jobs.ensure_worker)
    warm = asyncio.ensure_future(asyncio.to_thread(_warm, studio))
    try:
        yield
    finally:
        studio.ended.set()
        await asyncio.gather(studio.desk.stop(), studio.answerer.stop(), return_exceptions=True)
        studio.runs.index.close()
        warm.cancel()


def _warm(studio: Studio) -> None:
    """What the first requests need, made ready before they come: names of methods, the list of
    runs, and the loss of those that an overlay will show first."""
    from tunewright.core.registry import methods, objectives

    for axis in (methods, objectives):
        axis.names()
    for run_id in list(studio.heads())[:WARM_RUNS]:
        files = studio.files_of(run_id)()
        if files is not None and not studio.ended.is_set():
            studio.curves.one(files[0], "loss")


def said(status: int, problems: list[Problem]) -> JSONResponse:
    """Problems as a reply."""
    return JSONResponse({"problems": [one.as_dict() for one in problems]}, status)


async def _problems(request: Request, error: TunewrightError) -> Response:
    code = error.problems[0].code if error.problems else ""
    fallback = 422 if error.exit_code == 2 or code.startswith("E-") else 500
    return said(STATUS.get(code, fallback), error.problems)


async def _too_long(request: Request, error: TooLong) -> Response:
    return said(413, [error.problem])


async def _http(request: Request, error: HTTPException) -> Response:
    path = request.url.path[:120]
    code = "E-STUDIO-25" if error.status_code == 405 else "E-STUDIO-13"
    known = error.status_code in (404, 405)
    status = error.status_code if known else 400
    return said(status, [problem(code, path, path=path, method=request.method)])


async def _unforeseen(request: Request, error: Exception) -> Response:
    """Something nobody foresaw: its traceback goes into a file, not to the page."""
    studio: Studio = request.app.state.studio
    place = faults.keep(error, studio.places.private / "tracebacks")
    cause = faults.cause_of(error)
    return said(500, [problem("E-STUDIO-20", str(place), cause=cause, file=str(place))])


async def _page(request: Request, path: str) -> Response:
    """A file of the built page; its first page for the address itself."""
    if path.startswith("api/"):
        raise HTTPException(404)
    if not (PAGE / "index.html").is_file():
        if path in ("", "index.html"):
            return HTMLResponse(missing_page(), 200)
        raise HTTPException(404)
    found = _files().get(path or "index.html")
    if found is None:
        raise HTTPException(404)
    # What the build names by its content never changes; the first page always may.
    fixed = "/assets/" in f"/{path}"
    rule = "private, max-age=31536000, immutable" if fixed else "no-cache"
    kind = KINDS.get(found.suffix.lower())
    return FileResponse(found, media_type=kind, headers={"cache-control": rule})


def _files() -> dict[str, Path]:
    """Name -> file of the built page: only what is there by name is served."""
    files = (path for path in PAGE.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(PAGE).as_posix(): path for path in files}


def missing_page() -> str:
    """What stands at the address where the page was not built."""
    parts = [
        f'<section lang="{lang}"><h1>{say("studio.missing.title", lang=lang)}</h1>'
        f"<p>{say('studio.missing.text', lang=lang)}</p>"
        f"<pre>cd page\nnpm ci\nnpm run build</pre><p>{say('studio.missing.api', lang=lang)}</p>"
        "</section>"
        for lang in LANGUAGES
    ]
    return page_of("Tunewright Studio", "".join(parts))


def routes_of(guard: Guard) -> Any:
    """The routes of a guarded application, for tests."""
    return guard.app.routes  # type: ignore[attr-defined]
