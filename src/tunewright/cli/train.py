"""`tunewright train`, `demo`, `init` and `import`: what a run is made of, and the run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tunewright.cli.speaking import ColumnsFlag, JsonFlag, TrustFlag, print_json, speaks
from tunewright.core.errors import UsageError
from tunewright.core.words import say


@speaks
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN.yaml] [KEY=VALUE]...", help=say("cli.train.words")),
    ] = None,
    model: Annotated[str | None, typer.Option(help=say("cli.model"))] = None,
    data: Annotated[str | None, typer.Option(help=say("cli.data"))] = None,
    data_dir: Annotated[str | None, typer.Option(help=say("cli.data_dir"))] = None,
    columns: ColumnsFlag = None,
    out: Annotated[str | None, typer.Option(help=say("cli.out"))] = None,
    resume: Annotated[bool, typer.Option("--resume", help=say("cli.resume"))] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=say("cli.dry_run"))] = False,
    reward_code: Annotated[
        Path | None, typer.Option("--reward-code", metavar="FILE.py", help=say("cli.reward_code"))
    ] = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Train."""
    from tunewright import rewards
    from tunewright.core.runfile import columns_of
    from tunewright.record.folder import raise_if_finished
    from tunewright.run import gating

    given = list(words or [])
    first = given.pop(0) if given and "=" not in given[0] else None
    if resume and (first is None or model or data or data_dir or columns or out or dry_run):
        if first is not None:
            raise_if_finished(Path(first))
        raise UsageError.of("E-RUN-08", "--resume")
    flags = {
        "model": model,
        "data.train": data,
        "data.dir": data_dir,
        "data.columns": columns_of(columns),
        "out": out,
    }
    with rewards.allowing(reward_code):
        found = _train(Path(first) if first else None, given, flags, resume=resume, dry_run=dry_run)
    if as_json:
        print_json(found)
    if gating.has_failed(found):
        raise typer.Exit(1)


def _train(
    first: Path | None, words: list[str], flags: dict[str, Any], *, resume: bool, dry_run: bool
) -> dict[str, Any]:
    """One run or a pipeline of several, started, continued or only checked; returns what `--json`
    prints."""
    from tunewright import story
    from tunewright.commands import pipeline, pipeline_plan
    from tunewright.commands.dry_run import dry_run as check
    from tunewright.commands.pipeline_file import is_pipeline
    from tunewright.core.runfile import load_run
    from tunewright.record.folder import raise_if_finished
    from tunewright.run import joining

    if resume:
        assert first is not None
        if pipeline.is_pipeline_folder(first):
            if words:
                raise UsageError.of("E-RUN-08", "--resume")
            return pipeline.resume_pipeline(first).summary
        return story.resume_run(first, words=words).summary
    if first is not None and first.is_dir():
        raise_if_finished(first)
        raise UsageError.of("E-RUN-09", str(first))
    if first is not None and is_pipeline(first):
        joining.require_alone(str(first))
        planned = pipeline_plan.load_pipeline(first, words, flags)
        if dry_run:
            return pipeline.check_pipeline(planned)
        return pipeline.run_pipeline(planned).summary
    parsed = load_run(first, words, flags)
    return check(parsed) if dry_run else story.train(parsed).summary


@speaks
def demo(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=say("cli.demo.words"))
    ] = None,
    lang: Annotated[str, typer.Option(help=say("cli.demo.lang"))] = "en",
    model: Annotated[str | None, typer.Option(help=say("cli.model"))] = None,
    out: Annotated[Path | None, typer.Option(help=say("cli.out"))] = None,
    resume: Annotated[bool, typer.Option("--resume", help=say("cli.resume"))] = False,
    as_json: JsonFlag = False,
) -> None:
    """Demo."""
    from tunewright.commands.demo import demo as start

    if lang not in ("en", "zh"):
        raise UsageError.of("E-RUN-10", "--lang", lang=lang)
    run = start(out, lang=lang, model=model, words=words, resume=resume)
    if as_json:
        print_json(run.summary)


@speaks
def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help=say("cli.data"))],
    file: Annotated[Path, typer.Option("--file", help=say("cli.init.file"))] = Path("run.yaml"),
    model: Annotated[str | None, typer.Option(help=say("cli.model"))] = None,
    columns: ColumnsFlag = None,
    out: Annotated[str | None, typer.Option(help=say("cli.out"))] = None,
    contract: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help=say("cli.init.contract"))
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Init."""
    from tunewright.advise import first_contract
    from tunewright.advise.starting import starter, write
    from tunewright.core.runfile import columns_of

    mapped = columns_of(columns)
    text = starter(data, model, out=out, name=str(file), columns=mapped, gate=contract)
    made, lines = {"file": str(file)}, [say("init.written", file=file)]
    # A run file that is there stays: a contract may come later.
    kept = contract is not None and file.exists()
    if contract is not None:
        rows = first_contract.write(contract, data, columns=mapped)
        made |= {"contract": str(contract), "rows": str(rows)}
        lines = [say("init.contract", file=contract, rows=rows), *([] if kept else lines)]
    if not kept:
        write(file, text)
    if as_json:
        print_json(made)
    else:
        print("\n".join(lines))


@speaks
def import_file(
    source: Annotated[str, typer.Argument(metavar="FILE", help=say("cli.import.source"))],
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT.yaml]", help=say("cli.import.out"))
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help=say("cli.import.devices"))] = 1,
    force: Annotated[bool, typer.Option("--force", help=say("cli.import.force"))] = False,
    as_json: JsonFlag = False,
) -> None:
    """Import."""
    from tunewright.importing import translate, write

    made = translate(source, devices)
    if as_json:
        if out is not None:
            write(made, out, force)
        print_json({**made.as_dict(), "file": str(out) if out else None})
        return
    print("\n".join(made.describe()), file=sys.stdout if out else sys.stderr)
    if out is None:
        print(made.yaml(), end="")
    else:
        write(made, out, force)
        print(say("import.written", file=out), file=sys.stderr)
