"""A model that writes thoughts to rows: draws are made, or taken from the file, and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.commands.thoughts.draws import Draw, DrawFile
from tunewright.commands.thoughts.hints import speaks_of_hint, with_hint
from tunewright.commands.thoughts.made import How, Thought
from tunewright.core.seeds import stream_seed
from tunewright.core.telling import Tell, telling_answers
from tunewright.core.types import Answer, Conversation, Message, Origin
from tunewright.core.words import say
from tunewright.rewards import RewardSet
from tunewright.text.rendered import CannotRender

if TYPE_CHECKING:
    from tunewright.engine.opening import Opened

PASS = 1.0
"""What the rewards of a draw must add up to, so that it is kept."""
MOST_NEW_TOKENS = 1024
"""Most tokens of a draw unless told otherwise."""


@dataclass
class Asked:
    """A row that is asked for a thought, and what came of it."""

    row: Conversation
    answer: str
    place: int
    kept: Draw | None = None
    source: str = "none"
    passed: int = 0
    """Draws without a hint that reached the answer."""
    drawn: int = 0


class Work:
    """One model that writes thoughts to rows."""

    def __init__(
        self,
        opened: Opened,
        how: How,
        judges: RewardSet,
        beside: dict[Origin, dict[str, Any]],
        made: Thought,
        tell: Tell,
    ):
        from tunewright.evaluate.answer_table import about

        self.opened, self.how, self.judges, self.beside = opened, how, judges, beside
        self.made, self.tell, self.renderer = made, tell, opened.renderer
        self.who = about(opened)
        made.thinks = self.renderer.thinks
        if not made.thinks:
            self.note(say("think.no_thoughts"))
        self.file = DrawFile(Path(made.draws_file))

    def note(self, text: str) -> None:
        """Say it now and keep it for the report."""
        self.tell.line(text)
        self.made.warnings.append(text)

    def run(self, asked: list[Asked]) -> None:
        """Draw, judge, and once more with a hint."""
        try:
            self._round(asked, hinted=False)
            left = [one for one in asked if one.kept is None]
            if self.how.hint and left:
                self._round(left, hinted=True)
        finally:
            self.file.close()

    def _round(self, asked: list[Asked], *, hinted: bool) -> None:
        able, prompts = [], []
        for one in asked:
            question = self._question(one.row)
            question = with_hint(question, one.answer) if hinted else question
            try:
                prompts.append(self.renderer.prompt(question, one.row.tools, self._form))
                able.append(one)
            except CannotRender as error:
                self.note(say("think.cannot_ask", where=str(one.row.origin), why=str(error)))
        for one, draws in zip(able, self._drawn(able, prompts, hinted), strict=True):
            self._judge(one, draws, hinted)
        self.tell.finish()

    def _question(self, row: Conversation) -> list[Message]:
        """A row's question under the system prompt that the model was trained with, where it has
        none of its own."""
        question, system = row.question(), self.opened.target.system
        if system is None or question[0].role == "system":
            return question
        return [Message("system", system), *question]

    @property
    def _form(self) -> Any:
        return "thinking" if self.renderer.thinks else "default"

    def _drawn(
        self, asked: list[Asked], prompts: list[list[int]], hinted: bool
    ) -> list[list[Draw]]:
        """The draws to every prompt, from the file or anew."""
        from tunewright.evaluate.answer_table import digest

        how, rooms = self.how, [self._room(len(prompt)) for prompt in prompts]
        drawn = [how.draws, how.temperature, how.top_p, how.seed]
        names = [
            digest([self.who, prompt, room, drawn, list(self.renderer.stop_ids)])
            for prompt, room in zip(prompts, rooms, strict=True)
        ]
        new = {
            name: i
            for i, name in reversed(list(enumerate(names)))
            if self.file.find(name) is None and rooms[i] > 0
        }
        self.made.no_room += sum(room <= 0 for room in rooms)
        self.made.drawn_anew += len(new)
        places = sorted(new.values())
        if places:
            what = say("think.asking_hinted" if hinted else "think.asking")
            total = sum(rooms[i] for i in places) * how.draws
            told = telling_answers(self.tell, what, len(places) * how.draws, total)

            def ended(i: int, draws: list[Draw]) -> None:
                question = asked[i].row.question()[-1].content
                self.file.add(names[i], question, draws)

            self._write(places, prompts, rooms, ended, told)
        return [self.file.find(name) or [] for name in names]

    def _room(self, prompt: int) -> int:
        """Most tokens of an answer behind a question of so many."""
        left = self.opened.answering.room(prompt)
        most = self.how.max_new_tokens or MOST_NEW_TOKENS
        return most if left is None else min(most, left)

    def _write(
        self,
        places: list[int],
        prompts: list[list[int]],
        rooms: list[int],
        ended: Callable[[int, list[Draw]], None],
        told: Callable[[int, int, int], None],
    ) -> None:
        """All draws of the questions at `places`; a question's are told as soon as its last one
        has ended. What is drawn depends on the question and the seed, not on the company."""
        import torch

        from tunewright.engine.decoding.batch import Ask, Written
        from tunewright.engine.decoding.drawing import Sampling

        how, asks = self.how, []
        sampling = Sampling(how.temperature, how.top_p)
        for i in places:
            seed = stream_seed(how.seed, "think", *prompts[i][-64:], len(prompts[i]))
            luck = torch.rand(
                how.draws,
                rooms[i],
                generator=torch.Generator().manual_seed(seed),
                dtype=torch.float64,
            )
            asks.append(Ask(prompts[i], rooms[i], how.draws, sampling, luck))
        got: list[list[Draw]] = [[] for _ in places]

        def on_end(k: int, written: Written) -> None:
            got[k].append(self._draw(prompts[places[k]], written))
            if len(got[k]) == how.draws:  # they end in an order that depends on their company
                ended(places[k], sorted(got[k], key=lambda one: (one.tokens, one.text)))

        self.opened.answering.writer.write(asks, progress=told, on_end=on_end)

    def _draw(self, prompt: list[int], written: Any) -> Draw:
        finished = written.end == "stop"
        ids = [token for token in written.tokens if token not in self.renderer.stop_ids]
        thought, text = self.renderer.parts(prompt, ids, finished)
        return Draw(thought, text, len(written.tokens), finished)

    # ---- judging

    def _judge(self, one: Asked, draws: list[Draw], hinted: bool) -> None:
        """Keep, of the draws that pass, the one of middle length: always taking the shortest would
        teach to think less."""
        made, usable = self.made, []
        made.draws += 0 if hinted else len(draws)
        made.tokens += sum(draw.tokens for draw in draws)
        made.cut_off += sum(not draw.finished for draw in draws)
        answers = [
            Answer(
                one.row.question(),
                draw.text,
                draw.tokens,
                draw.finished,
                {**self.beside.get(one.row.origin, {}), "answer": one.answer},
                one.row.origin,
                draw.thought,
            )
            for draw in draws
        ]
        scores = self.judges.score(answers) if answers else None
        for k, draw in enumerate(draws):
            assert scores is not None
            if k in scores.left_out or not scores.total[k] >= PASS or not draw.finished:
                continue
            made.passed += 0 if hinted else 1
            one.passed += 0 if hinted else 1
            if not self._is_usable(draw):
                continue
            if hinted and speaks_of_hint(draw.thought or draw.text):
                made.mention_hint += 1
                continue
            usable.append(draw)
        if usable:
            one.kept = usable[(len(usable) - 1) // 2]
            one.source = "rationalised" if hinted else "drawn"
        one.drawn += len(draws)
        for _, name, why in scores.bad[:1] if scores is not None else []:
            text = say("think.not_judged", name=name, why=why, where=str(one.row.origin))
            if len(made.warnings) < 5:
                self.note(text)

    def _is_usable(self, draw: Draw) -> bool:
        """Where the model can think, an answer without a thought has nothing to give."""
        return bool(draw.thought) or not self.renderer.thinks
