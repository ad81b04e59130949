"""The reasoning questions of a run (`evaluate.reasoning`), put to what it starts from and to the
files that it saved. Only a model whose template can ask it to think is asked them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tunewright.advise.speed import Rates
from tunewright.core import findings
from tunewright.core.files import read_json_lines, write_json_lines
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine.decoding.answers import AnsweringModel
from tunewright.engine.placement import World
from tunewright.evaluate import reasoning
from tunewright.record.events import plain
from tunewright.run.asking_time import Question, places_in
from tunewright.run.prepare import Plan

FILE = "reasoning.jsonl"
KIND = "reasoning"
SHARE, LEAST_SECONDS = 0.03, 30.0
"""Both askings together take at most this share of the estimated training, or so many seconds where
that is more."""


class Reasoning:
    """The reasoning questions of one run. `check` is called while answers are written and may
    raise."""

    def __init__(
        self, plan: Plan, world: World, check: Callable[[], None], tell: Tell, rates: Rates | None
    ):
        self.plan, self.world, self.check, self.tell, self.rates = plan, world, check, tell, rates
        self.items: list[reasoning.Item] = []
        self.most = 0
        self.before_side: reasoning.Side = {}
        self.after_side: reasoning.Side = {}
        self.seconds = 0.0
        self.skipped = ""
        """Why nothing is asked, a key of `reasoning.skipped.*`; empty where it is."""
        if plan.config.forgetting == "off":
            self.skipped = "off"
        elif plan.questions.scored or not plan.renderer.thinks:
            self.skipped = "no_thinking"

    def before(self, model: AnsweringModel, about: Any) -> None:
        """Ask what the run starts from; `about` says which model that is, where what it says is
        kept between runs."""
        if self.skipped or not model.renderer.thinks:
            self.skipped = self.skipped or "no_thinking"
            return
        start = time.perf_counter()
        prompts = self._chosen(model)
        if prompts:
            key = None if about is None else about | {"asks": [prompts, self.most]}
            found = findings.read(KIND, key) if key is not None else None
            side = reasoning.read_side(self.items, found) if isinstance(found, dict) else None
            if side is None:
                side = self._ask(model, prompts)
                if key is not None:
                    findings.keep(KIND, key, side)
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
            self.most = int(stored[0]["most_tokens"])
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            self.skipped = "resumed"
            return
        self.items = [item for item in reasoning.all_items() if item.id in known]
        side = reasoning.read_side(self.items, known)
        if side is None or not self.items:
            self.skipped = "resumed"
        else:
            self.before_side = side

    def after(self, model: AnsweringModel) -> None:
        """Ask what was saved and loaded afresh."""
        if self.skipped:
            return
        start = time.perf_counter()
        prompts = reasoning.prompts_of(model.renderer, self.items, self.plan.context)
        self.after_side = self._ask(model, prompts)
        self._write()
        self.seconds += time.perf_counter() - start

    def report(self) -> dict[str, Any]:
        """The key `reasoning` of the summary."""
        if self.skipped or not self.after_side:
            return {"skipped": self.skipped or "unfinished"}
        found = reasoning.compare(self.items, self.before_side, self.after_side, self.most)
        return {"skipped": None, **found, "seconds": round(self.seconds, 3)}

    # ---- parts

    def _chosen(self, model: AnsweringModel) -> dict[str, list[int]]:
        """The prompts for which there is time, and the room of their answers; none where they are
        too few."""
        items = list(reasoning.all_items())
        prompts = reasoning.prompts_of(model.renderer, items, self.plan.context)
        if len(prompts) < reasoning.FEWEST:
            self.skipped = "no_questions"
            return {}
        longest = max(map(len, prompts.values()))
        trained = self.plan.estimate(self.world, self.rates).seconds or 0.0
        seconds = max(LEAST_SECONDS, SHARE * trained)
        names = list(prompts)
        for most in reasoning.ROOMS:
            if self.plan.context is not None and longest + most > self.plan.context:
                continue
            asked = [Question(len(prompts[name]), most, False, True) for name in names]
            places = places_in(self.plan, self.world, asked, self.rates, seconds)
            if len(places) >= reasoning.FEWEST:
                chosen = [names[i] for i in places]
                self.most = most
                self.items = [item for item in items if item.id in chosen]
                return {name: prompts[name] for name in chosen}
        self.skipped = "time"
        self.tell.line(say("reasoning.skipped.time", seconds=f"{seconds:.0f}"))
        return {}

    def _ask(self, model: AnsweringModel, prompts: dict[str, list[int]]) -> reasoning.Side:
        self.check()
        self.tell.start(say("reasoning.asking"))
        side = reasoning.ask(model, prompts, self.most, self.check)
        self.tell.finish()
        return side

    def _write(self) -> None:
        rows = [
            {
                "id": item.id,
                "question": item.question,
                "answer": item.answer,
                "most_tokens": self.most,
                "before": self.before_side[item.id],
                **({"after": self.after_side[item.id]} if item.id in self.after_side else {}),
            }
            for item in self.items
        ]
        write_json_lines(self.plan.out / FILE, map(plain, rows))
