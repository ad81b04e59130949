"""Thoughts in whole runs: what was trained, asked before and after, measured and talked to has one
form."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import families, story
from helpers.telling import Lines
from transformers import AutoTokenizer

import tunewright
from tunewright.core import compat
from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.core.types import ROW_KINDS, Message
from tunewright.data.inspecting import inspect
from tunewright.evaluate.scoring import evaluate_target
from tunewright.export.merge import merge_run
from tunewright.serve.answering import open_target
from tunewright.story import train
from tunewright.text import asked_template

EMPTY = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model whose tokenizer and template have the shape of Qwen3's."""
    folder = story.model_folder(tmp_path_factory.mktemp("thinking"), "qwen2", vocab_size=512)
    families.tokenizer_of("qwen3", families.THINKING).save_pretrained(str(folder))
    return folder


def rows_in(place, thoughts):
    rows = [
        {
            "question": f"what is {i}",
            "answer": ("<think>\nhm\n</think>\n\n" if thoughts else "") + f"lamp {i % 3}",
        }
        for i in range(12)
    ]
    place.write_text(json.dumps(rows), encoding="utf-8")
    return place


def trained(model, data, out, tell=None, thinking="auto", **more):
    settings = {
        "engine": {"epochs": 1, "dtype": "float32", "threads": 1, "batch_size": 6},
        "method": {"kind": "lora", "rank": 2},
        **more,
    }
    section = {"train": str(data), "held_out": 0, "thinking": thinking}
    return tunewright.train(
        model=str(model), data=section, probes=2, out=str(out), tell=tell or Quiet(), **settings
    )


def test_a_run_of_answers_alone_is_asked_and_measured_without_thinking(model, tmp_path):
    data, tell = rows_in(tmp_path / "rows.json", False), Lines()
    run = trained(model, data, tmp_path / "run", tell)
    assert any("12 rows have no thoughts" in line for line in "\n".join(tell.said).splitlines())
    report = json.loads((run.folder / "data_report.json").read_text())["thinking"]
    assert report["asked"] is False and report["empty_not_learnt"] == 12
    assert report["chosen"] == {"answer_form": 12}
    assert any("data think" in line for line in "\n".join(tell.said).splitlines())
    summary = json.loads((run.folder / "summary.json").read_text())
    left = summary["reasoning"]
    assert left["skipped"] is None and left["asked"] >= 4 and left["most_tokens"] >= 96
    assert {"share", "thought_tokens", "right"} <= left["before"].keys() & left["after"].keys()
    assert len((run.folder / "reasoning.jsonl").read_text().splitlines()) == left["asked"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    question = [{"role": "user", "content": "what is 3"}]
    off, on = (
        tokenizer.apply_chat_template(
            question, add_generation_prompt=True, tokenize=False, enable_thinking=t
        )
        for t in (False, True)
    )
    for think, expected in ((None, off), (False, off), (True, on)):
        answerer = open_target(str(run.folder), Quiet(), dtype="float32", think=think)
        assert (
            answerer.renderer.decode(answerer.renderer.prompt([Message("user", "what is 3")]))
            == expected
        )
    # What is measured is what was asked of the saved files: the same answers.
    place = tmp_path / "asked.json"
    for row in run.before_after:
        place.write_text(
            json.dumps([{"question": row["question"], "answer": "not this"}]), encoding="utf-8"
        )
        found = evaluate_target(
            str(run.folder),
            str(place),
            generate=True,
            options=[],
            dtype="float32",
            threads=1,
            max_new_tokens=48,
            tell=Quiet(),
        )
        assert found["exact_match"]["mistakes"][0]["answer"] == row["after_reload"]
    found = evaluate_target(
        str(run.folder),
        str(data),
        generate=False,
        options=[],
        dtype="float32",
        threads=1,
        tell=Quiet(),
    )
    thinking = evaluate_target(
        str(run.folder),
        str(data),
        options=[],
        dtype="float32",
        threads=1,
        max_new_tokens=8,
        think=True,
        tell=Quiet(),
    )
    assert thinking["loss"]["tokens"] == found["loss"]["tokens"]


def test_a_run_with_thoughts_is_asked_with_thinking_and_one_that_leaves_them_out_is_not(
    model, tmp_path
):
    data = rows_in(tmp_path / "rows.json", True)
    for mode, ending in (("auto", "assistant\n"), ("off", f"assistant\n{EMPTY}")):
        run = trained(model, data, tmp_path / mode, thinking=mode, forgetting="off")
        answerer = open_target(str(run.folder), Quiet(), dtype="float32")
        assert answerer.renderer.decode(
            answerer.renderer.prompt([Message("user", "what is 3")])
        ).endswith(ending)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_program_that_knows_only_the_folder_asks_as_the_run_was_asked(kind, model, tmp_path):
    data = rows_in(tmp_path / "rows.json", False)
    run = trained(model, data, tmp_path / "run", method={"kind": kind})
    folder = run.folder / "model"
    if kind == "lora":
        folder = tmp_path / "merged"
        run.merge(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "what is 3"}]
    for given, ending in (({}, EMPTY), ({"enable_thinking": True}, "<|im_start|>assistant\n")):
        text = tokenizer.apply_chat_template(
            question, add_generation_prompt=True, tokenize=False, **given
        )
        assert text.endswith(ending)
    for target, think in ((run.folder, None), (folder, None), (folder, True)):
        answerer = open_target(str(target), Quiet(), dtype="float32", think=think)
        asked = answerer.renderer.decode(answerer.renderer.prompt([Message("user", "what is 3")]))
        assert asked.endswith(EMPTY) != (think is True)


def test_a_folder_whose_template_asks_otherwise_is_warned_of(model, tmp_path, monkeypatch):
    run = trained(model, rows_in(tmp_path / "rows.json", False), tmp_path / "run")
    monkeypatch.setattr(asked_template, "for_folder", lambda renderer, own: own)
    warnings = merge_run(run.folder, tmp_path / "merged", tell=Quiet())["warnings"]
    assert len(warnings) == 1 and "as it comes" in warnings[0] and "<think>" in warnings[0]


def test_a_model_without_a_switch_says_that_think_has_no_effect(tmp_path):
    tell = Lines()
    open_target(str(story.model_folder(tmp_path / "plain")), tell, dtype="float32", think=True)
    assert any("--think" in line for line in tell.said)


def test_rows_of_the_page_on_rewards_are_questions_for_grpo_and_answers_for_sft(tmp_path):
    pages = [
        Path(__file__).parent.parent / "docs" / name for name in ("rewards.md", "rewards.zh-CN.md")
    ]
    rows = [
        json.loads(row)
        for page in pages
        for row in re.findall(r'`(\{"prompt".*?\})`', page.read_text(encoding="utf-8"))
    ]
    assert rows
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for objective, kind in (("grpo", "prompt"), ("ppo", "prompt"), ("sft", "conversation")):
        given = {
            "model": "m",
            "data.train": str(file),
            "objective.kind": objective,
            "objective.reward": "numeric",
        }
        given = (
            given
            if objective != "sft"
            else {k: v for k, v in given.items() if k != "objective.reward"}
        )
        config = parse_run(given, dict.fromkeys(given, "test")).config
        found = inspect(
            config.data, None, needs_tokens=False, wants=compat.wanted_rows(config)
        ).train_rows
        assert {ROW_KINDS[type(row)] for row in found} == {kind}
    with pytest.raises(DataError, match="E-DATA-09"):
        inspect(DataConfig(train=str(file)), None, needs_tokens=False)


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_a_run_whose_groups_never_differ_says_that_nothing_was_learnt(objective, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": f"what is {i}", "answer": "never written"}) + "\n"
            for i in range(4)
        ),
        encoding="utf-8",
    )
    tell = Lines()
    how = {
        "kind": objective,
        "reward": {"kind": "exact_match"},
        "generations": 2,
        "max_new_tokens": 3,
    }
    engine = {"steps": 2, "dtype": "float32", "threads": 1, "batch_size": 2}
    run = trained(
        story.model_folder(tmp_path / "model"),
        file,
        tmp_path / "run",
        tell,
        objective=how,
        engine=engine,
    )
    assert run.summary["groups_without_difference"] == 1
    assert any("nothing was learnt from the rewards" in line for line in tell.said)


def test_a_run_in_channels_with_an_effort_is_asked_with_it(tmp_path):
    folder = story.model_folder(tmp_path / "model", "qwen2", vocab_size=512)
    families.tokenizer_of("harmony", families.MARKED).save_pretrained(str(folder))
    turns = [
        {"role": "user", "content": "what is 3"},
        {"role": "assistant", "content": "lamp", "thinking": "hm"},
    ]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps([{"messages": turns}] * 4), encoding="utf-8")
    given = {
        "model": str(folder),
        "data.train": str(data),
        "data.held_out": 0,
        "data.template_arguments.reasoning_effort": "high",
        "out": str(tmp_path / "run"),
        "engine.steps": 1,
        "engine.dtype": "float32",
        "engine.threads": 1,
        "probes": 1,
        "forgetting": "off",
    }
    run = train(parse_run(given, {}), tell=Quiet())
    report = json.loads((run.folder / "data_report.json").read_text())
    assert report["thinking"]["template_arguments"] == {"reasoning_effort": "high"}
    assert report["thinking"]["chosen"] == {"learnt": 4} and report["rendering"]["holds"]
    pieces = {one["learnt"]: one["text"] for one in report["example"]["pieces"]}
    assert pieces[True].startswith("<|channel|>analysis<|message|>hm<|end|>")
    opened = open_target(str(run.folder), Quiet(), dtype="float32", think=False)
    asked = opened.renderer.decode(opened.renderer.prompt([Message("user", "what is 3")]))
    assert "Reasoning: high" in asked and asked.endswith("<|channel|>final<|message|>")


def test_template_arguments_beside_running_text_alone_are_refused():
    given = {
        "model": "m",
        "data.train": "rows.json",
        "data.template_arguments": {"x": 1},
        "objective.kind": "pretrain",
    }
    found = compat.problems(parse_run(given, {}).config)
    assert [(p.code, p.where) for p in found] == [("E-COMPAT-12", "data.template_arguments")]
