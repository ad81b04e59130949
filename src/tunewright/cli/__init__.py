"""The command line: it speaks to people and holds no logic.

`tunewright --help` answers in less than half a second, so a command imports what loads pydantic,
PyYAML or PyTorch when it runs, and only light words (`core.errors`, `telling`, `words`) at the top.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from tunewright import __version__
from tunewright.cli import completing
from tunewright.cli.advise import advise
from tunewright.cli.agents import mcp
from tunewright.cli.ask import chat, explain, list_names
from tunewright.cli.data import data_app
from tunewright.cli.doctor import doctor
from tunewright.cli.export import export_app
from tunewright.cli.measure import bench, compare, evaluate, gate
from tunewright.cli.planning import plan
from tunewright.cli.pushing import push
from tunewright.cli.serve import batch, serve
from tunewright.cli.studio import studio
from tunewright.cli.sweeping import sweep
from tunewright.cli.tracking import track
from tunewright.cli.train import demo, import_file, init, train
from tunewright.cli.understanding import App
from tunewright.core import collector
from tunewright.core.pace import sleep_when_idle
from tunewright.core.words import say

app = App(name="tunewright", help=say("cli.help"))
app.add_typer(export_app, name="export")
app.add_typer(data_app, name="data")
COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "demo": demo,
    "studio": studio,
    "chat": chat,
    "serve": serve,
    "batch": batch,
    "bench": bench,
    "plan": plan,
    "init": init,
    "import": import_file,
    "evaluate": evaluate,
    "compare": compare,
    "gate": gate,
    "advise": advise,
    "doctor": doctor,
    "sweep": sweep,
    "track": track,
    "push": push,
    "mcp": mcp,
    "explain": explain,
    "list": list_names,
    "completion": completing.completion,
}
"""In the order in which they are shown."""
for name, command in COMMANDS.items():
    app.command(name, help=say(f"cli.{name}"))(command)


def _version(value: bool) -> None:
    if value:
        print(f"tunewright {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help=say("cli.version"))
    ] = False,
) -> None:
    """Common options."""


def main() -> None:
    """Entry point of the `tunewright` command."""
    sleep_when_idle()
    # A Windows console may not speak UTF-8; a character it cannot show must not end a run.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # PEFT imports bitsandbytes where it is installed, which then advises what else to install.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    completing.prepare()
    collector.rest()
    try:
        app()
    finally:
        collector.end()
