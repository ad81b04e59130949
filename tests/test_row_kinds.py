"""Every kind of rows in the data of a run is held against its objective, before anything is loaded,
whichever way the run is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import story

import tunewright
from tunewright import story as the_story
from tunewright.commands import pipeline
from tunewright.commands.dry_run import dry_run
from tunewright.core import compat
from tunewright.core.errors import UsageError
from tunewright.core.registry import objectives
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet

ANSWERS = {"conversation", "text"}
USABLE = {
    "sft": ANSWERS, "distill": ANSWERS, "gkd": {"conversation"}, "pretrain": {"text"}, "kto": {"judged", "preference"}, "process_reward": {"stepwise"},
    **{name: {"preference"} for name in ("dpo", "ipo", "orpo", "cpo", "simpo", "reward")},
    **{name: {"prompt", "conversation", "preference", "judged"} for name in ("ppo", "grpo", "dr_grpo", "rloo", "reinforce")},
}  # fmt: skip
"""From the pages of the objectives."""
KINDS = ("conversation", "text", "preference", "judged", "prompt", "stepwise")


def kinds(*names: str) -> dict[str, Any]:
    return {
        name: {"rows": 3, "files": [{"file": f"{name}.json", "rows": 3, "first_row": 7}]}
        for name in names
    }


def files(place: Path, many: int = 12) -> dict[str, str]:
    contents = {
        "alpaca": [{"instruction": f"what {i}", "output": f"it is {i}"} for i in range(many)],
        "pairs": [
            {"prompt": f"which {i}", "chosen": f"good {i}", "rejected": f"bad {i}"}
            for i in range(3)
        ],
    }
    for name, rows in contents.items():
        (place / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return {name: str(place / f"{name}.json") for name in contents}


def given(train: list[str], out: Path, **more: Any) -> dict[str, Any]:
    # There is no such model: what is refused here is refused before anybody looks for it.
    return {"model": str(out.parent / "nowhere"), "data.train": train, "out": str(out), **more}


def refused(start: Any) -> list[Any]:
    with pytest.raises(UsageError) as caught:
        start()
    return caught.value.problems


@pytest.mark.parametrize("objective", sorted(set(objectives.names())))
def test_each_objective_takes_the_kinds_it_names_and_refuses_every_other_in_any_company(
    objective: str,
) -> None:
    usable = USABLE[objective]
    for one in KINDS:
        assert bool(compat.rows_for(objective, kinds(one))) == (one not in usable), one
        for other in KINDS:
            if other == one:
                continue
            found = compat.rows_for(objective, kinds(one, other))
            assert [p.code for p in found] == (
                []
                if {one, other} <= usable
                else ["E-COMPAT-06" if {one, other} & usable else "E-COMPAT-05"]
            )
            for wrong in {one, other} - usable:
                assert f"{wrong}.json" in found[0].line() and " 7 " in found[0].line()


@pytest.mark.parametrize("turned", [False, True])
def test_pairs_beside_answers_are_refused_with_both_files_in_both_orders(
    tmp_path: Path, turned: bool
) -> None:
    made = files(tmp_path)
    train = [made["alpaca"], made["pairs"]][:: -1 if turned else 1]
    keys = given(train, tmp_path / "out")
    for start in (
        lambda: the_story.train(parse_run(dict(keys), {}), tell=Quiet()),
        lambda: dry_run(parse_run(dict(keys), {}), tell=Quiet()),
        lambda: tunewright.train(model=keys["model"], data=train, out=keys["out"], tell=Quiet()),
    ):
        (found,) = refused(start)
        assert (
            found.code == "E-COMPAT-06"
            and made["alpaca"] in found.line()
            and made["pairs"] in found.line()
        )
        assert "data.good_only=true" in found.line()
    assert not (tmp_path / "out").exists()


def test_a_pair_that_is_the_last_of_ten_thousand_rows_is_found(tmp_path: Path) -> None:
    made = files(tmp_path, many=9_999)
    (tmp_path / "pairs.json").write_text(
        json.dumps([{"prompt": "q", "chosen": "a", "rejected": "b"}]), encoding="utf-8"
    )
    (found,) = refused(
        lambda: the_story.train(
            parse_run(given([made["alpaca"], made["pairs"]], tmp_path / "out"), {}), tell=Quiet()
        )
    )
    assert (
        found.code == "E-COMPAT-06"
        and "preference (1 in " in found.line()
        and "9,999" in found.line()
    )


def test_a_stage_of_a_pipeline_is_refused_with_its_name(tmp_path: Path) -> None:
    made = files(tmp_path)
    story.model_folder(tmp_path / "model")
    stages = [{"name": "first", "data": {"train": [made["alpaca"], made["pairs"]]}}]
    (tmp_path / "pipe.yaml").write_text(
        yaml.safe_dump({"model": str(tmp_path / "model"), "stages": stages}), encoding="utf-8"
    )
    planned = pipeline.load_pipeline(tmp_path / "pipe.yaml", [], {"out": str(tmp_path / "out")})
    (found,) = refused(lambda: pipeline.run_pipeline(planned, tell=Quiet()))
    assert found.code == "E-COMPAT-06" and "first" in found.line() and made["pairs"] in found.line()


def test_the_check_of_data_holds_rows_against_an_objective_where_one_is_named(
    tmp_path: Path,
) -> None:
    made = files(tmp_path)
    for words, code in (
        ([], ""),
        (["--good-only"], "E-COMPAT-05"),
        (["--objective", "dpo"], ""),
        (["--objective", "sft"], "E-COMPAT-05"),
    ):
        more = ["--objective", "dpo"] if words == ["--good-only"] else []
        result = story.tunewright("data", "check", made["pairs"], *words, *more)
        assert (result.returncode, code in result.stderr) == (2 if code else 0, True), result.stderr
    assert (
        story.tunewright(
            "data", "check", made["pairs"], "--objective", "sft", "--good-only"
        ).returncode
        == 0
    )
    assert (
        "E-CONFIG-09"
        in story.tunewright("data", "check", made["pairs"], "--objective", "sfft").stderr
    )


def test_good_only_beside_an_objective_that_compares_is_refused_before_the_rows_are_read(
    tmp_path: Path,
) -> None:
    keys = given(
        [str(tmp_path / "nothing.json")],
        tmp_path / "out",
        **{"objective.kind": "dpo", "data.good_only": True},
    )
    assert [
        p.code for p in refused(lambda: the_story.train(parse_run(keys, {}), tell=Quiet()))
    ] == ["E-COMPAT-07"]


def test_a_run_of_good_answers_is_measured_on_them_and_answers_asked_for_of_other_rows_are_not_left_out_in_silence(
    tmp_path: Path,
) -> None:
    from tunewright.evaluate.scoring import evaluate_target

    model, data = (
        story.model_folder(tmp_path / "m", max_position_embeddings=64),
        files(tmp_path)["pairs"],
    )
    shared = {"engine": {"steps": 1, "dtype": "float32"}, "probes": 0, "tell": Quiet()}
    run = tunewright.train(
        model=str(model),
        data={"train": data, "good_only": True, "held_out": 0},
        out=str(tmp_path / "o"),
        **shared,
    )  # type: ignore[arg-type]
    found = evaluate_target(
        str(run.folder), data, generate=True, dtype="float32", threads=1, tell=Quiet()
    )
    assert (
        found["exact_match"]["n"] == 3
        and found["exact_match"]["mistakes"][0]["expected"] == "good 0"
    )
    bare = evaluate_target(
        str(model), data, generate=True, dtype="float32", threads=1, tell=Quiet()
    )
    assert "exact_match" not in bare and any(
        "No answer was generated" in line for line in bare["warnings"]
    )
