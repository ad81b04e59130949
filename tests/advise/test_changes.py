"""What is proposed where a run does not fit: it fits, nothing in it is spared, the cheapest first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tunewright.advise import changes, fit
from tunewright.advise.changes import Way
from tunewright.core.config import BaseConfig
from tunewright.core.registry import methods
from tunewright.models.shape import ModelShape, trainable_parameters

GiB = 2**30
BIG = changes.ladder()[-1]  # 72 billion weights


def method(kind: str, **changed: Any) -> Any:
    entry = methods.get(kind)
    assert entry is not None
    return entry.config(**changed)


def asked(shape: ModelShape, kind: str = "lora", **changed: Any) -> fit.Estimate:
    chosen = changed.pop("method", None) or method(kind)
    given: dict[str, Any] = {
        "rows_per_pass": 4096, "facts": fit.SampleFacts(1000, 400_000, 200_000, 512), "steps": 100, "batch_size": 16,
        "dtype": "bfloat16", "device": "cuda:0", "method": chosen, "trainable": trainable_parameters(shape, chosen), **changed,
    }  # fmt: skip
    return fit.estimate(fit.Question(shape=shape, **given))


def settings_applied(found: fit.Estimate, way: Way) -> fit.Estimate:
    """The estimate of the run with the settings of a way put into it by hand."""
    question = found.question
    for word in way.settings:
        key, _, value = word.partition("=")
        if key == "base.bits":
            block = 64 if "base.block=64" in way.settings else 16
            bits = BaseConfig(bits=int(value), block=block).bits_per_weight  # type: ignore[arg-type]
            question = replace(question, base_bits=bits)
        elif key == "engine.rows_per_pass":
            question = replace(question, rows_per_pass=int(value))
        elif key == "engine.recompute":
            question = replace(question, recompute=value)
        elif key == "engine.dtype":
            question = replace(question, dtype=value)
        elif key == "engine.optimizer":
            question = replace(question, optimizer=value)
        elif key == "data.max_tokens":
            question = replace(question, facts=replace(question.facts, longest=int(value)))
        elif key == "method.kind":
            question = replace(question, method=method(value))
        elif key == "method.targets":
            question = replace(question, method=method("lora", targets=value[1:-1].split(",")))
        else:
            assert key == "base.block", key
    trainable = trainable_parameters(question.shape, question.method)
    return fit.estimate(replace(question, trainable=trainable))


@pytest.mark.parametrize("available", [3, 8, 16, 24, 40, 48, 80])
@pytest.mark.parametrize(("size", "kind"), [(0, "full"), (3, "lora"), (7, "full"), (9, "lora"), (12, "full")])  # fmt: skip
def test_every_way_fits_when_its_settings_are_taken(available: int, size: int, kind: str) -> None:
    found = asked(changes.ladder()[size], kind)
    ways = fit.ways_to_fit(found, available * GiB)
    for way in ways:
        then = settings_applied(found, way)
        assert (
            then.needed_bytes
            == way.needed_bytes
            <= fit.comfortable(found.question, available * GiB)
        )
    assert [way.cost for way in ways] == sorted(way.cost for way in ways)


def test_nothing_in_a_way_is_spared() -> None:
    found = asked(changes.ladder()[7], "full")  # 7.6 billion
    for way in fit.ways_to_fit(found, 24 * GiB):
        for left_out in way.changes:
            fewer = [name for name in way.changes if name != left_out]
            others = fit.ways_to_fit(found, 24 * GiB)
            assert not any(set(other.changes) == set(fewer) for other in others)


def test_a_full_7b_becomes_lora_on_one_card() -> None:
    found = asked(changes.ladder()[7], "full")
    assert found.needed_bytes > 90 * GiB  # 16 bytes a weight and more
    ways = fit.ways_to_fit(found, 24 * GiB)
    assert ways and all("method.kind=lora" in way.settings for way in ways)


def test_70b_in_4_bits_fits_on_48_gb() -> None:
    base = BaseConfig(bits=4, block=64)
    settings: dict[str, Any] = {
        "base_bits": base.bits_per_weight,
        "rows_per_pass": 256,
        "facts": fit.SampleFacts(1000, 200_000, 100_000, 256),
        "method": method("lora", targets=["attention.query", "attention.value"]),
    }
    assert asked(BIG, **settings).needed_bytes < 48 * GiB
    assert asked(BIG).needed_bytes > 140 * GiB  # two bytes a weight
    ways = fit.ways_to_fit(asked(BIG, base_bits=BaseConfig(bits=4).bits_per_weight), 80 * GiB)
    assert ways and ways[0].cost <= 3


def test_fewer_rows_come_first_because_they_change_no_result() -> None:
    found = asked(changes.ladder()[0], facts=fit.SampleFacts(1000, 400_000, 200_000, 100))
    ways = fit.ways_to_fit(found, int(0.8 * found.needed_bytes))
    free = [way.changes for way in ways if way.cost == 0]
    assert ("rows",) in free and ways[0].changes in free


def test_a_base_in_few_bits_is_not_proposed_to_a_method_that_cannot_stand_on_one() -> None:
    found = asked(changes.ladder()[7], "boft")
    assert not any("base.bits" in word for w in fit.ways_to_fit(found, 8 * GiB) for word in w.settings)  # fmt: skip


def test_a_way_says_what_it_costs_in_both_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(changes.ladder()[7], "full")
    for lang in ("en", "zh"):
        monkeypatch.setenv("TUNEWRIGHT_LANG", lang)
        for available in (8, 16, 24, 80):
            for way in fit.ways_to_fit(found, available * GiB):
                assert "fit.way" not in way.sentence() and "GiB" in way.sentence()
