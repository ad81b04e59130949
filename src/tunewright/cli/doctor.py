"""`tunewright doctor`: what went wrong with a training."""

from __future__ import annotations

from typing import Annotated

import typer

from tunewright.cli.speaking import ColumnsFlag, JsonFlag, TrustFlag, show, speaks
from tunewright.core.words import say


@speaks
def doctor(
    target: Annotated[str, typer.Argument(metavar="RUN|ADAPTER", help=say("cli.doctor.target"))],
    model: Annotated[str | None, typer.Option(help=say("cli.doctor.model"))] = None,
    data: Annotated[str | None, typer.Option(help=say("cli.doctor.data"))] = None,
    rows: Annotated[int | None, typer.Option(min=1, help=say("cli.doctor.rows"))] = None,
    strict: Annotated[bool, typer.Option("--strict", help=say("cli.doctor.strict"))] = False,
    device: Annotated[str, typer.Option(help=say("cli.doctor.device"))] = "auto",
    data_format: Annotated[str, typer.Option("--format", help=say("cli.evaluate.format"))] = "auto",
    columns: ColumnsFlag = None,
    data_dir: Annotated[str | None, typer.Option(help=say("cli.data_dir"))] = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Doctor."""
    from tunewright.commands.doctor import diagnose
    from tunewright.core.runfile import columns_of
    from tunewright.record.diagnosis import lines

    examination = diagnose(
        target,
        model=model,
        data=data,
        rows=rows,
        device=device,
        data_format=data_format,
        columns=columns_of(columns),
        data_dir=data_dir,
    )
    result = {"target": target, **examination.as_dict()}
    show(result, lambda _: lines(target, examination), as_json=as_json)
    if strict and examination.is_bad:
        raise typer.Exit(1)
