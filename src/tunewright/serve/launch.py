"""`tunewright serve`: models are opened and answer at an address until somebody stops it."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.core import machine
from tunewright.core.errors import UsageError, problem, raise_all
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.serve.asking import Limits
from tunewright.serve.pool import Pool

LOCAL = ("127.0.0.1", "localhost", "::1")
NEEDS = ("fastapi", "uvicorn", "h11")
SHORTEST_KEY = 8


def require(host: str, key: str | None, *modules: str) -> None:
    """Raise UsageError for an address that is open to others without a key, a key that nobody can
    send, and a missing extra."""
    wrong = []
    if host not in LOCAL and key is None:
        wrong.append(problem("E-SERVE-04", "--host", host=host))
    if key is not None and (len(key) < SHORTEST_KEY or not all("!" <= c <= "~" for c in key)):
        wrong.append(problem("E-SERVE-05", "--api-key", least=SHORTEST_KEY))
    missing = [name for name in modules or NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        wrong.append(problem("E-SERVE-02", "serve", module=", ".join(missing), extra="serve"))
    raise_all(wrong, UsageError)


def serve(
    targets: Sequence[str],
    tell: Tell,
    *,
    names: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8080,
    key: str | None = None,
    adapters: Path | None = None,
    limits: Limits | None = None,
    dtype: str | None = None,
    think: bool | None = None,
) -> int | None:
    """Serve `targets` at http://host:port/v1 until a signal comes, which is returned.

    Raises UsageError for what does not go together and for a port that is taken, and what opening
    the models raises.
    """
    require(host, key)
    _require_names(names, targets)
    if adapters is not None and not adapters.is_dir():
        raise UsageError(problem("E-SERVE-07", "--adapters", folder=adapters))
    from tunewright.serve import running
    from tunewright.serve.web import Service, make_app

    machine.keep_few_kernels()
    with contextlib.closing(running.bind(host, port)) as listening:
        pool = Pool(tell, dtype=dtype, think=think)
        for i, target in enumerate(targets):
            served = pool.open(target, names[i] if i < len(names) else None)
            tell.line(
                say(
                    "serve.opened",
                    name=served.name,
                    target=target,
                    dtype=served.opened.world.dtype,
                    context=f"{served.context:,}" if served.context else "-",
                )
            )
        service = Service(pool, limits, adapters=adapters)
        at = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/v1"
        app = make_app(service, host=host, key=key)
        found = running.run(app, listening, lambda: tell.line(say("serve.ready", address=at)))
        tell.line(say("serve.ended", tokens=f"{service.worker.tokens:,}"))
        return found


def _require_names(names: Sequence[str], targets: Sequence[str]) -> None:
    if len(names) > len(targets):
        raise UsageError(problem("E-SERVE-06", "--name", names=len(names), targets=len(targets)))


def serve_by(backend: str, tell: Tell, **given: Any) -> int | None:
    """Serve by another engine, `given` being the fields of `backends.Wanted`, until a signal comes,
    which is returned. Raises UsageError for what that engine cannot do."""
    from tunewright.serve import backends

    wanted = backends.Wanted(**given)
    _require_names(wanted.names, wanted.targets)
    require(wanted.host, wanted.key, "json")
    backends.require(backend, wanted)
    run = {"vllm": backends.run_vllm, "llamacpp": backends.run_llamacpp}[backend]
    return run(wanted, tell)
