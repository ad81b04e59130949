"""`tunewright track`: tell trackers of a run that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunewright.cli.speaking import JsonFlag, print_json, speaks
from tunewright.core.words import say


@speaks
def track(
    run: Annotated[Path, typer.Argument(metavar="RUN", help=say("cli.track.run"))],
    to: Annotated[
        list[str] | None, typer.Option("--to", metavar="NAME,...", help=say("cli.track.to"))
    ] = None,
    online: Annotated[bool, typer.Option("--online", help=say("cli.track.online"))] = False,
    project: Annotated[str | None, typer.Option(help=say("cli.track.project"))] = None,
    name: Annotated[str | None, typer.Option(help=say("cli.track.name"))] = None,
    folder: Annotated[str | None, typer.Option(help=say("cli.track.folder"))] = None,
    again: Annotated[bool, typer.Option("--again", help=say("cli.track.again"))] = False,
    as_json: JsonFlag = False,
) -> None:
    """Track."""
    from tunewright import track as tracking
    from tunewright.core.telling import Tell

    kinds = [kind.strip() for one in to or [] for kind in one.split(",") if kind.strip()]
    given: dict[str, Any] = {"project": project, "name": name, "folder": folder}
    settings = {key: value for key, value in given.items() if value is not None}
    settings |= {"online": True} if online else {}
    found = tracking.runs(run, kinds, settings, Tell(), again=again)
    if as_json:
        print_json(found)
    if any(one["status"] != "done" for told in found for one in told["trackers"].values()):
        raise typer.Exit(1)
