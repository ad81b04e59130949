"""What every command does alike: errors become one message and an exit code, results become JSON on stdout."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from tunewright.core.words import say

F = TypeVar("F", bound=Callable[..., Any])
JsonFlag = Annotated[bool, typer.Option("--json", help=say("cli.json"))]


def speaks(command: F) -> F:
    """Turn our errors into one message on stderr (or JSON on stdout) and the right exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        from tunewright.core.errors import TunewrightError

        try:
            return command(*args, **kwargs)
        except TunewrightError as e:
            if kwargs.get("as_json"):
                print(json.dumps({"problems": [p.as_dict() for p in e.problems]}, ensure_ascii=False))
            print(e.text(), file=sys.stderr)
            raise typer.Exit(e.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None

    return run  # type: ignore[return-value]


def print_json(value: Any) -> None:
    """A result for machines, on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))
