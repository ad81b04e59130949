"""`tunewright data ...`: what the model would learn from, checked, shown and converted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tunewright.cli.speaking import JsonFlag, TrustFlag, print_json, speaks
from tunewright.cli.understanding import App
from tunewright.core.words import say

data_app = App(help=say("cli.data_app"))


@data_app.command("convert", help=say("cli.data.convert"))
@speaks
def data_convert(
    source: Annotated[str, typer.Argument(metavar="IN", help=say("cli.data.convert.source"))],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.data.convert.out"))],
    to: Annotated[str, typer.Option("--to", help=say("cli.data.convert.to"))],
    data_format: Annotated[
        str, typer.Option("--format", help=say("cli.data.convert.format"))
    ] = "auto",
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="OURS=THEIRS", help=say("cli.data.convert.columns")),
    ] = None,
    data_dir: Annotated[str | None, typer.Option("--data-dir", help=say("cli.data_dir"))] = None,
    drop: Annotated[bool, typer.Option("--drop", help=say("cli.data.convert.drop"))] = False,
    force: Annotated[bool, typer.Option("--force", help=say("cli.data.convert.force"))] = False,
    as_json: JsonFlag = False,
) -> None:
    """Convert."""
    from tunewright.core.runfile import columns_of
    from tunewright.data.converting import convert

    made = convert(
        source,
        out,
        to,
        data_format=data_format,
        columns=columns_of(columns),
        data_dir=data_dir,
        drop=drop,
        force=force,
    )
    if as_json:
        print_json(made.as_dict())
    else:
        print("\n".join(made.lines()))


@data_app.command("check", help=say("cli.check"))
@speaks
def data_check(
    file: Annotated[str, typer.Argument(metavar="FILE", help=say("cli.check.file"))],
    model: Annotated[str | None, typer.Option(help=say("cli.check.model"))] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FOLDER", help=say("cli.check.tokenizer"))
    ] = None,
    held_out: Annotated[
        str | None, typer.Option("--held-out", help=say("cli.check.held_out"))
    ] = None,
    data_format: Annotated[str, typer.Option("--format", help=say("cli.check.format"))] = "auto",
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="OURS=THEIRS", help=say("cli.check.columns")),
    ] = None,
    data_dir: Annotated[str | None, typer.Option("--data-dir", help=say("cli.data_dir"))] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=2, help=say("cli.check.max_tokens"))
    ] = None,
    oversize: Annotated[
        Literal["drop", "truncate"], typer.Option(help=say("cli.check.oversize"))
    ] = "drop",
    objective: Annotated[
        str | None, typer.Option(metavar="NAME", help=say("cli.check.objective"))
    ] = None,
    good_only: Annotated[
        bool, typer.Option("--good-only", help=say("cli.check.good_only"))
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="OUT", help=say("cli.check.html"))
    ] = None,
    repair: Annotated[
        Path | None, typer.Option("--repair", metavar="OUT", help=say("cli.check.repair"))
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check."""
    from tunewright.data.checks.driver import check, describe_checked
    from tunewright.data.checks.opening import open_tokenizer, with_system

    if repair is not None:
        _repair(file, repair, as_json)
        return
    keys = {
        "held_out": held_out,
        "dir": data_dir,
        "format": data_format,
        "max_tokens": max_tokens,
        "oversize": oversize,
        "good_only": good_only,
    }
    config = _data_config(file, columns, **keys)
    opened = open_tokenizer(model, tokenizer)
    checked = check(with_system(config, opened), opened, objective)
    if as_json:
        print_json(checked.as_dict())
    else:
        print(describe_checked(checked, colour=sys.stdout.isatty()))
    if html is not None:
        from tunewright.report.data_page import write_check_page

        write_check_page(html, checked, Path(file).name)
        print(say("check.page.written", file=html), file=sys.stderr)
    if checked.is_stopped:
        raise typer.Exit(2)


@data_app.command("show", help=say("cli.show"))
@speaks
def data_show(
    file: Annotated[str, typer.Argument(metavar="FILE", help=say("cli.check.file"))],
    row: Annotated[int | None, typer.Option("--row", min=1, help=say("cli.show.row"))] = None,
    at_random: Annotated[bool, typer.Option("--random", help=say("cli.show.random"))] = False,
    model: Annotated[str | None, typer.Option(help=say("cli.check.model"))] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FOLDER", help=say("cli.check.tokenizer"))
    ] = None,
    data_format: Annotated[str, typer.Option("--format", help=say("cli.check.format"))] = "auto",
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="OURS=THEIRS", help=say("cli.check.columns")),
    ] = None,
    data_dir: Annotated[str | None, typer.Option("--data-dir", help=say("cli.data_dir"))] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="OUT", help=say("cli.show.html"))
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show."""
    from tunewright.data.checks.opening import open_tokenizer, with_system
    from tunewright.data.checks.showing import describe_row, show_row

    config = _data_config(file, columns, dir=data_dir, format=data_format, held_out=0)
    opened = open_tokenizer(model, tokenizer)
    found = show_row(with_system(config, opened), opened, None if at_random else row or 1)
    if as_json:
        print_json(found.as_dict())
    else:
        print(describe_row(found, colour=sys.stdout.isatty()))
    if html is not None:
        from tunewright.report.data_page import write_row_page

        write_row_page(html, found, Path(file).name)
        print(say("check.page.written", file=html), file=sys.stderr)


@data_app.command("think", help=say("cli.data.think"))
@speaks
def data_think(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help=say("cli.data.think.model"))],
    rows: Annotated[str, typer.Argument(metavar="ROWS", help=say("cli.check.file"))],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.data.think.out"))],
    draws: Annotated[int, typer.Option(min=1, help=say("cli.data.think.draws"))] = 4,
    match: Annotated[
        Literal["auto", "exact", "numeric", "contains"],
        typer.Option(help=say("cli.data.think.match")),
    ] = "auto",
    rewards: Annotated[
        str | None, typer.Option(metavar="KIND,...", help=say("cli.data.think.rewards"))
    ] = None,
    reward_code: Annotated[
        Path | None, typer.Option("--reward-code", metavar="FILE.py", help=say("cli.reward_code"))
    ] = None,
    hint: Annotated[bool, typer.Option("--hint/--no-hint", help=say("cli.data.think.hint"))] = True,
    drawn_answers: Annotated[
        bool, typer.Option("--drawn-answers", help=say("cli.data.think.drawn_answers"))
    ] = False,
    drop_rest: Annotated[
        bool, typer.Option("--drop-rest", help=say("cli.data.think.drop_rest"))
    ] = False,
    temperature: Annotated[float, typer.Option(help=say("cli.data.think.temperature"))] = 0.7,
    top_p: Annotated[float, typer.Option(help=say("cli.data.think.top_p"))] = 0.95,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help=say("cli.data.think.max_new_tokens"))
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help=say("cli.evaluate.limit"))] = None,
    system: Annotated[str | None, typer.Option(help=say("cli.data.think.system"))] = None,
    seed: Annotated[int, typer.Option(help=say("cli.evaluate.seed"))] = 0,
    data_format: Annotated[str, typer.Option("--format", help=say("cli.check.format"))] = "auto",
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="OURS=THEIRS", help=say("cli.check.columns")),
    ] = None,
    data_dir: Annotated[str | None, typer.Option("--data-dir", help=say("cli.data_dir"))] = None,
    dtype: Annotated[str | None, typer.Option(help=say("cli.dtype"))] = None,
    force: Annotated[bool, typer.Option("--force", help=say("cli.data.convert.force"))] = False,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Think."""
    from tunewright.commands.thoughts.made import How
    from tunewright.commands.thoughts.think import think
    from tunewright.core.runfile import columns_of
    from tunewright.rewards import allowing

    how = How(
        draws=draws,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        match=match,
        rewards=rewards,
        hint=hint,
        keep_answer=not drawn_answers,
        keep_rest=not drop_rest,
        seed=seed,
    )
    with allowing(reward_code):
        made = think(
            model,
            rows,
            out,
            how,
            data_format=data_format,
            columns=columns_of(columns),
            data_dir=data_dir,
            limit=limit,
            system=system,
            dtype=dtype,
            force=force,
        )
    if as_json:
        print_json(made.as_dict())
    else:
        print("\n".join(made.lines()))


def _data_config(file: str, columns: list[str] | None, **keys: Any) -> Any:
    """The section `data` that the flags describe, with the messages of a run file for what is
    wrong."""
    from tunewright.core.config import DataConfig
    from tunewright.core.runfile import columns_of

    given = {"columns": columns_of(columns), **keys}
    return DataConfig(
        train=file, **{key: value for key, value in given.items() if value is not None}
    )


def _repair(file: str, out: Path, as_json: bool) -> None:
    from tunewright.data.files.repairing import describe_repair, repair_file

    mended = repair_file(Path(file).expanduser(), out)
    if as_json:
        changed = {kind: count for kind, count in mended.changes.items() if count}
        print_json(
            {
                "out": str(out) if changed else None,
                "changes": changed,
                "changed_lines": mended.changed_lines,
                "diff": mended.diff,
                "lost": mended.lost,
            }
        )
    else:
        print(describe_repair(Path(file), out, mended))
