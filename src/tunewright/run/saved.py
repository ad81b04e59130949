"""What was trained, saved and loaded afresh: the files must compute what the model in memory
did."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import TrainingError, problem
from tunewright.core.runfile import kind_of
from tunewright.engine import ranks, sharding
from tunewright.engine.decoding.ways import attention_of
from tunewright.engine.opening import Loaded, from_files
from tunewright.engine.policy import Policy
from tunewright.models import rotary
from tunewright.record.events import EventLog
from tunewright.run.decided import Decided
from tunewright.run.prepare import Plan
from tunewright.text.asked_template import save_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from tunewright.engine.opening import Ready
    from tunewright.run.asking import Asker

LARGEST_GAP = 1e-3
"""Largest difference of a logit between the model in memory and the one loaded afresh, as a share
of the largest logit."""
ROWS, ROW_TOKENS = 4, 16
"""Training rows, from everywhere in the data, whose last logits are compared; each is cut here: a
pass of all four costs as much as one row of 64 tokens, and every weight takes
part in it."""
FIRST_TOKENS = 4
"""Tokens of an answer after each of which logits are compared, besides those after the question."""
TEXTS_AT_ONCE, ROWS_AT_ONCE = 16, 1024
"""Texts that go through the model at once, at most, and their token rows."""
LIKELIEST = 64
"""Logits that are kept of a place: the largest."""


@dataclass(frozen=True)
class Text:
    """Token ids, and at how many of its last places logits are compared."""

    ids: list[int]
    places: int = 1


@dataclass(frozen=True)
class Seen:
    """What a model computes at the last places of a text: its largest logits, the largest first,
    with their token ids, both (places, `LIKELIEST`), and the largest absolute one."""

    tokens: Tensor
    logits: Tensor
    scale: float


@dataclass(frozen=True)
class Saved:
    """The folder of what was trained, and what the model in memory computed: of training rows and
    of the run's questions."""

    folder: Path
    is_model: bool
    texts: list[Text]
    rows: list[Seen]
    questions: list[Seen]
    scores: list[str] | None = None
    """What its head of numbers said of the questions, where it has one."""


@dataclass(frozen=True)
class Fresh:
    """What was saved, loaded into a new model."""

    loaded: Loaded
    layout: str
    seconds: float
    """It took to load."""

    def policy(self) -> Policy:
        """What scores, laid out as the run was."""
        return self.loaded.policy(self.layout, heads=("score",))


def save(plan: Plan, opened: Ready, decided: Decided, asker: Asker) -> Saved | None:
    """Write the trained weights and the tokenizer they were taught with. What the model computes
    after the questions is remembered. Of several ranks the first writes; the others get None."""
    policy, team = opened.stepper.policy, ranks.current()
    with sharding.whole_on_first(policy):
        if team.is_first:
            opened.stepper.attached.save(decided.folder(plan.out))
    found: list[Saved] = []
    if not decided.world.holds_whole:
        _save_words(plan, decided)
        empty = Saved(decided.folder(plan.out), decided.saves_model, [], [], [])
        return empty if team.is_first else None
    with sharding.together(policy):
        team.only_first(lambda: found.append(_remembered(plan, opened, decided, asker)))
    return found[0] if found else None


def _save_words(plan: Plan, decided: Decided) -> None:
    """The tokenizer: with an adapter as the base has it, with a model as it is to be asked."""
    folder = decided.folder(plan.out)
    if decided.saves_model:
        save_tokenizer(plan.renderer, folder, kind_of(plan.config.objective))
    else:
        plan.renderer.tokenizer.save_pretrained(str(folder))


def _remembered(plan: Plan, opened: Ready, decided: Decided, asker: Asker) -> Saved:
    folder, questions = decided.folder(plan.out), asker.begun()
    if not decided.saves_model:
        rotary.write(folder, plan.config.base.rotary)
    _save_words(plan, decided)
    step = max(1, len(plan.data.train) // ROWS)
    chosen = [plan.data.train[i] for i in range(0, len(plan.data.train), step)][:ROWS]
    rows = [Text(sample.branches[0].tokens[:ROW_TOKENS]) for sample in chosen]
    seen = _look(opened.model, [*rows, *questions])
    split = len(rows)
    texts = [*rows, *questions]
    scores = asker.scores(opened)
    return Saved(folder, decided.saves_model, texts, seen[:split], seen[split:], scores)


def load_afresh(plan: Plan, saved: Saved, decided: Decided) -> Fresh:
    """Load the saved files as anybody would."""
    start = time.perf_counter()
    world = decided.world
    loaded = from_files(
        saved.folder if saved.is_model else plan.source.folder,
        None if saved.is_model else saved.folder,
        world,
        None if saved.is_model else plan.config.base,
    )
    return Fresh(loaded, decided.layout, time.perf_counter() - start)


def require_equal(saved: Saved, fresh: Fresh, log: EventLog) -> None:
    """Raise TrainingError (E-TRAIN-04) where the loaded model computes something else."""
    gaps = _gaps(fresh.loaded.model, saved.texts, [*saved.rows, *saved.questions])
    split = len(saved.rows)
    rows, questions = max(gaps[:split]), max(gaps[split:], default=None)
    gap = max(gaps)
    log.write(
        "reloaded",
        largest_logit_difference=gap,
        rows=split,
        rows_logit_difference=rows,
        questions=len(saved.questions),
        questions_logit_difference=questions,
        places=sum(text.places for text in saved.texts),
    )
    if not all(one <= LARGEST_GAP for one in gaps):
        raise TrainingError(problem("E-TRAIN-04", str(saved.folder), gap=gap))


def _look(model: Any, texts: Sequence[Text]) -> list[Seen]:
    found = []
    for logits in _logits(model, texts):
        largest = logits.topk(min(LIKELIEST, logits.shape[-1]))
        found.append(Seen(largest.indices, largest.values, float(logits.abs().max())))
    return found


def _gaps(model: Any, texts: Sequence[Text], seen: Sequence[Seen]) -> list[float]:
    """Of each text, the largest difference to what was seen, as a share of the largest logit."""
    return [
        float((logits.gather(-1, one.tokens) - one.logits).abs().max()) / one.scale
        for one, logits in zip(seen, _logits(model, texts), strict=True)
    ]


def _logits(model: Any, texts: Sequence[Text]) -> list[Tensor]:
    """Logits of the last places of each text through stock attention, (places, vocabulary): equal
    before saving and after loading, or something was lost.

    Several texts go through the model at once: a pass over a few rows costs a CPU what it takes to
    lay out all weights. They are filled up on the right, where no earlier place looks.
    """
    import torch

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    chooses = "logits_to_keep" in inspect.signature(causal.forward).parameters
    found: dict[int, Tensor] = {}
    with attention_of(causal, ""), torch.no_grad():
        for group in _groups(texts):
            longest = max(len(texts[i].ids) for i in group)
            rows = [texts[i].ids + texts[i].ids[-1:] * (longest - len(texts[i].ids)) for i in group]
            # Counted from the end: a learnt prompt stands before each text.
            wanted = [_last_places(texts[i], longest) for i in group]
            kept = sorted({place for places in wanted for place in places})
            some = {"logits_to_keep": torch.tensor(kept, device=causal.device)} if chooses else {}
            ids = torch.tensor(rows, device=causal.device)
            logits = model(input_ids=ids, **some).logits
            for row, (i, places) in enumerate(zip(group, wanted, strict=True)):
                at = [kept.index(place) for place in places] if chooses else places
                found[i] = logits[row, at].float()
    return [found[i] for i in range(len(texts))]


def _last_places(text: Text, longest: int) -> list[int]:
    """The last places of a text that was filled up on the right to `longest`, from the end."""
    end = len(text.ids) - longest
    return list(range(end - text.places, end))


def _groups(texts: Sequence[Text]) -> Iterator[list[int]]:
    """Texts that go through the model at once, of similar length."""
    group: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i].ids)):
        rows = (len(group) + 1) * len(texts[i].ids)
        if group and (len(group) == TEXTS_AT_ONCE or rows > ROWS_AT_ONCE):
            yield group
            group = []
        group.append(i)
    if group:
        yield group
