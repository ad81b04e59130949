"""Steps on the model's own answers without judging them: on-policy distillation.

In a share of the steps the student answers the questions of the rows, and learns on what it wrote;
in the others it learns on the rows' own answers. Which steps, and what is drawn, are functions of
the seed and the step's number, so a resumed run draws the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tunewright.core.seeds import stream_seed
from tunewright.core.types import OwnAnswers, Sample
from tunewright.engine.rollouts.rounds import SHOWN, SHOWN_EVERY, Asking, drawn_sample
from tunewright.engine.rollouts.sampling import Drawn, How, Sampler
from tunewright.engine.step import Stepper, StepReport


@dataclass
class OnPolicyStepper(Stepper):
    """A `Stepper` that replaces the answers of some steps by drawn ones."""

    own: OwnAnswers | None = None
    asking: Asking | None = None
    sampler: Sampler | None = None

    def draws(self, number: int) -> bool:
        """Whether step `number` is taken on the model's own answers."""
        assert self.own is not None
        luck = torch.rand(
            1,
            generator=torch.Generator().manual_seed(stream_seed(self.seed, "own answers", number)),
            dtype=torch.float64,
        )
        return float(luck) < self.own.share

    def step(self, samples: list[Sample], number: int, learning_rate: float) -> StepReport:
        """The step, on drawn answers where it is one of these."""
        drawing = self.draws(number)
        drawn = self.draw(samples, number) if drawing else []
        report = super().step([made for made, _ in drawn] or samples, number, learning_rate)
        report.figures["own_answers"] = float(drawing)
        if drawing:
            count = len(drawn)
            report.figures["answer_tokens"] = sum(len(one.tokens) for _, one in drawn) / count
            report.figures["finished"] = sum(one.finished for _, one in drawn) / count
            if number % SHOWN_EVERY == 1 or number <= 2:
                report.texts = [
                    self._text(sample, one)
                    for sample, (_, one) in zip(samples, drawn[:SHOWN], strict=False)
                ]
        return report

    def draw(self, samples: list[Sample], number: int) -> list[tuple[Sample, Drawn]]:
        """One answer to the question of each sample, as something to learn from."""
        assert self.own is not None and self.asking is not None and self.sampler is not None
        own = self.own
        prompts = [self.asking.prompt(sample) for sample in samples]
        found = self.sampler.draw(
            prompts,
            How(1, own.max_new_tokens, own.temperature, own.top_p, own.top_k),
            self.seed,
            number,
        )
        return [
            (drawn_sample(sample, prompt, one), one)
            for sample, prompt, (one,) in zip(samples, prompts, found, strict=True)
        ]

    def _text(self, sample: Sample, one: Drawn) -> dict[str, str]:
        assert self.asking is not None
        answer = one.tokens[:-1] if one.finished else one.tokens
        return {
            "question": self.asking.decode(self.asking.prompt(sample)),
            "answer": self.asking.decode(answer).strip(),
        }
