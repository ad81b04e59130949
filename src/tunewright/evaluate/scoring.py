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
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tunewright.core.config import DataConfig, EngineConfig
from tunewright.core.errors import TunewrightError, UsageError, problem
from tunewright.core.machine import keep_freed_memory, versions
from tunewright.core.telling import Tell
from tunewright.core.types import Conversation, Prompt, Sample, asks, turns_of
from tunewright.core.words import say
from tunewright.data import DataSet, inspect
from tunewright.data.beside import columns_beside
from tunewright.engine import opening, placement
from tunewright.evaluate import answer_table, interval, quantities, ranking, step_judging, written
from tunewright.evaluate import options as choices
from tunewright.evaluate.lines import lines, percent
from tunewright.evaluate.logprobs import Logprobs, logprobs_of
from tunewright.evaluate.metrics import Words, chosen_for, named, require_words
from tunewright.evaluate.score_table import ROWS_AT_ONCE, ScoreTable
from tunewright.methods.saved import virtual_tokens
from tunewright.models import load
from tunewright.rewards import RewardSet

SHOWN = 5
DECISIONS = "decisions.jsonl"
"""The table of decisions between options, a row a line."""


class EvaluationError(TunewrightError):
    """A measurement that could not be made."""


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
    metrics: Sequence[str] | None = None,
    words: Words = "auto",
    rewards: str | None = None,
    target_error: float | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    group: str | None = None,
    highest: bool = True,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Measure `target` (run, adapter, model folder, hub id) on the rows of `data` and return the
    figures (keys in docs/evaluate.md).

    `options` None: detected; an empty list: never. `generate` None: answers are written only where
    there are no options, or where `metrics` or `rewards` ask for them. `base` leaves the adapter
    out. `details` adds every row's scores and answers; `think` asks with thinking or without, by
    default as the run was. `metrics` None: those that suit the answers; `words` is how ROUGE parts
    Chinese. `rewards` names reward functions as `--rewards` does. `target_error` looks for the
    confidence from which on at most that share of the decisions is wrong. `out` keeps every answer
    in a table in that folder and asks nothing again that stands there. `seed` is that of all draws.
    `group`: a column whose equal values make rows candidates of one choice, where answers are
    numbers; the `highest` is the right one, or the lowest.

    Raises UsageError for what cannot be read or asked, EvaluationError for scores that are not
    numbers.
    """
    tell, started = tell or Tell(), time.perf_counter()
    wanted = choices.checked(options) if options else None
    if any(n is not None and n < 1 for n in (limit, max_new_tokens, rows_per_pass)):
        raise UsageError(problem("E-EVAL-05", "--limit --max-new-tokens --rows-per-pass"))
    names = None if metrics is None else named(metrics)
    _require_consistent(generate, names, rewards, words, target_error)
    folder = None if out is None else Path(out)
    if folder is not None and folder.exists() and not folder.is_dir():
        cause = say("evaluate.no_folder")
        raise UsageError(problem("E-EVAL-22", str(folder), cause=cause))
    found = opening.find(target, tell, base=base, think=think)
    judges = None if rewards is None else written.read_rewards(rewards, found.settings)
    config = opening.read_config(found)
    context = load.context_of(config)
    if context is not None and found.adapter is not None:
        context -= virtual_tokens(found.adapter)  # a learnt prompt takes room of the context
    # Rows before weights: a misspelt column is said in a second, not after gigabytes.
    settings = _settings(found, data, limit, data_format, columns, data_dir)
    rows = inspect(settings, found.renderer(), context, to_train=False, wants=("conversation",))
    if ranking.is_scorer(found):  # not with `base`: the model under a reward model writes
        measure = step_judging.measure if step_judging.judges_steps(found) else ranking.rank
        result = measure(
            found,
            rows,
            data,
            dtype=dtype,
            device=device,
            threads=threads,
            details=details,
            started=started,
        )
        if names or judges or target_error is not None:
            result.setdefault("warnings", []).append(say("evaluate.warning.writes_nothing"))
        return result
    asked = wanted or (choices.detect(rows.train_rows) if options is None else None)
    work = _Work(found, rows, context, asked, wanted is None, tell, started, folder, seed)
    work.load(dtype, device, threads, rows_per_pass)
    work.score(details, target_error)
    asks = bool(names or judges or group)
    if generate or (generate is None and (asked is None or asks)):
        work.write_answers(max_new_tokens, asked_for=bool(generate) or asks)
        work.judge_answers(names, words, judges, settings, details)
        work.figures |= quantities.measured(work.answers, settings, group, highest, seed)
    work.count_rows(limit)
    return work.result(data)


def _require_consistent(
    generate: bool | None,
    names: Sequence[str] | None,
    rewards: str | None,
    words: str,
    target_error: float | None,
) -> None:
    """Raise UsageError for settings that cannot be meant (E-EVAL-21, E-EVAL-25 to E-EVAL-27)."""
    if generate is False and (names or rewards):
        raise UsageError(problem("E-EVAL-25", "--no-generate"))
    require_words(words)
    if target_error is not None and not 0 <= target_error < 1:
        raise UsageError(problem("E-EVAL-27", "--target-error", given=target_error))


def _settings(
    found: opening.Target,
    data: str,
    limit: int | None,
    data_format: str,
    columns: dict[str, str] | None,
    data_dir: str | None,
) -> DataConfig:
    """How the rows are read: rendered as for training, under the run's system prompt where they
    bring none."""
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
        # What is called bad is not what the model is to say; a judge is measured on both.
        "good_only": not ranking.is_scorer(found),
        "turns": found.settings.get("data.turns", "all"),
    }
    return DataConfig.model_validate(settings)


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
        folder: Path | None,
        seed: int,
    ):
        self.folder, self.seed = folder, seed
        self.answers: list[written.Asked] = []
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

    def score(self, details: bool, target_error: float | None) -> None:
        """The loss of every row and, where there are options, the score of each."""
        start = time.perf_counter()
        samples, dropped = list(self.data.train), list[choices.Dropped]()
        questions: list[choices.Question] = []
        if self.asked is not None:
            questions, dropped = choices.build(
                self.data.train_rows, samples, self.asked, self.opened.renderer, self.context
            )
            samples = [question.sample for question in questions]
        logprobs = self._logprobs(samples)
        self.figures["loss"] = _loss(samples, logprobs, self.seed)
        if self.figures["loss"] is None:
            self.warnings.append(say("evaluate.warning.no_loss"))
        if self.asked is None:
            if target_error is not None:
                self.warnings.append(say("evaluate.warning.no_options"))
        else:
            decisions = [
                choices.Decision([sum(b) for b in found[1:]], [sum(b[:-1]) for b in found[1:]])
                for found in logprobs
            ]
            self.figures["options"] = choices.report(
                self.asked, questions, decisions, self.detected, self.seed, target_error
            )
            if self.figures["options"]["probability"]["mean"] < choices.LIKELY:
                self.warnings.append(
                    say(
                        "evaluate.warning.unlikely",
                        share=percent(self.figures["options"]["probability"]["mean"]),
                    )
                )
            self._say_dropped(dropped)
            rows = choices.table(self.asked, questions, decisions)
            if details:
                self.figures["rows"] = rows
            if self.folder is not None:
                answer_table.write(self.folder / DECISIONS, rows)
        self.seconds["score"] = time.perf_counter() - start

    def _logprobs(self, samples: list[Sample]) -> Logprobs:
        """Of every branch; with a folder in pieces, each of which is kept there at once."""
        who = answer_table.about(self.opened) if self.folder is not None else ""
        table = ScoreTable(self.folder, f"{who} {self.layout} {self.asked is not None}")
        found = [table.find(sample) for sample in samples]
        left = [i for i, one in enumerate(found) if one is None]
        kept, done = len(samples) - len(left), 0
        if kept:
            self.tell.line(say("evaluate.scores_kept", count=kept, n=len(samples), file=table.path))
        what = say("evaluate.scoring")
        self.tell.start(what)
        size = ROWS_AT_ONCE if self.folder is not None else max(1, len(left))
        for start in range(0, len(left), size):
            piece = left[start : start + size]
            part = [replace(samples[i], index=k) for k, i in enumerate(piece)]
            got = logprobs_of(
                self.opened,
                part,
                layout_name=self.layout,
                rows_per_pass=self.rows_per_pass,
                exact=self.asked is not None,
                on_samples=lambda n, d=kept + done: self.tell.progress(what, d + n, len(samples)),  # type: ignore[misc]
            )
            table.add(part, got)
            for i, one in zip(piece, got, strict=True):
                found[i] = one
            done += len(piece)
        self.tell.finish()
        return [one for one in found if one is not None]

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
            if asks(row) and isinstance(row, Conversation | Prompt)
        ]
        if not asked:
            self.warnings += [say("evaluate.warning.nothing_to_answer")] if asked_for else []
            return
        rows = [row for row, _ in asked]
        limits = written.rooms(self.opened, rows, max_new_tokens)
        self.table = answer_table.AnswerTable(self.folder)
        try:
            self.answers, kept = written.ask(self.opened, rows, limits, self.table, self.tell)
        finally:
            self.table.close()
        match = written.exact_match(self.answers, self.asked)
        spans = [sample.facts["last_span"] for _, sample in asked]
        cut = sum(after - first > room for (first, after), room in zip(spans, limits, strict=True))
        match["answers_longer_than_room"] = cut
        self.figures["answers"] = counts = written.counts(self.opened, self.answers, kept)
        if self.folder is not None:
            counts["table"] = str(self.folder / answer_table.NAME)
        if cut:
            room = match["max_new_tokens"]
            self.warnings.append(say("evaluate.warning.room", count=cut, room=room))
        said = {key: match[key] for key in ("context_full", "no_room")}
        said["unfinished_thoughts"] = counts["unfinished_thoughts"]
        if self.expects:
            self.figures["exact_match"] = match
            said["empty_expected"] = counts["empty_expected"]
        else:
            self.warnings.append(say("evaluate.warning.no_expected"))
        for key, count in said.items():
            if count:
                self.warnings.append(say(f"evaluate.warning.{key}", count=count, n=len(asked)))
        self.seconds["answer"] = time.perf_counter() - start

    @property
    def expects(self) -> bool:
        """Whether any answer is expected: of questions alone none is."""
        return any(not isinstance(one.row, Prompt) or one.expected for one in self.answers)

    def judge_answers(
        self,
        names: Sequence[str] | None,
        words: Words,
        judges: RewardSet | None,
        settings: DataConfig,
        details: bool = False,
    ) -> None:
        """Metrics and reward functions of the answers, and the whole table."""
        if not self.answers:
            return
        start = time.perf_counter()
        chosen = names
        if chosen is None:
            chosen = chosen_for([one.expected for one in self.answers]) if self.expects else []
        self.figures["metrics"] = written.measure(self.answers, chosen, words, self.seed)
        self.figures["metrics_chosen"] = names is None
        if judges is not None:
            origins = [one.row.origin for one in self.answers]
            beside = columns_beside(settings, origins)
            found = written.pass_rates(self.answers, judges, beside, self.seed)
            self.figures["rewards"] = found
            for name, figure in found.items():
                if figure["failed"] or not figure["n"]:
                    why = figure["faults"][0]["why"] if figure["faults"] else "-"
                    key = "reward_failed" if figure["failed"] else "reward_silent"
                    values = {"name": name, "count": figure["failed"], "why": why}
                    self.warnings.append(say(f"evaluate.warning.{key}", **values))
        lines = [written.whole_line(one) for one in self.answers]
        self.table.finish(lines)
        if details:
            self.figures["answers"]["rows"] = lines
        self.seconds["judge"] = time.perf_counter() - start

    def count_rows(self, limit: int | None) -> None:
        """What the rows are, as far as it decides what is asked."""
        turns = [turns_of(row) for row in self.data.train_rows]
        self.figures["counts"] = {
            "limit": limit,
            "rows": len(turns),
            "many_turns": sum(sum(m.role == "user" for m in one) > 1 for one in turns),
            "with_system": sum(bool(one) and one[0].role == "system" for one in turns),
            "system_of_run": self.found.system,
        }
        read = self.data.report["rows_read"]
        if limit is not None and read >= limit:
            self.warnings.append(say("evaluate.warning.limit", limit=limit))

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
            dropped = {"count": report["rows_dropped"], "rows": report["rows_read"]}
            reasons = [
                say("evaluate.dropped", count=e["count"], what=e["what"], first=e["examples"][0])
                for e in report["reasons"].values()
            ]
            said = say("evaluate.warning.dropped", **dropped, reasons="; ".join(reasons))
            self.warnings.insert(0, said)
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


def _loss(samples: list[Sample], logprobs: Logprobs, seed: int) -> dict[str, Any] | None:
    """Mean negative log-probability of the learnt tokens of branch 0 of each sample, weighted as in
    training; None where there are none. Raises EvaluationError where it is no number."""
    total = weights = 0.0
    tokens = 0
    sums: list[list[float]] = []
    for sample, found in zip(samples, logprobs, strict=True):
        bad = next(
            (value for branch in found for value in branch if not math.isfinite(value)), None
        )
        if bad is not None:
            raise EvaluationError(problem("E-EVAL-04", str(sample.origin), value=bad))
        own = sample.branches[0]
        row = sum(w * value for w, value in zip(own.weights, found[0], strict=True))
        total -= row
        weights += sum(own.weights)
        tokens += len(own.weights)
        sums.append([-row, sum(own.weights)])
    if not weights:
        return None  # questions alone
    loss = total / weights
    low, high = _loss_interval(sums, seed)
    return {
        "token_mean": loss,
        "interval_95": [low, high],
        "perplexity": _perplexity(loss),
        "perplexity_interval_95": [_perplexity(low), _perplexity(high)],
        "tokens": tokens,
        "rows": len(samples),
    }


def _perplexity(loss: float | None) -> float | None:
    return math.exp(loss) if loss is not None and loss < 700 else None


def _loss_interval(sums: list[list[float]], seed: int) -> tuple[float | None, float | None]:
    """Of a loss per token, rows drawn again: a long row weighs more than a short one. One row says
    nothing about others."""
    if len(sums) < 2:
        return None, None
    return interval.bootstrap_of(
        sums, lambda drawn: float(drawn[0] / drawn[1]) if drawn[1] else 0.0, seed=seed
    )


__all__ = ["EvaluationError", "evaluate_target", "lines"]
