"""How well a reward model ranks pairs, next to two judges that understand nothing: one that looks
at length, one that counts words.

Preference sets often reward the longer answer, and a model that learnt only that scores well. So
the accuracy stands beside that of "the longer (or the shorter) answer is better", the direction
chosen on the run's own training pairs, and of a logistic regression on differences of word counts,
fitted on the same pairs. Where the training pairs are not at hand, the direction is the better one
on the measured pairs, which flatters it, and words are not counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from tunewright.core.config import DataConfig
from tunewright.core.errors import TunewrightError, UsageError, problem
from tunewright.core.types import Preference
from tunewright.core.words import say
from tunewright.data import inspect
from tunewright.engine import opening
from tunewright.evaluate import scorer
from tunewright.evaluate.interval import wilson
from tunewright.models import load
from tunewright.models.scalar_heads import stored_score

WORD = re.compile(r"[^\W_]+", re.UNICODE)
HAN = re.compile(r"[\u3400-\u9fff]")
MOST_WORDS = 4000


def is_scorer(found: opening.Target) -> bool:
    """Whether a target gives numbers and not words."""
    return load.is_scorer(found.source.folder) or (
        found.adapter is not None and stored_score(found.adapter) is not None
    )


def words_of(text: str) -> list[str]:
    """Lower-case words; Chinese characters one by one."""
    return [w.lower() for w in WORD.findall(HAN.sub(" ", text))] + HAN.findall(text)


def _sides(row: Preference) -> tuple[str, str]:
    chosen, rejected = (" ".join(m.content for m in turns) for turns in (row.chosen, row.rejected))
    return chosen, rejected


def by_length(pairs: Sequence[Preference], longer: bool) -> float:
    """Share of pairs whose chosen answer is the longer (or shorter) one; a tie counts half."""
    right = 0.0
    for row in pairs:
        gap = len(words_of(_sides(row)[0])) - len(words_of(_sides(row)[1]))
        right += 0.5 if gap == 0 else float((gap > 0) == longer)
    return right / len(pairs)


def prefers_longer(pairs: Sequence[Preference]) -> bool:
    """The direction that is right more often."""
    return by_length(pairs, True) >= 0.5


class WordCounter:
    """Logistic regression on the difference of two answers' word counts: -log sigmoid(w (c - r)) +
    |w|^2 / 2 lambda, by gradient steps."""

    def __init__(self, pairs: Sequence[Preference], steps: int = 300, decay: float = 1e-3):
        seen = Counter(w for row in pairs for side in _sides(row) for w in set(words_of(side)))
        self.place = {w: i for i, (w, _) in enumerate(seen.most_common(MOST_WORDS))}
        x = torch.stack([self._difference(row) for row in pairs])
        self.weight = torch.zeros(len(self.place), requires_grad=True)
        optimizer = torch.optim.Adam([self.weight], lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (
                -torch.nn.functional.logsigmoid(x @ self.weight).mean()
                + decay * (self.weight**2).sum()
            )
            loss.backward()
            optimizer.step()

    def _difference(self, row: Preference) -> Any:
        x = torch.zeros(max(1, len(self.place)))[: len(self.place)]
        for sign, side in zip((1.0, -1.0), _sides(row), strict=True):
            for word in words_of(side):
                if word in self.place:
                    x[self.place[word]] += sign
        return x

    def accuracy(self, pairs: Sequence[Preference]) -> float:
        """Share ranked right; a tie counts half."""
        right = 0.0
        for row in pairs:
            gap = float((self._difference(row) @ self.weight).detach())
            right += 0.5 if gap == 0 else float(gap > 0)
        return right / len(pairs)


def training_pairs(found: opening.Target) -> list[Preference]:
    """The pairs a run learnt from, where its data is still at hand; held-out ones are not among
    them."""
    if found.run is None:
        return []
    names = {
        name.removeprefix("data."): value
        for name, value in found.settings.items()
        if name.startswith("data.") and value is not None
    }
    try:
        data = inspect(
            DataConfig.model_validate(names),
            None,
            seed=int(found.settings.get("engine.seed", 0)),
            needs_tokens=False,
            check=False,
        )
    except (TunewrightError, ValueError):
        return []
    return [row for row in data.train_rows if isinstance(row, Preference)]


def rank(
    found: opening.Target,
    data: Any,
    name: str,
    *,
    dtype: str | None,
    device: str,
    threads: Any,
    details: bool,
    started: float,
) -> dict[str, Any]:
    """Score every pair of `data`. Raises UsageError where its rows are no pairs."""
    pairs = [row for row in data.train_rows if isinstance(row, Preference)]
    if len(pairs) != len(data.train_rows) or not pairs:
        raise UsageError(problem("E-EVAL-06", name, target=found.name))
    scored = scorer.scores(found, data.train, name, dtype=dtype, device=device, threads=threads)
    scores = scored.by_sample
    gaps = [scores[sample.index][0] - scores[sample.index][1] for sample in data.train]
    right = sum(gap > 0 for gap in gaps)
    known = training_pairs(found)
    longer = prefers_longer(known or pairs)
    ranking: dict[str, Any] = {
        "n": len(gaps),
        "right": right,
        "ties": sum(gap == 0 for gap in gaps),
        "accuracy": right / len(gaps),
        "interval_95": wilson(right, len(gaps)),
        "mean_margin": sum(gaps) / len(gaps),
        "length": {
            "longer": longer,
            "accuracy": by_length(pairs, longer),
            "chosen_on": "training" if known else "these",
        },
        "words": {"accuracy": WordCounter(known).accuracy(pairs), "training_pairs": len(known)}
        if known
        else None,
    }
    if details:
        ranking["rows"] = [
            {"row": str(s.origin), "chosen": scores[s.index][0], "rejected": scores[s.index][1]}
            for s in data.train
        ]
    return scored.result(found, data, name, started, ranking=ranking)


def lines(ranking: dict[str, Any]) -> list[str]:
    """The figures for a terminal."""

    def percent(share: float) -> str:
        return f"{100 * share:.1f} %"

    low, high = ranking["interval_95"]
    out = [
        say(
            "evaluate.ranked",
            share=percent(ranking["accuracy"]),
            right=ranking["right"],
            n=ranking["n"],
            low=percent(low),
            high=percent(high),
        )
    ]
    out.append(
        say("evaluate.rank_margin", margin=f"{ranking['mean_margin']:+.3f}", ties=ranking["ties"])
    )
    key = "evaluate.rank_longer" if ranking["length"]["longer"] else "evaluate.rank_shorter"
    out.append(say(key, share=percent(ranking["length"]["accuracy"])))
    if ranking["words"]:
        out.append(
            say(
                "evaluate.rank_words",
                share=percent(ranking["words"]["accuracy"]),
                count=ranking["words"]["training_pairs"],
            )
        )
    best = max(ranking["length"]["accuracy"], (ranking["words"] or {}).get("accuracy", 0.0))
    if ranking["accuracy"] <= best:
        out.append(say("evaluate.rank_no_better"))
    return out
