"""What to change so that a run fits: every combination of a few settings is counted, those that fit
are ranked by what they cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tunewright.advise.question import Question
from tunewright.core.config import BaseConfig
from tunewright.core.files import readable_size
from tunewright.core.registry import methods
from tunewright.core.runfile import kind_of
from tunewright.core.words import say
from tunewright.models.shape import ModelShape

MOST_WAYS = 4
"""Ways that are told: more is no advice."""
ROWS, TOKENS = (512, 256, 128, 64), (4096, 2048, 1024, 512, 256, 128)
COST = {
    "rows": 0,
    "recompute": 0,
    "dtype": 1,
    "optimizer": 1,
    "bits8": 1,
    "bits4": 2,
    "targets": 2,
    "blocks64": 3,
    "lora": 3,
    "tokens": 4,
}
"""What a change may cost in quality: 0 nothing at all, 1 hardly anything, 2 a little, from 3 on it
depends on the task. The sum decides the order, then the time."""
LADDER = (
    # (hidden, layers, inner, heads, key heads, vocabulary, tied) of models people fine-tune, 0.1 to
    # 72 billion weights.
    (576, 30, 1536, 9, 3, 49_152, True),
    (896, 24, 4864, 14, 2, 151_936, True),
    (2048, 16, 8192, 32, 8, 128_256, True),
    (1536, 28, 8960, 12, 2, 151_936, True),
    (2048, 24, 5504, 16, 16, 151_936, False),
    (2048, 36, 11_008, 16, 2, 151_936, True),
    (2560, 36, 9728, 32, 8, 151_936, True),
    (4096, 32, 11_008, 32, 32, 32_000, False),
    (3584, 28, 18_944, 28, 4, 152_064, False),
    (4096, 32, 14_336, 32, 8, 128_256, False),
    (5120, 48, 13_824, 40, 8, 152_064, False),
    (5120, 64, 27_648, 40, 8, 152_064, False),
    (8192, 80, 28_672, 64, 8, 128_256, False),
)


@dataclass(frozen=True)
class Way:
    """Settings with which a run fits, and what they cost."""

    settings: tuple[str, ...]
    """`key=value`, as on the command line."""
    changes: tuple[str, ...]
    """What is changed, as in `COST`."""
    needed_bytes: int
    time: float
    """How many times as long the steps take, by their operations."""

    @property
    def cost(self) -> int:
        """The quality that may be lost, as in `COST`."""
        return sum(COST[name] for name in self.changes)

    def sentence(self) -> str:
        """For people."""
        notes = say("fit.way.join").join(say(f"fit.way.{name}") for name in self.changes)
        return say(
            "fit.way",
            settings=" ".join(self.settings),
            notes=notes,
            memory=readable_size(self.needed_bytes),
            time=f"{self.time:.1f}",
        )

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "settings": list(self.settings),
            "changes": list(self.changes),
            "needed_memory_bytes": self.needed_bytes,
            "time_factor": round(self.time, 3),
            "quality_cost": self.cost,
        }


@dataclass(frozen=True)
class Option:
    """One value of one setting. `question`: what becomes of the question."""

    name: str = ""
    settings: tuple[str, ...] = ()
    question: Mapping[str, Any] = field(default_factory=dict)


Needed = Callable[..., int]
Relative = Callable[[Question, Mapping[str, Any]], float]


def ways(asked: Question, available: int, needed: Needed, relative_seconds: Relative) -> list[Way]:
    """What makes the run of `asked` fit into `available` bytes, what costs least first, at most
    `MOST_WAYS`. `needed(question, **changes)` counts its bytes."""
    found: dict[tuple[str, ...], Way] = {}
    for way in _all(asked, needed, relative_seconds):
        names = tuple(sorted(way.changes))
        if way.needed_bytes <= available and names not in found:
            found[names] = way  # the mildest values come first
    least = [way for way in found.values() if not any(_less(o, way) for o in found.values())]
    return sorted(least, key=lambda way: (way.cost, way.time))[:MOST_WAYS]


def leanest(asked: Question, needed: Needed, relative_seconds: Relative) -> Way | None:
    """The settings with which the run of `asked` needs least; of those that need as little, the
    ones that cost least. None where nothing can be changed."""
    found = _all(asked, needed, relative_seconds)
    return min(found, key=lambda way: (way.needed_bytes, way.cost), default=None)


def _all(asked: Question, needed: Needed, relative_seconds: Relative) -> Iterator[Way]:
    """Every combination of changes that go together, mild values first."""
    for options in itertools.product(*_axes(asked)):
        chosen = [option for option in options if option.name]
        names = tuple(option.name for option in chosen)
        if chosen and _possible(asked, names):
            changed = {key: value for option in chosen for key, value in option.question.items()}
            settings = tuple(word for option in chosen for word in option.settings)
            size = needed(asked, **changed)
            yield Way(settings, names, size, relative_seconds(asked, changed))


def _less(one: Way, other: Way) -> bool:
    """Whether `one` changes only a part of what `other` changes."""
    return set(one.changes) < set(other.changes)


def _axes(asked: Question) -> Iterator[list[Option]]:
    """The values that each setting may take, the present one first, then the mildest."""
    longest, stay = asked.facts.longest, Option()
    most = asked.rows_per_pass
    yield [stay, *_methods(asked), *_targets(asked)]
    yield [stay, *_bits(asked)]
    wide = asked.work.item > 2
    yield (
        [stay, Option("dtype", ("engine.dtype=bfloat16",), {"dtype": "bfloat16"})]
        if wide
        else [stay]
    )
    yield [stay, *_optimizers(asked)]
    yield [stay, *_recomputing(asked)]
    rows = [
        Option("rows", (f"engine.rows_per_pass={n}",), {"rows_per_pass": n})
        for n in ROWS
        if longest <= n < most
    ]
    tokens = [
        Option(
            "tokens",
            (f"data.max_tokens={n}", f"engine.rows_per_pass={min(most, n)}"),
            {"facts": replace(asked.facts, longest=n), "rows_per_pass": min(most, n)},
        )
        for n in TOKENS
        if n < longest
    ]
    yield [stay, *rows, *tokens]


def _methods(asked: Question) -> list[Option]:
    """LoRA in place of a method that trains the weights themselves."""
    entry = methods.get("lora")
    if not getattr(asked.method, "trains_base", False) or entry is None or entry.config is None:
        return []
    return [Option("lora", ("method.kind=lora",), {"method": entry.config()})]


def _bits(asked: Question) -> list[Option]:
    """A base in fewer bits; of 4 bits with large blocks, which keep fewer scales, last. None for a
    checkpoint that is quantised already."""
    if asked.shape.stored_bits:
        return []
    found = [
        ("bits8", BaseConfig(bits=8), ("base.bits=8",)),
        ("bits4", BaseConfig(bits=4), ("base.bits=4",)),
        ("blocks64", BaseConfig(bits=4, block=64), ("base.bits=4", "base.block=64")),
    ]
    return [
        Option(name, settings, {"base_bits": base.bits_per_weight})
        for name, base, settings in found
        if asked.base_bits is None or (base.bits_per_weight or 16) < asked.base_bits
    ]


def _targets(asked: Question) -> list[Option]:
    """LoRA on fewer layers, where it is on all."""
    method = asked.method
    if kind_of(method) != "lora" if method else True:
        return []
    if set(getattr(method, "targets", [])) != {"linear"}:
        return []
    fewer = method.model_copy(update={"targets": ["attention.query", "attention.value"]})
    words = ("method.targets=[attention.query,attention.value]",)
    return [Option("targets", words, {"method": fewer})]


def _optimizers(asked: Question) -> list[Option]:
    """Update rules that keep less, where that counts and the method has none of its own."""
    own = kind_of(asked.method) not in ("full", "freeze", "embeddings") if asked.method else True
    if own or asked.optimizer != "adamw":
        return []
    names = ["adafactor"] if asked.device == "cpu" else ["adamw_8bit", "adafactor"]
    return [Option("optimizer", (f"engine.optimizer={n}",), {"optimizer": n}) for n in names]


def _recomputing(asked: Question) -> list[Option]:
    """More that is computed again in the backward pass, where the run file asked for less."""
    levels = ("none", "selective", "full")
    more = levels[1 + levels.index(asked.recompute) :]
    return [Option("recompute", (f"engine.recompute={n}",), {"recompute": n}) for n in more]


def _possible(asked: Question, names: tuple[str, ...]) -> bool:
    """Whether the changes go together: only some methods stand on a base in few bits, and an update
    rule matters only where every weight trains."""
    kind = "lora" if "lora" in names else kind_of(asked.method) if asked.method else "lora"
    entry = methods.get(kind)
    quantised = entry is not None and entry.facts.get("on_quantised") is True
    if not quantised and {"bits4", "bits8", "blocks64"} & set(names):
        return False
    return not {"lora", "optimizer"} <= set(names)


def ladder() -> list[ModelShape]:
    """Shapes of common models, smallest first: the yardstick of `fit.largest_fitting`."""
    names = (
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "tie_word_embeddings",
    )
    return [
        ModelShape.from_config({"model_type": "llama", **dict(zip(names, sizes, strict=True))})
        for sizes in LADDER
    ]


def billions(parameters: int) -> str:
    """135 million -> '0.1', 7.6 billion -> '7.6'; no unit."""
    return f"{parameters / 1e9:.1f}" if parameters < 2e10 else f"{parameters / 1e9:.0f}"
