"""`tunewright sweep`: the same run with other settings, and which was best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunewright.cli.speaking import JsonFlag, show, speaks
from tunewright.core.errors import UsageError
from tunewright.core.words import say


@speaks
def sweep(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN.yaml] KEY=A,B,C KEY=LOW..HIGH ...", help=say("cli.sweep.words")
        ),
    ],
    trials: Annotated[int | None, typer.Option(help=say("cli.sweep.trials"))] = None,
    minutes: Annotated[float | None, typer.Option(help=say("cli.sweep.minutes"))] = None,
    out: Annotated[Path | None, typer.Option(help=say("cli.sweep.out"))] = None,
    sampler: Annotated[
        str, typer.Option(metavar="auto|grid|tpe|random", help=say("cli.sweep.sampler"))
    ] = "auto",
    seed: Annotated[int, typer.Option(help=say("cli.sweep.seed"))] = 0,
    prune: Annotated[bool, typer.Option("--prune/--no-prune", help=say("cli.sweep.prune"))] = True,
    metric: Annotated[str, typer.Option(metavar="NAME", help=say("cli.sweep.metric"))] = "",
    higher: Annotated[bool, typer.Option("--higher", help=say("cli.sweep.higher"))] = False,
    resume: Annotated[bool, typer.Option("--resume", help=say("cli.sweep.resume"))] = False,
    as_json: JsonFlag = False,
) -> None:
    """Sweep."""
    from tunewright.commands import sweeping

    if resume:
        if len(words) != 1 or trials or minutes or out or metric:
            raise UsageError.of("E-SWEEP-13", "--resume")
        found = sweeping.resume(Path(words[0]))
    else:
        source = Path(words[0]) if "=" not in words[0] else None
        found = sweeping.start(
            source,
            words[1:] if source else words,
            trials=trials,
            minutes=minutes,
            out=out,
            sampler=sampler,
            seed=seed,
            prune=prune,
            metric=metric,
            higher=higher,
        )
    show(found, sweeping.table, as_json=as_json)
