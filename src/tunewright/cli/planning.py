"""`tunewright plan`: what a run will need, here or elsewhere, before its weights are read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewright.cli.speaking import ColumnsFlag, JsonFlag, TrustFlag, print_json, speaks
from tunewright.core.errors import UsageError
from tunewright.core.words import say

if TYPE_CHECKING:
    from tunewright.commands.planning import Planned


@speaks
def plan(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN.yaml] [KEY=VALUE]...", help=say("cli.train.words")),
    ] = None,
    model: Annotated[str | None, typer.Option(help=say("cli.model"))] = None,
    data: Annotated[str | None, typer.Option(help=say("cli.data"))] = None,
    data_dir: Annotated[str | None, typer.Option(help=say("cli.data_dir"))] = None,
    columns: ColumnsFlag = None,
    table: Annotated[bool, typer.Option("--table", help=say("cli.plan.table"))] = False,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help=say("cli.plan.device"))
    ] = None,
    devices_: Annotated[
        int | None, typer.Option("--devices", metavar="N", min=1, help=say("cli.plan.devices"))
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="48GB", help=say("cli.plan.memory"))
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="7B", help=say("cli.plan.size"))
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help=say("cli.plan.rows"))] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help=say("cli.plan.tokens"))] = None,
    price: Annotated[float | None, typer.Option(min=0, help=say("cli.plan.price"))] = None,
    watts: Annotated[float | None, typer.Option(min=0.1, help=say("cli.plan.watts"))] = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Plan."""
    from tunewright.advise import devices
    from tunewright.commands import planning
    from tunewright.core.runfile import columns_of, load_run

    first, given = _run_file(words)
    wish = planning.Wish(
        devices.named(device) if device is not None else None,
        devices.bytes_of(memory) if memory is not None else None,
        price,
        watts,
        rows,
        tokens,
        planning.shape_of_size(size) if size is not None else None,
        devices=devices_,
    )
    named = ("data.train=", "data.dir=", "data=")
    has_data = data or data_dir or first is not None or any(w.startswith(named) for w in given)
    bare = first is None and not any(w.startswith("model=") for w in given)
    if not has_data and (size is not None or table or rows is not None):
        wish = wish.without_data()
    flags = {
        "model": model or size or (planning.ANY_MODEL if table and bare else None),
        "data.train": data or (None if wish.tokens is None else planning.MADE_UP),
        "data.dir": data_dir,
        "data.columns": columns_of(columns),
    }
    parsed = load_run(first, given, {k: v for k, v in flags.items() if v is not None})
    if table:
        found = planning.table(parsed, wish)
        print_json(found) if as_json else print("\n".join(planning.table_lines(found)))
        return
    _show(planning.plan(parsed, wish), as_json=as_json)


def _run_file(words: list[str] | None) -> tuple[Path | None, list[str]]:
    """(the run file, if one is named; single keys). Raises UsageError for a folder, a pipeline."""
    from tunewright.commands.pipeline_file import is_pipeline
    from tunewright.record.folder import raise_if_finished

    given = list(words or [])
    first = Path(given.pop(0)) if given and "=" not in given[0] else None
    if first is not None and first.is_dir():
        raise_if_finished(first)
        raise UsageError.of("E-RUN-09", str(first))
    if first is not None and is_pipeline(first):
        raise UsageError.of("E-FIT-05", str(first))
    return first, given


def _show(planned: Planned, *, as_json: bool) -> None:
    """The plan, and the refusal of a run that does not fit."""
    if as_json:
        print_json(planned.figures)
    else:
        print("\n".join(planned.lines))
    if planned.problems:
        error = UsageError(planned.problems)
        print(error.text(), file=sys.stderr)
        raise typer.Exit(error.exit_code)
