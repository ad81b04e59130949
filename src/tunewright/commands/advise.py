"""`tunewright advise`: what to do with this model and this data, measured.

The story: split the rows; measure what needs no language model; ask the model as it is, after
examples, after passages, for SQL; train a short LoRA and ask that; walk down the decision tree with
the differences. It goes from cheap to expensive and stops where the answer is clear, and says what
it did not measure. Everything lies in the folder of the advice and is not measured again there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.advise import decide
from tunewright.commands.advising import simple, training
from tunewright.commands.advising.measuring import (
    Judge,
    Kept,
    Measured,
    answer_limit,
    ask,
    beyond_chance,
    gain_of,
    key_of,
    prompt_of,
    score_of,
)
from tunewright.commands.advising.passages import Collection, read_documents
from tunewright.commands.advising.prompts import Prompts, Way
from tunewright.commands.advising.queries import Queries
from tunewright.commands.advising.rows import read_rows, write_rows
from tunewright.commands.advising.tables import Database
from tunewright.core import signals
from tunewright.core.errors import UsageError, problem
from tunewright.core.files import write_json
from tunewright.core.telling import Tell, duration
from tunewright.core.words import say

if TYPE_CHECKING:
    from tunewright.engine.opening import Opened, Target

FORMAT = "tunewright advice 1"
TRAINING_SHARE = 0.45
"""Of the minutes, kept for the training while ways that matter less are measured."""
MATTERS = ("base", "few_fixed", "rag")
WRITING = 0.5
"""Share of the most tokens that answers mostly have, for the estimate of a way's time."""


@dataclass(frozen=True)
class Question:
    """What a person asked `advise`."""

    model: str
    data: str
    docs: Path | None = None
    tables: Path | None = None
    minutes: float = 6.0
    seed: int = 0
    changes: decide.Changes | None = None
    users: int | None = None
    held_out: int | None = None
    columns: dict[str, str] = field(default_factory=dict)
    data_format: str = "auto"
    system: str | None = None
    dtype: str | None = None
    everything: bool = False
    """Measure every way, also where the answer is clear already."""


def advise(
    question: Question, out: Path, *, tell: Tell | None = None
) -> tuple[dict[str, Any], decide.Verdict]:
    """Measure, decide, and leave `advice.json` and `advice.html` in `out`; returns what is in
    advice.json (keys in docs/advise.md), and the verdict. Raises UsageError for what cannot be read
    or asked before anything is measured."""
    tell = tell or Tell()
    _require_sensible(question, out)
    with signals.watching() as stop:
        work = _Work(question, out, tell, stop.check)
        work.read()
        work.measure()
        return work.result()


def default_out(data: str) -> Path:
    """`runs/advise-<data>`: the same for the same data, so that what is measured is found."""
    stem = re.sub(r"[^\w.-]+", "-", Path(data).stem).strip("-.") or "data"
    return Path("runs", f"advise-{stem}")


def _require_sensible(question: Question, out: Path) -> None:
    wrong = [
        name
        for name, is_wrong in (
            ("--minutes", not 0 < question.minutes < 10_000),
            ("--users", question.users is not None and question.users < 1),
            ("--rows", question.held_out is not None and question.held_out < 4),
            ("--changes", question.changes not in (None, "often", "rarely")),
        )
        if is_wrong
    ]
    if wrong:
        raise UsageError(problem("E-ADVISE-06", ", ".join(wrong)))
    if out.exists() and not (out.is_dir() and (is_advice(out) or not any(out.iterdir()))):
        raise UsageError(problem("E-ADVISE-04", str(out)))


def is_advice(folder: Path) -> bool:
    """Whether a folder is one of ours."""
    return (folder / "advise.json").is_file()


class _Work:
    """An advice being made."""

    def __init__(self, question: Question, out: Path, tell: Tell, check: Callable[[], None]):
        self.q, self.out, self.tell, self.check = question, out, tell, check
        self.began = time.monotonic()
        self.kept = Kept(out)
        self.measured: dict[str, Measured] = {}
        self.left_out: dict[str, str] = {}
        """Way -> why it was not measured."""
        self.queries: Queries | None = None
        self.collection: Collection | None = None
        self.opened: Opened | None = None
        self.load_seconds = 0.0
        self.pace = 0.0
        """Seconds that a token of a prompt took."""
        self.planned: training.Planned | None = None

    # ---- everything that can be wrong

    def read(self) -> None:
        """Rows, documents, tables and the model's files, without weights."""
        q = self.q
        self.rows = read_rows(
            q.data,
            seed=q.seed,
            held_out=q.held_out,
            columns=q.columns,
            data_format=q.data_format,
            system=q.system,
        )
        documents = None
        if q.docs is not None:
            self.collection = read_documents(q.docs)
            documents = [passage.text for passage in self.collection.passages]
        database = Database(q.tables) if q.tables is not None else None
        self.found = self._find()
        start = time.perf_counter()
        self.prompts = Prompts.of(self.rows, documents, q.seed)
        self.index_seconds = time.perf_counter() - start
        self.judge = Judge(self.rows)
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / "advise.json", {"format": FORMAT, **self._asked()})
        write_rows(self.out / "train.jsonl", self.rows.train)
        write_rows(self.out / "held_out.jsonl", self.rows.held_out)
        self._say_read(database)
        if database is not None:
            self.queries = Queries(database, self.rows)

    def _find(self) -> Target:
        from tunewright.engine.naming import find, require_words
        from tunewright.evaluate.ranking import is_scorer

        found = find(self.q.model, self.tell)
        if is_scorer(found):
            raise UsageError(problem("E-ADVISE-05", self.q.model))
        require_words(found.source.folder, self.q.model)
        return found

    def _asked(self) -> dict[str, Any]:
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(self.q).items()
        }

    def _say_read(self, database: Database | None) -> None:
        metric = say(f"advise.metric.{self.judge.metric}")
        held = len(self.rows.held_out)
        self.tell.line(say("advise.rows", rows=len(self.rows.train), held=held, metric=metric))
        if self.collection is not None:
            found = self.collection
            counts: dict[str, Any] = {
                "documents": found.documents,
                "passages": len(found.passages),
                "depth": self.prompts.depth,
            }
            self.tell.line(say("advise.documents", **counts))
            if found.skipped:
                names = ", ".join(sorted(found.skipped)[:5])
                self.tell.line(say("advise.skipped", count=len(found.skipped), names=names))
            if found.cut:
                self.tell.line(say("advise.cut", count=f"{len(found.passages):,}"))
        if database is not None:
            tables = ", ".join(f"{t.name} ({t.rows:,} × {len(t.columns)})" for t in database.tables)
            self.tell.line(say("advise.tables", tables=tables))

    # ---- measuring

    def measure(self) -> None:
        """Every way, from cheap to expensive, until the answer is clear."""
        self.simple = simple.measure(self.rows, self.judge, self.q.seed)
        for one in self.simple.measured:
            self._take(one)
        if self.queries is not None:
            self._take(self.queries.measure_lookup(self.judge))
        ways = self.prompts.ways()
        order = ["base", "few_fixed", "rag", "few_retrieved"]
        for name in order:
            if self._goes_on(name):
                self._ask(ways[name])
        if self.queries is not None and self._goes_on("sql"):
            self._ask_for_sql(self.queries)
        if self._goes_on("lora"):
            self._train(ways)

    def _goes_on(self, way: str) -> bool:
        """Whether a way is still worth measuring; a note where it is not."""
        known = "base" in self.measured and not self.q.everything
        # Examples in the prompt cost little and tell whether only the form is missing.
        cheap = way == "few_fixed" and self.simple.suffices is None
        if known and not cheap and decide.enough(self.figures()):
            self.left_out[way] = say("advise.left_out.clear")
            if way == "lora":
                self.left_out["lora_rag"] = say("advise.left_out.clear")
            return False
        return True

    def _take(self, measured: Measured) -> None:
        self.measured[measured.way] = measured
        score = score_of(measured.scores, self.q.seed)
        name = say(f"advise.way.{measured.way}")
        self.tell.line(say("advise.measured", way=name, score=decide.told(score)))

    @property
    def left(self) -> float:
        """Seconds of the minutes that are left."""
        return 60 * self.q.minutes - (time.monotonic() - self.began)

    def _model(self) -> Any:
        """The model as it is, opened when it is first asked."""
        if self.opened is None:
            from tunewright.engine import opening

            start = time.perf_counter()
            self.opened = opening.to_answer(self.found, dtype=self.q.dtype)
            self.load_seconds = time.perf_counter() - start
        return self.opened.answering

    def _key(self, way: str, prompts: list[list[int]], limit: int, adapter: str = "") -> str:
        from tunewright.sources.fingerprint import fingerprint

        own = self.found.adapter
        model = [fingerprint(self.found.source.folder), fingerprint(own) if own else "", adapter]
        expected = [row.answer() for row in self.rows.held_out]
        dtype = self.opened.world.dtype if self.opened else ""
        return key_of(way, model, prompts, expected, limit, self.judge.metric, dtype)

    def _ask(self, way: Way, *, name: str | None = None, adapter: str = "") -> None:
        """Ask in one way, or take what is kept of it; a way that takes longer than there is time is
        left out and said."""
        model, name = self._model(), name or way.name
        limit = answer_limit(self.rows, model.tokenizer)
        prompts = [prompt_of(model, way, row, limit) for row in self.rows.held_out]
        key = self._key(name, prompts, limit, adapter)
        kept = self.kept.get(name, key)
        if kept is None:
            needed = self._seconds_for(prompts, limit)
            reserve = 0.0 if way.name in MATTERS else TRAINING_SHARE * 60 * self.q.minutes
            if needed > max(0.0, self.left - reserve):
                self._leave_out(name, needed)
                return
            asked = Way(name, way.build, way.most_shrink)
            kept = ask(model, asked, self.judge, prompts, limit, self.tell, self.check)
            kept.setup_seconds = self.index_seconds if way.name in ("rag", "few_retrieved") else 0.0
            self.kept.put(key, kept)
            self.pace = kept.seconds / self._work(prompts, limit)
        self._take(kept)

    def _work(self, prompts: list[list[int]], limit: int) -> float:
        """Tokens to compute: of the prompts what they do not share, and of the answers."""
        tokens, before = 0, list[int]()
        for prompt in sorted(prompts):
            shared = 0
            for a, b in zip(before, prompt, strict=False):
                if a != b:
                    break
                shared += 1
            tokens += len(prompt) - shared
            before = prompt
        return tokens + WRITING * limit * len(prompts)

    def _seconds_for(self, prompts: list[list[int]], limit: int) -> float:
        return self.pace * self._work(prompts, limit)

    def _leave_out(self, name: str, seconds: float) -> None:
        minutes = (time.monotonic() - self.began + seconds) / 60
        why = say("advise.left_out.time", time=duration(seconds), minutes=f"{minutes * 1.5:.0f}")
        self.left_out[name] = why
        self.tell.line(say("advise.not_measured_way", way=say(f"advise.way.{name}"), why=why))

    def _ask_for_sql(self, queries: Queries) -> None:
        model = self._model()
        prompts = [prompt_of(model, queries.way(), row, 96) for row in self.rows.held_out]
        key = self._key("sql", prompts, 96)
        kept = self.kept.get("sql", key)
        if kept is None:
            needed = self._seconds_for(prompts, 48)
            if needed > self.left - TRAINING_SHARE * 60 * self.q.minutes:
                self._leave_out("sql", needed)
                return
            kept = queries.measure_sql(model, self.judge, self.tell, self.check)
            self.kept.put(key, kept)
        self._take(kept)

    def _train(self, ways: dict[str, Way]) -> None:
        """The short LoRA, asked alone and with passages."""
        key = self._training_key()
        asking = sum(
            self.measured[name].seconds for name in ("base", "rag") if name in self.measured
        )
        seconds = self.left - asking - self.load_seconds
        planned = training.plan_training(
            self.out,
            key,
            self.q.model,
            self.rows,
            minutes=self.q.minutes,
            seconds=seconds,
            seed=self.q.seed,
            dtype=self.q.dtype,
        )
        if not planned.steps:
            for name in ("lora", "lora_rag"):
                self._leave_out(name, planned.seconds)
            return
        if planned.steps < planned.wanted:
            fields: dict[str, Any] = {"steps": planned.steps, "wanted": planned.wanted}
            self.tell.line(say("advise.fewer_steps", minutes=self.q.minutes, **fields))
        self._close()
        what = say("advise.training", steps=planned.steps)
        self.tell.line(say("advise.trains", steps=planned.steps, folder=planned.out))
        setup = training.train(planned, training.Indented(self.tell, what))
        self.planned = planned
        self._open_trained(planned.out)
        names = {"lora": "base", "lora_rag": "rag"}
        for name, way in names.items():
            if name == "lora_rag" and "rag" not in self.measured:
                continue
            self._ask(ways[way], name=name, adapter=str(planned.out.name) + str(planned.steps))
            if name in self.measured:
                one = self.measured[name]
                one.setup_seconds = setup + (self.index_seconds if name == "lora_rag" else 0)
                one.disk_bytes = _size(planned.out / "adapter")

    def _training_key(self) -> str:
        from tunewright.sources.fingerprint import fingerprint

        rows = [[m.content for m in row.messages] for row in self.rows.train]
        model = fingerprint(self.found.source.folder)
        return key_of("lora", model, rows, self.q.minutes, self.q.seed, self.q.dtype)

    def _close(self) -> None:
        """Free the model's memory for the training."""
        import gc

        from tunewright.core.machine import return_freed_memory

        self.opened = None
        gc.collect()
        return_freed_memory()

    def _open_trained(self, run: Path) -> None:
        from tunewright.core.telling import Quiet
        from tunewright.engine import opening

        self.opened = opening.open_target(str(run), Quiet(), dtype=self.q.dtype)

    # ---- figures and the verdict

    def figures(self) -> decide.Figures:
        """Everything that was measured, as the tree reads it."""
        q, found = self.q, self.measured
        texts = _Evidence(self)
        return decide.Figures(
            scores={way: score_of(one.scores, q.seed) for way, one in found.items()},
            gain=self._gain,
            rows=len(self.rows.train),
            forms={
                way: score_of(one.forms, q.seed)
                for way, one in found.items()
                if one.forms and way in decide.ASKED
            },
            form_gain=self._form_gain,
            suffices=self.simple.suffices,
            formula=self.simple.formula,
            explained=self.simple.explained,
            labels=len(self.rows.labels),
            has_documents=q.docs is not None,
            has_tables=q.tables is not None,
            reached=texts.reached[0],
            reached_gain=texts.reached[1],
            found=texts.found[0],
            found_gain=texts.found[1],
            beyond=texts.beyond,
            changes=q.changes,
            users=q.users,
        )

    def _gain(self, before: str, after: str) -> decide.Gain | None:
        a, b = self.measured.get(before), self.measured.get(after)
        return None if a is None or b is None else gain_of(a.scores, b.scores, self.q.seed)

    def _form_gain(self, before: str, after: str) -> decide.Gain | None:
        a, b = self.measured.get(before), self.measured.get(after)
        if a is None or b is None or not a.forms or not b.forms:
            return None
        return gain_of(a.forms, b.forms, self.q.seed)

    def result(self) -> tuple[dict[str, Any], decide.Verdict]:
        """Decide, write and return the advice."""
        from tunewright.commands.advising import page

        figures = self.figures()
        verdict = decide.decide(figures)
        made = {
            "format": FORMAT,
            "asked": self._asked(),
            "rows": {"train": len(self.rows.train), "held_out": len(self.rows.held_out)},
            "metric": self.judge.metric,
            "form_metric": self.judge.form,
            "ways": {way: self._row(way, figures) for way in self.measured},
            "left_out": self.left_out,
            "passages": {
                "documents": self.collection.documents if self.collection else None,
                "passages": len(self.prompts.passages),
                "in_a_prompt": self.prompts.depth,
                "found": _plain(figures.found),
                "found_beyond_chance": _plain(figures.found_gain),
            },
            "tables": {
                "reached": _plain(figures.reached),
                "reached_beyond_chance": _plain(figures.reached_gain),
            }
            if self.queries
            else None,
            "simple": {
                "suffices": figures.suffices,
                "formula": figures.formula,
                "explained": figures.explained,
            },
            "model_bytes": _size(self.found.source.folder),
            "verdict": verdict.as_dict(),
            "next": page.next_commands(self.q, self.out, verdict, self.planned),
            "trained": str(self.planned.out) if self.planned else None,
            "examples": self._examples(),
            "seconds": round(time.monotonic() - self.began, 1),
        }
        if self.queries is not None:
            self.queries.database.close()
        page.write_next(self.q, self.out, verdict)
        made["page"] = str(page.write_page(self.out, made, verdict))
        write_json(self.out / "advice.json", made)
        return made, verdict

    def _row(self, way: str, figures: decide.Figures) -> dict[str, Any]:
        one = self.measured[way]
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

    def _examples(self, count: int = 8) -> list[dict[str, Any]]:
        """Some held-out rows with what each way answered."""
        found = []
        for i in range(min(count, len(self.rows.held_out))):
            answers = {
                way: {"answer": one.answers[i], "score": round(one.scores[i], 3)}
                | ({"query": one.queries[i]} if one.queries else {})
                for way, one in self.measured.items()
            }
            question, expected = self.rows.questions[i], self.rows.expected[i]
            found.append({"question": question, "expected": expected, "ways": answers})
        return found


class _Evidence:
    """Figures about texts that need no model; made once, they do not change."""

    def __init__(self, work: _Work):
        self.work = work
        if not hasattr(work, "texts"):
            work.texts = self._made()  # type: ignore[attr-defined]
        self.found, self.reached, self.beyond = work.texts  # type: ignore[attr-defined]

    def _made(self) -> Any:
        work, seed = self.work, self.work.q.seed
        held = work.rows.held_out
        beyond = sum(bool(work.rows.beyond(row)) for row in held) / len(held)
        found = _beyond(beyond_chance(work.rows, work.prompts.held), seed)
        reached = _beyond(work.queries.reached(), seed) if work.queries else (None, None)
        return found, reached, beyond


def _beyond(
    values: tuple[list[float], list[float]], seed: int
) -> tuple[decide.Score | None, decide.Gain | None]:
    own, chance = values
    if not own:
        return None, None
    return score_of(own, seed), gain_of(chance, own, seed)


def _plain(value: Any) -> dict[str, float] | None:
    return None if value is None else {k: round(v, 4) for k, v in vars(value).items()}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
