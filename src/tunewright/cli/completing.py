"""`tunewright completion`: the script that lets a shell complete commands and flags."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tunewright.cli.speaking import speaks
from tunewright.core.errors import UsageError
from tunewright.core.words import say

VARIABLE = "_TUNEWRIGHT_COMPLETE"
"""Set by the script when the shell asks what goes on."""
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


@speaks
def completion(
    shell: Annotated[
        str, typer.Argument(metavar="|".join(SHELLS), help=say("cli.completion.shell"))
    ],
) -> None:
    """Completion."""
    from typer.completion import get_completion_script

    if shell not in SHELLS:
        raise UsageError.of("E-RUN-20", "SHELL", shell=shell, known=", ".join(SHELLS))
    print(get_completion_script(prog_name="tunewright", complete_var=VARIABLE, shell=shell))


def prepare() -> None:
    """Answer a shell that asks; typer does it by itself only where it offers its own flags."""
    if VARIABLE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
