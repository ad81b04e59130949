"""A size that is asked for is reached or refused with the nearest that can be; healing brings back
what pruning took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import exported, story

from tunewright.commands import healing, shrinking
from tunewright.core.errors import TunewrightError
from tunewright.core.telling import Quiet
from tunewright.export.quantize import prepare
from tunewright.models import load


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shrink")
    story.rows_file(place / "rows.json", 40)
    base = exported.folder_of(
        place / "base", "llama", num_hidden_layers=6, hidden_size=128, intermediate_size=256,
        initializer_range=0.02,
    )  # fmt: skip
    exported.run_of(place / "run", base, place / "rows.json")
    return place


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4, 0.3])
def test_the_plan_lands_within_three_percent(at: Path, share: float) -> None:
    plain = 2 * load.parameter_count(at / "base")
    plan = shrinking.planned(prepare(at / "run", None, Quiet()), share * plain)
    assert plan.num_bytes == pytest.approx(share * plain, rel=shrinking.NEAR)
    assert (plan.dropped > 0) == (share < 0.31)


@pytest.mark.slow
def test_the_folder_has_the_size_and_says_what_each_step_cost(at: Path, tmp_path: Path) -> None:
    wanted = 0.45 * 2 * load.parameter_count(at / "base")
    made = shrinking.shrink_to(
        at / "run", tmp_path / "out", to=f"{wanted / 1e6:.4f}MB", tell=Quiet()
    )
    assert made["weight_bytes"] == pytest.approx(wanted, rel=shrinking.NEAR)
    assert made["exported"] == "shrink" and made["plan"]["four"] and made["plan"]["eight"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert any("loss" in line for line in shrinking.lines(made))


@pytest.mark.parametrize(
    ("to", "code"),
    [("big", "E-EXPORT-65"), ("0MB", "E-EXPORT-65"), ("-4MB", "E-EXPORT-65"),
     ("900GB", "E-EXPORT-66"), ("1kB", "E-EXPORT-66")],
)  # fmt: skip
def test_a_size_that_cannot_be_is_refused(at: Path, tmp_path: Path, to: str, code: str) -> None:
    with pytest.raises(TunewrightError) as caught:
        shrinking.shrink_to(at / "run", tmp_path / "out", to=to, tell=Quiet())
    assert caught.value.problems[0].code == code and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_healing_publishes_one_folder_and_says_what_came_back(
    at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing, "MOST_STEPS", 12)
    given: dict[str, Any] = {"way": "blocks", "blocks": 2, "minutes": 1.0, "tell": Quiet()}
    made = healing.prune_and_heal(at / "run", tmp_path / "out", **given)
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and made["healing_steps"] == 12
    record = json.loads((tmp_path / "out" / "proof.json").read_text(encoding="utf-8"))
    assert record["loss"]["pruned"] > record["loss"]["exported"] and record["blocks"] == 4
    assert (tmp_path / "out" / "README.md").is_file()


def test_no_minutes_are_refused(at: Path, tmp_path: Path) -> None:
    with pytest.raises(TunewrightError) as caught:
        healing.prune_and_heal(at / "run", tmp_path / "no", minutes=0.0, tell=Quiet())
    assert caught.value.problems[0].code == "E-EXPORT-64" and list(tmp_path.iterdir()) == []
