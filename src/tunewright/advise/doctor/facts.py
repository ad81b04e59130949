"""What the doctor knows of a training: plain figures, gathered by others (`run/examining.py` from a
run folder, `run/foreign.py` from a folder that another tool made, `run/probing.py` from a model).

Every group may be missing, and every figure of a group: a rule whose figures are missing is not
asked (`judging.py`). Losses and log-probabilities are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Course:
    """How the steps went."""

    objective: str = ""
    """Our name of it; empty for another tool's training."""
    method: str = ""
    losses: Sequence[float] = ()
    """Of each step, or of each logged group of steps; may hold NaN."""
    rates: Sequence[float] = ()
    norms: Sequence[float] = ()
    """Gradient norms before clipping."""
    steps: int = 0
    skipped: int = 0
    """Steps that changed no weight, because something was not a finite number."""
    dtype: str = ""
    held: Sequence[tuple[int, float]] = ()
    """(step, held-out loss)."""
    held_kept: float | None = None
    """Held-out loss of the weights that are handed out."""
    usual_rate: float | None = None
    """The learning rate that suits the method in a run of this length."""
    ranked: float | None = None
    """Share of the last pairs whose chosen answer is ranked above the other."""
    rewarded: bool = False
    """It learns from rewards: the loss says nothing of how well."""
    groups_alike: float | None = None
    """Share of the groups of drawn answers whose rewards were all the same."""
    picked: float | None = None
    """Share of the drawn answers that were learnt, where an objective picks some."""
    finished: float | None = None
    """Share of the drawn answers that ended by themselves."""
    wall: str = ""
    """How the run ended: `done`, `stopped`, `failed`; empty where nobody says."""
    total_steps: int = 0
    """How many steps the run was to take."""
    ended: str = ""
    """Why a run that was looked at later is not done: `failed`, `stopped`, or `killed` where it
    left no word."""
    why: str = ""
    """What it said when it ended."""

    @property
    def learns_text(self) -> bool:
        """The loss is the negative log-probability of answers, so the data bounds it from below."""
        return self.objective in ("sft", "")


@dataclass(frozen=True)
class Data:
    """The rows that were trained on."""

    rows: int | None = None
    distinct: int | None = None
    """Different rows among them."""
    learnt_tokens: int | None = None
    tokens: int | None = None
    truncated: int = 0
    """Rows whose answers were cut to fit."""
    read: int = 0
    dropped: int = 0
    too_long: int = 0
    """Of the dropped rows those that were too long."""
    duplicates: int = 0
    held_out: int = 0
    leaked: int = 0
    """Held-out rows that are trained on as well."""
    floor: float | None = None
    """The lowest mean loss that any model can reach on these rows (`floor.py`)."""
    floor_rows: int = 0
    """Rows whose question also stands there with another answer."""
    found: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Findings of the data check: key -> (count, total)."""


@dataclass(frozen=True)
class Asked:
    """One question and its answers. `before` None: it was not asked before."""

    question: str
    expected: str
    after: str
    before: str | None = None
    cut: bool = False
    """The answer reached the most tokens it might have, or goes in circles."""
    cut_before: bool = False
    differs: bool = False
    """The saved files answer otherwise than the model in memory."""
    kind: str = ""
    row: int | None = None
    """Place of its row in the data."""


@dataclass(frozen=True)
class Scores:
    """What one model says of some rows: mean log-probabilities."""

    answer: float
    """Of the tokens of the answers, without the stop token."""
    first: float
    """Of the first token of each answer."""
    later: float
    """Of the other tokens of the answers."""
    prompt: float
    """Of the words of the questions; what the template writes around them is left out."""
    stop: float
    """Of the stop token after the answer."""
    early_stop: float
    """Of the stop token where the answer ought to begin."""
    pad: float
    """Of padding after the stop token, or right after the answer: the larger of the two."""
    by_offset: dict[int, float] = field(default_factory=dict)
    """Where a token of the answer is to be predicted: of the token that stands so many places
    behind the one that is read. 1 is the next one, as it ought to be; 0 the one that was just
    read; 2 the one after the next."""
    by_place: Sequence[tuple[int, float]] = ()
    """(place in its row, log-probability) of every token of the answers."""
    taught: float = math.nan
    """The loss, in nats a token, of the answers with their stop tokens."""
    whole: float = math.nan
    """The loss of the whole rows. A training on these rows begins at one of the two."""
    hardest_row: float = math.nan
    """The larger of the two for the row for which it is largest."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.answer)


@dataclass(frozen=True)
class Probed:
    """What the base and the trained model say of the same rows."""

    rows: int
    base: Scores | None
    tuned: Scores
    effect: float | None = None
    """Largest difference of a log-probability between the two."""
    pad_is_stop: bool = False
    pairs: bool = False
    """The rows are pairs: what was taught is which answer is better, not to write it."""
    templates: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Form of asking -> mean log-probability of the answers' tokens (base, trained model). `chat`
    is the folder's own."""


@dataclass(frozen=True)
class Weights:
    """What the files of an adapter, or of a trained model, hold."""

    kind: str = "adapter"
    tensors: int = 0
    zero: int = 0
    """Of `updates` those that are all zero."""
    updates: int = 0
    """Tensors of which a zero means that nothing was learnt (LoRA's B)."""
    not_finite: int = 0
    lost: int = 0
    """Tensors that find no place in the model."""
    missing: int = 0
    """Places of the model that find no tensor."""
    first: str = ""
    """The first of these."""
    refused: str = ""
    """Why it could not be put on the model."""
    named_base: str = ""
    given_base: str = ""
    same_base: bool | None = None
    """Whether the base that it names is the given one; None where nobody can say."""
    same_as_base: bool = False
    """Every weight of a whole model is that of the base."""


@dataclass(frozen=True)
class Decoding:
    """What `generation_config.json` makes of the expected answers. Counts are rows of `rows`."""

    rows: int
    settings: dict[str, object]
    """The settings that matter here, as they stand in the file."""
    file: str = "generation_config.json"
    ngram: int = 0
    """Rows whose answer repeats what `no_repeat_ngram_size` forbids."""
    penalty: int | None = None
    """Rows in which `repetition_penalty` makes another token the likeliest; None: not tried."""
    forbidden: int = 0
    """Rows whose answer needs a token that may not be written."""
    too_short: int = 0
    """Rows whose answer is longer than `max_new_tokens` or `max_length` leaves."""
    longest: int = 0
    """Tokens of the longest answer."""
    must_go_on: int = 0
    """Rows whose answer ends before `min_new_tokens` or `min_length` lets it."""
    stop_missing: bool = False
    """The token that ends an answer is not among `eos_token_id`."""
    cuts: int = 0
    """Rows whose answer holds a token of `eos_token_id` before its end."""
    stop: str = ""
    """The token that ends an answer."""
    luck: float | None = None
    """The mean chance that an answer drawn with these settings is the likeliest one, in rows where
    that is right."""


@dataclass(frozen=True)
class Facts:
    """All that is known."""

    name: str
    """What the person called it."""
    course: Course | None = None
    data: Data | None = None
    asked: Sequence[Asked] | None = None
    probed: Probed | None = None
    weights: Weights | None = None
    decoding: Decoding | None = None

    def groups(self) -> set[str]:
        """The names of the groups that are there."""
        return {
            name
            for name in ("course", "data", "asked", "probed", "weights", "decoding")
            if getattr(self, name) is not None
        }
