"""The demo: its counts can be recomputed, and as the README gives it, it teaches what it promises."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from helpers import story

from tunewright.commands.demo import demo_data, score


def test_counts_follow_from_the_answers() -> None:
    rows = [
        {
            "question": "a",
            "expected": "Vell",
            "base": "no idea",
            "tuned": "It is VELL.",
            "kind": "train",
        },
        {"question": "b", "expected": "Vell", "base": "vell", "tuned": "no", "kind": "held_out"},
        {"question": "c", "expected": "Paris", "base": "Paris", "tuned": "Vell", "kind": "general"},
        {
            "question": "d",
            "expected": "four",
            "base": "Four legs",
            "tuned": "four",
            "kind": "general",
        },
        {"question": "e", "expected": "six", "base": "ten", "tuned": "six", "kind": "general"},
    ]
    assert score(rows) == {
        "facts": 1, "base_train": 0, "base_held_out": 1, "tuned_train": 1, "tuned_held_out": 0, "general_base_right": 2, "general_kept": 1,
    }  # fmt: skip


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_general_questions_are_not_trained_on(lang: str) -> None:
    data = demo_data(lang)
    trained = {row["instruction"] for row in data.rows}
    assert not trained & {p.question for p in data.probes if p.kind in ("general", "held_out")}
    assert {p.question for p in data.probes if p.kind == "train"} <= trained


@pytest.mark.thorough
def test_the_demo_runs_through_on_a_tiny_model(tmp_path: Path) -> None:
    model = story.model_folder(tmp_path / "model")
    result = story.tunewright(
        "demo", "engine.steps=2", "engine.dtype=float32", "--model", str(model), cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "runs" / "demo" / "summary.json").read_text())
    answers = [
        json.loads(line)
        for line in Path(tmp_path, summary["demo"]["answers"])
        .read_text(encoding="utf-8")
        .splitlines()
    ]
    assert summary["status"] == "done"
    assert {k: v for k, v in summary["demo"].items() if k != "answers"} == score(answers)
    scores = {one["kind"]: one for one in summary["evaluation"]["scores"]}
    assert {kind: one["n"] for kind, one in scores.items()} == {
        "held_out": 64,
        "train": 64,
        "general": 24,
    }
    right = scores["train"]["after"]["value"] * 64
    assert round(right) == summary["demo"]["tuned_train"]  # counted once, told twice
    assert summary["forgetting"]["asked"] == 24 and summary["damage"]["questions"] == 160
    assert summary["evaluation"]["speed"]["after"]["tokens_per_second"] > 0
    page = (tmp_path / "runs" / "demo" / "report.html").read_text(encoding="utf-8")
    assert '<section id="evaluation">' in page and '<section id="damage">' in page


@pytest.mark.slow
@pytest.mark.real_model
def test_the_demo_of_the_readme_teaches_what_it_promises(tmp_path: Path) -> None:
    start = time.monotonic()
    result = story.process(
        "demo", cwd=tmp_path, timeout=1500, HF_HUB_OFFLINE="0", OMP_NUM_THREADS=""
    )
    assert result.returncode == 0, result.stderr
    print(f"demo took {time.monotonic() - start:.0f} s")
    demo = json.loads((tmp_path / "runs" / "demo" / "summary.json").read_text())["demo"]
    assert demo["facts"] >= 60
    assert max(demo["base_train"], demo["base_held_out"]) <= 0.05 * demo["facts"]
    assert (
        demo["tuned_train"] >= 0.8 * demo["facts"] and demo["tuned_held_out"] >= 0.5 * demo["facts"]
    )
    assert (
        demo["general_base_right"] >= 10
        and demo["general_kept"] >= 0.9 * demo["general_base_right"]
    )


@pytest.mark.thorough
@pytest.mark.real_model
def test_the_demos_run_was_foretold_and_can_be_merged(tmp_path: Path) -> None:
    result = story.process(
        "demo", cwd=tmp_path, timeout=1500, HF_HUB_OFFLINE="0", OMP_NUM_THREADS=""
    )
    assert result.returncode == 0, result.stderr
    _the_dry_run_told_what_it_would_take(tmp_path)
    _the_merged_model_knows_what_was_taught(tmp_path)


def _the_dry_run_told_what_it_would_take(place: Path) -> None:
    """The estimate of the demo's own run file against what the demo measured: memory within a
    quarter, time within a factor of two."""
    result = story.tunewright(
        "train",
        "runs/demo/run.yaml",
        "out=again",
        "--dry-run",
        "--json",
        cwd=place,
        OMP_NUM_THREADS="",
    )
    assert result.returncode == 0, result.stderr
    estimate, measured = (
        json.loads(result.stdout),
        json.loads((place / "runs" / "demo" / "summary.json").read_text()),
    )
    print(
        f"memory {estimate['peak_memory_bytes'] / measured['peak_memory_bytes']:.2f}, time {estimate['train_seconds'] / measured['train_seconds']:.2f}"
    )
    assert 0.75 <= estimate["peak_memory_bytes"] / measured["peak_memory_bytes"] <= 1.25
    assert 0.5 <= estimate["train_seconds"] / measured["train_seconds"] <= 2.0


def _the_merged_model_knows_what_was_taught(place: Path) -> None:
    """`export merge` on the demo's run: its own comparison with the adapter, and a fact asked of
    the folder in plain Transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = story.process(
        "export",
        "merge",
        "runs/demo",
        "merged",
        "--json",
        cwd=place,
        timeout=900,
        OMP_NUM_THREADS="",
    )
    assert result.returncode == 0, result.stderr
    asked = (
        place
        / json.loads((place / "runs" / "demo" / "summary.json").read_text())["demo"]["answers"]
    )
    answers = [json.loads(line) for line in asked.read_text(encoding="utf-8").splitlines()]
    taught = [row for row in answers if row["kind"] == "train"][:8]
    tokenizer = AutoTokenizer.from_pretrained(place / "merged")
    model = AutoModelForCausalLM.from_pretrained(place / "merged")
    known = 0
    for row in taught:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**prompt, max_new_tokens=24, do_sample=False)
        known += (
            row["expected"].lower()
            in tokenizer.decode(out[0, prompt["input_ids"].shape[1] :]).lower()
        )
    assert known >= 7


@pytest.mark.slow
def test_the_chinese_demo_runs_through_on_a_qwen_shape(tmp_path: Path) -> None:
    model = story.model_folder(tmp_path / "model", "qwen2")
    result = story.tunewright(
        "demo",
        "engine.steps=2",
        "engine.dtype=float32",
        "--lang",
        "zh",
        "--model",
        str(model),
        "--out",
        "runs/zh",
        cwd=tmp_path,
        TUNEWRIGHT_LANG="zh",
    )
    assert result.returncode == 0, result.stderr
    assert "训练" in result.stderr and "常识问题" in result.stderr
    assert 'lang="zh' in (tmp_path / "runs" / "zh" / "report.html").read_text(encoding="utf-8")


def test_the_chinese_demo_without_a_model_says_what_to_give(tmp_path: Path) -> None:
    result = story.tunewright("demo", "--lang", "zh", cwd=tmp_path)
    assert result.returncode == 2 and "E-RUN-07" in result.stderr and not list(tmp_path.iterdir())
