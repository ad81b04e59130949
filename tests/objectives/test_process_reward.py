"""Process rewards: the steps of a row, the loss against Transformers' own classifier read step by
step, a whole run, and the run as a judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story, tiny

from tunewright.core.errors import CompatError, TunewrightError
from tunewright.core.registry import objectives
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.core.types import Branch, Origin, Sample, Stepwise
from tunewright.data.formats.common import Columns
from tunewright.data.formats.stepwise import joined, stepwise
from tunewright.data.labels import step_ends
from tunewright.engine import opening
from tunewright.engine.oracles.named import reward_model_of
from tunewright.objectives.process_reward import whole_answer
from tunewright.story import resume_run, train

AT = Origin("f", 1, 1)


def samples() -> list[Sample]:
    def one(
        index: int,
        prompt: list[int],
        answer: list[int],
        steps: list[list[int]],
        weight: float = 1.0,
    ) -> Sample:
        learnt = list(range(len(prompt), len(prompt) + len(answer)))
        branch = Branch(prompt + answer, learnt, [weight] * len(learnt), role="good")
        return Sample(
            [branch], index, facts={"steps": [[len(prompt) + end, right] for end, right in steps]}
        )

    return [
        one(0, [5, 9, 17, 33], [4, 8, 90, 7, 2], [[2, 1], [4, 0]]),
        one(1, [5, 9, 17, 40], [6, 11, 12, 13, 14, 2], [[1, 1], [3, 1], [5, 1]], 2.0),
        one(2, [6, 6], [19, 2], [[1, 0]]),
    ]  # fmt: skip


def prepared(family: str, layout: str, rows: int) -> tuple[Any, Any]:
    model, _, stepper = tiny.make_scorer("process_reward", family, layout, rows)
    return model, stepper


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("rows", [4096, 14, 1])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_value_and_gradient_equal_a_reading_step_by_step(
    family: str, layout: str, rows: int
) -> None:
    """The slow reference runs Transformers' body over every beginning by itself, and the loss is
    written out."""
    model, stepper = prepared(family, layout, rows)
    report = stepper.gradients(samples())
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.set_attn_implementation("sdpa")
    total, weights, said = torch.zeros(()), 0.0, []
    for sample in samples():
        branch = sample.branches[0]
        for end, right in sample.facts["steps"]:
            hidden = getattr(model, model.base_model_prefix)(
                input_ids=torch.tensor([branch.tokens[:end]]), use_cache=False
            ).last_hidden_state
            chance = torch.sigmoid(model.score(hidden[0, -1])).squeeze()
            total = total - branch.weights[0] * torch.log(chance if right else 1 - chance)
            weights += branch.weights[0]
            said.append((bool(chance > 0.5), bool(right)))
    loss = total / weights
    loss.backward()
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    head = [n for n in wanted if n.startswith("lm_head")]
    assert not head and set(found) == set(wanted)
    for name, grad in wanted.items():
        assert float((found[name] - grad).norm()) <= 1e-5 * float(grad.norm()) + 1e-8, name
    assert report.figures["accuracy"] == pytest.approx(sum(a == b for a, b in said) / len(said))
    assert report.figures["steps_right"] == pytest.approx(4 / 6)


def test_the_steps_of_an_answer_cost_what_the_answer_costs() -> None:
    rows = prepared("llama", "tree", 4096)[1].gradients(samples()).physical_rows
    assert (
        rows
        == len({(5,), (5, 9), (5, 9, 17), (5, 9, 17, 33), (5, 9, 17, 40), (6,), (6, 6)}) + 4 + 5 + 1
    )


def test_it_is_what_trl_computes_with_two_outputs_for_right_and_wrong() -> None:
    """Cross-entropy over two logits depends on their difference alone, which is our one number."""
    scores = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    labels = torch.tensor([1, 0, 0])
    two = torch.stack([torch.zeros(3, dtype=torch.float64), scores], 1)
    ours = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels.double())
    assert torch.allclose(torch.nn.functional.cross_entropy(two, labels), ours, atol=1e-12)


def test_first_error_counts_answers_whose_first_wrong_step_was_found() -> None:
    entry = objectives.get("process_reward")
    assert entry is not None
    objective = entry.function(entry.config())
    made = samples()
    assert objective.prepare is not None
    objective.prepare(made)
    objective.prepare(made)  # again does nothing

    class Output:
        score = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0, 1.0])
        samples = made
        figures: dict[str, Any] = {}

    terms = objective.terms(Output)
    assert (
        Output.figures["first_error"] == (2.0, 3)
        and Output.figures["accuracy"] == (5.0, 6)
        and Output.figures["said_right"] == (5.0, 6)
    )
    assert objective.plan(made) == {"process_reward": 2 + 6 + 1} and set(terms) == {
        "process_reward"
    }


@pytest.mark.parametrize(
    ("how", "wanted"), [("min", 0.2), ("product", 0.08), ("mean", 0.5), ("last", 0.8)]
)
def test_the_chances_of_steps_become_one_number(how: str, wanted: float) -> None:
    assert whole_answer([0.5, 0.2, 0.8], how) == pytest.approx(wanted)


def test_where_steps_end_among_tokens() -> None:
    def decode(ids: Any) -> str:
        return "".join(chr(i) for i in ids)

    def ends(text: str, steps: list[str]) -> list[int] | None:
        return step_ends([ord(c) for c in text], steps, decode)

    assert ends("ab c\nde", ["ab c", "de"]) == [4, 7] and ends("  ab\n\n c ", ["ab ", "c"]) == [
        4,
        8,
    ]
    assert (
        ends("abab", ["ab", "ab"]) == [2, 4]
        and ends("ab", ["ab", "c"]) is None
        and ends("xb", ["ab"]) is None
    )


def test_rows_and_their_faults() -> None:
    raw = {
        "prompt": "3 * 4 + 5?",
        "completions": ["3 * 4 = 12", "12 + 5 = 18"],
        "labels": [True, False],
    }
    row = stepwise(raw, AT, Columns())
    assert (
        isinstance(row, Stepwise)
        and row.messages[-1].content == "3 * 4 = 12\n12 + 5 = 18"
        and not row.good
    )
    assert row.steps == (("3 * 4 = 12", True), ("12 + 5 = 18", False))
    assert joined(["a\n", "b", " c", "d"]) == "a\nb c\nd"
    bad = [
        {"labels": [True]},
        {"labels": [True, None]},
        {"labels": "yes"},
        {"completions": []},
        {"completions": ["a", " "]},
        {"completions": "a"},
    ]
    for change in bad:
        assert not isinstance(stepwise(raw | change, AT, Columns()), Stepwise), change
    assert isinstance(stepwise(raw | {"labels": [1, 0]}, AT, Columns()), Stepwise)


def file_of_rows(place: Path, count: int = 16) -> Path:
    made = []
    for i in range(count):
        right = [(i + k) % 3 != 0 for k in range(3)]
        steps = [f"{i} + {k} = {i + k if good else i + k + 1}" for k, good in enumerate(right)]
        made.append(
            {"prompt": f"{story.QUESTIONS[i % 6]} {i}?", "completions": steps, "labels": right}
        )
    place.mkdir(parents=True, exist_ok=True)
    file = place / "steps.jsonl"
    file.write_text("\n".join(map(json.dumps, made)))
    return file


def given(model: Path, place: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": str(model), "data.train": str(file_of_rows(place)), "data.held_out": 4, "out": str(place / "run"), "probes": 2, "forgetting": "off",
        "engine.dtype": "float32", "engine.threads": 1, "engine.epochs": 3, "engine.batch_size": 4, "engine.save_every": 1,
        "engine.keep_best": False, "objective.kind": "process_reward", **more,
    }  # fmt: skip


def run(model: Path, place: Path, **more: Any) -> Path:
    settings = given(model, place, **more)
    train(parse_run(settings, dict.fromkeys(settings, "test")), tell=Quiet())
    return place / "run"


def test_a_run_learns_is_taken_up_again_bit_for_bit_and_judges_answers(tmp_path: Path) -> None:
    model = story.model_folder(tmp_path / "model")
    whole = run(model, tmp_path / "whole", **{"objective.whole": "product"})
    steps = [
        e
        for e in map(json.loads, (whole / "events.jsonl").read_text().splitlines())
        if e["event"] == "step"
    ]
    assert steps[-1]["loss"] < steps[0]["loss"] and {
        "accuracy",
        "first_error",
        "steps_right",
        "said_right",
    } <= set(steps[0]["figures"])
    probes = [json.loads(line) for line in (whole / "before_after.jsonl").read_text().splitlines()]
    assert (
        len(probes) == 2
        and all("✓" in p["expected"] or "✗" in p["expected"] for p in probes)
        and all(p["before"] and p["after_reload"] for p in probes)
    )
    half = tmp_path / "half"
    shutil.copytree(whole, half)
    (half / "summary.json").unlink()
    shutil.rmtree(half / "adapter")
    shutil.rmtree(sorted((half / "checkpoints").glob("step-*"))[-1])
    resume_run(half, tell=Quiet())
    assert story.digest(half / "adapter" / "adapter_model.safetensors") == story.digest(
        whole / "adapter" / "adapter_model.safetensors"
    )

    judge = open_judge(whole)
    renderer = opening.open_target(str(model), Quiet(), dtype="float32").renderer
    asked = renderer.prompt([story_message("what is it 3?")])
    answer = renderer.text("3 + 0 = 4\n\n3 + 1 = 4\n")
    drawn = Sample(
        [
            Branch(
                asked + answer,
                list(range(len(asked), len(asked) + len(answer))),
                [1.0] * len(answer),
                role="drawn",
            )
        ],
        0,
    )
    assert judge.steps is not None and judge.steps.whole == "product"
    cut = judge.steps.cut(drawn)
    texts = [renderer.decode(b.tokens[len(asked) :]).strip() for b in cut.branches]
    assert texts == ["3 + 0 = 4", "3 + 0 = 4\n\n3 + 1 = 4"]
    alone = [
        float(torch.sigmoid(judge.policy([Sample([b], 0)]).score.double())) for b in cut.branches
    ]
    assert judge.score([drawn, drawn]) == pytest.approx([alone[0] * alone[1]] * 2, rel=1e-5)
    silent = Sample([Branch([*asked, renderer.stop_ids[0] if isinstance(renderer.stop_ids, (list, tuple)) else next(iter(renderer.stop_ids))],
                            [len(asked)], [1.0], role="drawn")], 0)  # fmt: skip
    assert 0 < judge.score([silent])[0] < 1


def story_message(text: str) -> Any:
    from tunewright.core.types import Message

    return Message("user", text)


def open_judge(folder: Path) -> Any:
    from tunewright.core.config import EngineConfig
    from tunewright.engine import placement

    found = opening.find(str(folder), Quiet())
    world = placement.start(EngineConfig(device="cpu", threads=1, dtype="float32"))
    return reward_model_of(folder, None, found.source.folder, "tree", world, Quiet())


def test_the_judge_is_measured_beside_one_that_always_says_yes(tmp_path: Path) -> None:
    from tunewright.core.errors import UsageError
    from tunewright.evaluate import scoring

    model = story.model_folder(tmp_path / "model")
    judge = run(model, tmp_path / "judge", **{"engine.epochs": 1})
    file = file_of_rows(tmp_path / "more", 9)
    found = scoring.evaluate_target(str(judge), str(file), details=True, tell=Quiet())
    steps = found["steps"]
    assert (steps["steps"], steps["answers"], len(steps["rows"])) == (27, 9, 9) and steps[
        "always_yes"
    ] == pytest.approx(2 / 3)
    right = sum(
        (c > 0.5) == r
        for row in steps["rows"]
        for c, r in zip(row["chances"], row["right"], strict=True)
    )
    assert (
        steps["accuracy"] == pytest.approx(right / 27)
        and steps["interval_95"][0] <= steps["accuracy"] <= steps["interval_95"][1]
    )
    assert "27" in "\n".join(scoring.lines(found))
    assert "steps" not in scoring.evaluate_target(
        str(judge), str(story.rows_file(tmp_path / "plain.json")), base=True, tell=Quiet()
    )
    with pytest.raises(UsageError) as caught:
        scoring.evaluate_target(
            str(judge), str(story.rows_file(tmp_path / "rows.json")), tell=Quiet()
        )
    assert caught.value.problems[0].code == "E-EVAL-07"


def test_a_policy_learns_from_it(tmp_path: Path) -> None:
    model = story.model_folder(tmp_path / "model")
    judge = run(model, tmp_path / "judge")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{q}?"}) + "\n" for q in story.QUESTIONS))
    settings = {
        "model": str(model), "data.train": str(prompts), "data.held_out": 0, "out": str(tmp_path / "policy"), "probes": 1, "forgetting": "off", "engine.dtype": "float32",
        "engine.threads": 1, "engine.steps": 2, "engine.batch_size": 2, "objective.kind": "grpo", "objective.reward": str(judge),
        "objective.generations": 2, "objective.max_new_tokens": 5,
    }  # fmt: skip
    train(parse_run(settings, dict.fromkeys(settings, "test")), tell=Quiet())
    steps = [
        e
        for e in map(json.loads, (tmp_path / "policy" / "events.jsonl").read_text().splitlines())
        if e["event"] == "step"
    ]
    assert len(steps) == 2 and all(0 < e["figures"]["reward"] < 1 for e in steps)


def test_other_rows_are_refused_with_what_would_fit(tmp_path: Path) -> None:
    model = story.model_folder(tmp_path / "model")
    settings = given(
        model, tmp_path, **{"data.train": str(story.rows_file(tmp_path / "rows.json"))}
    )
    with pytest.raises(CompatError) as caught:
        train(parse_run(settings, dict.fromkeys(settings, "test")), tell=Quiet())
    assert caught.value.problems[0].code == "E-COMPAT-05"
    settings = given(model, tmp_path / "other") | {"objective.kind": "dpo"}
    with pytest.raises(TunewrightError) as second:
        train(parse_run(settings, dict.fromkeys(settings, "test")), tell=Quiet())
    assert (
        second.value.problems[0].code == "E-COMPAT-05"
        and "process_reward" in second.value.problems[0].remedy()
    )
