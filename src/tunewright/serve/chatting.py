"""A conversation on the terminal."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from tunewright.core.errors import ModelError
from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.serve.answering import Answerer

_show = partial(print, end="", flush=True)


def reply(answerer: Answerer, messages: list[Message], *, compare: bool, **how: Any) -> str:
    """Print the answer as it comes; with `compare` the base's first. `how` are the settings of
    `Answerer.ask`. Returns the (tuned) answer."""
    if compare:
        _show(say("chat.base"))
        _ask(answerer, messages, base=True, **how)
        _show(say("chat.tuned"))
    return _ask(answerer, messages, **how)


def _ask(answerer: Answerer, messages: list[Message], **how: Any) -> str:
    found = answerer.ask(messages, on_piece=_show, **how)
    print(flush=True)
    if found.end == "context":
        print(say("chat.context_full"), file=sys.stderr)
    return found.text


def converse(answerer: Answerer, *, system: str | None, compare: bool, **how: Any) -> None:
    """Read questions until the input ends or /quit; /new forgets the conversation. Piped input is
    answered line by line, each on its own.

    Raises ModelError for a piped question that fills the context; in a conversation that is said,
    and the next question may be shorter.
    """
    live = sys.stdin.isatty()
    if live:
        print(say("chat.hint"), file=sys.stderr)
    start = answerer.start(system)
    messages = list(start)
    while True:
        try:
            text = input(say("chat.you") if live else "")
        except EOFError:
            return
        if not text.strip():
            continue
        if text.strip() in ("/quit", "/exit"):
            return
        if text.strip() == "/new":
            messages = list(start)
            continue
        if not live:
            messages = list(start)
        try:
            said = reply(answerer, [*messages, Message("user", text)], compare=compare, **how)
        except ModelError as e:
            if not live:
                raise
            print(e.text(), file=sys.stderr)
            continue
        messages += [Message("user", text), Message("assistant", said)]
