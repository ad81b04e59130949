"""`events.jsonl` as trackers hear it: figures by step, answers, and how the run ended.

A run that was resumed wrote some steps twice. Of steps that are read together the last counts, as
in the report; of a step that was told before, the tracker keeps what it has, since most trackers
cannot take anything back. A resume is exact, so both are the same figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.files import read_json_objects

NO_FIGURES = ("step", "time")
"""Numbers of a step that say which one it is."""
PIECE_BYTES = 8 << 20
"""What is read of the file at one time."""


@dataclass(frozen=True)
class Figures:
    """Figures of one step; `time` is in seconds since 1970."""

    step: int
    time: float
    values: dict[str, float]


@dataclass(frozen=True)
class Answers:
    """Questions that were asked while the run learnt."""

    step: int
    rows: list[dict[str, Any]]


@dataclass
class Batch:
    """What was read at one time, in the order of the steps."""

    figures: list[Figures] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.figures or self.answers)


@dataclass
class Told:
    """How far a tracker was told: the last step of every figure, and of the answers."""

    figures: dict[str, int] = field(default_factory=dict)
    answers: int = -1
    """The step of the last answers; -1 before the first."""

    def news(self, batch: Batch) -> Batch:
        """What of a batch is new; it counts as told from now on."""
        fresh = Batch()
        for one in batch.figures:
            values = {k: v for k, v in one.values.items() if self.figures.get(k, -1) < one.step}
            if values:
                self.figures.update(dict.fromkeys(values, one.step))
                fresh.figures.append(Figures(one.step, one.time, values))
        for told in batch.answers:
            if told.step > self.answers:
                self.answers = told.step
                fresh.answers.append(told)
        return fresh


class EventReader:
    """Reads on from where it stopped."""

    def __init__(self, path: Path):
        self.path, self.offset = path, 0

    def read(self) -> Batch:
        """What was written since the last call; a line that is half written waits."""
        figures: dict[tuple[int, str], tuple[float, float]] = {}
        answers: dict[int, Answers] = {}
        for event in self._events():
            step = event.get("step")
            if not isinstance(step, int) or isinstance(step, bool):
                continue
            if event.get("event") == "answers" and isinstance(event.get("answers"), list):
                answers[step] = Answers(step, [dict(a) for a in event["answers"] if a])
            time = _number(event.get("time")) or 0.0
            for name, value in figures_of(event).items():
                figures[step, name] = (time, value)
        return Batch(_by_step(figures), [answers[step] for step in sorted(answers)])

    def _events(self) -> Iterator[dict[str, Any]]:
        while True:
            try:
                with open(self.path, "rb") as handle:
                    handle.seek(self.offset)
                    data = handle.read(PIECE_BYTES)
            except FileNotFoundError:
                return
            whole = data[: data.rfind(b"\n") + 1]
            if not whole:
                return
            self.offset += len(whole)
            for line in whole.splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # a line that a crash cut
                if isinstance(event, dict):
                    yield event


def _by_step(figures: Mapping[tuple[int, str], tuple[float, float]]) -> list[Figures]:
    steps: dict[int, Figures] = {}
    for (step, name), (time, value) in sorted(figures.items(), key=lambda item: item[0][0]):
        one = steps.setdefault(step, Figures(step, time, {}))
        one.values[name] = value
    return list(steps.values())


def figures_of(event: Mapping[str, Any]) -> dict[str, float]:
    """Tag -> value of one event: `train/loss`, `held_out/loss`, and what callbacks added under
    `own/`."""
    kind = event.get("event")
    found: dict[str, Any] = {}
    if kind == "step":
        found = {f"train/{k}": v for k, v in event.items() if k not in NO_FIGURES}
        found |= _named("terms", event.get("terms"))
        found |= _named("train/figures", event.get("figures"))
    elif kind in ("evaluation", "evaluation_all"):
        place = "held_out" if kind == "evaluation" else "held_out_all"
        found = {f"{place}/loss": event.get("held_out_loss")}
        found |= _named(place, event.get("figures"))
    elif kind == "added":
        found = _named("own", event.get("figures"))
    numbers = {name: _number(value) for name, value in found.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def _named(place: str, values: Any) -> dict[str, Any]:
    given = values.items() if isinstance(values, Mapping) else ()
    return {f"{place}/{name}": value for name, value in given}


def _number(value: Any) -> float | None:
    """A figure of the log: a number, or one of the words that stand for what JSON has not."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else None


def summary_figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of summary.json under `summary/`."""
    found = dict(_named("summary", summary))
    found |= _named("summary/held_out", summary.get("held_out_figures"))
    numbers = {name: _number(value) for name, value in found.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def answers_before_after(run: Path) -> list[dict[str, Any]]:
    """The rows of before_after.jsonl; none where there is no such file yet."""
    try:
        return read_json_objects(run / "before_after.jsonl")
    except OSError:
        return []
