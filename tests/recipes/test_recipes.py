"""Every recipe loads, its data can be read, and a tiny model runs it from end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import story

from tunewright.core.runfile import load_run
from tunewright.core.telling import Quiet
from tunewright.core.types import Conversation
from tunewright.data import inspect

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
EXPECTED = {
    "facts-qwen": 18,
    "sentiment-qwen": 24,
    "tone-and-format": 12,
    "llama": 12,
    "grpo-form": 288,
}
PIPELINES = {"rlhf"}
SINGLE = [path for path in RECIPES if path.stem not in PIPELINES]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_promised_recipes_are_there() -> None:
    assert {path.stem for path in RECIPES} == set(EXPECTED) | PIPELINES


@pytest.mark.parametrize("path", SINGLE, ids=lambda p: p.stem)
def test_a_recipe_loads_and_every_row_of_its_data_is_kept(path: Path) -> None:
    parsed = load_run(path)
    report = inspect(parsed.config.data, None, needs_tokens=False).report
    assert (report["rows_kept"], report["rows_dropped"], report["warnings"]) == (
        EXPECTED[path.stem],
        0,
        [],
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_commented_in_both_languages(path: Path) -> None:
    comments = "\n".join(
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.lstrip().startswith("#")
    )
    assert len(re.findall(r"[\u4e00-\u9fff]", comments)) > 80
    assert len(re.findall(r"\b[a-z]{3,}\b", comments)) > 60


def test_labels_are_the_digits_and_evenly_spread() -> None:
    rows = json.loads(Path("recipes/data/reviews.json").read_text(encoding="utf-8"))
    assert sorted(row["output"] for row in rows) == ["0"] * 12 + ["1"] * 12


def test_no_probe_of_the_facts_stands_in_the_data() -> None:
    for name in ("facts-qwen", "llama"):
        config = load_run(Path(f"recipes/{name}.yaml")).config
        asked = {
            row.question()[-1].content
            for row in inspect(config.data, None, needs_tokens=False).train_rows
            if isinstance(row, Conversation)
        }
        assert isinstance(config.probes, list) and not asked & {str(p) for p in config.probes}


def test_both_pages_name_every_recipe() -> None:
    for page in ("README.md", "README.zh-CN.md"):
        text = Path("recipes", page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)]+)\)", text):
            assert Path("recipes", target).exists(), target
        assert all(f"({path.name})" in text for path in RECIPES)


@pytest.mark.parametrize("path", SINGLE, ids=lambda p: p.stem)
def test_a_tiny_model_runs_the_recipe(path: Path, tmp_path: Path) -> None:
    from tunewright.story import train

    # Bytes of Chinese are many tokens for a tokenizer of 300 words, so the tiny model reads far.
    family = "llama" if path.stem == "llama" else "qwen2"
    model = story.model_folder(
        tmp_path / "model",
        family,
        max_position_embeddings=2048,
        hidden_size=32,
        intermediate_size=48,
    )
    words = ["engine.steps=2", "engine.dtype=float32", "engine.threads=1"]
    run = train(
        load_run(path, words, {"model": str(model), "out": str(tmp_path / "run")}), tell=Quiet()
    )
    summary: dict[str, Any] = json.loads(
        (tmp_path / "run" / "summary.json").read_text(encoding="utf-8")
    )
    assert (summary["status"], summary["steps"]) == ("done", 2) and run.summary[
        "trainable_parameters"
    ] > 0
    probes = yaml.safe_load(path.read_text(encoding="utf-8"))["probes"]
    answers = (tmp_path / "run" / "before_after.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(answers) == (probes if isinstance(probes, int) else len(probes))


def test_a_tiny_model_walks_the_whole_road_of_rlhf(tmp_path: Path) -> None:
    from tunewright.commands.pipeline import run_pipeline
    from tunewright.commands.pipeline_plan import load_pipeline

    model = story.model_folder(
        tmp_path / "model", max_position_embeddings=512, hidden_size=32, intermediate_size=48
    )
    words = [
        "engine.steps=2",
        "engine.batch_size=4",
        "engine.dtype=float32",
        "engine.threads=1",
        "stages.ppo.objective.max_new_tokens=4",
        "data.limit=40",
    ]
    pipeline = load_pipeline(
        Path("recipes/rlhf.yaml"), words, {"model": str(model), "out": str(tmp_path / "road")}
    )
    run_pipeline(pipeline, tell=Quiet())
    summaries = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((tmp_path / "road").glob("0*/summary.json"))
    ]
    assert [(s["status"], s["steps"]) for s in summaries] == [("done", 2)] * 3
    assert (
        "accuracy" in summaries[1]["held_out_figures"]
        and "reward_change" in summaries[2]["held_out_figures"]
    )


def test_the_pairs_of_the_road_give_nothing_away_by_words_or_length() -> None:
    """Every answer stands as often on the chosen as on the rejected side, and no held-out thing is
    taught."""
    for name in ("rlhf-pairs", "rlhf-pairs-held-out"):
        rows = [
            json.loads(line)
            for line in Path(f"recipes/data/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        assert sorted(row["chosen"] for row in rows) == sorted(row["rejected"] for row in rows)
        assert all(row["chosen"] != row["rejected"] for row in rows)
    taught = Path("recipes/data/rlhf-pairs.jsonl").read_text(encoding="utf-8") + Path(
        "recipes/data/rlhf-answers.jsonl"
    ).read_text(encoding="utf-8")
    held = [
        json.loads(line)["chosen"]
        for line in Path("recipes/data/rlhf-pairs-held-out.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    ]
    assert held and not any(answer in taught for answer in held)
