"""The questions of a run, put to what it starts from and to the files that it saved. A run that
trains a head of numbers is asked for numbers.

Each is asked once. What the run starts from may have answered already, in an earlier run
(`kept_answers`). Of the trained model only the saved files are asked: that they are what was
trained is seen from logits (`saved`), and each answer must begin as the model in memory would have
begun it. How long asking may take is decided in `asking_time`.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.advise.speed import Rates
from tunewright.core.files import read_json_lines, write_json_lines
from tunewright.core.runfile import kind_of
from tunewright.core.telling import Tell, telling_answers
from tunewright.core.words import say
from tunewright.engine.decoding import answers as generate
from tunewright.engine.decoding.answers import Answer, AnsweringModel, answering
from tunewright.engine.placement import World
from tunewright.models import load
from tunewright.models.kernels.fused import fused_without_gradient
from tunewright.run.asking_time import LEAST_SECONDS, Question, allow
from tunewright.run.general import General
from tunewright.run.kept_answers import KeptAnswers
from tunewright.run.memorised import Memorised
from tunewright.run.prepare import Plan
from tunewright.run.questions import Probe
from tunewright.run.reasoning import Reasoning
from tunewright.run.saved import FIRST_TOKENS, Text
from tunewright.sources.fingerprint import computed_by, fingerprint, is_kept_about

if TYPE_CHECKING:
    from tunewright.engine.opening import Ready
    from tunewright.engine.policy import Policy
    from tunewright.run.saved import Fresh, Seen

AT_ONCE = 8
"""Questions that may be left out are asked in groups of so many, as long as there is time."""
TIE, HALF_TIE = 1e-3, 0.02
"""Logits of two tokens that are as near, as a share of the largest logit, are a tie: the order of
additions decides. The second in half precision."""
BEGINNING = 64
"""Characters of an answer in which its first tokens lie."""
SHOWN_TOKENS = 64
"""Longest answer on the way."""
NOT_WRITTEN = ("messages", "sample", "is_row")


class Asker:
    """Puts the questions of a plan to one model after the other. `check` is called while answers
    are written and may raise; `seconds` are those of all answers."""

    def __init__(
        self,
        plan: Plan,
        world: World,
        check: Callable[[], None],
        tell: Tell,
        rates: Rates | None = None,
    ):
        self.plan, self.world, self.check, self.tell = plan, world, check, tell
        self.rates = rates
        self.scored = plan.questions.scored
        self.probes = list(plan.questions.probes)
        self.limits = dict(zip(self.probes, plan.questions.answer_tokens, strict=True))
        self.left_out = 0
        self.seconds = 0.0
        self.seconds_allowed = math.inf  # a run that is taken up again has chosen
        self.begun_with: dict[Probe, list[int]] = {}
        self.general = General(plan, world, check, tell, rates)
        self.reasoning = Reasoning(plan, world, check, tell, rates)
        self.memorised = Memorised(plan, world)
        self.speeds: dict[str, dict[str, float]] = {}
        """What writing the answers took, `before` and `after`."""

    def before(self, opened: Ready) -> None:
        """Ask what the run starts from: the adapter it goes on with, or the untouched base. A run
        that is taken up again has asked already."""
        if self.plan.resume and self._has_stored():
            self.general.take_up()
            self.reasoning.take_up()
            self.memorised.take_up()
            return
        if self.scored:
            for probe, text in zip(self.probes, self._scores(opened.stepper.policy), strict=True):
                probe.before = text
        else:
            about = self._about(opened) if self.probes or not self.general.skipped else None
            with self._start(opened) as model:
                self.general.before(opened, opened.layout, model, about)
                self.reasoning.before(model, about)
                self.memorised.before(opened, opened.layout, model.renderer)
                if self.probes:
                    self._ask_start(model, KeptAnswers(about))
                model.forget()
            del model
            gc.collect()  # what wrote the answers lies in a cycle, with weights packed for it
        self._write()

    def on_the_way(self, opened: Ready) -> list[dict[str, Any]]:
        """The first questions, asked of the model as it is in the middle of learning: as many as
        `engine.show_answers` says, those of the person before rows of the data."""
        count = self.plan.config.engine.show_answers
        probes = sorted(self.probes, key=lambda probe: probe.is_row)[:count]
        model = answering(opened.causal, opened.attached, self.plan.renderer)
        found = generate.answer(
            model,
            self._prompts(model.renderer, probes),
            max_new_tokens=[min(SHOWN_TOKENS, self.limits[probe]) for probe in probes],
            check=self.check,
        )
        model.forget()
        return [
            {"question": probe.question, "answer": one.text}
            for probe, one in zip(probes, found, strict=True)
        ]

    def begun(self) -> list[Text]:
        """The questions as token ids, each with the first tokens of the answer that is expected, or
        that was given before: what the model in memory and the reloaded one must go on with
        alike."""
        if self.scored:
            return []
        renderer = self.plan.renderer
        found = []
        for probe, prompt in zip(self.probes, self._prompts(renderer), strict=True):
            beginning = (probe.expected or probe.before)[:BEGINNING]
            answer = self.begun_with[probe] = renderer.piece(beginning)[:FIRST_TOKENS]
            found.append(Text([*prompt, *answer], 1 + len(answer)))
        return found

    def scores(self, opened: Ready) -> list[str] | None:
        """What the trained model's head says, where the run is asked for numbers."""
        return self._scores(opened.stepper.policy) if self.scored else None

    def reloaded(self, fresh: Fresh, in_memory: list[str] | None, seen: Sequence[Seen]) -> None:
        """Ask what was saved and loaded afresh, and say where it answers otherwise than the model
        `in_memory` did, of whose first tokens `seen` tells."""
        if self.scored:
            found = self._scores(fresh.policy())
            for probe, text, trained in zip(self.probes, found, in_memory or found, strict=True):
                probe.after = probe.after_reload = text
                probe.reload_differs = text != trained
                if probe.reload_differs:
                    self.tell.line(say("train.scores_differ", question=probe.question[:60]))
        else:
            model = answering(fresh.loaded.causal, fresh.loaded.attached, self.plan.renderer)
            self.general.after(fresh.loaded, fresh.layout, model)
            self.reasoning.after(model)
            self.memorised.after(fresh.loaded, fresh.layout, model.renderer)
            if self.probes:
                self._ask_reloaded(model, dict(zip(self.probes, seen, strict=True)))
            model.forget()
        self._write()

    # ---- asking

    @contextlib.contextmanager
    def _start(self, opened: Ready) -> Iterator[AnsweringModel]:
        """What the run starts from, ready to be asked; the base as it is asked by itself."""
        if self.plan.config.adapter:
            yield answering(opened.causal, opened.attached, self.plan.renderer)
            return
        off = opened.stepper.attached.disabled
        config = load.load_config(self.plan.source.folder, self.plan.config.base).get_text_config()
        with off() if off else contextlib.nullcontext():
            yield answering(
                opened.causal,
                opened.attached,
                self.plan.base_renderer,
                vocabulary=int(config.vocab_size),
            )

    def _ask_start(self, model: AnsweringModel, kept: KeptAnswers) -> None:
        prompts = self._prompts(model.renderer)
        limits = [self.limits[probe] for probe in self.probes]
        there = {
            probe: answer
            for probe, answer in zip(self.probes, kept.find(model, prompts, limits), strict=True)
            if answer is not None
        }
        self._choose(prompts, there)
        there = {probe: there[probe] for probe in self.probes if probe in there}
        fresh = [probe for probe in self.probes if probe not in there]
        adapter = bool(self.plan.config.adapter)
        if there and not fresh:
            self.tell.line(say("train.kept_start" if adapter else "train.kept_before"))
        elif there:
            self.tell.line(say("train.kept_some", count=len(there), n=len(self.probes)))
        what = say("train.ask_start" if adapter else "train.ask_before")
        asked = self._answers(model, fresh, what, self.seconds_allowed / 2, "before")
        found = there | asked
        self._leave_out([probe for probe in self.probes if probe not in found])
        for probe in self.probes:
            probe.before, probe.before_end = found[probe].text, found[probe].end
        written = [probe for probe in fresh if probe in asked]
        kept.keep(
            model,
            self._prompts(model.renderer, written),
            [self.limits[probe] for probe in written],
            [asked[probe] for probe in written],
        )

    def _ask_reloaded(self, model: AnsweringModel, seen: dict[Probe, Seen]) -> None:
        most = self.seconds_allowed - self.seconds
        found = self._answers(model, self.probes, say("train.ask_reloaded"), most, "after")
        self._leave_out([probe for probe in self.probes if probe not in found])
        for probe in self.probes:
            answer = found[probe]
            probe.after = probe.after_reload = answer.text
            probe.after_end = answer.end
            apart = self._apart(model, probe, answer, seen[probe])
            probe.reload_differs = apart is not None
            if apart is not None:
                question = probe.question[:60]
                self.tell.line(say("train.reload_differs", question=question, apart=f"{apart:.3g}"))

    def _apart(
        self, model: AnsweringModel, probe: Probe, answer: Answer, seen: Seen
    ) -> float | None:
        """None where `answer` begins as the model in memory would have begun it, as far as that is
        known and but for ties; else how far apart the logits of the two tokens are there."""
        begun = self.begun_with[probe]
        written = answer.tokens if answer.end != "stop" else [*answer.tokens, *model.stop_ids[:1]]
        for place, token in enumerate(written[: len(seen.tokens)]):
            if written[:place] != begun[:place]:
                return None  # the model in memory was not asked what follows
            ended = answer.end == "stop" and place == len(answer.tokens)
            same = set(model.stop_ids) if ended else {token}
            best = int(seen.tokens[place, 0])
            if best not in same:
                known = [float(x) for t, x in _pairs(seen, place) if t in same]
                apart = float(seen.logits[place, 0]) - max(
                    known, default=float(seen.logits[place, -1])
                )
                near = TIE if self.world.dtype == "float32" else HALF_TIE
                return None if apart <= near * seen.scale else apart
        return None

    def _answers(
        self,
        model: AnsweringModel,
        probes: Sequence[Probe],
        what: str,
        most_seconds: float,
        side: str,
    ) -> dict[Probe, Answer]:
        """The answers to `probes`: to all that must be asked, and to groups of the others
        as long as less than `most_seconds` have passed. `side`: before or after."""
        if not probes:
            return {}
        start = time.perf_counter()
        limits = [self.limits[probe] for probe in probes]
        told = telling_answers(self.tell, what, len(probes), sum(limits))
        found: dict[Probe, Answer] = {}
        for group in _groups(probes):
            spent = time.perf_counter() - start
            if found and group[0].is_row and spent * (1 + len(group) / len(found)) > most_seconds:
                break
            done, written = len(found), sum(len(one.tokens) for one in found.values())

            def progress(n: int, tokens: int, _: int, d: int = done, w: int = written) -> None:
                told(d + n, w + tokens, 0)

            answers = generate.answer(
                model,
                self._prompts(model.renderer, group),
                max_new_tokens=[self.limits[probe] for probe in group],
                check=self.check,
                progress=progress,
            )
            found |= dict(zip(group, answers, strict=True))
        self.tell.finish()
        full = sum(one.end in ("context", "no_room") for one in found.values())
        if full:
            self.tell.line(say("train.context_full", count=full, n=len(found)))
        seconds = time.perf_counter() - start
        tokens = sum(len(one.tokens) for one in found.values())
        self.speeds[side] = {"answers": len(found), "tokens": tokens, "seconds": round(seconds, 4)}
        self.seconds += seconds
        return found

    def _prompts(self, renderer: Any, probes: Sequence[Probe] | None = None) -> list[list[int]]:
        asked = self.probes if probes is None else probes
        return [renderer.prompt(p.messages, form=p.form(renderer)) for p in asked]

    # ---- what is left out, and what is kept

    def _choose(self, prompts: list[list[int]], kept: dict[Probe, Answer]) -> None:
        """Leave out the questions for which there is no time, before any is asked."""
        questions = [
            Question(len(prompt), self.limits[probe], probe in kept, probe.is_row)
            for probe, prompt in zip(self.probes, prompts, strict=True)
        ]
        allowed = allow(self.plan, self.world, questions, self.rates)
        self.seconds_allowed = allowed.seconds
        count = len(questions) - len(allowed.asked)
        if count:
            self.tell.line(
                say(
                    "train.left_out",
                    count=count,
                    n=len(questions),
                    seconds=f"{self.seconds_allowed:.0f}",
                    least=f"{LEAST_SECONDS:.0f}",
                    needed=f"{allowed.needed:.0f}",
                )
            )
            self.left_out += count
            self.probes = [self.probes[i] for i in allowed.asked]

    def _leave_out(self, lost: list[Probe]) -> None:
        """Leave out questions for which no time was left, in what was asked before as well."""
        if lost:
            seconds, n = f"{self.seconds_allowed:.0f}", len(self.probes)
            self.tell.line(say("train.left_out_late", count=len(lost), n=n, seconds=seconds))
            self.left_out += len(lost)
            self.probes = [probe for probe in self.probes if probe not in lost]

    def _about(self, opened: Ready) -> dict[str, Any] | None:
        """Everything besides the question that decides what the start of this run answers; None
        where too much does, or where asking again is as quick."""
        config, attached = self.plan.config, opened.stepper.attached
        if not is_kept_about(self.plan.source.folder):
            return None
        method = None
        if attached.disabled is None or config.adapter:
            # What answers has the method on: its start, or the adapter as its settings go on.
            if attached.look is not None:
                return None  # which depends on the rows as well
            method = [kind_of(config.method), config.method.model_dump(), config.engine.seed]
        return {
            "base": fingerprint(self.plan.source.folder),
            "adapter": fingerprint(Path(config.adapter)) if config.adapter else "",
            "method": method,
            "held": config.base.model_dump(),
            "device": self.world.device.split(":")[0],
            "dtype": self.world.dtype,
            "by": computed_by() | {"generator": str(generate.GENERATOR)},
        }

    # ---- numbers

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

    # ---- the file

    def _has_stored(self) -> bool:
        """Whether the run asked these questions before its first step, but for some that were left
        out; its answers are taken."""
        path = self.plan.out / "before_after.jsonl"
        if not path.is_file():
            return False
        asked, rest = [], iter(read_json_lines(path))
        row = next(rest, None)
        for probe in self.probes:
            if row is not None and row["question"] == probe.question:
                probe.before, probe.before_end = row["before"], row.get("before_end", "")
                row = next(rest, None)
                asked.append(probe)
            elif not probe.is_row:
                return False
        if row is not None or (self.probes and not asked):
            return False
        self.left_out, self.probes = len(self.probes) - len(asked), asked
        return True

    def _write(self) -> None:
        rows = [
            {name: value for name, value in vars(probe).items() if name not in NOT_WRITTEN}
            for probe in self.probes
        ]
        write_json_lines(self.plan.out / "before_after.jsonl", rows)


def _groups(probes: Sequence[Probe]) -> Iterator[list[Probe]]:
    """Probes that are asked together: all that must be asked, and `AT_ONCE` of the others; all at
    once where they are few."""
    must = [probe for probe in probes if not probe.is_row]
    rows = [probe for probe in probes if probe.is_row]
    if len(rows) <= AT_ONCE:
        yield list(probes)
        return
    if must:
        yield must
    for i in range(0, len(rows), AT_ONCE):
        yield rows[i : i + AT_ONCE]


def _pairs(seen: Seen, place: int) -> Iterator[tuple[int, float]]:
    """Token ids and logits of a place."""
    return zip(seen.tokens[place].tolist(), seen.logits[place].tolist(), strict=True)
