"""The measuring of an advice: rows, documents, tables, model; every way from cheap to expensive."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
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
from tunewright.commands.advising.queries import SQL_TOKENS, Queries
from tunewright.commands.advising.question import Question
from tunewright.commands.advising.rows import Rows, read_rows, write_rows
from tunewright.commands.advising.tables import Database
from tunewright.core.errors import UsageError, problem
from tunewright.core.files import sha256_of, write_json
from tunewright.core.telling import Relay, Tell, duration
from tunewright.core.words import say

if TYPE_CHECKING:
    from tunewright.engine.naming import Target
    from tunewright.engine.opening import Opened

FORMAT = "tunewright advice 1"
TRAINING_SHARE = 0.45
"""Of the minutes, kept for the training while ways that matter less are measured."""
MATTERS = ("base", "few_fixed", "rag")
WRITING = 0.5
"""Share of the most tokens that answers mostly have, for the estimate of a way's time."""


class _Numbered(Relay):
    """Puts the place of the piece of work before its progress."""

    def __init__(self, inner: Tell, place: str):
        super().__init__(inner)
        self.place = place

    def start(self, what: str) -> None:
        """With the place."""
        self.inner.start(self.place + what)

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        """With the place."""
        self.inner.progress(self.place + what, done, total, note)


class Bench:
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
        self.rows = self._rows(q.system)  # before the model: a misspelt column is said at once
        documents = None
        if q.docs is not None:
            self.collection = read_documents(q.docs)
            documents = [passage.text for passage in self.collection.passages]
        database = Database(q.tables) if q.tables is not None else None
        self.found = self._find()
        self.system = q.system if q.system is not None else self.found.system
        if self.system != q.system:  # a run is asked under the system prompt of its training
            self.rows = self._rows(self.system)
        start = time.perf_counter()
        self.prompts = Prompts.of(self.rows, documents, q.seed)
        self.index_seconds = time.perf_counter() - start
        self.judge = Judge(self.rows)
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / "advise.json", {"format": FORMAT, **self.asked()})
        write_rows(self.out / "train.jsonl", self.rows.train)
        write_rows(self.out / "held_out.jsonl", self.rows.held_out)
        self._say_read(database)
        if database is not None:
            self.queries = Queries(database, self.rows)

    def _rows(self, system: str | None) -> Rows:
        q = self.q
        return read_rows(
            q.data,
            seed=q.seed,
            held_out=q.held_out,
            columns=q.columns,
            data_format=q.data_format,
            system=system,
        )

    def _find(self) -> Target:
        from tunewright.engine.naming import find, require_words
        from tunewright.evaluate.ranking import is_scorer

        found = find(self.q.model, self.tell)
        if is_scorer(found):
            raise UsageError(problem("E-ADVISE-05", self.q.model))
        require_words(found.source.folder, self.q.model)
        return found

    def asked(self) -> dict[str, Any]:
        """What was asked, with whole paths, so that it can be asked again from anywhere."""
        made = {**vars(self.q), "system": self.system}
        for name in ("model", "data", "docs", "tables"):
            value = made[name]
            is_here = value is not None and Path(value).exists()
            made[name] = str(Path(value).absolute()) if is_here else value
        return made

    def _say_read(self, database: Database | None) -> None:
        metric = say(f"advise.metric.{self.judge.metric}")
        held = len(self.rows.held_out)
        self.tell.line(say("advise.minutes", minutes=f"{self.q.minutes:g}"))
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
        # Examples in the prompt and SQL cost little and say much: whether only the form is missing,
        # whether this model may write the queries itself.
        cheap = way in ("few_fixed", "sql") and self.simple.suffices is None
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

    def _key(
        self, way: str, prompts: list[list[int]], limit: int, adapter: str = "", table: str = ""
    ) -> str:
        from tunewright.sources.fingerprint import fingerprint

        own = self.found.adapter
        model = [fingerprint(self.found.source.folder), fingerprint(own) if own else "", adapter]
        expected = [row.answer() for row in self.rows.held_out]
        dtype = self.opened.world.dtype if self.opened else ""
        return key_of(way, model, prompts, expected, limit, self.judge.metric, dtype, table)

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
            # What was trained is asked, however long the training took.
            if not adapter and needed > max(0.0, self.left - reserve):
                self._leave_out(name, needed)
                return
            asked = Way(name, way.build, way.most_shrink)
            told = _Numbered(self.tell, self._place(name))
            kept = ask(model, asked, self.judge, prompts, limit, told, self.check)
            kept.setup_seconds = self.index_seconds if way.name in ("rag", "few_retrieved") else 0.0
            self.kept.put(key, kept)
            self.pace = kept.seconds / self._work(prompts, limit)
        self._take(kept)

    def _place(self, way: str) -> str:
        """Which of the pieces of work a way is: `[3/7]`."""
        pieces = ["base", "few_fixed", "rag", "few_retrieved"]
        pieces += ["sql"] if self.queries is not None else []
        pieces += ["train", "lora", "lora_rag"]
        return f"[{pieces.index(way) + 1}/{len(pieces)}] "

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
        prompts = [prompt_of(model, queries.way(), row, SQL_TOKENS) for row in self.rows.held_out]
        key = self._key("sql", prompts, SQL_TOKENS, table=sha256_of(queries.database.path))
        kept = self.kept.get("sql", key)
        if kept is None:
            needed = self._seconds_for(prompts, SQL_TOKENS // 2)
            if needed > self.left - TRAINING_SHARE * 60 * self.q.minutes:
                self._leave_out("sql", needed)
                return
            told = _Numbered(self.tell, self._place("sql"))
            kept = queries.measure_sql(model, self.judge, told, self.check)
            self.kept.put(key, kept)
        self._take(kept)

    def _train(self, ways: dict[str, Way]) -> None:
        """The short LoRA, asked alone and with passages."""
        if self.found.adapter is not None:
            why = say("advise.left_out.adapter")
            self.left_out |= {"lora": why, "lora_rag": why}
            return
        key = self._training_key()
        asking = sum(
            self.measured[name].seconds for name in ("base", "rag") if name in self.measured
        )
        seconds = self.left - asking - self.load_seconds
        planned = training.plan_training(
            self.out,
            key,
            self.base,
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
        told = training.Indented(_Numbered(self.tell, self._place("train")), what)
        setup = training.train(planned, told)
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
                one.disk_bytes = size_of(planned.out / "adapter")

    @property
    def base(self) -> str:
        """What a run file names as its model: of a run the model that it left, or its base."""
        of_run = self.found.run is not None or self.found.adapter is not None
        return str(self.found.source.folder) if of_run else self.q.model

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
        q, found, texts = self.q, self.measured, self.texts
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
            **texts,
            changes=q.changes,
            users=q.users,
        )

    @cached_property
    def texts(self) -> dict[str, Any]:
        """Figures about texts that need no model."""
        held, seed = self.rows.held_out, self.q.seed
        found = _beyond(beyond_chance(self.rows, self.prompts.held), seed)
        reached = _beyond(self.queries.reached(), seed) if self.queries else (None, None)
        return {
            "found": found[0],
            "found_gain": found[1],
            "reached": reached[0],
            "reached_gain": reached[1],
            "beyond": sum(bool(self.rows.beyond(row)) for row in held) / len(held),
        }

    def _gain(self, before: str, after: str) -> decide.Gain | None:
        a, b = self.measured.get(before), self.measured.get(after)
        return None if a is None or b is None else gain_of(a.scores, b.scores, self.q.seed)

    def _form_gain(self, before: str, after: str) -> decide.Gain | None:
        a, b = self.measured.get(before), self.measured.get(after)
        if a is None or b is None or not a.forms or not b.forms:
            return None
        return gain_of(a.forms, b.forms, self.q.seed)


def _beyond(
    values: tuple[list[float], list[float]], seed: int
) -> tuple[decide.Score | None, decide.Gain | None]:
    own, chance = values
    if not own:
        return None, None
    return score_of(own, seed), gain_of(chance, own, seed)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
