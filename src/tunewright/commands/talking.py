"""`tunewright chat` with an address: any OpenAI-compatible server, asked as a model here is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunewright.core.errors import UsageError, problem
from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.engine.decoding.answers import Answer
from tunewright.evaluate.address import Address

LOCAL_ONLY = ("base", "complete")
"""What needs the model itself."""


@dataclass
class AddressSpeaker:
    """An address that is talked to."""

    address: Address

    attached = None

    @property
    def name(self) -> str:
        """What the person called it."""
        return self.address.name

    def start(self, system: str | None = None) -> list[Message]:
        """What stands before the first question: the server knows its own system prompt."""
        return [] if system is None else [Message("system", system)]

    def about_system(self, system: str | None = None) -> str | None:
        """A sentence on the system prompt that is sent."""
        if system is None:
            return None
        return say("chat.system_given", system=system) if system else say("chat.system_empty")

    def ask(
        self,
        messages: list[Message],
        *,
        on_piece: Callable[[str], None] = lambda piece: None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop_texts: tuple[str, ...] = (),
        **local: Any,
    ) -> Answer:
        """The answer of the server, as it comes. Raises AddressError and UsageError as `Address`
        does, UsageError for what only a model here can do."""
        for name in LOCAL_ONLY:
            if local.get(name):
                raise UsageError(problem("E-CHAT-04", f"--{name}", address=self.name))
        more: dict[str, Any] = {}
        if top_p != 1.0:
            more["top_p"] = top_p
        if top_k:
            more["top_k"] = top_k
        if stop_texts:
            more["stop"] = list(stop_texts)
        before = len(self.address.notes)
        told = self.address.stream(
            messages,
            on_piece,
            max_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            **more,
        )
        for note in self.address.notes[before:]:
            print(note, file=sys.stderr)
        end: Any = "limit" if told.finish_reason == "length" else "stop"
        return Answer(told.text, end, [0] * told.usage.get("completion_tokens", 0))
