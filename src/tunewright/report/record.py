"""The run folder as the report sees it: every file may be missing, cut short or damaged, and the
record says which.

Counts are made here from `before_after.jsonl` itself, so that a number in the page can be
recomputed from the rows below it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunewright.core.comparing import contains, goes_in_circles
from tunewright.core.errors import TunewrightError
from tunewright.core.runfile import read_yaml

FILES = ("run.yaml", "data_report.json", "events.jsonl", "before_after.jsonl", "summary.json")
KINDS = ("train", "held_out", "probe", "general")


def number(value: Any) -> float | None:
    """A figure of a JSON file: numbers, and the words "NaN", "Infinity", "-Infinity"; None for
    anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def finite(value: Any) -> float | None:
    """`number`, and None for what is not finite."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one."""
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Answer:
    """One question asked before and after."""

    question: str
    expected: str
    before: str
    after: str
    kind: str
    after_reload: str | None = None
    reload_differs: bool = False
    """The saved files answer otherwise than the model in memory did."""
    after_cut: bool = False
    """The answer ended at the length limit (said by the run), or goes in circles (seen here)."""
    pending: bool = False
    """The run ended before the questions were asked again, so nothing can be said about them."""

    @property
    def right_before(self) -> bool:
        return contains(self.before, self.expected)

    @property
    def right_after(self) -> bool:
        return not self.pending and contains(self.after, self.expected)

    @property
    def forgotten(self) -> bool:
        """Right before, not after."""
        return not self.pending and self.right_before and not self.right_after

    @property
    def outcome(self) -> str:
        """`none` without an expectation, else `learnt`, `known` (right both times), `forgotten` or
        `not_yet`."""
        if self.pending or not self.expected.strip():
            return "none"
        if self.right_after:
            return "known" if self.right_before else "learnt"
        return "forgotten" if self.right_before else "not_yet"


@dataclass(frozen=True)
class Count:
    """Counts of one kind of question. `asked` are those with an expected answer."""

    kind: str
    asked: int
    right_before: int
    right_after: int
    forgotten: int
    total: int


@dataclass
class Record:
    """All that a run folder says about its run."""

    run: Path
    settings_text: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    faults: list[tuple[str, str, int]] = field(default_factory=list)
    """(file, `missing`, `damaged` or `lines`, how many lines could not be read)"""

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Step events by number."""
        return self._by_step("step")

    @property
    def measured(self) -> list[dict[str, Any]]:
        """Evaluation events by step."""
        return self._by_step("evaluation")

    def _by_step(self, event: str) -> list[dict[str, Any]]:
        """Events of one name by step. One that came again after a resume counts once, as it came
        last."""
        last = {
            int(n): e
            for e in self.events
            if e.get("event") == event and (n := finite(e.get("step"))) is not None
        }
        return [last[n] for n in sorted(last)]

    @property
    def evaluations(self) -> list[tuple[int, float]]:
        """(step, held-out loss); the loss may be NaN."""
        last = {}
        for e in self.events:
            step, loss = finite(e.get("step")), number(e.get("held_out_loss"))
            if e.get("event") == "evaluation" and step is not None and loss is not None:
                last[int(step)] = loss
        return sorted(last.items())

    @property
    def counts(self) -> list[Count]:
        """One entry for every kind that was asked, in the order of `KINDS`."""
        kinds = dict.fromkeys(
            [
                *(k for k in KINDS if any(a.kind == k for a in self.answers)),
                *(a.kind for a in self.answers),
            ]
        )
        found = []
        for kind in kinds:
            mine = [a for a in self.answers if a.kind == kind]
            asked = [a for a in mine if a.expected.strip() and not a.pending]
            found.append(
                Count(
                    kind,
                    asked=len(asked),
                    right_before=sum(a.right_before for a in asked),
                    right_after=sum(a.right_after for a in asked),
                    forgotten=sum(a.forgotten for a in asked),
                    total=len(mine),
                )
            )
        return found

    def setting(self, key: str) -> str:
        """The value of a dotted key of the run file as text; empty if it is not there."""
        value = self.settings.get(key)
        return "" if value is None else str(value)

    def figure(self, key: str) -> float | None:
        """A figure of the summary; may be NaN."""
        return number(self.summary.get(key))


def status_of_summary(summary: Mapping[str, Any]) -> str:
    """`done`, `stopped`, `failed`, or `unknown` where the summary does not say."""
    status = summary.get("status")
    return status if status in ("done", "stopped", "failed") else "unknown"


def read_record(run: Path) -> Record:
    """Read a run folder. Never raises for what is in the files: what cannot be read stands in
    `faults`."""
    record = Record(run)
    record.summary = _json(record, "summary.json")
    record.data = _json(record, "data_report.json")
    record.events = _lines(record, "events.jsonl")
    record.answers = [_answer(line) for line in _lines(record, "before_after.jsonl")]
    if status_of_summary(record.summary) != "done" and not any(a.after for a in record.answers):
        record.answers = [replace(a, pending=True) for a in record.answers]
    _read_settings(record)
    record.faults.sort(key=lambda fault: FILES.index(fault[0]))
    return record


def _text(record: Record, name: str) -> str | None:
    try:
        return (record.run / name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        record.faults.append((name, "missing", 0))
    except OSError:
        record.faults.append((name, "damaged", 0))
    return None


def _json(record: Record, name: str) -> dict[str, Any]:
    text = _text(record, name)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    record.faults.append((name, "damaged", 0))
    return {}


def _lines(record: Record, name: str) -> list[dict[str, Any]]:
    text = _text(record, name)
    found, bad = [], 0
    # split, not splitlines: an answer may hold U+2028, which is no end of a line in JSON.
    for line in (text or "").split("\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            bad += 1
    if bad:
        record.faults.append((name, "lines", bad))
    return found


def _answer(line: Mapping[str, Any]) -> Answer:
    def text(key: str) -> str:
        value = line.get(key)
        return (
            ""
            if value is None
            else value
            if isinstance(value, str)
            else json.dumps(value, ensure_ascii=False)
        )

    after, reload = text("after"), line.get("after_reload")
    cut = line.get("after_cut") is True or goes_in_circles(after)
    differs = isinstance(reload, str) and reload != after
    return Answer(
        text("question"),
        text("expected"),
        text("before"),
        after,
        text("kind") or "probe",
        reload if isinstance(reload, str) else None,
        differs or line.get("reload_differs") is True,
        cut,
    )


def _read_settings(record: Record) -> None:
    text = _text(record, "run.yaml")
    if text is None:
        return
    record.settings_text = text
    try:
        record.settings = read_yaml(record.run / "run.yaml")[0]
    except (TunewrightError, RecursionError):
        record.faults.append(("run.yaml", "damaged", 0))
