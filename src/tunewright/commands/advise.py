"""`tunewright advise`: what to do with this model and this data, measured.

The story: split the rows; measure what needs no language model; ask the model as it is, after
examples, after passages, for SQL; train a short LoRA and ask that; walk down the decision tree with
the differences. It goes from cheap to expensive and stops where the answer is clear, and says what
it did not measure. Everything lies in the folder of the advice and is not measured again there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tunewright.advise import decide
from tunewright.commands.advising import page
from tunewright.commands.advising.bench import FORMAT, Bench, size_of
from tunewright.commands.advising.question import Question, default_out, is_advice, require_sensible
from tunewright.core import signals
from tunewright.core.files import write_json
from tunewright.core.telling import Tell
from tunewright.core.words import say


def advise(
    question: Question, out: Path, *, tell: Tell | None = None
) -> tuple[dict[str, Any], decide.Verdict]:
    """Measure, decide, and leave `advice.json` and `advice.html` in `out`; returns what is in
    advice.json (keys in docs/advise.md), and the verdict. Raises UsageError for what cannot be read
    or asked before anything is measured."""
    tell = tell or Tell()
    require_sensible(question, out)
    with signals.watching() as stop:
        bench = Bench(question, out, tell, stop.check)
        bench.read()
        bench.measure()
        return _result(bench)


def _result(bench: Bench) -> tuple[dict[str, Any], decide.Verdict]:
    """Decide, write and return the advice."""
    figures = bench.figures()
    verdict = decide.decide(figures)
    made = {
        "format": FORMAT,
        "asked": bench.asked(),
        "rows": {"train": len(bench.rows.train), "held_out": len(bench.rows.held_out)},
        "metric": bench.judge.metric,
        "form_metric": bench.judge.form,
        "ways": {way: _row(bench, way, figures) for way in bench.measured},
        "left_out": bench.left_out,
        "passages": {
            "documents": bench.collection.documents if bench.collection else None,
            "passages": len(bench.prompts.passages),
            "in_a_prompt": bench.prompts.depth,
            "found": _plain(figures.found),
            "found_beyond_chance": _plain(figures.found_gain),
        },
        "tables": {
            "reached": _plain(figures.reached),
            "reached_beyond_chance": _plain(figures.reached_gain),
        }
        if bench.queries
        else None,
        "simple": {
            "suffices": figures.suffices,
            "formula": figures.formula,
            "explained": figures.explained,
        },
        "model_bytes": size_of(bench.found.source.folder),
        "verdict": verdict.as_dict(),
        "next": page.next_commands(bench.q, bench.out, verdict, bench.planned),
        "trained": str(bench.planned.out) if bench.planned else None,
        "examples": _examples(bench),
        "seconds": round(time.monotonic() - bench.began, 1),
    }
    if bench.queries is not None:
        bench.queries.database.close()
    page.write_next(bench.q, bench.base, bench.out, verdict)
    made["page"] = str(page.write_page(bench.out, made, verdict))
    write_json(bench.out / "advice.json", made)
    return made, verdict


def _row(bench: Bench, way: str, figures: decide.Figures) -> dict[str, Any]:
    one = bench.measured[way]
    form = figures.forms.get(way)
    return {
        "score": _plain(figures.scores[way]),
        "form": _plain(form),
        "seconds_per_answer": round(one.seconds_per_answer, 4),
        "prompt_tokens": round(one.prompt_tokens, 1),
        "setup_seconds": round(one.setup_seconds, 2),
        "disk_bytes": one.disk_bytes,
        "when_knowledge_changes": say(f"advise.change.{way}"),
        "ends": one.ends,
        "rows": [round(value, 4) for value in one.scores],
    }


def _examples(bench: Bench, count: int = 8) -> list[dict[str, Any]]:
    """Some held-out rows with what each way answered."""
    found = []
    for i in range(min(count, len(bench.rows.held_out))):
        answers = {
            way: {"answer": one.answers[i], "score": round(one.scores[i], 3)}
            | ({"query": one.queries[i]} if one.queries else {})
            for way, one in bench.measured.items()
        }
        question, expected = bench.rows.questions[i], bench.rows.expected[i]
        found.append({"question": question, "expected": expected, "ways": answers})
    return found


def _plain(value: Any) -> dict[str, float] | None:
    return None if value is None else {k: round(v, 4) for k, v in vars(value).items()}


__all__ = ["Question", "advise", "default_out", "is_advice"]
