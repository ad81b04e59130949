"""The command line. It speaks to people and holds no logic; every command imports what it needs
when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tunewright.cli.data import data_app
from tunewright.cli.speaking import ColumnsFlag, JsonFlag, ThinkFlag, TrustFlag, print_json, speaks
from tunewright.core.words import say

app = typer.Typer(
    name="tunewright",
    help=say("cli.help"),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
export_app = typer.Typer(help=say("cli.export"), no_args_is_help=True, rich_markup_mode=None)
app.add_typer(export_app, name="export")
app.add_typer(data_app, name="data")


@app.command(help=say("cli.train"))
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
    from tunewright.core.errors import UsageError, problem
    from tunewright.core.runfile import columns_of
    from tunewright.record.folder import raise_if_finished

    given = list(words or [])
    first = given.pop(0) if given and "=" not in given[0] else None
    if resume and (
        first is None or given or model or data or data_dir or columns or out or dry_run
    ):
        if first is not None:
            raise_if_finished(Path(first))
        raise UsageError(problem("E-RUN-08", "--resume"))
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


def _train(
    first: Path | None, words: list[str], flags: dict[str, Any], *, resume: bool, dry_run: bool
) -> dict[str, Any]:
    """One run or a pipeline of several, started, continued or only checked; returns what `--json`
    prints."""
    from tunewright.commands.pipeline_file import is_pipeline
    from tunewright.core.errors import UsageError, problem
    from tunewright.core.runfile import load_run
    from tunewright.record.folder import raise_if_finished

    if resume:
        assert first is not None
        from tunewright import story
        from tunewright.commands import pipeline

        return (
            pipeline.resume_pipeline if pipeline.is_pipeline_folder(first) else story.resume_run
        )(first).summary
    if first is not None and first.is_dir():
        raise_if_finished(first)
        raise UsageError(problem("E-RUN-09", str(first)))
    if first is not None and is_pipeline(first):
        from tunewright.commands import pipeline

        planned = pipeline.load_pipeline(first, words, flags)
        return (
            pipeline.check_pipeline(planned) if dry_run else pipeline.run_pipeline(planned).summary
        )
    parsed = load_run(first, words, flags)
    if dry_run:
        from tunewright.commands.dry_run import dry_run as check

        return check(parsed)
    from tunewright.story import train as start

    return start(parsed).summary


@app.command(help=say("cli.demo"))
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
    from tunewright.core.errors import UsageError, problem

    if lang not in ("en", "zh"):
        raise UsageError(problem("E-RUN-10", "--lang", lang=lang))
    from tunewright.commands.demo import demo as start

    run = start(out, lang=lang, model=model, words=words, resume=resume)
    if as_json:
        print_json(run.summary)


@app.command(help=say("cli.chat"))
@speaks
def chat(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help=say("cli.chat.target"))],
    question: Annotated[
        str | None, typer.Option("--question", "-q", help=say("cli.chat.question"))
    ] = None,
    base: Annotated[bool, typer.Option("--base", help=say("cli.chat.base"))] = False,
    compare: Annotated[bool, typer.Option("--compare", help=say("cli.chat.compare"))] = False,
    complete: Annotated[bool, typer.Option("--complete", help=say("cli.chat.complete"))] = False,
    system: Annotated[str | None, typer.Option(help=say("cli.chat.system"))] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help=say("cli.chat.max"))] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help=say("cli.chat.temperature"))] = 0.0,
    think: ThinkFlag = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Chat."""
    from tunewright.core.errors import UsageError, problem
    from tunewright.core.telling import Tell
    from tunewright.core.types import Message
    from tunewright.serve.answering import open_target

    if base and compare:
        raise UsageError(problem("E-RUN-11", "--base --compare"))
    answerer = open_target(target, Tell(), base=base, think=think)
    if compare and answerer.attached is None:
        raise UsageError(problem("E-RUN-12", "--compare", target=target))
    from tunewright.serve.chatting import converse, reply

    how: dict[str, Any] = {
        "complete": complete,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
    }
    about = None if complete else answerer.about_system(system)
    if about:
        print(about, file=sys.stderr)
    if question is None:
        converse(answerer, system=system, compare=compare, **how)
        return
    start = [] if complete else answerer.start(system)
    messages = [*start, Message("user", question)]
    if not as_json:
        reply(answerer, messages, compare=compare, **how)
        return
    found = answerer.ask(messages, **how)
    said: dict[str, Any] = {
        "question": question,
        "system": start[0].content if start else None,
        "answer": found.text,
        "ended": found.end,
    }
    if compare:
        other = answerer.ask(messages, base=True, **how)
        said |= {"base": other.text, "base_ended": other.end}
    print_json(said)


@app.command(help=say("cli.bench"))
@speaks
def bench(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[methods] [RUN.yaml|MODEL] [KEY=VALUE]...", help=say("cli.bench.words")
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help=say("cli.model"))] = None,
    data: Annotated[str | None, typer.Option(help=say("cli.data"))] = None,
    steps: Annotated[int | None, typer.Option(min=1, help=say("cli.bench.steps"))] = None,
    certificate: Annotated[bool, typer.Option(help=say("cli.bench.certificate"))] = True,
    kinds: Annotated[
        str | None, typer.Option(metavar="A,B,...", help=say("cli.bench.kinds"))
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help=say("cli.bench.seconds"))] = None,
    out: Annotated[Path, typer.Option(help=say("cli.bench.out"))] = Path("runs/bench-methods"),
    as_json: JsonFlag = False,
) -> None:
    """Bench."""
    from tunewright.core.errors import TrainingError, problem
    from tunewright.core.files import readable_size
    from tunewright.core.runfile import load_run

    given = list(words or [])
    compare = bool(given) and given[0] == "methods"
    given = given[1:] if compare else given
    first = given.pop(0) if given and "=" not in given[0] else None
    if compare and first is not None and model is None and not first.endswith((".yaml", ".yml")):
        first, model = None, first
    parsed = load_run(Path(first) if first else None, given, {"model": model, "data.train": data})
    if compare:
        from tunewright.bench.methods import bench_methods, table

        result = bench_methods(
            parsed,
            out,
            kinds=kinds.split(",") if kinds else None,
            steps=steps or 50,
            seconds=seconds,
        )
        if as_json:
            print_json(result)
        else:
            print("\n".join(table(result["rows"])))
            print(say("compare.page", path=result["page"]))
        return
    from tunewright.bench.speed import bench as start

    figures = start(parsed, steps=steps or 4, certificate=certificate)
    if as_json:
        print_json(figures)
    else:
        shown = {
            **figures,
            "share": f"{100 * figures['share_saved']:.0f}",
            "memory": readable_size(figures["peak_memory_bytes"]),
        }
        print(say("bench.figures", **shown))
    if figures.get("certificate", {}).get("passed") is False:
        raise TrainingError(problem("E-TRAIN-05"))


@app.command(help=say("cli.init"))
@speaks
def init(
    data: Annotated[str, typer.Argument(help=say("cli.data"))],
    file: Annotated[Path, typer.Option("--file", help=say("cli.init.file"))] = Path("run.yaml"),
    model: Annotated[str | None, typer.Option(help=say("cli.model"))] = None,
    columns: ColumnsFlag = None,
    out: Annotated[str | None, typer.Option(help=say("cli.out"))] = None,
    as_json: JsonFlag = False,
) -> None:
    """Init."""
    from tunewright.advise.starting import starter, write
    from tunewright.core.runfile import columns_of

    write(file, starter(data, model, out=out, name=str(file), columns=columns_of(columns)))
    if as_json:
        print_json({"file": str(file)})
    else:
        print(say("init.written", file=file))


@app.command("import", help=say("cli.import"))
@speaks
def import_file(
    source: Annotated[Path, typer.Argument(metavar="FILE.yaml", help=say("cli.import.source"))],
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


@app.command(help=say("cli.evaluate"))
@speaks
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help=say("cli.chat.target"))],
    data: Annotated[str, typer.Option(help=say("cli.evaluate.data"))],
    options: Annotated[str | None, typer.Option(help=say("cli.evaluate.options"))] = None,
    limit: Annotated[int | None, typer.Option(min=1, help=say("cli.evaluate.limit"))] = None,
    generate: Annotated[
        bool | None, typer.Option("--generate/--no-generate", help=say("cli.evaluate.generate"))
    ] = None,
    base: Annotated[bool, typer.Option("--base", help=say("cli.chat.base"))] = False,
    dtype: Annotated[str | None, typer.Option(help=say("cli.dtype"))] = None,
    data_format: Annotated[str, typer.Option("--format", help=say("cli.evaluate.format"))] = "auto",
    columns: ColumnsFlag = None,
    data_dir: Annotated[str | None, typer.Option(help=say("cli.data_dir"))] = None,
    details: Annotated[bool, typer.Option("--details", help=say("cli.evaluate.details"))] = False,
    think: ThinkFlag = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Evaluate."""
    from tunewright.core.runfile import columns_of
    from tunewright.evaluate.scoring import evaluate_target, lines

    chosen = None if options is None else [o.strip() for o in options.split(",") if o.strip()]
    result = evaluate_target(
        target,
        data,
        options=chosen,
        limit=limit,
        generate=generate,
        base=base,
        dtype=dtype,
        data_format=data_format,
        columns=columns_of(columns),
        data_dir=data_dir,
        details=details,
        think=think,
    )
    if as_json:
        print_json(result)
    else:
        print("\n".join(lines(result)))


@export_app.command("diff", help=say("cli.export.diff"))
@speaks
def export_diff(
    run: Annotated[Path, typer.Argument(metavar="RUN", help=say("cli.export.run"))],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.export.out"))],
    share: Annotated[float, typer.Option(help=say("cli.export.share"))] = 0.005,
    as_json: JsonFlag = False,
) -> None:
    """Difference."""
    from tunewright.export.diff import export_difference, lines

    result = export_difference(run, out, share=share)
    if as_json:
        print_json(result)
    else:
        print("\n".join(lines(result)))


@export_app.command("shrink", help=say("cli.export.shrink"))
@speaks
def export_shrink(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=say("cli.shrink.model"))],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.export.out"))],
    blocks: Annotated[str, typer.Option(metavar="N|half", help=say("cli.shrink.blocks"))] = "half",
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Shrink."""
    from tunewright.export.shrink import lines, shrink

    result = shrink(model, out, blocks=blocks)
    if as_json:
        print_json(result)
    else:
        print("\n".join(lines(result)))


@export_app.command("merge", help=say("cli.export.merge"))
@speaks
def export_merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help=say("cli.export.run"))],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.export.out"))],
    dtype: Annotated[str | None, typer.Option(help=say("cli.dtype"))] = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Merge."""
    from tunewright.export.merge import lines, merge_run

    verdict = merge_run(run, out, dtype=dtype)
    if as_json:
        print_json(verdict)
    else:
        print("\n".join(lines(verdict)))


@export_app.command("combine", help=say("cli.export.combine"))
@speaks
def export_combine(
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.combine.out"))],
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER...", help=say("cli.combine.adapters"))
    ],
    weights: Annotated[str | None, typer.Option(help=say("cli.combine.weights"))] = None,
    way: Annotated[str, typer.Option(help=say("cli.combine.way"))] = "cat",
    as_json: JsonFlag = False,
) -> None:
    """Combine."""
    from tunewright.core.errors import UsageError, problem
    from tunewright.export.combine import combine, lines

    try:
        shares = [float(word) for word in weights.split(",")] if weights else None
    except ValueError as e:
        raise UsageError(
            problem("E-METHOD-32", "--weights", count=len(adapters), given=weights)
        ) from e
    made = combine(adapters, out, weights=shares, way=way)
    if as_json:
        print_json(made)
    else:
        print("\n".join(lines(made)))


@export_app.command("safetensors", help=say("cli.export.safetensors"))
@speaks
def export_safetensors(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help=say("cli.export.pickled"))],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.export.out"))],
    as_json: JsonFlag = False,
) -> None:
    """Safetensors."""
    from tunewright.core.telling import Tell
    from tunewright.sources.pickled import convert, lines

    marker = convert(folder, out, Tell().line)
    if as_json:
        print_json(marker)
    else:
        print("\n".join(lines(marker)))


@app.command(help=say("cli.explain"))
@speaks
def explain(
    word: Annotated[str, typer.Argument(metavar="WORD|KEY|CODE", help=say("cli.explain.word"))],
    as_json: JsonFlag = False,
) -> None:
    """Explain."""
    from tunewright.advise import explaining

    found = explaining.explain(word)
    if as_json:
        print_json(found)
    else:
        print("\n".join(explaining.lines(found)))


@app.command("list", help=say("cli.list"))
@speaks
def list_names(
    what: Annotated[
        str,
        typer.Argument(
            metavar="methods|objectives|formats|rewards|models|errors", help=say("cli.list.what")
        ),
    ],
    model: Annotated[str | None, typer.Option(help=say("cli.list.model"))] = None,
    as_json: JsonFlag = False,
) -> None:
    """List."""
    from tunewright.advise import listing

    listing.check(what, model)
    shape = listing.shape_of(model)
    rows = listing.rows_of(what, shape)
    if as_json:
        print_json(rows)
        return
    print("\n".join(listing.table(what, rows)))
    for note in listing.notes(what, shape):
        print(note, file=sys.stderr)


def _version(value: bool) -> None:
    if value:
        from tunewright import __version__

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
    # A Windows console may not speak UTF-8; a character it cannot show must not end a run.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app()
