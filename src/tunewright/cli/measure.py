"""`tunewright evaluate` and `bench`: how good a model is, and how fast a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunewright.cli.other_measures import (
    AgainstFlag,
    ChatFlag,
    ExamFlag,
    ExamLanguageFlag,
    GroupFlag,
    JudgeFlag,
    JudgeLanguageFlag,
    LowestFlag,
    ShotsFlag,
    TasksFlag,
    TasksFolderFlag,
    measured_otherwise,
)
from tunewright.cli.speaking import (
    ColumnsFlag,
    JsonFlag,
    ThinkFlag,
    TrustFlag,
    print_json,
    show,
    speaks,
)
from tunewright.core.errors import TrainingError
from tunewright.core.files import readable_size
from tunewright.core.words import say


@speaks
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help=say("cli.chat.target"))],
    data: Annotated[str | None, typer.Option(help=say("cli.evaluate.data"))] = None,
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
    metrics: Annotated[
        str | None, typer.Option(metavar="A,B,...", help=say("cli.evaluate.metrics"))
    ] = None,
    words: Annotated[str, typer.Option(help=say("cli.evaluate.words"))] = "auto",
    rewards: Annotated[
        str | None, typer.Option(metavar="KIND,...|run", help=say("cli.evaluate.rewards"))
    ] = None,
    reward_code: Annotated[
        Path | None, typer.Option("--reward-code", metavar="FILE.py", help=say("cli.reward_code"))
    ] = None,
    target_error: Annotated[
        float | None, typer.Option(help=say("cli.evaluate.target_error"))
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help=say("cli.evaluate.max_new_tokens"))
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help=say("cli.evaluate.out"))
    ] = None,
    seed: Annotated[int, typer.Option(help=say("cli.evaluate.seed"))] = 0,
    details: Annotated[bool, typer.Option("--details", help=say("cli.evaluate.details"))] = False,
    think: ThinkFlag = None,
    exam: ExamFlag = None,
    tasks: TasksFlag = None,
    tasks_folder: TasksFolderFlag = None,
    shots: ShotsFlag = None,
    as_chat: ChatFlag = False,
    exam_language: ExamLanguageFlag = "auto",
    judge: JudgeFlag = None,
    against: AgainstFlag = None,
    judge_language: JudgeLanguageFlag = "auto",
    group: GroupFlag = None,
    lowest: LowestFlag = False,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Evaluate."""
    from tunewright.core.runfile import columns_of
    from tunewright.evaluate.scoring import evaluate_target, lines
    from tunewright.report import evaluation_page
    from tunewright.rewards import allowing

    other = measured_otherwise(dict(locals()))
    if other is not None:
        return show(*other, as_json=as_json)
    assert data is not None  # else it has said so
    with allowing(reward_code):
        result = evaluate_target(
            target,
            data,
            options=_listed(options),
            metrics=_listed(metrics),
            words=words,  # type: ignore[arg-type]  # judged there
            rewards=rewards,
            target_error=target_error,
            max_new_tokens=max_new_tokens,
            out=out,
            seed=seed,
            limit=limit,
            generate=generate,
            base=base,
            dtype=dtype,
            data_format=data_format,
            columns=columns_of(columns),
            data_dir=data_dir,
            details=details,
            think=think,
            group=group,
            highest=not lowest,
        )
    if out is not None:
        result["page"] = str(evaluation_page.write(result, out))
    show(result, lines, as_json=as_json)


def _listed(text: str | None) -> list[str] | None:
    """Words between commas; None where nothing was given."""
    return None if text is None else [one.strip() for one in text.split(",") if one.strip()]


@speaks
def compare(
    targets: Annotated[
        list[str], typer.Argument(metavar="A B [C]...", help=say("cli.compare.targets"))
    ],
    data: Annotated[str, typer.Option(help=say("cli.evaluate.data"))],
    base: Annotated[bool, typer.Option("--base", help=say("cli.compare.base"))] = False,
    limit: Annotated[int | None, typer.Option(min=1, help=say("cli.compare.limit"))] = None,
    metrics: Annotated[str | None, typer.Option(help=say("cli.compare.metrics"))] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help=say("cli.compare.max_new_tokens"))
    ] = None,
    temperature: Annotated[float, typer.Option(help=say("cli.chat.temperature"))] = 0.0,
    seed: Annotated[int, typer.Option(help=say("cli.compare.seed"))] = 0,
    system: Annotated[str | None, typer.Option(help=say("cli.compare.system"))] = None,
    loss: Annotated[bool, typer.Option("--loss/--no-loss", help=say("cli.compare.loss"))] = True,
    dtype: Annotated[str | None, typer.Option(help=say("cli.dtype"))] = None,
    data_format: Annotated[str, typer.Option("--format", help=say("cli.evaluate.format"))] = "auto",
    columns: ColumnsFlag = None,
    data_dir: Annotated[str | None, typer.Option(help=say("cli.data_dir"))] = None,
    out: Annotated[Path | None, typer.Option(help=say("cli.compare.out"))] = None,
    think: ThinkFlag = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare."""
    from tunewright.core.runfile import columns_of
    from tunewright.report.comparison import lines
    from tunewright.run.comparing import compare as start

    result = start(
        targets,
        data,
        out=out,
        base=base,
        limit=limit,
        wanted=None if metrics is None else [m.strip() for m in metrics.split(",") if m.strip()],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        system=system,
        loss=loss,
        dtype=dtype,
        data_format=data_format,
        columns=columns_of(columns),
        data_dir=data_dir,
        think=think,
    )
    show(result, lines, as_json=as_json)


@speaks
def gate(
    contract: Annotated[
        Path, typer.Argument(metavar="CONTRACT.yaml", help=say("cli.gate.contract"))
    ],
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help=say("cli.gate.target"))],
    against: Annotated[str | None, typer.Option(help=say("cli.gate.against"))] = None,
    out: Annotated[Path | None, typer.Option(help=say("cli.gate.out"))] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE.xml", help=say("cli.gate.junit"))
    ] = None,
    dtype: Annotated[str | None, typer.Option(help=say("cli.dtype"))] = None,
    think: ThinkFlag = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Gate."""
    from tunewright.report.gate_review import lines
    from tunewright.run.gating import gate as start

    result = start(
        contract, target, against=against, out=out, junit=junit, dtype=dtype, think=think
    )
    show(result, lines, as_json=as_json)
    if not result["passed"]:
        raise typer.Exit(1)


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
        raise TrainingError.of("E-TRAIN-05")
