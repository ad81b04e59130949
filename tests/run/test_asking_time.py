"""How long a run may ask: counted by hand, chosen in order, the same before and after."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import story

from tunewright.advise.speed import Rates
from tunewright.models.shape import ModelShape
from tunewright.run import asking_time
from tunewright.run.asking_time import Question, allow, choose, seconds_of

SHAPE = ModelShape.from_config(
    {
        "hidden_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 300,
        "vocab_size": 1000,
        "model_type": "llama",
    }
)
ACTIVE = 2 * (4 * 100 * 100 + 3 * 100 * 300) + 100 * 1000
PACE = Rates(flops=2.0 * ACTIVE * 100, bytes=ACTIVE * 2 * 10 / asking_time.READS)
"""A hundred rows of a question a second, ten tokens of an answer."""


def row(tokens: int, most: int, is_kept: bool = False) -> Question:
    return Question(tokens, most, is_kept, True)


def test_asking_is_counted_as_rows_read_and_weights_read_once_a_token() -> None:
    # 50 rows are half a second, 30 tokens are three seconds; twice.
    assert seconds_of([row(50, 30)], SHAPE, 2, PACE) == pytest.approx(2 * 3.5)
    # Beside a longer answer a short one costs its question alone.
    both = [row(50, 30), row(100, 10)]
    assert seconds_of(both, SHAPE, 2, PACE) == pytest.approx(2 * 4.5)
    # An answer that is kept is asked once, after training.
    kept = [row(50, 30, is_kept=True)]
    assert seconds_of(kept, SHAPE, 2, PACE) == pytest.approx(3.5)
    # Float32 weights are twice as many bytes.
    assert seconds_of([row(0, 30)], SHAPE, 4, PACE) == pytest.approx(2 * 6)
    # Many answers side by side cost their products: 1,000 tokens at a fifth of 100 a second.
    many = [row(0, 30)] * 100
    assert seconds_of(many, SHAPE, 2, PACE) == pytest.approx(2 * 3000 / 20)
    assert seconds_of([], SHAPE, 2, PACE) == 0


def test_rows_are_chosen_in_order_and_own_questions_always() -> None:
    own, short, long = Question(100, 90, False, False), row(100, 30), row(100, 900)
    asked = [short, long, own, short]
    assert choose(asked, SHAPE, 2, PACE, 1e9) == [0, 1, 2, 3]
    assert choose(asked, SHAPE, 2, PACE, 0.0) == [2]
    # The own one takes 20 s, each short one 2 s more, the long one 164 s.
    assert choose(asked, SHAPE, 2, PACE, 22.0) == [0, 2]
    assert choose(asked, SHAPE, 2, PACE, 24.0) == [0, 2, 3]
    # Whose answer is kept costs half, so there is time for another.
    half = [row(100, 30, is_kept=True), long, own, short]
    assert choose(half, SHAPE, 2, PACE, 23.0) == [0, 2, 3]
    assert choose([long], SHAPE, 2, PACE, 20.0) == []


def plan_of(folder: Path, training: float | None) -> Any:
    """A plan whose training takes `training` seconds on a machine of which `PACE` is true."""
    return SimpleNamespace(
        source=SimpleNamespace(folder=folder),
        estimate=lambda world, rate: SimpleNamespace(seconds=training),
    )


@pytest.mark.parametrize(
    ("training", "seconds"), [(None, 20.0), (100.0, 20.0), (1000.0, 100.0), (1e6, 1e5)]
)
def test_a_tenth_of_the_training_is_allowed_and_never_less_than_twenty_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: float | None, seconds: float
) -> None:
    folder = story.model_folder(tmp_path / "base")
    world: Any = SimpleNamespace(dtype="float32", device="cpu", threads=1)
    active = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96) + 64 * 320
    monkeypatch.setattr(asking_time, "SLOWEST", Rates(1.0, 1.0))
    rate = active * 4 / asking_time.READS  # a token a second
    monkeypatch.setattr(asking_time.speed, "measured_rates", lambda *_: Rates(1e15, rate))
    found = allow(plan_of(folder, training), world, [row(10, 9), row(10, 40), row(10, 600)])
    assert found.seconds == seconds
    assert found.needed == pytest.approx(2 * 600, rel=1e-6)
    assert found.asked == [i for i, most in enumerate((9, 40, 600)) if 2 * most <= seconds]


def test_what_any_machine_does_in_time_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = story.model_folder(tmp_path / "base")
    world: Any = SimpleNamespace(dtype="float32", device="cpu", threads=1)
    monkeypatch.setattr(asking_time.speed, "measured_rates", None)  # calling it would fail
    assert allow(plan_of(folder, 1.0), world, [row(100, 96)] * 5).asked == [0, 1, 2, 3, 4]
    monkeypatch.setattr(asking_time, "SLOWEST", Rates(1.0, 1.0))
    own = Question(100, 96, False, False)  # nothing that could be left out
    assert allow(plan_of(folder, 1.0), world, [own]).asked == [0]
