"""`tunewright chat`, `explain` and `list`: questions to a model, and to Tunewright itself."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from tunewright.cli.speaking import JsonFlag, ThinkFlag, TrustFlag, print_json, show, speaks
from tunewright.core.errors import UsageError
from tunewright.core.telling import Tell
from tunewright.core.words import say


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
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help=say("cli.chat.top_p"))] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help=say("cli.chat.top_k"))] = 0,
    seed: Annotated[int | None, typer.Option(help=say("cli.chat.seed"))] = None,
    stop: Annotated[list[str] | None, typer.Option(help=say("cli.chat.stop"))] = None,
    think: ThinkFlag = None,
    trust_code: TrustFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Chat."""
    from tunewright.core.types import Message
    from tunewright.serve.chatting import converse, reply

    if base and compare:
        raise UsageError.of("E-RUN-11", "--base --compare")
    answerer = _speaker(target, base=base, think=think)
    if compare and answerer.attached is None:
        raise UsageError.of("E-RUN-12", "--compare", target=target)
    how: dict[str, Any] = {
        "complete": complete,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop_texts": tuple(stop or ()),
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
        reply(answerer, messages, compare=compare, timed=sys.stderr.isatty(), **how)
        return
    began = time.perf_counter()
    found = answerer.ask(messages, **how)
    said: dict[str, Any] = {
        "question": question,
        "system": start[0].content if start else None,
        "answer": found.text,
        "ended": found.end,
        "tokens": len(found.tokens),
        "seconds": round(time.perf_counter() - began, 3),
    }
    if compare:
        other = answerer.ask(messages, base=True, **how)
        said |= {"base": other.text, "base_ended": other.end}
    print_json(said)


def _speaker(target: str, *, base: bool, think: bool | None) -> Any:
    """What is talked to: an address, or a model that is opened here."""
    from tunewright.evaluate.address import Address, is_address

    if is_address(target):
        from tunewright.commands.talking import AddressSpeaker

        for flag, given in (("--base", base), ("--think", think is not None)):
            if given:
                raise UsageError.of("E-CHAT-04", flag, address=target)
        return AddressSpeaker(Address.of(target))
    from tunewright.serve.answering import open_target

    return open_target(target, Tell(), base=base, think=think)


@speaks
def explain(
    word: Annotated[str, typer.Argument(metavar="WORD|KEY|CODE", help=say("cli.explain.word"))],
    as_json: JsonFlag = False,
) -> None:
    """Explain."""
    from tunewright.advise import explaining

    show(explaining.explain(word), explaining.lines, as_json=as_json)


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
