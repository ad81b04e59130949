"""Callbacks: code of a person that is told what a run does, and may stop it or add figures.

A hook gets plain values, never the model, the optimiser or the rows, so it cannot change a step.
The hooks are called where the event is written into `events.jsonl`, which is one place for both:
what a callback hears is what the file says. A hook that raises does not break off in the middle of
a step: the run ends when the step is whole, with a checkpoint, and the error names the callback.
"""

from __future__ import annotations

import inspect
import math
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from tunewright.core import faults
from tunewright.core.errors import Interrupted, Problem, TrainingError, UsageError, problem
from tunewright.core.files import write_bytes
from tunewright.core.words import say

PICTURES = "pictures"
PICTURE_NAME = re.compile(r"[\w][\w.-]{0,99}\.(svg|png)")
HOOKS = ("started", "step", "measured", "checkpoint", "answered", "finished")

Figures = Mapping[str, float]
Status = Literal["done", "stopped", "failed"]
When = Literal["before", "during", "after"]


@dataclass(frozen=True)
class RunStarted:
    """The run begins to learn. `step` is 0, or the step that it goes on from."""

    step: int
    total_steps: int
    device: str
    dtype: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class StepTaken:
    """One optimiser step. `seconds` is what it took; `terms` are the parts of the loss, `figures`
    what the objective watches (a reward, an accuracy). `applied` is False for a step whose loss or
    gradient was not finite: `loss` is then NaN and the weights are as before."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    tokens_per_second: float
    memory_bytes: int
    applied: bool
    terms: Figures
    figures: Figures


@dataclass(frozen=True)
class HeldOutMeasured:
    """The held-out loss under the weights of `step`; 0 is before training. `all_rows`: measured at
    the end over all rows, under the weights that are handed out."""

    step: int
    held_out_loss: float
    figures: Figures
    all_rows: bool = False


@dataclass(frozen=True)
class CheckpointSaved:
    """A verified checkpoint lies in `folder`."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Answer:
    """One question and what the model said. `expected` and `reward`: None where there is none."""

    question: str
    answer: str
    expected: str | None = None
    reward: float | None = None


@dataclass(frozen=True)
class QuestionsAnswered:
    """Answers of the model `before` training, `during` it (`engine.show_answers`, or what the run
    learns from) or `after` it, from the saved files."""

    step: int
    when: When
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class RunFinished:
    """The run ended; `summary` is what `summary.json` holds. The weights are saved; the page is
    written after the hook, so that it can show what the hook adds."""

    status: Status
    reason: str
    summary: Mapping[str, Any]


class Running:
    """What a hook knows of its run and what it may do. Each callback has one of its own."""

    def __init__(self, listeners: Listeners, name: str):
        self._listeners, self._name = listeners, name

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._listeners.folder

    @property
    def settings(self) -> Mapping[str, Any]:
        """The run file by dotted key (`engine.learning_rate`), as resolved."""
        return self._listeners.settings

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return self._listeners.step

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self._listeners.total_steps

    def stop(self, reason: str) -> None:
        """End the run when the next whole step is reached, as early stopping does: it is measured,
        saved and asked, and its status is `done`. From `finished` it does nothing."""
        self._listeners.stop = self._listeners.stop or (self._name, str(reason))

    def add(self, figures: Figures | None = None, /, **named: float) -> None:
        """Write figures of your own into `events.jsonl`, at the step that the run is at; trackers
        and the page show them. Raises TypeError for what is no number."""
        given = {**(figures or {}), **named}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} is {value!r}, not a number")
        told = {str(name): float(value) for name, value in given.items()}
        self._listeners.write("added", step=self.step, by=self._name, figures=told)

    def picture(self, name: str, content: bytes | str) -> Path:
        """Keep a picture in the folder `pictures` of the run; the page and trackers show it, and
        another one of this name is replaced. `name` ends in .svg or .png. Raises ValueError for
        another name."""
        if not PICTURE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a picture such as curve.svg or map.png")
        path = self.folder / PICTURES / name
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, content.encode() if isinstance(content, str) else content)
        return path


class Callback:
    """Derive from it and define the hooks that you need; those of this class do nothing.

    `tunewright.train(..., on=[MyCallback()])` calls them. `name` is how errors and events name it.
    """

    @property
    def name(self) -> str:
        """The name of the class."""
        return type(self).__name__

    def started(self, run: Running, event: RunStarted) -> None:
        """The run begins to learn, or goes on after a stop."""

    def step(self, run: Running, event: StepTaken) -> None:
        """A step was taken."""

    def measured(self, run: Running, event: HeldOutMeasured) -> None:
        """The held-out rows were measured."""

    def checkpoint(self, run: Running, event: CheckpointSaved) -> None:
        """A checkpoint was saved."""

    def answered(self, run: Running, event: QuestionsAnswered) -> None:
        """Questions were answered."""

    def finished(self, run: Running, event: RunFinished) -> None:
        """The run ended, well or not."""


def _nothing(event: str, /, **fields: Any) -> None:
    pass


@dataclass
class Listeners:
    """The callbacks of one run, what they asked for, and the first that raised."""

    callbacks: tuple[Callback, ...] = ()
    folder: Path = Path()
    settings: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    total_steps: int = 0
    write: Callable[..., None] = _nothing
    """Appends an event to `events.jsonl`."""
    stop: tuple[str, str] | None = None
    """(callback, reason) of the first that asked the run to end."""
    fault: TrainingError | None = None

    @classmethod
    def of(cls, callbacks: Iterable[object]) -> Listeners:
        """Raises UsageError for what is no callback."""
        found: list[Callback] = []
        wrong: list[Problem] = []
        for number, one in enumerate(callbacks):
            if isinstance(one, Callback):
                found.append(one)
                wrong += _mistakes(one, f"on[{number}]")
                continue
            is_class = isinstance(one, type) and issubclass(one, Callback)
            code = "E-CALL-02" if is_class else "E-CALL-03"
            shown = one.__name__ if isinstance(one, type) else type(one).__name__
            wrong.append(problem(code, f"on[{number}]", name=shown))
        if wrong:
            raise UsageError(wrong)
        return cls(tuple(found))

    def follow(self, folder: Path, settings: Mapping[str, Any], write: Callable[..., None]) -> None:
        """The run has a folder now, and a place for events."""
        self.folder, self.settings, self.write = folder, _frozen(settings), write

    def tell_answers(self, when: When, probes: Iterable[Any]) -> None:
        """Tell of the questions of the run, with the answers before or after training."""
        told = (
            Answer(one.question, getattr(one, when), one.expected or None)
            for one in (probes if self.callbacks else ())
        )
        if answers := tuple(told):
            self.tell(QuestionsAnswered(self.step, when, answers))

    def hear(self, event: str, fields: Mapping[str, Any]) -> None:
        """Tell the callbacks of an event of `events.jsonl`."""
        if event in ("started", "step"):
            self.step = fields["step"]
            self.total_steps = fields.get("total_steps", self.total_steps)
        make = EVENTS.get(event)
        if make is not None and self.callbacks:
            self.tell(make(fields, self.folder))

    def tell(self, event: object) -> None:
        """Call the hook of an event in every callback. Nothing is called any more after one
        raised, but `finished`."""
        hook = HOOK_OF[type(event)]
        for callback in self.callbacks:
            if self.fault is not None and hook != "finished":
                return
            self._call(callback, hook, event)

    def _call(self, callback: Callback, hook: str, event: object) -> None:
        name = type(callback).__name__
        try:
            name = str(callback.name)
            getattr(callback, hook)(Running(self, name), event)
        except Interrupted:
            raise  # a signal that came while the hook ran
        except faults.UNFORESEEN as e:
            if self.fault is None:
                self.fault = TrainingError(self._fault(name, hook, e))
                self.fault.__cause__ = e

    def _fault(self, name: str, hook: str, error: BaseException) -> Problem:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1] if frames else None
        where = f"{Path(last.filename).name}:{last.lineno}" if last else name
        return problem(
            "E-CALL-01",
            where,
            name=name,
            hook=hook,
            step=self.step,
            cause=faults.cause_of(error),
            file=faults.keep(error, self.folder),
            folder=self.folder,
        )


def _mistakes(callback: Callback, where: str) -> Iterator[Problem]:
    """What would otherwise show only when a hook is called, perhaps after hours: no hook at all, or
    one that cannot take (run, event)."""
    name = type(callback).__name__
    own = [hook for hook in HOOKS if getattr(type(callback), hook) is not getattr(Callback, hook)]
    own += [hook for hook in HOOKS if hook in vars(callback)]
    if not own:
        written = [n for n in dir(callback) if not n.startswith("_") and n not in ("name", *HOOKS)]
        yield problem(
            "E-CALL-04", where, name=name, hooks=", ".join(HOOKS), own=", ".join(written) or "-"
        )
    for hook in own:
        try:
            inspect.signature(getattr(callback, hook)).bind(None, None)
        except TypeError as e:
            yield problem("E-CALL-05", where, name=name, hook=hook, cause=e)
        except ValueError:
            continue  # something callable that does not say what it takes


def _frozen(value: Any) -> Mapping[str, Any]:
    """A copy that nobody can write into: the run goes on with its own."""
    return MappingProxyType(dict(value or {}))


def _step(fields: Mapping[str, Any], _: Path) -> StepTaken:
    return StepTaken(
        step=fields["step"],
        loss=fields["loss"],
        learning_rate=fields["learning_rate"],
        gradient_norm=fields["gradient_norm"],
        seconds=fields["seconds"],
        tokens_per_second=fields["tokens_per_second"],
        memory_bytes=fields["memory_bytes"],
        applied=fields["applied"],
        terms=_frozen(fields["terms"]),
        figures=_frozen(fields.get("figures")),
    )


def _started(fields: Mapping[str, Any], _: Path) -> RunStarted:
    return RunStarted(
        fields["step"],
        fields["total_steps"],
        fields["device"],
        fields["dtype"],
        _frozen(fields["versions"]),
    )


def _measured(fields: Mapping[str, Any], _: Path) -> HeldOutMeasured:
    loss = fields["held_out_loss"]
    return HeldOutMeasured(
        fields["step"],
        math.nan if loss is None else loss,
        _frozen(fields.get("figures")),
        "rows" in fields,
    )


def _answered(fields: Mapping[str, Any], _: Path) -> QuestionsAnswered:
    told = (
        Answer(str(one["question"]), str(one["answer"]), None, one.get("reward"))
        for one in fields["answers"]
    )
    return QuestionsAnswered(fields["step"], "during", tuple(told))


EVENTS: dict[str, Callable[[Mapping[str, Any], Path], object]] = {
    "started": _started,
    "step": _step,
    "evaluation": _measured,
    "evaluation_all": _measured,
    "checkpoint": lambda fields, run: CheckpointSaved(
        fields["step"], run / "checkpoints" / fields["folder"]
    ),
    "answers": _answered,
}
HOOK_OF: dict[type, str] = {
    RunStarted: "started",
    StepTaken: "step",
    HeldOutMeasured: "measured",
    CheckpointSaved: "checkpoint",
    QuestionsAnswered: "answered",
    RunFinished: "finished",
}


def stopped_line(stop: tuple[str, str], step: int) -> str:
    """The sentence of a run that a callback ended."""
    return say("call.stopped", name=stop[0], reason=stop[1], step=step)
