"""The questions of a run, put to the untouched model, to the trained one, and to the files that
were saved. A run that trains a head of numbers is asked for numbers."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunewright.core.files import write_text
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine.decoding import answers as generate
from tunewright.engine.decoding.answers import AnsweringModel, answering
from tunewright.models import load
from tunewright.models.kernels.fused import fused_without_gradient
from tunewright.run.prepare import Plan

if TYPE_CHECKING:
    from tunewright.engine.opening import Ready
    from tunewright.engine.policy import Policy
    from tunewright.run.saved import Fresh

FEW_PROBES = 20
"""Up to this many questions are asked of the model in memory and again of the reloaded one; more
only of the reloaded one."""


class Asker:
    """Puts the questions of a plan to one model after the other. `check` is called between batches
    of answers and may raise; `seconds` are those of all answers."""

    def __init__(self, plan: Plan, check: Callable[[], None], tell: Tell):
        self.plan, self.check, self.tell = plan, check, tell
        self.probes, self.scored = plan.questions.probes, plan.questions.scored
        self.seconds = 0.0

    def before(self, opened: Ready) -> None:
        """Ask what the run starts from: the adapter it goes on with, or the untouched base. A run
        that is taken up again has asked already."""
        if self.plan.resume and self._has_stored():
            return
        if self.scored:
            found = self._scores(opened.stepper.policy)
        elif self.plan.config.adapter:
            model = answering(opened.causal, opened.attached, self.plan.renderer)
            found = self._answers(model, say("train.ask_start"))
        else:
            off = opened.stepper.attached.disabled
            config = load.load_config(self.plan.source.folder).get_text_config()
            base = answering(
                opened.causal,
                opened.attached,
                self.plan.base_renderer,
                vocabulary=int(config.vocab_size),
            )
            with off() if off else contextlib.nullcontext():
                found = self._answers(base, say("train.ask_before"))
        for probe, text in zip(self.probes, found, strict=True):
            probe.before = text
        self._write()

    def after(self, opened: Ready) -> list[str] | None:
        """Ask the trained model, where the questions are few."""
        if self.scored:
            return self._scores(opened.stepper.policy)
        if len(self.probes) > FEW_PROBES:
            return None
        model = answering(opened.causal, opened.attached, self.plan.renderer)
        return self._answers(model, say("train.ask_after"))

    def reloaded(self, fresh: Fresh, in_memory: list[str] | None) -> None:
        """Ask what was saved and loaded afresh, and say where it answers otherwise than the model
        `in_memory` did."""
        found = (
            self._scores(fresh.policy())
            if self.scored
            else self._answers(
                answering(fresh.loaded.causal, fresh.loaded.attached, self.plan.renderer),
                say("train.ask_reloaded"),
            )
        )
        for i, (probe, text) in enumerate(zip(self.probes, found, strict=True)):
            probe.after, probe.after_reload = (in_memory[i] if in_memory else text), text
            if probe.after != text:
                self.tell.line(say("train.reload_differs", question=probe.question[:60]))
        self._write()

    def _answers(self, model: AnsweringModel, what: str) -> list[str]:
        if not self.probes:
            return []
        start = time.perf_counter()
        self.tell.start(what)
        renderer = model.renderer
        prompts = [renderer.prompt(p.messages, form=p.form(renderer)) for p in self.probes]
        answers = generate.answer(
            model,
            prompts,
            max_new_tokens=self.plan.questions.answer_tokens,
            check=self.check,
            progress=lambda done, written, most: self.tell.progress(what, done, len(prompts)),
        )
        self.tell.finish()
        full = sum(one.end in ("context", "no_room") for one in answers)
        if full:
            self.tell.line(say("train.context_full", count=full, n=len(answers)))
        self.seconds += time.perf_counter() - start
        return [one.text for one in answers]

    def _scores(self, policy: Policy) -> list[str]:
        """What the score head says of both answers of each probe's pair, or of each step of its
        answer."""
        import torch

        found = []
        policy.model.eval()
        for probe in self.probes:
            if self.plan.objective.prepare:
                self.plan.objective.prepare([probe.sample])
            with torch.no_grad(), fused_without_gradient():
                scores = policy([probe.sample]).score.tolist()
            if "steps" in probe.sample.facts:
                chances = ", ".join(f"{1 / (1 + math.exp(-score)):.2f}" for score in scores)
                found.append(say("train.steps_scored", chances=chances))
            else:
                chosen, rejected = (f"{score:+.3f}" for score in scores[:2])
                found.append(say("train.scored", chosen=chosen, rejected=rejected))
        return found

    def _has_stored(self) -> bool:
        """Whether the run asked these questions before its first step; its answers are taken."""
        path = self.plan.out / "before_after.jsonl"
        if not path.is_file():
            return False
        stored = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        if [row["question"] for row in stored] != [probe.question for probe in self.probes]:
            return False
        for probe, row in zip(self.probes, stored, strict=True):
            probe.before = row["before"]
        return True

    def _write(self) -> None:
        rows = [
            {
                name: value
                for name, value in vars(probe).items()
                if name not in ("messages", "sample")
            }
            for probe in self.probes
        ]
        write_text(
            self.plan.out / "before_after.jsonl",
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        )
