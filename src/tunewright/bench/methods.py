"""`tunewright bench methods`: the same rows, the same steps, every method, and a table of what each
costs and gives.

Each method is a run of its own in a fresh process, so that memory is that of one method and nothing
of another is left behind. A run differs from the next in `method.kind` alone; options and rates are
the defaults of each kind, unless the run file sets the rate for all. The runs stay in the output
folder and can be chatted with. What is finished there is not done again, so a comparison that was
stopped goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunewright.bench.page import write_methods_page
from tunewright.core import compat
from tunewright.core.comparing import contains
from tunewright.core.errors import UsageError, problem, raise_all
from tunewright.core.files import readable_size, write_json, write_text
from tunewright.core.registry import methods
from tunewright.core.runfile import ParsedRun, kind_of, parse_run
from tunewright.core.telling import Tell, duration
from tunewright.core.words import say
from tunewright.report.record import read_record

FIXED = {
    "probes": 12,
    "engine.save_every": None,
    "engine.evaluate_every": None,
    "engine.keep_best": False,
}
"""The same for all: loss and answers before and at the end, no checkpoints on the way. Twelve
questions are enough to see whether a method answers at all."""
RESULT, TABLE, RUN_FILE = "methods.json", "methods.md", "bench.yaml"
TRIAL, TRIAL_STEPS = ".trial", 4
"""Steps of the short run that says how long one takes, where the budget is seconds."""
COLUMNS = ("kind", "share", "before", "after", "score", "speed", "memory", "size", "merges", "rate")


@dataclass(frozen=True)
class Entrant:
    """A kind, and the bits of its base where they are not the run's: `lora:4` is LoRA on a 4-bit
    base."""

    kind: str
    bits: int | None = None

    @classmethod
    def read(cls, word: str) -> Entrant:
        """From `kind` or `kind:bits`. Raises UsageError for a kind nobody registered."""
        kind, _, bits = word.strip().partition(":")
        if methods.get(kind) is None or bits not in ("", "4", "8"):
            raise UsageError(
                problem("E-METHOD-68", "--kinds", kind=word, known=", ".join(methods.names()))
            )
        return cls(kind, int(bits) if bits else None)

    @property
    def name(self) -> str:
        """As it was written."""
        return self.kind if self.bits is None else f"{self.kind}:{self.bits}"

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return self.kind if self.bits is None else f"{self.kind}-{self.bits}bit"


def bench_methods(
    parsed: ParsedRun,
    out: Path,
    *,
    kinds: list[str] | None = None,
    steps: int = 50,
    seconds: float | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Train every kind for `steps` steps, or for as many as take `seconds`, and compare. Writes
    `methods.json`, `methods.md` and `methods.html` to `out`.

    Returns `rows`, one a kind: `kind`, `trainable`, `share`, `held_out_before`, `held_out_after`,
    `asked`, `right_before`, `right_after`, `answers`, `samples_per_second`, `peak_memory_bytes`,
    `adapter_bytes`, `merges`, `learning_rate`, `steps`, `dtype` and `folder`; one that could not
    run has `problem` instead. The budget of seconds is that of the steps alone: a short trial of
    each kind measures what one step takes. Raises UsageError for an unknown kind or a bad run.
    """
    tell = tell or Tell()
    entrants = (
        [Entrant.read(word) for word in kinds]
        if kinds
        else [Entrant(entry.name) for entry in methods if entry.has_defaults]
    )
    rows = []
    out.mkdir(parents=True, exist_ok=True)
    for number, entrant in enumerate(entrants, 1):
        tell.line(say("compare.kind", number=number, count=len(entrants), kind=entrant.name))
        row = _row(parsed, entrant, out, steps, seconds)
        rows.append(row)
        tell.line(
            say("compare.refused", problem=row["problem"])
            if "problem" in row
            else say("compare.done", **_shown(row))
        )
    result = {
        "steps": steps if seconds is None else None,
        "seconds": seconds,
        "model": parsed.config.model,
        "rows": rows,
        "machine": _machine(),
    }
    write_json(out / RESULT, result)
    write_text(out / TABLE, "\n".join(table(rows)) + "\n")
    result["page"] = str(write_methods_page(out, _cells(rows), rows))
    return result


def _row(
    parsed: ParsedRun, entrant: Entrant, out: Path, steps: int, seconds: float | None
) -> dict[str, Any]:
    if seconds is not None:
        trial = _run(
            entrant, _given(parsed, entrant, out, TRIAL_STEPS, TRIAL) | {"probes": 0}, out, TRIAL
        )
        if "problem" in trial:
            return trial
        steps = max(1, int(seconds / (trial["train_seconds"] / TRIAL_STEPS)))
        recorded = out / f"{entrant.folder}.{RUN_FILE}"
        if (
            recorded.is_file()
        ):  # what was begun with a budget goes on with the steps that were counted then
            steps = int(
                (yaml.safe_load(recorded.read_text(encoding="utf-8")).get("engine") or {}).get(
                    "steps", steps
                )
            )
    return _run(entrant, _given(parsed, entrant, out, steps), out)


def _given(
    parsed: ParsedRun, entrant: Entrant, out: Path, steps: int, suffix: str = ""
) -> dict[str, Any]:
    """The dotted keys of one kind's run: those of the common run, options of its method only where
    the kind is the run's own."""
    own = kind_of(parsed.config.method) == entrant.kind
    given = {
        key: value for key, value in parsed.given.items() if own or not key.startswith("method.")
    }
    given |= {key: value for key, value in FIXED.items() if key not in given} | {
        "engine.steps": steps,
        "method.kind": entrant.kind,
    }
    given["out"] = str(out / (entrant.folder + suffix))
    return given | ({"base.bits": entrant.bits} if entrant.bits else {})


def _run(entrant: Entrant, given: dict[str, Any], out: Path, suffix: str = "") -> dict[str, Any]:
    """One run in a process of its own, or what is left of the same run before."""
    run, text = (
        out / (entrant.folder + suffix),
        yaml.safe_dump(_nested(given), allow_unicode=True, sort_keys=True),
    )
    file = out / f"{run.name}.{RUN_FILE}"
    try:
        raise_all(compat.problems(parse_run(dict(given), {}).config))
    except UsageError as e:
        return {"kind": entrant.name, "problem": e.problems[0].line()}
    same = file.is_file() and file.read_text(encoding="utf-8") == text
    if not (same and _summary(run).get("status") == "done"):
        if run.exists():
            return {"kind": entrant.name, "problem": problem("E-METHOD-69", str(run)).line()}
        write_text(file, text)
        done = subprocess.run(
            [sys.executable, "-m", "tunewright", "train", str(file), "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            return {"kind": entrant.name, "problem": _first_problem(done)}
    return {"kind": entrant.name, **_figures(run, entrant)}


def _nested(given: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in given.items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return nested


def _first_problem(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed run said, in one line."""
    try:
        found = json.loads(done.stdout)["problems"][0]
        return f"{found['code']}  {found['what']}"
    except (ValueError, KeyError, IndexError):
        return next(
            (line for line in reversed(done.stderr.splitlines()) if line.strip()),
            f"exit code {done.returncode}",
        )


def _summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _figures(run: Path, entrant: Entrant) -> dict[str, Any]:
    s, entry = _summary(run), methods.get(entrant.kind)
    assert entry is not None
    whole = (run / "model").is_dir()
    folder = run / ("model" if whole else "adapter")
    answers = [
        {
            "question": a.question,
            "expected": a.expected,
            "before": a.before,
            "after": a.after_reload or a.after,
        }
        for a in read_record(run).answers
    ]
    asked = [a for a in answers if a["expected"].strip()]
    return {
        "trainable": s["trainable_parameters"],
        "share": s["trainable_parameters"] / s["total_parameters"],
        "held_out_before": s.get("held_out_loss_before"),
        "held_out_after": s.get("held_out_loss"),
        "asked": len(asked),
        "right_before": sum(contains(a["before"], a["expected"]) for a in asked),
        "right_after": sum(contains(a["after"], a["expected"]) for a in asked),
        "answers": answers,
        "samples_per_second": s["samples"] / s["train_seconds"] if s["train_seconds"] else None,
        "train_seconds": s["train_seconds"],
        "peak_memory_bytes": s["peak_memory_bytes"],
        "adapter_bytes": sum(f.stat().st_size for f in folder.glob("*.safetensors")),
        "merges": entry.facts.get("merges", True) is True,
        "learning_rate": s["learning_rate"],
        "steps": s["steps"],
        "dtype": s["dtype"],
        "layout": s["layout"],
        "folder": str(run),
    }


def _machine() -> dict[str, Any]:
    """What the figures were taken on: no names, only what decides about speed."""
    import os
    import platform

    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


# ---- as a table


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The comparison in Markdown: it reads as a table on a terminal, too. What could not run stands
    below with its reason."""
    head, *lines = _cells(rows)
    left = {"kind", "merges"}
    out = [
        "| " + " | ".join(line) + " |"
        for line in (head, ["---" if name in left else "---:" for name in COLUMNS], *lines)
    ]
    failed = [f"- `{row['kind']}`: {row['problem']}" for row in rows if "problem" in row]
    return out + (["", *failed] if failed else [])


def _cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The head, then a line for each kind that ran."""
    return [
        [say(f"compare.column.{name}") for name in COLUMNS],
        *([_shown(row)[c] for c in COLUMNS] for row in rows if "problem" not in row),
    ]


def _shown(row: dict[str, Any]) -> dict[str, str]:
    def loss(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return {
        "kind": f"`{row['kind']}`",
        "share": f"{100 * row['share']:.3g} %",
        "before": loss(row["held_out_before"]),
        "after": loss(row["held_out_after"]),
        "score": f"{row['right_before']} → {row['right_after']} / {row['asked']}"
        if row["asked"]
        else "-",
        "speed": f"{row['samples_per_second']:.1f}" if row["samples_per_second"] else "-",
        "memory": readable_size(row["peak_memory_bytes"]),
        "size": readable_size(row["adapter_bytes"]),
        "merges": say("list.yes" if row["merges"] else "list.no"),
        "rate": f"{row['learning_rate']:.2g}",
        "time": duration(row["train_seconds"]),
    }
