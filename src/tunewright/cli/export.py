"""`tunewright export ...`: a run as something that other programs open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunewright.cli.speaking import JsonFlag, TrustFlag, show, speaks
from tunewright.cli.understanding import App
from tunewright.core.errors import UsageError
from tunewright.core.telling import Tell
from tunewright.core.words import say

export_app = App(help=say("cli.export"))


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

    show(export_difference(run, out, share=share), lines, as_json=as_json)


@export_app.command("shrink", help=say("cli.export.shrink"))
@speaks
def export_shrink(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=say("cli.shrink.model"))],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.export.out"))],
    blocks: Annotated[str, typer.Option(metavar="N|half", help=say("cli.shrink.blocks"))] = "half",
    to: Annotated[str | None, typer.Option(metavar="SIZE", help=say("cli.shrink.to"))] = None,
    heal: Annotated[
        float | None, typer.Option(metavar="MINUTES", help=say("cli.shrink.heal"))
    ] = None,
    data: Annotated[str | None, typer.Option(help=say("cli.quantize.data"))] = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Shrink."""
    from tunewright.export.shrink import lines, shrink

    if to is None:
        show(shrink(model, out, blocks=blocks), lines, as_json=as_json)
        return
    from tunewright.commands import shrinking

    result = shrinking.shrink_to(model, out, to=to, heal=heal, data=data)
    show(result, shrinking.lines, as_json=as_json)


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
    from tunewright.run import gating

    result = merge_run(run, out, dtype=dtype)
    verdict = gating.after_export(run, out)
    show(result if verdict is None else {**result, "gate": verdict}, lines, as_json=as_json)
    if verdict is not None and not verdict["passed"]:
        raise typer.Exit(1)


@export_app.command("gguf", help=say("cli.export.gguf"))
@speaks
def export_gguf(
    run: Annotated[str, typer.Argument(metavar="RUN", help=say("cli.export.target"))],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help=say("cli.export.gguf_out"))],
    kind: Annotated[str | None, typer.Option("--type", help=say("cli.export.type"))] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help=say("cli.export.adapter"))] = False,
    name: Annotated[str | None, typer.Option(help=say("cli.export.name"))] = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """GGUF."""
    from tunewright.export import gguf, gguf_adapter

    if adapter:
        record = gguf_adapter.export_adapter(run, out, type=kind or "f32", name=name)
        show(record, gguf_adapter.lines, as_json=as_json)
    else:
        record = gguf.export_gguf(run, out, type=kind or "q8_0", name=name)
        show(record, gguf.lines, as_json=as_json)


@export_app.command("ollama", help=say("cli.export.ollama"))
@speaks
def export_ollama(
    run: Annotated[str, typer.Argument(metavar="RUN", help=say("cli.export.target"))],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.export.out"))],
    kind: Annotated[str, typer.Option("--type", help=say("cli.export.type_ollama"))] = "q8_0",
    num_ctx: Annotated[int | None, typer.Option(help=say("cli.export.num_ctx"))] = None,
    name: Annotated[str | None, typer.Option(help=say("cli.export.name"))] = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Ollama."""
    from tunewright.export import ollama

    record = ollama.export_ollama(run, out, type=kind, name=name, num_ctx=num_ctx)
    show(record, ollama.lines, as_json=as_json)


@export_app.command("quantize", help=say("cli.export.quantize"))
@speaks
def export_quantize(
    run: Annotated[str, typer.Argument(metavar="RUN|MODEL", help=say("cli.export.target"))],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.export.out"))],
    bits: Annotated[int | None, typer.Option(help=say("cli.quantize.bits"))] = None,
    kind: Annotated[str | None, typer.Option("--type", help=say("cli.quantize.type"))] = None,
    group: Annotated[int, typer.Option(help=say("cli.quantize.group"))] = 32,
    data: Annotated[str | None, typer.Option(help=say("cli.quantize.data"))] = None,
    tokens: Annotated[int, typer.Option(min=1, help=say("cli.quantize.tokens"))] = 8192,
    measure: Annotated[bool, typer.Option(help=say("cli.quantize.measure"))] = True,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Quantise."""
    from tunewright.export.quantize import lines, quantize

    result = quantize(
        run, out, bits=bits, type=kind, group=group, data=data, tokens=tokens, measure=measure
    )
    show(result, lines, as_json=as_json)


@export_app.command("prune", help=say("cli.export.prune"))
@speaks
def export_prune(
    run: Annotated[str, typer.Argument(metavar="RUN|MODEL", help=say("cli.export.target"))],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.export.out"))],
    way: Annotated[str, typer.Option(help=say("cli.prune.way"))] = "wanda",
    share: Annotated[float, typer.Option(help=say("cli.prune.share"))] = 0.5,
    blocks: Annotated[int | None, typer.Option(help=say("cli.prune.blocks"))] = None,
    data: Annotated[str | None, typer.Option(help=say("cli.quantize.data"))] = None,
    heal: Annotated[
        float | None, typer.Option(metavar="MINUTES", help=say("cli.prune.heal"))
    ] = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Prune."""
    from tunewright.export.prune import lines, prune

    given: dict[str, Any] = {"way": way, "share": share, "blocks": blocks, "data": data}
    if heal is None:
        show(prune(run, out, **given), lines, as_json=as_json)
        return
    from tunewright.commands import healing

    result = healing.prune_and_heal(run, out, minutes=heal, **given)
    show(result, healing.lines, as_json=as_json)


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
    from tunewright.export.combine import combine, lines

    try:
        shares = [float(word) for word in weights.split(",")] if weights else None
    except ValueError as e:
        raise UsageError.of("E-METHOD-32", "--weights", count=len(adapters), given=weights) from e
    show(combine(adapters, out, weights=shares, way=way), lines, as_json=as_json)


@export_app.command("safetensors", help=say("cli.export.safetensors"))
@speaks
def export_safetensors(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help=say("cli.export.pickled"))],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=say("cli.export.out"))],
    as_json: JsonFlag = False,
) -> None:
    """Safetensors."""
    from tunewright.sources.pickled import convert, lines

    show(convert(folder, out, Tell().line), lines, as_json=as_json)
