"""`tunewright evaluate`: how well a run or a model does on rows it can be asked: loss, exact
answers, accuracy over a small set of answers.

Rows are read, shaped and rendered by the same code as for training, so what is measured is what was
taught. The loss is the objective's own: the mean negative log-probability of the learnt tokens.
Options are scored in the same passes (`options.py` says how); answers are generated only for free
text, or when asked, because writing an answer costs as many visits to the weights as it has tokens,
and scoring one.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from tunewright.core.comparing import matches
from tunewright.core.config import DataConfig, EngineConfig
from tunewright.core.errors import TunewrightError, UsageError, problem
from tunewright.core.machine import keep_freed_memory, versions
from tunewright.core.telling import Tell, duration, telling_answers
from tunewright.core.types import Conversation, Sample
from tunewright.core.words import say
from tunewright.data import DataSet, inspect
from tunewright.engine import opening, placement
from tunewright.engine.decoding.answers import answer
from tunewright.evaluate import options as choices
from tunewright.evaluate import ranking, step_judging
from tunewright.evaluate.interval import wilson
from tunewright.evaluate.logprobs import Logprobs, logprobs_of
from tunewright.methods.saved import virtual_tokens
from tunewright.models import load

MOST_NEW_TOKENS, SPARE_TOKENS = 512, 8
SHOWN = 5


class EvaluationError(TunewrightError):
    """A measurement that could not be made."""


# ---- answers in full


def _share(right: int, count: int) -> dict[str, Any]:
    return {
        "right": right,
        "share": right / count if count else None,
        "interval_95": list(wilson(right, count)),
    }


def exact_match(
    opened: opening.Opened,
    rows: Sequence[Conversation],
    max_new_tokens: int,
    tell: Tell,
    options: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Greedy answers to every row's question, compared with the row's answer, both without their
    thoughts. `context_full` counts answers that the end of the context cut off, `no_room` questions
    that fill it."""
    model = opened.answering
    prompts = [model.renderer.question(row) for row in rows]
    answers = answer(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        progress=telling_answers(
            tell, say("evaluate.answering"), len(prompts), max_new_tokens * len(prompts)
        ),
    )
    tell.finish()
    texts = [one.text for one in answers]
    bare = model.renderer.without_thoughts
    verdicts = [
        matches(bare(row.answer()), bare(text)) for row, text in zip(rows, texts, strict=True)
    ]
    wrong = [
        {"origin": str(row.origin), "expected": row.answer(), "answer": text}
        for row, text, v in zip(rows, texts, verdicts, strict=True)
        if not v[1]
    ]
    found = {
        "n": len(rows),
        "exact": _share(sum(v[0] for v in verdicts), len(rows)),
        "normalised": _share(sum(v[1] for v in verdicts), len(rows)),
        "max_new_tokens": max_new_tokens,
        "context_full": sum(one.end == "context" for one in answers),
        "no_room": sum(one.end == "no_room" for one in answers),
        "mistakes": wrong[:SHOWN],
    }
    if options is not None:
        found["none_of_the_options"] = sum(text.strip() not in options for text in texts)
    return found


# ---- the whole measurement


def evaluate_target(
    target: str,
    data: str,
    *,
    options: list[str] | None = None,
    limit: int | None = None,
    generate: bool | None = None,
    base: bool = False,
    dtype: str | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    rows_per_pass: int | None = None,
    max_new_tokens: int | None = None,
    data_format: str = "auto",
    columns: dict[str, str] | None = None,
    data_dir: str | None = None,
    details: bool = False,
    think: bool | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Measure `target` (run, adapter, model folder, hub id) on the rows of `data` and return the
    figures (keys in docs/evaluate.md).

    `options` None: detected; an empty list: never. `generate` None: answers are written only where
    there are no options. `base` leaves the adapter out. `details` adds every row's scores; `think`
    asks with thinking or without, by default as the run was.

    Raises UsageError for what cannot be read or asked, EvaluationError for scores that are not
    numbers.
    """
    tell, started = tell or Tell(), time.perf_counter()
    wanted = choices.checked(options) if options else None
    if any(n is not None and n < 1 for n in (limit, max_new_tokens, rows_per_pass)):
        raise UsageError(problem("E-EVAL-05", "--limit --max-new-tokens --rows-per-pass"))
    found = opening.find(target, tell, base=base, think=think)
    config = opening.read_config(found)
    context = load.context_of(config)
    if context is not None and found.adapter is not None:
        context -= virtual_tokens(found.adapter)  # a learnt prompt takes room of the context
    # Rows before weights: a misspelt column is said in a second, not after gigabytes.
    rows = _read(found, data, context, limit, data_format, columns, data_dir)
    if ranking.is_scorer(found):  # not with `base`: the model under a reward model writes
        measure = step_judging.measure if step_judging.judges_steps(found) else ranking.rank
        return measure(
            found,
            rows,
            data,
            dtype=dtype,
            device=device,
            threads=threads,
            details=details,
            started=started,
        )
    asked = wanted or (choices.detect(rows.train_rows) if options is None else None)
    work = _Work(found, rows, context, asked, wanted is None, tell, started)
    work.load(dtype, device, threads, rows_per_pass)
    work.score(details)
    if generate or (generate is None and asked is None):
        work.write_answers(max_new_tokens, asked_for=bool(generate))
    return work.result(data)


def _read(
    found: opening.Target,
    data: str,
    context: int | None,
    limit: int | None,
    data_format: str,
    columns: dict[str, str] | None,
    data_dir: str | None,
) -> DataSet:
    """The rows, rendered as for training: under the run's system prompt where they bring none."""
    settings: dict[str, Any] = {
        "train": data,
        "held_out": 0,
        "limit": limit,
        "format": data_format,
        "columns": columns or {},
        "dir": data_dir,
    }
    settings |= {
        "system": found.system,
        "thinking": found.thinking.mode,
        "good_only": found.settings.get("data.good_only", False),
    }
    return inspect(
        DataConfig.model_validate(settings),
        found.renderer(),
        context,
        to_train=False,
        wants=("conversation",),
    )


class _Work:
    """One measurement: what was read, what is loaded, what was found."""

    def __init__(
        self,
        found: opening.Target,
        data: DataSet,
        context: int | None,
        asked: list[str] | None,
        detected: bool,
        tell: Tell,
        started: float,
    ):
        self.found, self.data, self.context, self.asked, self.detected, self.tell = (
            found,
            data,
            context,
            asked,
            detected,
            tell,
        )
        self.started = started
        self.seconds: dict[str, float] = {"read": time.perf_counter() - started}
        self.figures: dict[str, Any] = {}
        self.warnings: list[str] = []

    def load(
        self,
        dtype: str | None,
        device: str,
        threads: int | Literal["auto"],
        rows_per_pass: int | None,
    ) -> None:
        """Read the weights and choose the layout."""
        start = time.perf_counter()
        self.opened = opening.to_answer(self.found, dtype=dtype, device=device, threads=threads)
        self.world: placement.World = self.opened.world
        if self.world.device == "cpu":
            keep_freed_memory()
        self.layout, self.layout_reason = self.opened.choose_layout(
            EngineConfig(), self.world.dtype
        )
        self.rows_per_pass = rows_per_pass or self.world.rows_per_pass
        self.seconds["load"] = time.perf_counter() - start

    def score(self, details: bool) -> None:
        """The loss of every row and, where there are options, the score of each."""
        start = time.perf_counter()
        samples, dropped = list(self.data.train), list[choices.Dropped]()
        questions: list[choices.Question] = []
        if self.asked is not None:
            questions, dropped = choices.build(
                self.data.train_rows, samples, self.asked, self.opened.renderer, self.context
            )
            samples = [question.sample for question in questions]
        what = say("evaluate.scoring")
        self.tell.start(what)
        logprobs = logprobs_of(
            self.opened,
            samples,
            layout_name=self.layout,
            rows_per_pass=self.rows_per_pass,
            exact=self.asked is not None,
            on_samples=lambda done: self.tell.progress(what, done, len(samples)),
        )
        self.tell.finish()
        self.figures["loss"] = _loss(samples, logprobs)
        if self.asked is not None:
            decisions = [
                choices.Decision([sum(b) for b in found[1:]], [sum(b[:-1]) for b in found[1:]])
                for found in logprobs
            ]
            self.figures["options"] = choices.report(
                self.asked, questions, decisions, self.detected
            )
            if self.figures["options"]["probability"]["mean"] < choices.LIKELY:
                self.warnings.append(
                    say(
                        "evaluate.warning.unlikely",
                        share=_percent(self.figures["options"]["probability"]["mean"]),
                    )
                )
            self._say_dropped(dropped)
            if details:
                self.figures["rows"] = [
                    {
                        "origin": str(q.row.origin),
                        "answer": self.asked[q.right],
                        "chosen": self.asked[d.chosen],
                        "scores": d.scores,
                    }
                    for q, d in zip(questions, decisions, strict=True)
                ]
        self.seconds["score"] = time.perf_counter() - start

    def _say_dropped(self, dropped: list[choices.Dropped]) -> None:
        counts = Counter(one.reason for one in dropped)
        self.figures["options"]["rows_left_out"] = len(dropped)
        self.figures["options"]["left_out"] = {
            reason: {
                "count": count,
                "what": say(f"evaluate.reason.{reason}"),
                "examples": [d.origin for d in dropped if d.reason == reason][:SHOWN],
            }
            for reason, count in counts.items()
        }
        self.warnings += [
            say("evaluate.warning.left_out", count=count, what=say(f"evaluate.reason.{reason}"))
            for reason, count in counts.items()
        ]

    def write_answers(self, max_new_tokens: int | None, *, asked_for: bool = False) -> None:
        """Greedy answers to the rows that are dialogues; that there are none is told where they
        were asked for."""
        start = time.perf_counter()
        asked = [
            (row, sample)
            for row, sample in zip(self.data.train_rows, self.data.train, strict=True)
            if isinstance(row, Conversation)
        ]
        if not asked:
            self.warnings += [say("evaluate.warning.nothing_to_answer")] if asked_for else []
            return
        lengths = [
            sample.facts["last_span"][1] - sample.facts["last_span"][0] for _, sample in asked
        ]
        room = max_new_tokens or min(MOST_NEW_TOKENS, max(lengths) + SPARE_TOKENS)
        self.figures["exact_match"] = exact_match(
            self.opened, [row for row, _ in asked], room, self.tell, self.asked
        )
        cut = sum(length > room for length in lengths)
        self.figures["exact_match"]["answers_longer_than_room"] = cut
        if cut:
            self.warnings.append(say("evaluate.warning.room", count=cut, room=room))
        for key in ("context_full", "no_room"):
            if count := self.figures["exact_match"][key]:
                self.warnings.append(say(f"evaluate.warning.{key}", count=count, n=len(asked)))
        self.seconds["answer"] = time.perf_counter() - start

    def result(self, data: str) -> dict[str, Any]:
        """Everything as plain values."""
        report = self.data.report
        kept = {
            key: report[key]
            for key in ("rows_read", "rows_kept", "rows_dropped", "reasons", "format", "parts")
        }
        seconds = {**self.seconds, "total": time.perf_counter() - self.started}
        if self.found.think is not None and not self.opened.renderer.thinks:
            self.warnings.append(say("chat.think_no_effect"))
        if report["rows_dropped"]:
            self.warnings.insert(
                0,
                say("data.warning.dropped", count=report["rows_dropped"], rows=report["rows_read"]),
            )
        return {
            "target": self.found.name,
            "model": self.found.source.spec,
            "adapter": str(self.found.adapter or ""),
            "data": data,
            "data_report": kept,
            **self.figures,
            "layout": self.layout,
            "layout_reason": self.layout_reason,
            "dtype": self.world.dtype,
            "device": self.world.device,
            "warnings": self.warnings,
            "seconds": {k: round(v, 3) for k, v in seconds.items()},
            "versions": versions(),
        }


def _loss(samples: list[Sample], logprobs: Logprobs) -> dict[str, Any]:
    """Mean negative log-probability of the learnt tokens of branch 0 of each sample, weighted as in
    training. Raises EvaluationError where it is no number."""
    total = weights = 0.0
    tokens = 0
    for sample, found in zip(samples, logprobs, strict=True):
        bad = next(
            (value for branch in found for value in branch if not math.isfinite(value)), None
        )
        if bad is not None:
            raise EvaluationError(problem("E-EVAL-04", str(sample.origin), value=bad))
        own = sample.branches[0]
        total -= sum(w * value for w, value in zip(own.weights, found[0], strict=True))
        weights += sum(own.weights)
        tokens += len(own.weights)
    loss = total / weights
    return {
        "token_mean": loss,
        "perplexity": math.exp(loss) if loss < 700 else None,
        "tokens": tokens,
        "rows": len(samples),
    }


# ---- for a terminal


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _probability(value: float) -> str:
    """A share that may be far below a tenth of a per cent."""
    return _percent(value) if value >= 5e-4 else "0 %" if value == 0 else f"{100 * value:.0e} %"


def lines(result: dict[str, Any]) -> list[str]:
    """The figures for a terminal, in the reader's language."""
    report = result["data_report"]
    out = [
        say(
            "evaluate.rows",
            target=result["target"],
            data=result["data"],
            kept=report["rows_kept"],
            read=report["rows_read"],
        ),
        *report.get("parts", []),
    ]
    if "steps" in result:
        return [*out, *step_judging.lines(result["steps"])]
    if "ranking" in result:
        return [*out, *ranking.lines(result["ranking"])]
    loss = result["loss"]
    out.append(say("evaluate.loss", loss=f"{loss['token_mean']:.4f}", tokens=f"{loss['tokens']:,}"))
    if "options" in result:
        out += _option_lines(result["options"])
    if "exact_match" in result:
        out += _match_lines(result["exact_match"])
    out += result["warnings"]
    spent, where = duration(result["seconds"]["total"]), f"{result['device']} {result['dtype']}"
    return [
        *out,
        say(
            "evaluate.seconds",
            time=spent,
            load=f"{result['seconds']['load']:.0f}",
            where=where,
            layout=result["layout"],
        ),
    ]


def _option_lines(found: dict[str, Any]) -> list[str]:
    low, high = found["interval_95"]
    out = [
        say(
            "evaluate.detected" if found["detected"] else "evaluate.given",
            options=" · ".join(found["options"]),
        )
    ]
    out.append(
        say(
            "evaluate.accuracy",
            accuracy=_percent(found["accuracy"]),
            right=found["right"],
            n=found["n"],
            low=_percent(low),
            high=_percent(high),
        )
    )
    key = "evaluate.beats" if found["beats_majority"] else "evaluate.no_better"
    out.append(
        say(key, answer=found["majority"]["answer"], share=_percent(found["majority"]["share"]))
    )
    likely = {key: _probability(found["probability"][key]) for key in ("mean", "least")}
    out.append(say("evaluate.probability", **likely))
    out.append(
        say(
            "evaluate.margin",
            margin=f"{found['mean_margin']:+.2f}",
            ties=found["ties"],
            stops=found["stop_token_decides"],
        )
    )
    for entry in found["classes"]:
        shown = {key: _percent(entry[key]) for key in ("precision", "recall", "f1")}
        out.append(
            say(
                "evaluate.class",
                answer=entry["answer"],
                rows=entry["rows"],
                chosen=entry["chosen"],
                **shown,
            )
        )
    for given, row in found["confusion"].items():
        out.append(
            say(
                "evaluate.confusion",
                answer=given,
                counts=" · ".join(f"{name} {count}" for name, count in row.items()),
            )
        )
    return out


def _match_lines(found: dict[str, Any]) -> list[str]:
    exact, loose = found["exact"], found["normalised"]
    low, high = (_percent(v) for v in exact["interval_95"])
    out = [
        say(
            "evaluate.exact",
            share=_percent(exact["share"]),
            right=exact["right"],
            n=found["n"],
            low=low,
            high=high,
        )
    ]
    out.append(
        say(
            "evaluate.normalised",
            share=_percent(loose["share"]),
            right=loose["right"],
            n=found["n"],
        )
    )
    if "none_of_the_options" in found:
        out.append(say("evaluate.none_of", count=found["none_of_the_options"], n=found["n"]))
    return out


__all__ = ["EvaluationError", "evaluate_target", "lines"]
