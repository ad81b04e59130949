"""`tunewright mcp`: a server for coding agents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunewright.cli.speaking import speaks
from tunewright.core.words import say


@speaks
def mcp(
    root: Annotated[Path, typer.Option(metavar="FOLDER", help=say("cli.studio.root"))] = Path(),
    allow: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help=say("cli.studio.allow"))
    ] = None,
) -> None:
    """Mcp."""
    from tunewright.studio.mcp_server import serve

    serve(root, allow or [])
