"""`tunewright studio`: the server of a workspace, until somebody stops it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunewright.core.errors import UsageError, problem, raise_all
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.studio.places import open_places

LOCAL = ("127.0.0.1", "localhost", "::1")
NEEDS = ("fastapi", "uvicorn", "h11")
GRACE = 2
"""Seconds that open streams may take after a signal. Without it one of them keeps uvicorn for
ever."""


def studio(
    tell: Tell,
    *,
    host: str = "127.0.0.1",
    port: int = 8090,
    root: Path = Path(),
    allow: Sequence[Path] = (),
    browser: bool = True,
    upload_mib: int = 512,
) -> int | None:
    """Serve the workspace `root` until a signal comes, which is returned. Raises UsageError for a
    missing extra, a port that is taken, a folder that cannot be used."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    raise_all([problem("E-STUDIO-01", "studio", module=", ".join(missing))] if missing else [])
    places = open_places(root, allow)
    with contextlib.closing(_bind(host, port)) as listening:
        at = listening.getsockname()[1]
        from tunewright.studio.app import PAGE, make_app
        from tunewright.studio.state import Studio

        state = Studio(places, host, at, places.token(), upload_mib * 2**20)
        named = f"[{host}]" if ":" in host else host
        address = f"http://{named}:{at}/?token={state.token}"

        def ready() -> None:
            tell.line(say("studio.ready", address=address))
            tell.line(say("studio.where", root=places.root))
            if host not in LOCAL:
                tell.line(say("studio.open_to_others", host=host))
            if not (PAGE / "index.html").is_file():
                tell.line(say("studio.missing.text"))
            if browser:
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        found = _serve(make_app(state), listening, ready)
    tell.line(say("studio.ended"))
    return found


def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UsageError."""
    from tunewright.serve import running

    try:
        found = running.socket_at(host, port)
        found.listen(256)
    except running.NO_SOCKET as error:
        raise UsageError(
            problem("E-STUDIO-02", f"{host}:{port}", host=host, port=port, cause=error)
        ) from error
    return found


def _serve(app: Any, listening: socket.socket, ready: Callable[[], None]) -> int | None:
    """Run uvicorn, quietly; the signal that ended it. The first signal ends open streams, too."""
    import uvicorn

    from tunewright.serve import running

    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE,
    )
    server = running.Server(config, ready, app.app.state.studio.ended.set)
    asyncio.run(server.serve([listening]))
    return server.signal
