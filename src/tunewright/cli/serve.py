"""`tunewright serve`: a tuned model at an address that OpenAI's clients know."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunewright.cli.speaking import ThinkFlag, TrustFlag, speaks
from tunewright.core.telling import Tell
from tunewright.core.words import say


@speaks
def serve(
    targets: Annotated[
        list[str], typer.Argument(metavar="RUN|MODEL...", help=say("cli.serve.targets"))
    ],
    name: Annotated[list[str] | None, typer.Option(help=say("cli.serve.name"))] = None,
    host: Annotated[str, typer.Option(help=say("cli.serve.host"))] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help=say("cli.serve.port"))] = 8080,
    api_key: Annotated[
        str | None, typer.Option(envvar="TUNEWRIGHT_SERVE_KEY", help=say("cli.serve.key"))
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help=say("cli.serve.adapters"))
    ] = None,
    dtype: Annotated[str | None, typer.Option(help=say("cli.serve.dtype"))] = None,
    at_once: Annotated[int, typer.Option(min=1, max=1024, help=say("cli.serve.at_once"))] = 64,
    waiting: Annotated[int, typer.Option(min=1, help=say("cli.serve.waiting"))] = 256,
    max_tokens: Annotated[int | None, typer.Option(min=1, help=say("cli.serve.max"))] = None,
    max_body: Annotated[int, typer.Option(min=1, metavar="MB", help=say("cli.serve.body"))] = 8,
    timeout: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help=say("cli.serve.timeout"))
    ] = 600.0,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help=say("cli.serve.temperature"))
    ] = 1.0,
    think: ThinkFlag = None,
    trust_code: TrustFlag = None,
) -> None:
    """Serve."""
    from tunewright.serve.asking import Limits
    from tunewright.serve.launch import serve as start

    limits = Limits(
        body_bytes=max_body * 2**20,
        waiting=waiting,
        rows=at_once,
        seconds=timeout,
        tokens=max_tokens,
        temperature=temperature,
    )
    stopped_by = start(
        targets,
        Tell(),
        names=name or [],
        host=host,
        port=port,
        key=api_key,
        adapters=adapters,
        limits=limits,
        dtype=dtype,
        think=think,
    )
    if stopped_by is not None:
        raise typer.Exit(128 + stopped_by)
