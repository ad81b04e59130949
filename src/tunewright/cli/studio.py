"""`tunewright studio`: the whole road in a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunewright.cli.speaking import speaks
from tunewright.core.telling import Tell
from tunewright.core.words import say


@speaks
def studio(
    port: Annotated[int, typer.Option(min=0, max=65535, help=say("cli.studio.port"))] = 8090,
    host: Annotated[str, typer.Option(help=say("cli.studio.host"))] = "127.0.0.1",
    root: Annotated[Path, typer.Option(metavar="FOLDER", help=say("cli.studio.root"))] = Path(),
    allow: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help=say("cli.studio.allow"))
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help=say("cli.studio.browser"))
    ] = True,
    max_upload: Annotated[
        int, typer.Option(min=1, metavar="MB", help=say("cli.studio.upload"))
    ] = 512,
) -> None:
    """Studio."""
    from tunewright.studio.launch import studio as start

    stopped_by = start(
        Tell(),
        host=host,
        port=port,
        root=root,
        allow=allow or [],
        browser=browser,
        upload_mib=max_upload,
    )
    if stopped_by is not None:
        raise typer.Exit(128 + stopped_by)
