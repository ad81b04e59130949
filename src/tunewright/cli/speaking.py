"""What every command does alike: errors become one message and an exit code, results become JSON on
stdout."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from tunewright.core.errors import TunewrightError, UnexpectedError
from tunewright.core.words import say

F = TypeVar("F", bound=Callable[..., Any])
JsonFlag = Annotated[bool, typer.Option("--json", help=say("cli.json"))]
ColumnsFlag = Annotated[
    list[str] | None, typer.Option("--columns", metavar="OURS=THEIRS,...", help=say("cli.columns"))
]
ThinkFlag = Annotated[bool | None, typer.Option("--think/--no-think", help=say("cli.think"))]
TrustFlag = Annotated[
    list[str] | None,
    typer.Option("--trust-code", metavar="sha256:HASH", help=say("cli.trust_code")),
]
"""Lets a model's own code run in this command, if it is exactly the code with this hash. `speaks`
reads it; no file and no variable can set it."""


def speaks(command: F) -> F:
    """Turn our errors into one message on stderr (or JSON on stdout) and the right exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            if kwargs.get("trust_code"):
                from tunewright.sources.remote_code import trusting

                with trusting(kwargs["trust_code"]):
                    return command(*args, **kwargs)
            return command(*args, **kwargs)
        except TunewrightError as e:
            raise told(e, as_json=bool(kwargs.get("as_json"))) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except Exception as e:
            raise _unforeseen(e, as_json=bool(kwargs.get("as_json"))) from None

    return run  # type: ignore[return-value]


def told(error: TunewrightError, *, as_json: bool) -> typer.Exit:
    """Say an error of ours; the exit to raise."""
    if as_json:
        print(json.dumps({"problems": [p.as_dict() for p in error.problems]}, ensure_ascii=False))
    print(error.text(), file=sys.stderr)
    return typer.Exit(error.exit_code)


def _unforeseen(error: Exception, *, as_json: bool) -> typer.Exit:
    """Say that something happened that nobody foresaw, with its traceback in a file and not on the
    screen; the exit to raise."""
    from tunewright.core import faults
    from tunewright.core.publish import cache_root

    code = "E-RUN-17" if faults.is_memory(error) else "E-RUN-16"
    place = faults.keep(error, cache_root() / "tracebacks")
    return told(UnexpectedError.of(code, place, cause=faults.cause_of(error)), as_json=as_json)


def print_json(value: Any) -> None:
    """A result for machines, on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def show(result: Any, lines: Callable[[Any], list[str]], *, as_json: bool) -> None:
    """A result on stdout: for machines, or in `lines` for people."""
    if as_json:
        print_json(result)
    else:
        print("\n".join(lines(result)))
