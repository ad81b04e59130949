"""`tunewright studio`: the server of a workspace, until somebody stops it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import signal
import socket
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.core.errors import UsageError, problem, raise_all
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.studio.places import Places

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
    places = Places(root.expanduser(), tuple(folder.expanduser() for folder in allow))
    raise_all(
        problem("E-STUDIO-03", "--allow", folder=folder, cause=say("studio.no_folder"))
        for folder in places.allowed
        if not folder.is_dir()
    )
    places.prepare()
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
        found.listen(256)
    except (OSError, OverflowError, UnicodeError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            problem("E-STUDIO-02", f"{host}:{port}", host=host, port=port, cause=reason)
        ) from error
    return found


def _serve(app: Any, listening: socket.socket, ready: Any) -> int | None:
    """Run uvicorn, quietly; the signal that ended it."""
    import uvicorn

    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    class Server(uvicorn.Server):
        """uvicorn's, which says when it is up, and ends open streams with the first signal."""

        signal: int | None = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

        def handle_exit(self, sig: int, frame: Any) -> None:
            self.signal = self.signal or sig
            app.app.state.studio.ended.set()
            super().handle_exit(sig, frame)

        @contextlib.contextmanager
        def capture_signals(self) -> Any:
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
    server = Server(config)
    asyncio.run(server.serve([listening]))
    return server.signal
