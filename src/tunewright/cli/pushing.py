"""`tunewright push`: a run or an export on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunewright.cli.speaking import JsonFlag, show, speaks
from tunewright.core.words import say


@speaks
def push(
    source: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help=say("cli.push.source"))],
    name: Annotated[str, typer.Argument(metavar="NAME", help=say("cli.push.name"))],
    to: Annotated[
        str, typer.Option(metavar="huggingface|modelscope", help=say("cli.push.to"))
    ] = "huggingface",
    public: Annotated[bool, typer.Option("--public", help=say("cli.push.public"))] = False,
    base: Annotated[str | None, typer.Option(metavar="HUB_ID", help=say("cli.push.base"))] = None,
    message: Annotated[str, typer.Option(help=say("cli.push.message"))] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help=say("cli.push.dry_run"))] = False,
    as_json: JsonFlag = False,
) -> None:
    """Push."""
    from tunewright.commands import pushing

    found = pushing.push(
        source, name, to=to, public=public, dry_run=dry_run, base=base, message=message
    )
    show(found, pushing.lines, as_json=as_json)
