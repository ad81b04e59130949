"""A run that starts from a judge goes on with its score head, whatever the method, and a merged
judge is a classifier of plain Transformers.

The oracle is plain Transformers and plain PEFT on the saved folders: the scores of the answers, and
what a second run of two steps at a rate of 1e-10 starts and ends with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story
from helpers.telling import Lines
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from tunewright.commands import pipeline, pipeline_plan
from tunewright.commands.pipeline_file import read_pipeline
from tunewright.core.errors import ConfigError, TunewrightError
from tunewright.core.registry import methods
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet, Tell
from tunewright.evaluate import scoring
from tunewright.export import judges
from tunewright.export.merge import lines, merge_run
from tunewright.methods.saved import put_on
from tunewright.models import anatomy
from tunewright.models.load import load_model
from tunewright.models.scalar_heads import put_heads, stored_score
from tunewright.story import train

STILL = {"engine.learning_rate": 1e-10, "engine.steps": 2, "engine.warmup": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    "loha": {"rank": 4}, "lokr": {"rank": 2}, "adalora": {"rank": 4, "start_rank": 6}, "vera": {"rank": 16}, "oft": {"block_size": 8}, "boft": {"block_size": 4},
    "peft": {"type": "HRA", "options": {"r": 4}}, "galore": {"rank": 4, "refresh": 2}, "apollo": {"rank": 4, "refresh": 2}, "apollo_mini": {"refresh": 2},
    "lisa": {"blocks": 1}, "llama_pro": {"blocks": 1}, "freeze": {"blocks": 1}, "new_tokens": {"tokens": list(range(3, 40))}, "diff_pruning": {"target": 0.2},
    **{kind: {"rank": 4} for kind in ("lora", "rslora", "dora", "lora_plus", "pissa", "olora", "eva")},
    **{kind: {"num_tokens": 5} for kind in ("prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2")},
}  # fmt: skip
TRAINABLE = [name for name in methods.names() if name != "loftq"]
"""All but the one that needs a quantised base, which has a test of its own."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("base"), "qwen2", initializer_range=0.1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": f"{q} {i}?", "chosen": f"the answer is {i}", "rejected": f"no {i}"}
        for i, q in enumerate(story.QUESTIONS)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("steps") / "steps.jsonl"
    rows = [
        {
            "prompt": f"{q}?",
            "completions": [f"{i} is it", f"it is {i}"],
            "labels": [True, i % 2 == 0],
        }
        for i, q in enumerate(story.QUESTIONS)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def run(
    model: Path,
    data: Path,
    out: Path,
    kind: str,
    objective: str = "reward",
    tell: Tell | None = None,
    **more: Any,
) -> Path:
    given = {
        "model": str(model), "data.train": str(data), "data.held_out": 0, "out": str(out), "probes": 0, "forgetting": "off", "engine.dtype": "float32", "engine.threads": 1,
        "engine.steps": 6, "engine.batch_size": 6, "engine.learning_rate": 0.01, "objective.kind": objective,
        **({"method.kind": kind} | {f"method.{key}": value for key, value in SETTINGS.get(kind, {}).items()} if "adapter" not in more else {}), **more,
    }  # fmt: skip
    train(parse_run(given, dict.fromkeys(given, "test")), tell=tell or Quiet())
    return out


def figures(run: Path) -> list[dict[str, float]]:
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [{**e["figures"], "loss": e["loss"]} for e in events if e["event"] == "step"]


def scores(run: Path, data: Path) -> list[float]:
    found = scoring.evaluate_target(
        str(run), str(data), details=True, dtype="float32", device="cpu", threads=1, tell=Quiet()
    )
    if "steps" in found:
        return [
            torch.logit(torch.tensor(c, dtype=torch.float64)).item()
            for row in found["steps"]["rows"]
            for c in row["chances"]
        ]
    return [score for row in found["ranking"]["rows"] for score in (row["chosen"], row["rejected"])]


def goes_on(base: Path, data: Path, place: Path, kind: str, objective: str, **more: Any) -> Path:
    """A judge, and a second run from it whose weights do not move: both give the same scores.
    Returns the first."""
    first = run(base, data, place / "first", kind, objective, **more)
    whole = (first / "model").is_dir()
    start = {} if whole else {"adapter": str(first / "adapter")}
    base_bits = {key: value for key, value in more.items() if key.startswith("base.")}
    seed = {"engine.seed": 5}  # a head drawn anew would be another one
    second = run(
        first / "model" if whole else base,
        data,
        place / "second",
        kind,
        objective,
        **STILL,
        **start,
        **seed,
        **base_bits,
    )
    wanted = scores(first, data)
    assert scores(second, data) == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert max(map(abs, wanted)) > 0.05
    return first


@pytest.mark.wide("lora", "full")
@pytest.mark.parametrize("kind", ["lora", "full", "freeze", "prompt_tuning"])
def test_a_reward_model_goes_on_from_its_scores(
    base: Path, pairs: Path, tmp_path: Path, kind: str
) -> None:
    goes_on(base, pairs, tmp_path, kind, "reward")


@pytest.mark.thorough
@pytest.mark.parametrize("kind", TRAINABLE)
def test_a_reward_model_goes_on_from_its_scores_with_every_method(
    base: Path, pairs: Path, tmp_path: Path, kind: str
) -> None:
    goes_on(base, pairs, tmp_path, kind, "reward")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_judge_of_steps_goes_on_from_its_scores(
    base: Path, steps: Path, tmp_path: Path, kind: str
) -> None:
    goes_on(base, steps, tmp_path, kind, "process_reward")


def test_a_reward_model_on_four_bits_goes_on_from_its_scores(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    goes_on(base, pairs, tmp_path, "loftq", "reward", **{"base.bits": 4, "method.rank": 4})


@pytest.mark.parametrize("kind", methods.names())
def test_what_every_method_saves_of_a_judge_brings_the_head_that_trains_on(
    base: Path, tmp_path: Path, kind: str
) -> None:
    """No runs: attached, given a head, moved, saved, read, and given to an objective that wants a
    head."""
    if kind == "loftq":
        return  # it needs a quantised base; the run above is its test
    entry = methods.get(kind)
    assert entry is not None
    model: Any = load_model(base, dtype="float32")
    attached = entry.function(
        entry.config(**SETTINGS.get(kind, {})), model, anatomy.of(model), str(base)
    )
    put_heads(model, attached, ("score",))
    with torch.no_grad():
        model.score.weight.normal_()
    head = model.score.weight.detach().clone()
    attached.save(tmp_path / "judge")
    again: Any = load_model(tmp_path / "judge" if attached.saves_model else base, dtype="float32")
    if attached.saves_model:
        second = entry.function(
            entry.config(**SETTINGS.get(kind, {})), again, anatomy.of(again), str(base)
        )
    else:
        second = put_on(again, tmp_path / "judge", trainable=True)
    put_heads(again, second, ("score",))
    assert torch.equal(again.score.weight, head) and again.score.weight.requires_grad
    names = dict(second.model.named_parameters())
    assert len(second.parameters) == len(set(second.parameters)) and set(second.parameters) <= set(
        names
    )
    assert sum(names[name] is again.score.weight for name in second.parameters) == 1
    second.save(tmp_path / "second")
    stored = stored_score(tmp_path / "second")
    assert stored is not None and torch.equal(stored, head)


def plain_scores(model: Any, base: Path, pairs: Path) -> list[float]:
    """Of plain Transformers' class: both answers of every pair, rendered with the tokenizer's own
    template, read at the stop token."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = []
    for row in map(json.loads, pairs.read_text().splitlines()):
        for side in ("chosen", "rejected"):
            turns = [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row[side]},
            ]
            ids = tokenizer.apply_chat_template(turns)["input_ids"]
            last = len(ids) - 1 - ids[::-1].index(tokenizer.eos_token_id)
            with torch.no_grad():
                found.append(float(model(input_ids=torch.tensor([ids[: last + 1]])).logits[0, 0]))
    return found


def classifier(folder: Path, **settings: Any) -> Any:
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, **settings
    )
    assert settings or not (info["missing_keys"] or info["unexpected_keys"])
    return model.eval()


@pytest.mark.parametrize(
    "kind",
    [
        "lora",
        "full",
        "llama_pro",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("freeze", "dora")),
    ],
)
def test_a_merged_reward_model_is_a_sequence_classifier_with_the_same_scores(
    base: Path, pairs: Path, tmp_path: Path, kind: str
) -> None:
    judge = run(base, pairs, tmp_path / "judge", kind)
    verdict = merge_run(judge, tmp_path / "m", tell=Quiet())
    model = classifier(tmp_path / "m")
    assert model.config.num_labels == 1 and model.config.architectures == [
        "Qwen2ForSequenceClassification"
    ] == [verdict["class"]]
    said = plain_scores(model, base, pairs)
    assert said == pytest.approx(scores(judge, pairs), rel=1e-4, abs=1e-4) and scores(
        tmp_path / "m", pairs
    ) == pytest.approx(said, rel=1e-4, abs=1e-4)
    if kind == "lora":
        theirs = classifier(base, num_labels=1)
        theirs.config.pad_token_id = (
            5  # one that ends no answer; here padding and stop token differ already
        )
        assert plain_scores(
            PeftModel.from_pretrained(theirs, judge / "adapter").eval(), base, pairs
        ) == pytest.approx(said, rel=1e-4, abs=1e-4)
    written = json.loads((tmp_path / "m" / "merge.json").read_text())
    assert (
        written["largest_score_difference"] <= 1e-4
        and written["verdict"] == "equal"
        and written["scores"] == 12
    )
    with safe_open(tmp_path / "m" / "model.safetensors", framework="pt") as stored:
        names = set(stored.keys())
    assert "score.weight" in names and not any(name.startswith("lm_head") for name in names)
    half = merge_run(judge, tmp_path / "half", dtype="bfloat16", tell=Quiet())
    assert (
        1e-4 < half["largest_score_difference"] < 0.25
        and classifier(tmp_path / "half").dtype == torch.bfloat16
    )
    line = "\n".join(lines(verdict))
    assert "Qwen2ForSequenceClassification" in line and "tunewright evaluate" in line


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_merged_judge_of_steps_is_a_token_classifier_that_scores_every_step(
    base: Path, steps: Path, tmp_path: Path, kind: str
) -> None:
    judge = run(base, steps, tmp_path / "judge", kind, "process_reward")
    verdict = merge_run(judge, tmp_path / "m", tell=Quiet())
    model, info = AutoModelForTokenClassification.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert (
        not (info["missing_keys"] or info["unexpected_keys"])
        and verdict["class"] == type(model).__name__ == "Qwen2ForTokenClassification"
    )
    tokenizer, wanted, at = AutoTokenizer.from_pretrained(base), scores(judge, steps), 0
    for row in map(json.loads, steps.read_text().splitlines()):
        turns = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": "\n".join(row["completions"])},
        ]
        ids = tokenizer.apply_chat_template(turns)["input_ids"]
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([ids])).logits[0, :, 0]
        for end in ("\n".join(row["completions"][:1]), "\n".join(row["completions"])):
            texts = [tokenizer.decode(ids[: n + 1]) for n in range(len(ids))]
            place = next(n for n, text in enumerate(texts) if text.endswith(end))
            assert float(logits[place]) == pytest.approx(wanted[at], abs=1e-3)
            at += 1
    assert scores(tmp_path / "m", steps) == pytest.approx(wanted, abs=1e-3)
    again = run(tmp_path / "m", steps, tmp_path / "again", "lora", "process_reward", **STILL)
    assert scores(again, steps) == pytest.approx(wanted, abs=1e-3)


def test_a_merge_that_gives_other_scores_is_refused_and_leaves_nothing(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    judge = run(base, pairs, tmp_path / "judge", "lora")
    own = judges.load_plain

    def load(*given: Any) -> Any:
        model = own(*given)
        model.score.weight.data[0, :7] = 0
        return model

    monkeypatch.setattr(judges, "load_plain", load)
    with pytest.raises(TunewrightError) as caught:
        merge_run(judge, tmp_path / "m", tell=Quiet())
    assert [p.code for p in caught.value.problems] == ["E-EXPORT-12"] and sorted(
        p.name for p in tmp_path.iterdir()
    ) == ["judge"]


def test_a_judge_that_plain_transformers_saved_goes_on_and_one_with_several_labels_is_refused(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    """As TRL's RewardTrainer leaves it: a sequence classifier with one label, or PEFT's adapter of
    one."""
    theirs = classifier(base, num_labels=1)
    theirs.config.pad_token_id = 5
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "whole")
    said = plain_scores(theirs, base, pairs)
    for kind in ("lora", "full"):
        second = run(tmp_path / "whole", pairs, tmp_path / kind, kind, **STILL)
        assert scores(second, pairs) == pytest.approx(said, rel=1e-3, abs=1e-3)
    wrapped = get_peft_model(
        theirs,
        LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    said = plain_scores(wrapped.eval(), base, pairs)
    wrapped.save_pretrained(tmp_path / "adapter")
    second = run(
        base, pairs, tmp_path / "third", "lora", adapter=str(tmp_path / "adapter"), **STILL
    )
    assert scores(second, pairs) == pytest.approx(said, rel=1e-3, abs=1e-3)

    two = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    get_peft_model(
        two, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])
    ).save_pretrained(tmp_path / "two-adapter")
    two = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    two.save_pretrained(tmp_path / "two")
    tagger = AutoModelForTokenClassification.from_pretrained(base, num_labels=1)
    tagger.score.bias.data.fill_(0.5)
    tagger.save_pretrained(tmp_path / "biased")
    for name in ("two", "biased"):
        AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / name)
        with pytest.raises(TunewrightError) as caught:
            run(tmp_path / name, pairs, tmp_path / "no", "lora")
        assert [p.code for p in caught.value.problems] == ["E-METHOD-73"], name
    with pytest.raises(TunewrightError) as caught:
        run(base, pairs, tmp_path / "no", "lora", adapter=str(tmp_path / "two-adapter"))
    assert [p.code for p in caught.value.problems] == ["E-METHOD-73"] and not (
        tmp_path / "no"
    ).exists()


def test_what_becomes_of_the_head_is_said_and_a_whole_judge_does_not_learn_to_write(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    rows = story.rows_file(tmp_path / "rows.json")
    judge, whole = (
        run(base, pairs, tmp_path / "judge", "lora"),
        run(base, pairs, tmp_path / "whole", "full"),
    )
    writer = run(base, rows, tmp_path / "writer", "lora", "sft")
    said: dict[str, str] = {}
    for name, data, objective, adapter in (
        ("kept", pairs, "reward", judge),
        ("left", rows, "sft", judge),
        ("new", pairs, "reward", writer),
    ):
        tell = Lines()
        run(
            base,
            data,
            tmp_path / name,
            "lora",
            objective,
            tell,
            adapter=str(adapter / "adapter"),
            **STILL,
        )
        said[name] = "\n".join(tell.said)
    assert "score head of" in said["kept"] and "is kept" in said["kept"]
    assert (
        "not saved with it" in said["left"] and stored_score(tmp_path / "left" / "adapter") is None
    )
    assert "a new one starts from random" in said["new"]
    assert "ranking" not in scoring.evaluate_target(
        str(tmp_path / "left"), str(rows), generate=False, tell=Quiet()
    )
    for objective, data in (("sft", rows), ("dpo", pairs)):
        with pytest.raises(TunewrightError) as caught:
            run(whole / "model", data, tmp_path / "no", "lora", objective)
        assert [p.code for p in caught.value.problems] == ["E-METHOD-72"]
    with pytest.raises(TunewrightError) as caught:
        run(base, rows, tmp_path / "no", "lora", "distill", **{"objective.teacher": str(whole)})
    assert [p.code for p in caught.value.problems] == ["E-METHOD-72"] and not (
        tmp_path / "no"
    ).exists()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_stage_goes_on_from_the_judge_of_an_earlier_one(
    base: Path, pairs: Path, tmp_path: Path, kind: str
) -> None:
    start = "model" if kind == "full" else "adapter"
    text = f"""
model: {base}
method: {kind}
data: {{train: {pairs}, held_out: 0}}
probes: 0
engine: {{dtype: float32, threads: 1, batch_size: 6, steps: 6, learning_rate: 0.01}}
objective: reward
stages:
  - {{name: first}}
  - {{name: second, {start}: "stage:first", engine: {{steps: 2, learning_rate: 1.0e-10, seed: 9}}}}
"""
    (tmp_path / "p.yaml").write_text(text)
    pipeline.run_pipeline(
        pipeline_plan.plan(read_pipeline(tmp_path / "p.yaml"), tmp_path / "out"), tell=Quiet()
    )
    first, second = tmp_path / "out" / "01-first", tmp_path / "out" / "02-second"
    assert scores(second, pairs) == pytest.approx(scores(first, pairs), rel=1e-3, abs=1e-3)
    (tmp_path / "p.yaml").write_text(
        text.replace("steps: 2", "steps: 2").replace("name: second", "name: second, objective: dpo")
    )
    with pytest.raises(ConfigError) as caught:
        pipeline_plan.plan(read_pipeline(tmp_path / "p.yaml"), tmp_path / "other")
    assert [p.code for p in caught.value.problems] == ["E-PIPE-07"]
