"""`tunewright serve` and `batch`: a tuned model at an address, and on a file of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunewright.cli.speaking import JsonFlag, ThinkFlag, TrustFlag, print_json, speaks
from tunewright.core.telling import Tell
from tunewright.core.words import say

OWN = ("adapters", "waiting", "max_tokens", "max_body", "timeout", "temperature", "think")
"""Options that no other engine than our own has."""


@speaks
def serve(
    context: typer.Context,
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
    backend: Annotated[str, typer.Option(help=say("cli.serve.backend"))] = "tunewright",
    think: ThinkFlag = None,
    trust_code: TrustFlag = None,
) -> None:
    """Serve."""
    from tunewright.serve import launch
    from tunewright.serve.asking import Limits

    address: dict[str, Any] = {
        "names": name or [],
        "host": host,
        "port": port,
        "key": api_key,
        "dtype": dtype,
    }
    if backend == "tunewright":
        limits = Limits(
            body_bytes=max_body * 2**20,
            waiting=waiting,
            rows=at_once,
            seconds=timeout,
            tokens=max_tokens,
            temperature=temperature,
        )
        more: dict[str, Any] = {"adapters": adapters, "limits": limits, "think": think}
        stopped_by = launch.serve(targets, Tell(), **address, **more)
    else:
        given = frozenset(f"--{n.replace('_', '-')}" for n in OWN if _is_given(context, n))
        more = {"targets": targets, "at_once": at_once, "given": given}
        stopped_by = launch.serve_by(backend, Tell(), **address, **more)
    if stopped_by is not None:
        raise typer.Exit(128 + stopped_by)


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether a person said what an option is, be it what it is anyway."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


@speaks
def batch(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help=say("cli.chat.target"))],
    prompts: Annotated[Path, typer.Argument(metavar="PROMPTS", help=say("cli.batch.prompts"))],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.batch.out"))],
    max_tokens: Annotated[int | None, typer.Option(min=1, help=say("cli.chat.max"))] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help=say("cli.chat.temperature"))
    ] = 0.0,
    top_p: Annotated[float | None, typer.Option(help=say("cli.chat.top_p"))] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help=say("cli.chat.top_k"))] = None,
    seed: Annotated[int, typer.Option(help=say("cli.batch.seed"))] = 0,
    n: Annotated[int | None, typer.Option(min=1, help=say("cli.batch.n"))] = None,
    stop: Annotated[list[str] | None, typer.Option(help=say("cli.chat.stop"))] = None,
    system: Annotated[str | None, typer.Option(help=say("cli.chat.system"))] = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help=say("cli.batch.schema"))
    ] = None,
    complete: Annotated[bool, typer.Option("--complete", help=say("cli.chat.complete"))] = False,
    at_once: Annotated[int, typer.Option(min=1, max=1024, help=say("cli.serve.at_once"))] = 64,
    dtype: Annotated[str | None, typer.Option(help=say("cli.serve.dtype"))] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help=say("cli.batch.over"))] = False,
    think: ThinkFlag = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Batch."""
    from tunewright.serve.batch_command import batch as start

    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k or None,
        "seed": seed,
        "n": n,
        "stop": stop or None,
        "system": system,
        "complete": complete or None,
    }
    done = start(
        target,
        prompts,
        out,
        Tell(),
        {name: value for name, value in given.items() if value is not None},
        schema=schema,
        at_once=at_once,
        dtype=dtype,
        think=think,
        overwrite=overwrite,
    )
    if as_json:
        print_json(done)
    if done["failed"]:
        raise typer.Exit(1)
