"""A conversation on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.serve.answering import Answerer


def _show(pieces: Iterator[str]) -> str:
    whole = ""
    for piece in pieces:
        print(piece, end="", flush=True)
        whole += piece
    print(flush=True)
    return whole.strip()


def reply(answerer: Answerer, messages: list[Message], *, compare: bool, complete: bool, max_new_tokens: int, temperature: float) -> str:
    """Print the answer as it comes; with `compare` the base's first. Returns the (tuned) answer."""
    kinds = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    if compare:
        print(say("chat.base"), end="", flush=True)
        with answerer.untouched():
            _show(answerer.stream(messages, complete=complete, **kinds))  # type: ignore[arg-type]
        print(say("chat.tuned"), end="", flush=True)
    return _show(answerer.stream(messages, complete=complete, **kinds))  # type: ignore[arg-type]


def converse(answerer: Answerer, *, system: str | None, compare: bool, complete: bool, max_new_tokens: int, temperature: float) -> None:
    """Read questions until the input ends or /quit; /new forgets the conversation. Piped input is answered line by line, each on its own."""
    live = sys.stdin.isatty()
    if live:
        print(say("chat.hint"), file=sys.stderr)
    start = [Message("system", system)] if system else []
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
        messages.append(Message("user", text))
        said = reply(answerer, messages, compare=compare, complete=complete, max_new_tokens=max_new_tokens, temperature=temperature)
        messages.append(Message("assistant", said))
