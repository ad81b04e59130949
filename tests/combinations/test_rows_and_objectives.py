"""Every objective with every kind of rows, alone and mixed, however they are given: what is learnt
is what it should be, or the run is refused.

The expected texts stand in `parts.LEARNT`, written by hand. What a run learns is read back from the
tokens that count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parts
import pytest
import yaml
from helpers import story

import tunewright
from tunewright import story as the_story
from tunewright.commands import pipeline, pipeline_plan
from tunewright.commands.dry_run import dry_run
from tunewright.core import compat
from tunewright.core.errors import DataError, UsageError
from tunewright.core.registry import objectives
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.data.reporting import describe
from tunewright.engine.rollouts.questions import facts_of
from tunewright.evaluate.asked import read_questions
from tunewright.evaluate.scoring import evaluate_target
from tunewright.run.prepare import Plan, prepare

OTHERS = {
    "conversation": "alpaca",
    "text": "text",
    "preference": "preference",
    "judged": "kto",
    "prompt": "prompts",
    "stepwise": "stepwise",
}
"""A format of each kind."""
WAYS = ("list", "entry", "folder", "table", "held_out")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("rows")
    return {name: parts.write(place / f"{name}.jsonl", rows) for name, rows in parts.ROWS.items()}


def opened(model: Path, objective: str, data: Any, name: str | None, **more: Any) -> Plan:
    """The run up to its rows, as `train` goes. Prompts beside an answer could be read in two ways,
    so drawing runs name the format."""
    named = (
        {"data.format": name}
        if name in ("prompts", "prompt_completion") and objective in parts.DRAWING
        else {}
    )
    return prepare(
        parts.parsed(model, data, **parts.settings_of(objective, model), **named, **more),
        Quiet(),
        out_matters=False,
    )


def learnt(prepared: Plan, samples: Any = None) -> list[str]:
    """The texts of the tokens that count, without the stop token."""
    found = []
    for sample in prepared.data.train if samples is None else samples:
        for branch in sample.branches:
            if branch.learnt:
                found.append(
                    prepared.renderer.tokenizer.decode(
                        [branch.tokens[i] for i in branch.learnt], skip_special_tokens=True
                    ).strip()
                )
    return sorted(found)


def codes(model: Path, objective: str, data: Any, **more: Any) -> tuple[list[str], str]:
    """The codes with which a run is refused, and its message."""
    with pytest.raises(UsageError) as caught:
        opened(model, objective, data, None, **more)
    return [p.code for p in caught.value.problems], "\n".join(
        p.line() for p in caught.value.problems
    )


def combinations() -> list[tuple[str, ...]]:
    """What this file looks at: (objective, kind of rows), (objective, way to give them) and
    (objective, first kind, second kind)."""
    found: list[tuple[str, ...]] = []
    for objective, kinds in parts.LEARNT.items():
        found += [(objective, name) for name in parts.ROWS]
        found += [(objective, way) for way in WAYS]
        found += [(objective, a, b) for a in kinds for b in OTHERS if a != b]
        found += [(objective, b, a) for a in kinds for b in OTHERS if a != b and b not in kinds]
    return found


def test_every_objective_is_looked_at() -> None:
    assert set(parts.LEARNT) == set(objectives.names())
    assert set(parts.TYPE) == set(parts.ROWS)


def kinds(*names: str) -> dict[str, Any]:
    """Kinds of rows as a data report names them."""
    return {
        name: {"rows": 3, "files": [{"file": f"{name}.json", "rows": 3, "first_row": 7}]}
        for name in names
    }


@pytest.mark.parametrize("objective", sorted(parts.LEARNT))
def test_each_objective_takes_the_kinds_it_names_and_refuses_every_other_in_any_company(
    objective: str,
) -> None:
    usable = set(parts.LEARNT[objective])
    for one in OTHERS:
        assert bool(compat.rows_for(objective, kinds(one))) == (one not in usable), one
        for other in OTHERS:
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


LONG = "it is 5 of 2026 " * 90
"""Longer than the model's context."""
ANSWERED = {
    "conversation": {
        "messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": LONG}]
    },
    "preference": {"prompt": "what?", "chosen": LONG, "rejected": "no"},
    "judged": {"prompt": "what?", "completion": LONG, "label": True},
}


@pytest.mark.parametrize("kind", ANSWERED)
def test_of_rows_with_answers_a_run_that_draws_reads_the_questions_alone(
    kind: str, model: Path, tmp_path: Path
) -> None:
    """Answers that nobody learns are not called learnt, and none is too long."""
    rows = parts.write(tmp_path / "rows.jsonl", [ANSWERED[kind]] * 3)
    prepared = opened(model, "grpo", rows, None)
    report = prepared.data.report
    asked = [sample.branches[0].tokens for sample in prepared.data.train]
    assert report["rows_kept"] == 3 and [*report["kinds"]] == [kind]
    assert report["answers"] == report["learnt_tokens"] == 0
    assert report["tokens_total"] == sum(map(len, asked)) < 60
    assert not any(piece["learnt"] for piece in report["example"]["pieces"])
    assert "learns from its own answers" in describe(report)
    assert facts_of(prepared.data.train_rows[0])["answer"].strip() == LONG.strip()


GREETING = {"messages": [{"role": "assistant", "content": "hello, what is it?"}]}


def test_a_dialogue_that_is_one_answer_alone_is_learnt_and_never_asked(
    model: Path, tmp_path: Path
) -> None:
    rows = parts.write(tmp_path / "rows.jsonl", [GREETING] * 4 + parts.ROWS["messages"])
    out = tmp_path / "run"
    made = parts.run(model, str(rows), out, probes=5)
    assert made.summary["status"] == "done"
    asked = (out / "before_after.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(asked) == 3  # of five that were wanted
    read = read_questions(str(rows))
    assert [len(read.questions), read.rows, read.left_out] == [3, 7, 4]
    found = evaluate_target(str(out), str(rows), generate=True, threads=1, tell=Quiet())
    assert found["loss"]["rows"] == 7 and found["answers"]["asked"] == 3
    with pytest.raises(DataError, match="a question is empty"):
        opened(model, "grpo", parts.write(tmp_path / "alone.jsonl", [GREETING] * 4), None)


@pytest.mark.parametrize("objective", sorted(parts.LEARNT))
def test_an_objective_learns_from_its_kinds_of_rows_what_it_should_and_refuses_the_others(
    objective: str, model: Path, files: dict[str, Path]
) -> None:
    for name, path in files.items():
        wanted = parts.LEARNT[objective].get(parts.TYPE[name])
        if wanted is None:
            found, message = codes(model, objective, str(path))
            assert found == ["E-COMPAT-05"] and path.name in message, (name, message)
        else:
            assert learnt(opened(model, objective, str(path), name)) == sorted(wanted), name


@pytest.mark.parametrize("objective", sorted(parts.LEARNT))
def test_rows_are_the_same_however_they_are_given(
    objective: str, model: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    kinds = parts.LEARNT[objective]
    kind = next(iter(kinds))
    name = OTHERS[kind] if kind != "text" else "text"
    wrong = next(other for other in OTHERS if other not in kinds)
    good, bad = files[name], files[OTHERS[wrong]]
    for way in WAYS:
        more: dict[str, Any] = {}
        data, other = ([str(path)] for path in (good, bad))
        if way == "entry":
            data, other = ([{"file": str(path)}] for path in (good, bad))  # type: ignore[misc]
        if way == "folder":
            data, other = (
                str(parts.write(tmp_path / path.stem / "rows.jsonl", parts.ROWS[path.stem]).parent)
                for path in (good, bad)
            )  # type: ignore[assignment]
        if way == "table":
            data, other = (
                str(_as_parquet(tmp_path / f"{path.stem}.parquet", parts.ROWS[path.stem]))
                for path in (good, bad)
            )  # type: ignore[assignment]
        if way == "held_out":
            more = {"data.held_out": str(good)}
        prepared = opened(model, objective, data, name, **more)
        assert learnt(prepared) == sorted(kinds[kind]), way
        if way == "held_out":
            assert learnt(prepared, prepared.data.held_out) == sorted(kinds[kind])
            found, message = codes(model, objective, data, **{"data.held_out": str(bad)})
        else:
            found, message = codes(model, objective, other)
        assert found == ["E-COMPAT-06" if way == "held_out" else "E-COMPAT-05"], (way, message)


@pytest.mark.parametrize("objective", sorted(parts.LEARNT))
def test_a_second_kind_of_rows_is_learnt_in_full_or_refused_by_name_in_both_orders(
    objective: str, model: Path, files: dict[str, Path]
) -> None:
    kinds = parts.LEARNT[objective]
    for kind in kinds:
        for other in OTHERS:
            if other == kind:
                continue
            first, second = files[OTHERS[kind]], files[OTHERS[other]]
            if other in kinds:
                entries = [
                    {"file": str(path), **({"format": "prompts"} if path.stem == "prompts" else {})}
                    for path in (first, second)
                ]
                assert learnt(opened(model, objective, entries, None)) == sorted(
                    kinds[kind] + kinds[other]
                ), (kind, other)
                continue
            for order in ([first, second], [second, first]):
                found, message = codes(model, objective, [str(path) for path in order])
                assert (
                    found == ["E-COMPAT-06"] and first.name in message and second.name in message
                ), (kind, other, message)


@pytest.mark.parametrize("objective", ["sft", "distill", "gkd"])
def test_of_judged_rows_the_good_answers_alone_are_learnt_where_that_is_asked_for(
    objective: str, model: Path, files: dict[str, Path]
) -> None:
    good = {
        "preference": parts.ANSWERS,
        "kto": [parts.ANSWERS[0], parts.ANSWERS[2]],
        "stepwise": [parts.STEPS[0], parts.STEPS[2]],
    }
    for name, wanted in good.items():
        data = [str(files["alpaca"]), str(files[name])]
        assert learnt(opened(model, objective, data, None, **{"data.good_only": True})) == sorted(
            parts.ANSWERS + wanted
        ), name


def test_a_pair_that_is_the_last_of_ten_thousand_rows_is_found(model: Path, tmp_path: Path) -> None:
    many = parts.write(
        tmp_path / "many.jsonl",
        [{"instruction": f"what is {i}?", "output": f"it is {i}"} for i in range(9_999)],
    )
    pair = parts.write(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    for order in ([many, pair], [pair, many]):
        found, message = codes(model, "sft", [str(path) for path in order])
        assert found == ["E-COMPAT-06"] and "many.jsonl" in message and "pairs.jsonl" in message
        assert "preference (1 in " in message and "9,999" in message


# ---- before anything is loaded, whichever way a run is started


def given(train: list[str], out: Path, **more: Any) -> dict[str, Any]:
    # There is no such model: what is refused here is refused before anybody looks for it.
    return {"model": str(out.parent / "nowhere"), "data.train": train, "out": str(out), **more}


def refused(start: Any) -> list[Any]:
    with pytest.raises(UsageError) as caught:
        start()
    return caught.value.problems


@pytest.mark.parametrize("turned", [False, True])
def test_pairs_beside_answers_are_refused_with_both_files_in_both_orders(
    files: dict[str, Path], tmp_path: Path, turned: bool
) -> None:
    made = {"alpaca": str(files["alpaca"]), "pairs": str(files["preference"])}
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


def test_a_stage_of_a_pipeline_is_refused_with_its_name(
    model: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    made = {"alpaca": str(files["alpaca"]), "pairs": str(files["preference"])}
    stages = [{"name": "first", "data": {"train": [made["alpaca"], made["pairs"]]}}]
    (tmp_path / "pipe.yaml").write_text(
        yaml.safe_dump({"model": str(model), "stages": stages}), encoding="utf-8"
    )
    planned = pipeline_plan.load_pipeline(
        tmp_path / "pipe.yaml", [], {"out": str(tmp_path / "out")}
    )
    (found,) = refused(lambda: pipeline.run_pipeline(planned, tell=Quiet()))
    assert found.code == "E-COMPAT-06" and "first" in found.line() and made["pairs"] in found.line()


def test_the_check_of_data_holds_rows_against_an_objective_where_one_is_named(
    files: dict[str, Path],
) -> None:
    made = {"pairs": str(files["preference"])}
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


def test_judged_rows_are_measured_on_their_good_answers_and_rows_without_answers_say_so(
    files: dict[str, Path], tmp_path: Path
) -> None:
    from tunewright.evaluate.scoring import evaluate_target

    model = story.model_folder(tmp_path / "m", max_position_embeddings=64)
    data = str(files["preference"])
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
        and found["exact_match"]["mistakes"][0]["expected"] == parts.ANSWERS[0]
    )
    bare = evaluate_target(
        str(model), data, generate=True, dtype="float32", threads=1, tell=Quiet()
    )
    assert bare["exact_match"]["n"] == 3
    text = evaluate_target(
        str(model), str(files["text"]), generate=True, dtype="float32", threads=1, tell=Quiet()
    )
    assert "exact_match" not in text and any(
        "No answer was generated" in line for line in text["warnings"]
    )


def _as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path
