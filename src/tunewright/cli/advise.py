"""`tunewright advise`: prompt, retrieve, query, train, or none of it, measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tunewright.cli.speaking import ColumnsFlag, JsonFlag, TrustFlag, print_json, speaks
from tunewright.core.errors import UsageError, problem
from tunewright.core.words import say


@speaks
def advise(
    model: Annotated[str | None, typer.Option(help=say("cli.model"))] = None,
    data: Annotated[str | None, typer.Option(help=say("cli.advise.data"))] = None,
    docs: Annotated[
        Path | None, typer.Option(metavar="FILE|FOLDER", help=say("cli.advise.docs"))
    ] = None,
    tables: Annotated[
        Path | None, typer.Option(metavar="FILE.sqlite|FILE.csv", help=say("cli.advise.tables"))
    ] = None,
    minutes: Annotated[float, typer.Option(help=say("cli.advise.minutes"))] = 6.0,
    seed: Annotated[int, typer.Option(help=say("cli.advise.seed"))] = 0,
    changes: Annotated[
        str | None, typer.Option(metavar="often|rarely", help=say("cli.advise.changes"))
    ] = None,
    users: Annotated[int | None, typer.Option(help=say("cli.advise.users"))] = None,
    rows: Annotated[int | None, typer.Option(help=say("cli.advise.rows"))] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help=say("cli.advise.everything"))
    ] = False,
    question: Annotated[str | None, typer.Option("--ask", help=say("cli.advise.ask"))] = None,
    out: Annotated[Path | None, typer.Option(help=say("cli.advise.out"))] = None,
    data_format: Annotated[str, typer.Option("--format", help=say("cli.evaluate.format"))] = "auto",
    columns: ColumnsFlag = None,
    system: Annotated[str | None, typer.Option(help=say("cli.advise.system"))] = None,
    dtype: Annotated[str | None, typer.Option(help=say("cli.dtype"))] = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Advise."""
    from tunewright.commands.advise import Question, default_out
    from tunewright.core.runfile import columns_of

    if question is not None:
        _ask(question, out, as_json=as_json)
        return
    missing = [name for name, value in (("--model", model), ("--data", data)) if not value]
    if model is None or data is None or missing:
        raise UsageError(problem("E-ADVISE-07", ", ".join(missing)))
    if sys.stdin.isatty() and sys.stderr.isatty() and not as_json:
        changes, users = _asked(changes, users)
    asked = Question(
        model=model,
        data=data,
        docs=docs,
        tables=tables,
        minutes=minutes,
        seed=seed,
        changes=changes,  # type: ignore[arg-type]  # looked at by `advise`
        users=users,
        held_out=rows,
        columns=columns_of(columns) or {},
        data_format=data_format,
        system=system,
        dtype=dtype,
        everything=everything,
    )
    _advise(asked, out or default_out(data), as_json=as_json)


def _advise(asked: Any, out: Path, *, as_json: bool) -> None:
    from tunewright.commands.advise import advise as start

    made, verdict = start(asked, out)
    if as_json:
        print_json(made)
        return
    from tunewright.commands.advising import page

    _show(page.table(made))
    print("\n".join(page.lines(made, verdict)))


def _show(cells: list[list[str]]) -> None:
    """The comparison on stdout; wide where nobody's terminal says how wide."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    head, *rows = cells
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for i, name in enumerate(head):
        shown.add_column(name, justify="right" if 2 <= i < len(head) - 1 else "left", no_wrap=i < 2)
    for row in rows:
        shown.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(shown)


def _asked(changes: str | None, users: int | None) -> tuple[str | None, int | None]:
    """What cannot be measured, asked once; an empty answer leaves it open."""
    if changes is None:
        answer = typer.prompt(say("advise.ask.changes"), default="", show_default=False, err=True)
        changes = {"o": "often", "r": "rarely"}.get(answer.strip().lower()[:1])
    if users is None:
        answer = typer.prompt(say("advise.ask.users"), default="", show_default=False, err=True)
        users = int(answer) if answer.strip().isdigit() and int(answer) > 0 else None
    return changes, users


def _ask(question: str, out: Path | None, *, as_json: bool) -> None:
    """One question in the way that an advice chose."""
    from tunewright.commands.advising.answering import answer_with

    if out is None:
        raise UsageError(problem("E-ADVISE-07", "--out"))
    found = answer_with(out, question)
    if as_json:
        print_json(found)
        return
    for line in found["about"]:
        print(line, file=sys.stderr)
    print(found["answer"])
