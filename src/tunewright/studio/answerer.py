"""The answerer: a child process of the server that holds opened models and asks them, so that the
page can set the base, the tuned model and other runs side by side.

    python -m tunewright.studio.answerer

Models are opened as `tunewright chat` opens them, in float32 and asked one question at a time, so
the base beside a run answers as a fresh load of it does, to the letter. At most `MOST_OPEN` are
held; what was not asked for longest goes first, and everything after `IDLE_SECONDS`. `lines.py`
says how it is talked to.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from tunewright.core.errors import Problem, TunewrightError, UsageError, problem
from tunewright.core.files import readable_size
from tunewright.core.telling import Quiet
from tunewright.core.words import say
from tunewright.studio.lines import Args, Call, Child, Request

MOST_OPEN, IDLE_SECONDS = 2, 300.0
DTYPE, SPARE_DTYPE = "float32", "bfloat16"
"""What models compute in, and what where memory does not hold that."""
ROOM_SHARE, ROOM_BYTES = 1.1, 300 * 2**20
"""Memory beside the weights: what reading them takes, and keys and values of a conversation."""
STAMPED = (".safetensors", ".gguf", ".yaml", ".jinja")
"""Endings of files that decide how a model answers and change when it is trained on."""
TAIL = 16
"""Tokens at the end of a question in which an opened thought would stand."""


class Turn(BaseModel):
    """One message of a dialogue."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Column(BaseModel):
    """What answers in a column: a run, an adapter, a model; `base`: what it was trained on."""

    target: str
    base: bool = False


class Ask(Args):
    """A question to several columns; `messages` is one dialogue for each, or one for all."""

    columns: list[Column] = Field(min_length=1, max_length=8)
    messages: list[list[Turn]]
    system: str | None = None
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=512, ge=1)
    seed: int | None = 0
    think: bool | None = None

    def dialogue(self, column: int) -> list[Turn]:
        """The messages of a column. Raises UsageError where they end with no question."""
        found = self.messages[column if len(self.messages) > 1 else 0] if self.messages else []
        if not found or found[-1].role != "user" or not found[-1].content.strip():
            raise UsageError(problem("E-STUDIO-36", f"messages[{column}]"))
        return found


@dataclass
class Open:
    """A model in memory."""

    target: str
    base: bool
    answerer: Any
    stamp: tuple[tuple[str, int, int], ...]
    """Of the files it was opened from: a run that went on training is opened anew."""
    used: float = field(default_factory=time.monotonic)


class Answerers:
    """The models that are in memory."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, bool], Open] = {}

    # ---- calls

    def ask(self, request: Request) -> dict[str, Any]:
        """Ask every column in turn, telling each answer as it is made. What goes wrong in one is
        told of it, and the others are asked all the same."""
        asked = request.read(Ask)
        if len(asked.messages) not in (1, len(asked.columns)):
            wanted = len(asked.columns)
            raise UsageError(
                problem("E-STUDIO-37", "messages", found=len(asked.messages), wanted=wanted)
            )
        told: list[dict[str, Any]] = []
        for number in range(len(asked.columns)):
            request.check()
            try:
                told.append(self._column(request, asked, number))
            except TunewrightError as error:
                said = [one.as_dict() for one in error.problems]
                request.event("problem", column=number, problems=said)
                told.append({"problems": said})
        return {"columns": told}

    def release(self, request: Request) -> dict[str, Any]:
        """Free models: those of `targets`, or all."""
        wanted = request.args.get("targets")
        keys = [key for key in self.open if not wanted or key[0] in wanted]
        self._drop(keys)
        return {"released": sorted({target for target, _ in keys})}

    def targets(self, request: Request) -> list[dict[str, Any]]:
        """What is in memory."""
        now = time.monotonic()
        return [
            {
                "target": one.target,
                "name": one.answerer.name,
                "base": one.base,
                "has_base": one.answerer.switches,
                "dtype": one.answerer.world.dtype,
                "bytes": _bytes_of(one.answerer.model),
                "idle_seconds": round(now - one.used, 1),
            }
            for one in self.open.values()
        ]

    def rest(self) -> None:
        """Free everything: nothing was asked for a while."""
        self._drop(list(self.open))

    # ---- one column

    def _column(self, request: Request, asked: Ask, number: int) -> dict[str, Any]:
        from tunewright.core.types import Message

        column = asked.columns[number]
        turns = asked.dialogue(number)
        answerer, as_base = self._answerer(request, column, number)
        start = answerer.start(asked.system)
        if any(turn.role == "system" for turn in turns):
            start = []  # the dialogue brings its own
        messages = [*start, *(Message(turn.role, turn.content) for turn in turns)]
        renderer = answerer.base_renderer if as_base and answerer.attached else answerer.renderer
        before, renderer.thinking = renderer.thinking, _thinking(renderer.thinking, asked.think)
        try:
            return _answered(request, asked, number, answerer, as_base, messages, renderer)
        finally:
            renderer.thinking = before

    def _answerer(self, request: Request, column: Column, number: int) -> tuple[Any, bool]:
        """(what answers, whether it is asked as its own base)."""

        def tell(text: str) -> None:
            request.event("loading", column=number, text=text)

        if not column.base:
            return self._opened(column.target, False, tell).answerer, False
        if (column.target, True) in self.open:
            return self._opened(column.target, True, tell).answerer, False
        found = self._opened(column.target, False, tell).answerer
        if found.switches:
            return found, True
        # Every weight was trained: the base is a model of its own.
        return self._opened(column.target, True, tell).answerer, False

    # ---- what is in memory

    def _opened(self, target: str, base: bool, tell: Callable[[str], None]) -> Open:
        there = self.open.get((target, base))
        if there is not None and there.stamp != stamp_of(target):
            self._drop([(target, base)])
            there = None
        if there is None:
            there = self._load(target, base, tell)
            self.open[target, base] = there
        there.used = time.monotonic()
        return there

    def _load(self, target: str, base: bool, tell: Callable[[str], None]) -> Open:
        from tunewright.engine.decoding.writer import worth_packing
        from tunewright.engine.naming import find
        from tunewright.models.kernels.packed import Packs
        from tunewright.serve.answering import open_target

        name, stamp = Path(target).name or target, stamp_of(target)
        tell(say("studio.ask.opening", name=name))
        found = find(target, Quiet(), base=base)
        while len(self.open) >= MOST_OPEN:
            self._drop([self._oldest()])
        dtype = self._dtype_that_fits(found, name)
        if dtype != DTYPE:
            tell(say("studio.ask.narrow", name=name, dtype=dtype))
        opened = open_target(target, Quiet(), base=base, dtype=dtype)
        if worth_packing(opened.causal):
            opened.packs = Packs()
        tell(say("studio.ask.opened", name=name))
        return Open(target, base, opened, stamp)

    def _dtype_that_fits(self, found: Any, name: str) -> str:
        """float32, or half of it where that alone fits; models that are open give way first. Raises
        UsageError (E-STUDIO-35)."""
        from tunewright.core.machine import free_bytes
        from tunewright.engine.placement import resolve_device

        device = resolve_device("auto")[0]
        while True:
            free = free_bytes(device)
            if needed_bytes(found, DTYPE) <= free:
                return DTYPE
            if not self.open:
                break
            self._drop([self._oldest()])
        if needed_bytes(found, SPARE_DTYPE) <= free:
            return SPARE_DTYPE
        least = readable_size(needed_bytes(found, SPARE_DTYPE))
        raise UsageError(
            problem("E-STUDIO-35", name, name=name, needed=least, free=readable_size(free))
        )

    def _oldest(self) -> tuple[str, bool]:
        return min(self.open, key=lambda key: self.open[key].used)

    def _drop(self, keys: list[tuple[str, bool]]) -> None:
        from tunewright.core.machine import return_freed_memory

        for key in keys:
            del self.open[key]
        if keys:
            gc.collect()
            return_freed_memory()


def needed_bytes(found: Any, dtype: str) -> int:
    """Memory that it takes to open a target, from the sizes that its configuration states."""
    from tunewright.advise import fit
    from tunewright.models.shape import BYTES

    weights = fit.shape_of(found.source.folder).parameters * BYTES[dtype]
    beside = 0
    if found.adapter is not None:
        beside = sum(p.stat().st_size for p in Path(found.adapter).glob("*") if p.is_file())
    return int(ROOM_SHARE * (weights + beside)) + ROOM_BYTES


def stamp_of(target: str) -> tuple[tuple[str, int, int], ...]:
    """(name, time, size) of the files that a target is opened from; nothing for one that is no
    place on this machine, which stays as it is."""
    place = Path(target)
    files = [place] if place.is_file() else []
    for folder in (place, place / "adapter", place / "model"):
        if folder.is_dir():
            files += [path for path in sorted(folder.iterdir()) if path.suffix in STAMPED]
    found = ((path, path.stat()) for path in files if path.is_file())
    return tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in found)


def _bytes_of(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _thinking(now: Any, think: bool | None) -> Any:
    return now if think is None else replace(now, asked=think)


def _answered(
    request: Request,
    asked: Ask,
    number: int,
    answerer: Any,
    as_base: bool,
    messages: list[Any],
    renderer: Any,
) -> dict[str, Any]:
    """The answer of a column, told while it is written: thoughts apart from what is said."""
    from tunewright.serve.speech import Parts
    from tunewright.text.rendered import CannotRender
    from tunewright.text.thinking import ends_open

    began = time.perf_counter()
    try:
        prompt = renderer.prompt(messages)
    except CannotRender as error:
        raise UsageError(_unrenderable(error, number)) from error
    parts = Parts(opened=ends_open(renderer.decode(prompt[-TAIL:])))

    def told(new: Sequence[tuple[str, str]]) -> None:
        for kind, text in new:
            request.event("thought" if kind == "thought" else "piece", column=number, text=text)

    answer = answerer.ask(
        messages,
        base=as_base,
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        seed=asked.seed,
        on_piece=lambda piece: told(parts.add(piece)),
        check=request.check,
    )
    told(parts.end())
    thought, text = parts.view()
    found = {
        "end": answer.end,
        "tokens": len(answer.tokens),
        "seconds": round(time.perf_counter() - began, 3),
        "text": text,
        "thought": thought,
    }
    request.event("end", column=number, **found)
    return found


def _unrenderable(error: Any, number: int) -> Problem:
    reason = (error.detail or str(error))[:300]
    return problem("E-STUDIO-38", f"messages[{number}]", reason=reason)


def main() -> None:
    """Answer the server until it is gone."""
    models = Answerers()
    calls: dict[str, Call] = {
        "ask": models.ask,
        "release": models.release,
        "targets": models.targets,
    }
    Child(calls, keeps=("ask", "release"), idle=models.rest, idle_seconds=IDLE_SECONDS).run()


if __name__ == "__main__":
    main()
