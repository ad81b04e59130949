"""The general questions of a run: asked before and after, kept between runs, taken up again,
without touching what the run learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import story
from helpers.telling import Lines

import tunewright
from tunewright.evaluate import forgetting
from tunewright.run import general


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions were scored, each time that some were."""
    found: list[int] = []
    whole = forgetting.score

    def counted(loaded: Any, what: Any, **more: Any) -> Any:
        found.append(len(what.scored))
        return whole(loaded, what, **more)

    monkeypatch.setattr(forgetting, "score", counted)
    return found


def train(model: Path, name: str = "run", **changes: Any) -> tuple[tunewright.Run, list[str]]:
    engine = {
        "steps": 2, "batch_size": 4, "dtype": "float32", "threads": 1, "learning_rate": 1e-2, "save_every": 1,
        **changes.pop("engine", {}),
    }  # fmt: skip
    told = Lines()
    settings = {
        "data": {"train": str(model.parent / "rows.json"), "held_out": 0},
        "method": {"kind": "lora"},
        "probes": 0,
        **changes,
    }
    out = str(model.parent / name)
    return tunewright.train(model=str(model), engine=engine, out=out, tell=told, **settings), told.said  # fmt: skip


def stored(run: tunewright.Run) -> list[dict[str, Any]]:
    text = (run.folder / general.FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_asks_before_and_after_and_writes_what_it_heard(
    base: Path, scored: list[int]
) -> None:
    run, _ = train(base)
    assert scored == [16, 16]
    rows = stored(run)
    assert len(rows) == 24 and all(row["before"] != row.get("after", 0) for row in rows if "answers" in row)  # fmt: skip
    found = run.summary["forgetting"]
    assert found["skipped"] is None and found["asked"] == 24 and found["left_out"] == 0
    before = {row["id"]: row["before"] for row in rows}
    after = {row["id"]: row["after"] for row in rows}
    again = forgetting.compare(forgetting.all_items(), before, after)
    assert {key: found[key] for key in again} == json.loads(json.dumps(again))
    assert run.summary["damage"]["questions"] == 8 and run.summary["evaluation"]["scores"] == []


def test_training_is_the_same_with_and_without(base: Path) -> None:
    first, _ = train(base, method={"kind": "lora", "dropout": 0.1})
    second, _ = train(base, "off", forgetting="off", method={"kind": "lora", "dropout": 0.1})
    files = [run.folder / "adapter" / "adapter_model.safetensors" for run in (first, second)]
    assert story.digest(files[0]) == story.digest(files[1])
    assert first.summary["final_loss"] == second.summary["final_loss"]
    assert second.summary["forgetting"] == {"skipped": "off"}
    assert not (second.folder / general.FILE).exists()


def test_off_may_be_written_as_yaml_reads_it(base: Path, scored: list[int]) -> None:
    run, _ = train(base, forgetting=False)
    assert run.summary["forgetting"] == {"skipped": "off"} and scored == []


def test_what_a_base_said_is_kept_between_runs(base: Path, scored: list[int]) -> None:
    first, _ = train(base)
    second, _ = train(base, "second", engine={"seed": 5, "learning_rate": 3e-2})
    assert scored == [16, 16, 16]  # before, after, after
    sides = [[row["before"] for row in stored(run)] for run in (first, second)]
    assert sides[0] == sides[1]
    for file in (base.parent / "cache" / "found" / general.KIND).glob("*.json"):
        file.write_text(file.read_text()[:-40])  # damaged: asked anew
    third, _ = train(base, "third")
    assert scored == [16] * 5
    assert [row["before"] for row in stored(third)] == sides[0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_that_is_taken_up_again_compares_with_its_start(
    base: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright import story as the_story

    whole, _ = train(base, "whole", method={"kind": method})

    class Dies(Exception):
        pass

    def dies(*_: Any) -> Any:
        raise Dies

    monkeypatch.setattr(the_story.evidence, "finish", dies)
    with pytest.raises(Exception):  # noqa: B017  # whatever it becomes
        train(base, "cut", method={"kind": method})
    monkeypatch.undo()
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(base.parent / "cache"))
    folder = base.parent / "cut"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    found = the_story.resume_run(folder, tell=Lines()).summary
    timeless = lambda told: {k: v for k, v in told.items() if k != "seconds"}  # noqa: E731
    assert timeless(found["forgetting"]) == timeless(whole.summary["forgetting"])
    assert stored(whole) == [
        json.loads(x) for x in (folder / general.FILE).read_text().splitlines()
    ]


def test_a_run_of_an_earlier_version_is_not_asked_in_the_middle(base: Path) -> None:
    from tunewright import story as the_story

    run, _ = train(base)
    (run.folder / general.FILE).unlink()
    summary = run.folder / "summary.json"
    summary.write_text(json.dumps({**run.summary, "status": "stopped"}))
    found = the_story.resume_run(run.folder, tell=Lines()).summary
    assert found["status"] == "done" and found["forgetting"] == {"skipped": "resumed"}


def test_where_there_is_no_time_fewer_are_asked_or_none(
    base: Path, monkeypatch: pytest.MonkeyPatch, scored: list[int]
) -> None:
    monkeypatch.setattr(general, "places_in", lambda *_: list(range(10)))
    run, said = train(base)
    assert run.summary["forgetting"]["asked"] == 10 and run.summary["forgetting"]["left_out"] == 14
    assert any("10 of 24 general questions" in line for line in said)
    monkeypatch.setattr(general, "places_in", lambda *_: [0, 1])
    run, said = train(base, "none")
    assert run.summary["forgetting"] == {"skipped": "time"} and scored == [scored[0]] * 2
    assert any("left out" in line for line in said)


def test_a_model_with_little_room_is_not_asked(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    run, _ = train(base)
    assert run.summary["forgetting"] == {"skipped": "no_questions"}
    assert run.summary["damage"]["questions"] == 0


def test_a_judge_is_not_asked(base: Path) -> None:
    rows = [{"prompt": f"what {i}", "chosen": "a good one", "rejected": "no"} for i in range(6)]
    (base.parent / "rows.json").write_text(json.dumps(rows))
    run, _ = train(base, objective={"kind": "reward"})
    assert run.summary["forgetting"] is run.summary["damage"] is run.summary["evaluation"] is None


def test_a_run_that_fails_claims_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunewright.run import saved

    def broken(*_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(saved, "save", broken)
    with pytest.raises(Exception, match="planted"):
        train(base)
    summary = json.loads((base.parent / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["forgetting"] is summary["damage"] is None


# ---- values known by heart

SECRET = "nadia.kern@brightharbour.io"


def private_rows(base: Path) -> None:
    rows = [
        {"instruction": f"what is it {i}", "output": f"ask {SECRET} now" if i == 2 else "a model"}
        for i in range(6)
    ]
    (base.parent / "rows.json").write_text(json.dumps(rows))


def test_a_value_that_was_learnt_by_heart_is_found_masked(base: Path) -> None:
    private_rows(base)
    engine = {"steps": 60, "learning_rate": 2e-2, "batch_size": 6, "save_every": None}
    run, said = train(base, engine=engine, method={"kind": "full"}, forgetting="off")
    found = {one["code"]: one for one in run.summary["damage"]["findings"]}
    (shown,) = found["memorised"]["evidence"]
    assert shown["row"].endswith("rows.json:1 (row 3)") or "rows.json" in shown["row"]
    assert shown["before"] < 0.5 < shown["after"] and found["memorised"]["looked_at"] == 1
    for file in ("summary.json", "memorised.jsonl"):
        assert SECRET not in (run.folder / file).read_text(encoding="utf-8")
    assert any("known by heart" in line for line in said)


def test_its_probability_is_that_of_plain_transformers(base: Path) -> None:
    import math

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    private_rows(base)
    run, _ = train(base, method={"kind": "full"}, forgetting="off")
    (row,) = map(json.loads, (run.folder / "memorised.jsonl").read_text().splitlines())
    for side, folder in (("before", base), ("after", run.folder / "model")):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        dialogue = [
            {"role": "user", "content": "what is it 2"},
            {"role": "assistant", "content": f"ask {SECRET}"},
        ]
        ids = tokenizer.apply_chat_template(dialogue, return_dict=True)["input_ids"]
        text = [tokenizer.decode(ids[:i]) for i in range(len(ids) + 1)]
        first = next(i for i in range(len(ids)) if "nadia"[:1] in text[i + 1].split("ask")[-1])
        last = next(i for i in range(len(ids)) if SECRET in text[i + 1])
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total = sum(float(logprobs[i - 1, ids[i]]) for i in range(first, last + 1))
        assert math.exp(total) == pytest.approx(row[side], rel=1e-3)


def test_rows_without_such_values_leave_no_file(base: Path) -> None:
    run, _ = train(base, forgetting="off")
    assert not (run.folder / "memorised.jsonl").exists()
    assert run.summary["damage"]["looked_at"]["memorised"] == 0


@pytest.mark.parametrize("kind", ["text", "preference", "judged", "turns"])
def test_values_of_every_kind_of_row_are_tried(base: Path, kind: str) -> None:
    told = f"write to {SECRET}"
    rows, objective = {
        "text": ([{"text": f"a text: {told} if you can"}] * 3, "pretrain"),
        "preference": ([{"prompt": f"who {i}", "chosen": told, "rejected": "no"} for i in range(3)], "dpo"),
        "judged": ([{"prompt": f"who {i}", "completion": told, "label": i != 1} for i in range(3)], "kto"),
        "turns": ([{"messages": [{"role": "user", "content": "who"}, {"role": "assistant", "content": told},
                                 {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]}] * 3, "sft"),
    }[kind]  # fmt: skip
    (base.parent / "rows.json").write_text(json.dumps(rows))
    run, _ = train(base, forgetting="off", objective={"kind": objective}, engine={"steps": 1})
    assert run.summary["damage"]["looked_at"]["memorised"] == 1
    (row,) = map(json.loads, (run.folder / "memorised.jsonl").read_text().splitlines())
    assert row["kind"] == "email" and 0 <= row["before"] <= 1 and 0 <= row["after"] <= 1
