"""Questions to tables, measured: queries learnt from examples, and SQL that the model writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tunewright.commands.advising.lookup import Lookup
from tunewright.commands.advising.measuring import Judge, Measured, ask, beyond_chance, prompt_of
from tunewright.commands.advising.passages import Index
from tunewright.commands.advising.prompts import WORDING, Way, language_of
from tunewright.commands.advising.rows import Rows, asked
from tunewright.commands.advising.tables import Database, sql_in
from tunewright.core.telling import Tell
from tunewright.core.types import Conversation, Message

SQL_EXAMPLES = 3
SQL_TOKENS = 96


class Queries:
    """A database and what was learnt about asking it."""

    def __init__(self, database: Database, rows: Rows):
        start = time.perf_counter()
        self.database, self.rows = database, rows
        self.lookup = Lookup(database)
        self.lookup.learn([(asked(row), row.answer()) for row in rows.train])
        self.examples = Index([question for question, _ in self.lookup.examples])
        self.schema = database.schema()
        self.language = language_of(rows.train)
        self.setup_seconds = time.perf_counter() - start

    def measure_lookup(self, judge: Judge) -> Measured:
        """The queries of the training questions that are worded alike."""
        start = time.perf_counter()
        found = [self.lookup.query(question) for question in self.rows.questions]
        answers = [(self.database.ask(sql) or "") if sql else "" for sql in found]
        seconds = time.perf_counter() - start
        return Measured(
            "lookup",
            answers,
            judge.scores(answers, of_query=True),
            seconds=seconds,
            setup_seconds=self.setup_seconds,
            queries=[sql or "" for sql in found],
        )

    def reached(self) -> tuple[list[float], list[float]]:
        """Whether some simple query gives each row's answer, and how often by chance."""
        return beyond_chance(
            self.rows, lambda row, answer: float(self.lookup.reached(asked(row), answer))
        )

    def way(self) -> Way:
        """How the model is asked for SQL: the schema, and questions whose query is known."""
        return Way("sql", self.messages, SQL_EXAMPLES)

    def messages(self, row: Conversation, shrink: int = 0) -> list[Message]:
        """The turns of a question."""
        question = asked(row)
        places = self.examples.search(question, SQL_EXAMPLES)[: max(0, SQL_EXAMPLES - shrink)]
        turns = [self.lookup.examples[i] for i in reversed(places)]
        wording = WORDING[self.language]["sql"]
        out: list[Message] = []
        for number, (text, sql) in enumerate([*turns, (question, "")]):
            whole = wording.format(schema=self.schema, question=text)
            short = whole.rsplit("\n", 1)[1] if "\n" not in text else text
            out.append(Message("user", short if number else whole))
            if sql:
                out.append(Message("assistant", sql))
        return out

    def measure_sql(
        self, model: Any, judge: Judge, tell: Tell, check: Callable[[], None] | None
    ) -> Measured:
        """SQL that the model writes, run read-only."""
        way = self.way()
        prompts = [prompt_of(model, way, row, SQL_TOKENS) for row in self.rows.held_out]
        found = ask(model, way, judge, prompts, SQL_TOKENS, tell, check)
        found.queries = [sql_in(text) for text in found.answers]
        found.answers = [self.database.ask(sql) or "" for sql in found.queries]
        found.scores, found.forms = judge.scores(found.answers, of_query=True), []
        found.setup_seconds = self.setup_seconds
        return found
