"""The general questions of a run (`evaluate.forgetting`), put to what it starts from and to the
files that it saved: what was forgotten.

They are scored in one pass and cost about a second of a small model. Where they would take long
beside the training, fewer are asked, or none. What the start said lies in the run folder, so that a
run that is taken up again need not ask a model that has learnt since; what a base said is kept
between runs, as its answers are (`kept_answers`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tunewright.advise.speed import Rates
from tunewright.core import findings
from tunewright.core.files import read_json_lines, write_json_lines
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine.decoding.answers import AnsweringModel
from tunewright.engine.placement import World
from tunewright.evaluate import forgetting
from tunewright.evaluate.damage import Exchange
from tunewright.record.events import plain
from tunewright.run.asking_time import Question, places_in
from tunewright.run.prepare import Plan
from tunewright.text import thinking

if TYPE_CHECKING:
    from tunewright.engine.opening import Loaded

FILE = "forgetting.jsonl"
KIND = "forgetting"
SHARE, LEAST_SECONDS = 0.03, 20.0
"""Both askings together take at most this share of the estimated training, or so many seconds where
that is more."""


class General:
    """The general questions of one run. `check` is called while answers are written and may
    raise; `seconds` are those of both askings."""

    def __init__(
        self, plan: Plan, world: World, check: Callable[[], None], tell: Tell, rates: Rates | None
    ):
        self.plan, self.world, self.check, self.tell, self.rates = plan, world, check, tell, rates
        self.skipped = ""
        """Why nothing is asked, a key of `forgetting.skipped.*`; empty where it is."""
        self.items: list[forgetting.Item] = []
        self.before_side: forgetting.Side = {}
        self.after_side: forgetting.Side = {}
        self.seconds = 0.0
        if plan.config.forgetting == "off":
            self.skipped = "off"
        elif plan.questions.scored:
            self.skipped = "numbers"

    def before(self, loaded: Loaded, layout: str, model: AnsweringModel, about: Any) -> None:
        """Ask what the run starts from; `about` says which model that is, where what it says is
        kept."""
        if self.skipped:
            return
        start = time.perf_counter()
        what = self._chosen(forgetting.asked(model.renderer, forgetting.all_items(), self._room))
        if not self.skipped:
            key = None if about is None else about | {"asks": what.key(), "layout": layout}
            found = findings.read(KIND, key) if key is not None else None
            side = forgetting.read_side(what.items, found) if isinstance(found, dict) else None
            if side is None:
                side = self._ask(loaded, layout, model, what)
                if key is not None:
                    findings.keep(KIND, key, side)
            self.items = sorted(what.items, key=lambda item: item.place)
            self.before_side = side
            self._write()
        self.seconds += time.perf_counter() - start

    def take_up(self) -> None:
        """Read what the start said from the folder of a run that is taken up again."""
        if self.skipped:
            return
        try:
            stored = read_json_lines(self.plan.out / FILE)
            known = {row["id"]: row["before"] for row in stored}
        except (OSError, ValueError, KeyError, TypeError):
            self.skipped = "resumed"
            return
        items = [item for item in forgetting.all_items() if item.id in known]
        side = forgetting.read_side(items, known)
        if side is None or not items:
            self.skipped = "resumed"
        else:
            self.items, self.before_side = items, side

    def after(self, loaded: Loaded, layout: str, model: AnsweringModel) -> None:
        """Ask what was saved and loaded afresh."""
        if self.skipped:
            return
        start = time.perf_counter()
        what = forgetting.asked(model.renderer, self.items, self._room)
        self.after_side = self._ask(loaded, layout, model, what)
        self._write()
        self.seconds += time.perf_counter() - start

    def report(self) -> dict[str, Any]:
        """The key `forgetting` of the summary."""
        told: dict[str, Any] = {"skipped": self.skipped or None}
        if self.skipped or not self.after_side:
            return {**told, "skipped": self.skipped or "unfinished"}
        found = forgetting.compare(self.items, self.before_side, self.after_side)
        left_out = sum(not item.thoughts for item in forgetting.all_items()) - found["asked"]
        return {**told, **found, "left_out": left_out, "seconds": round(self.seconds, 3)}

    def exchanges(self) -> Iterator[Exchange]:
        """The questions that were answered in words, both times."""
        renderer = self.plan.renderer
        for item in self.items:
            if item.answers or item.id not in self.after_side:
                continue
            first, last = self.before_side[item.id], self.after_side[item.id]
            opens = False
            if item.thoughts:
                prompt = renderer.prompt(item.messages, form="thinking")
                opens = thinking.ends_open(renderer.decode(prompt))
            yield Exchange(
                item.question,
                first["text"],
                last["text"],
                kind="general",
                before_end=first["end"],
                after_end=last["end"],
                limit=item.most,
                opens=opens,
            )

    # ---- parts

    @property
    def _room(self) -> int | None:
        return self.plan.context

    def _chosen(self, what: forgetting.Asked) -> forgetting.Asked:
        """The questions for which there is time; none where they are too few."""
        questions = [Question(what.tokens_of(item), item.most, False, True) for item in what.items]
        order = sorted(range(len(questions)), key=lambda i: what.items[i].place)
        seconds = max(LEAST_SECONDS, SHARE * self._train_seconds())
        asked = places_in(self.plan, self.world, [questions[i] for i in order], self.rates, seconds)
        chosen = {what.items[order[i]].id for i in asked}
        if len(chosen) < forgetting.FEWEST:
            self.skipped = "no_questions" if len(questions) < forgetting.FEWEST else "time"
            self.tell.line(say(f"forgetting.skipped.{self.skipped}", seconds=f"{seconds:.0f}"))
        elif len(chosen) < len(questions):
            told = f"{seconds:.0f}"
            self.tell.line(
                say("forgetting.fewer", count=len(chosen), n=len(questions), seconds=told)
            )
        return what.only(chosen)

    def _train_seconds(self) -> float:
        return self.plan.estimate(self.world, self.rates).seconds or 0.0

    def _ask(
        self, loaded: Loaded, layout: str, model: AnsweringModel, what: forgetting.Asked
    ) -> forgetting.Side:
        self.check()
        self.tell.start(say("forgetting.asking"))
        rows = self.world.rows_per_pass
        said = forgetting.score(loaded, what, layout=layout, rows_per_pass=rows)
        self.check()
        said |= forgetting.write(model, what, self.check)
        self.tell.finish()
        return said

    def _write(self) -> None:
        rows = [
            {
                "id": item.id,
                "kind": item.kind,
                "language": item.language,
                "question": item.question,
                **({"answers": list(item.answers)} if item.answers else {}),
                "before": self.before_side[item.id],
                **({"after": self.after_side[item.id]} if item.id in self.after_side else {}),
            }
            for item in self.items
        ]
        write_json_lines(self.plan.out / FILE, map(plain, rows))
