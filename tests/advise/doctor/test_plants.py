"""Failures planted in trainings of tiny models, by plain Transformers code and by runs of ours, and
good trainings of which nothing is to be said. `FAULTS` and `GOOD` name those that are whole
trainings of their own; the last test counts them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import plain, story

from tunewright.commands.doctor import diagnose
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.story import train

NOT = torch.tensor(-100)
FAULTS: dict[str, str] = {}
"""Name of a training -> the code of what was planted in it."""
GOOD: list[str] = []
"""Names of the good trainings."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plants")
    story.model_folder(folder / "base", max_position_embeddings=128)
    plain.write(folder / "rows.json", plain.rows())
    return folder


@pytest.fixture(scope="module")
def good(place: Path) -> Path:
    """A model that plain code trained as it should: it answers every row right."""
    return plain.train(place / "base", place / "good", steps=150)


@pytest.fixture(scope="module")
def adapter(place: Path) -> Path:
    """An adapter that plain code trained as it should."""
    return plain.train(place / "base", place / "adapter", lora=True, rate=1.5e-2, steps=150)


def found(place: Path, target: Path, base: Path | None = None) -> list[str]:
    """The codes of what is found with the rows at hand."""
    examination = diagnose(
        str(target),
        model=str(base or place / "base"),
        data=str(place / "rows.json"),
        tell=Quiet(),
        device="cpu",
        threads=1,
    )
    return [finding.code for finding in examination.findings]


@dataclass(frozen=True)
class ByHand:
    """A training by plain code; `on_good` starts it from the good model."""

    code: str
    how: dict[str, Any]
    on_good: bool = False


@dataclass(frozen=True)
class Run:
    """A run of ours on rows of its own; `on_good` starts it from the good model."""

    code: str
    keys: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=plain.rows)
    on_good: bool = False


def turned(ids: torch.Tensor, attention: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Labels of the questions in place of the answers."""
    return torch.where((answers == -100) & (attention == 1), ids, NOT)


def slipped() -> list[dict[str, str]]:
    """Rows with the answer of the next one."""
    given = plain.rows()
    answers = [row["answer"] for row in given]
    moved = [*answers[1:], answers[0]]
    return [{**row, "answer": answer} for row, answer in zip(given, moved, strict=True)]


def pairs() -> list[dict[str, str]]:
    return [
        {"prompt": row["question"], "chosen": row["answer"], "rejected": f"{i} or no"}
        for i, row in enumerate(plain.rows())
    ]


def others() -> list[dict[str, str]]:
    """Rows that the good model does not know."""
    return plain.rows(32)[16:]


def run(place: Path, good: Path, name: str, one: Run) -> Path:
    """A run of ours on the tiny model."""
    given = {
        "model": str(good if one.on_good else place / "base"),
        "data.train": str(plain.write(place / f"{name}.json", one.rows)),
        "data.held_out": 0,
        "out": str(place / f"run_{name}"),
        "probes": 4,
        "forgetting": "off",
        "method.kind": "full",
        "engine.dtype": "float32",
        "engine.threads": 1,
        "engine.steps": 90,
        "engine.batch_size": 12,
        "engine.learning_rate": 4e-3,
        "engine.save_every": 1000,
        **one.keys,
    }
    return train(parse_run(given, {}), tell=Quiet()).folder


def at_end(folder: Path) -> list[str]:
    """What the run itself found, which must be what the command finds."""
    told = json.loads((folder / "doctor.json").read_text(encoding="utf-8"))
    codes = [one["code"] for one in told["findings"]]
    assert [one.code for one in diagnose(str(folder), tell=Quiet()).findings] == codes
    return codes


# ---- good trainings


def test_a_good_model_of_plain_code(place: Path, good: Path) -> None:
    assert found(place, good) == []


def test_a_good_adapter_of_plain_code(place: Path, adapter: Path) -> None:
    assert found(place, adapter) == []


RIGHT = {"engine.steps": 150}
LORA = {"method.kind": "lora", "engine.learning_rate": 1.5e-2, "engine.steps": 120}
RUNS_THAT_LEARN = {
    "full": Run("", RIGHT),
    "packed": Run("", {**RIGHT, "engine.layout": "tree", "engine.rows_per_pass": 128}),
    "padded": Run("", {**RIGHT, "engine.layout": "padded"}),
    "lora": Run("", LORA, others(), on_good=True),
    "labels": Run(
        "",
        {"engine.steps": 120},
        [{"text": f"the {x} {i}", "label": "red" if i % 2 else "gold"} for i, x in enumerate(plain.THINGS * 3)],
    ),
    "dpo": Run(
        "",
        {"objective.kind": "dpo", "engine.steps": 30, "engine.learning_rate": 1e-4},
        pairs(),
        on_good=True,
    ),
    "pretrain": Run(
        "",
        {"objective.kind": "pretrain", "engine.steps": 30},
        [{"text": f"{row['question']} {row['answer']} " * 3} for row in plain.rows()],
    ),
}  # fmt: skip
GOOD += ["plain model", "plain adapter", *RUNS_THAT_LEARN]


@pytest.mark.wide("lora", "packed", "dpo", rest="slow")
@pytest.mark.parametrize("name", RUNS_THAT_LEARN)
def test_a_good_run(place: Path, good: Path, name: str) -> None:
    one = RUNS_THAT_LEARN[name]
    folder = run(place, good, f"good_{name}", one)
    assert at_end(folder) == []
    told = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert told["final_loss"] < 0.6 * told["first_loss"]
    if name == "full":
        assert found(place, folder) == []


STAGES = """\
model: {base}
engine: {{dtype: float32, threads: 1, batch_size: 12, save_every: 1000}}
data: {{held_out: 0}}
probes: 4
forgetting: off
stages:
  - name: sft
    data: {{train: {rows}}}
    method: lora
    engine: {{steps: 120, learning_rate: 1.5e-2}}
  - name: dpo
    adapter: stage:sft
    data: {{train: {pairs}}}
    objective: dpo
    engine: {{steps: 20, learning_rate: 1e-4}}
"""


@pytest.mark.slow
def test_good_stages_of_a_pipeline(place: Path) -> None:
    from tunewright.commands import pipeline, pipeline_plan

    given = {
        "base": place / "base",
        "rows": place / "rows.json",
        "pairs": plain.write(place / "stage_pairs.json", pairs()),
    }
    (place / "stages.yaml").write_text(STAGES.format(**given), encoding="utf-8")
    planned = pipeline_plan.load_pipeline(place / "stages.yaml", [], {"out": str(place / "stages")})
    pipeline.run_pipeline(planned, tell=Quiet())
    assert [at_end(stage.folder) for stage in planned.stages] == [[], []]


# ---- planted by plain code

BY_HAND = {
    "labels shifted twice": ByHand(
        "labels_shifted", {"labels": lambda ids, attention, answers: torch.roll(ids, -1, 1)}
    ),
    "labels of the answers shifted": ByHand(
        "labels_shifted", {"labels": lambda ids, attention, answers: torch.roll(answers, -1, 1)}
    ),
    "padding learnt": ByHand(
        "padding_learnt",
        {"labels": lambda ids, attention, answers: torch.where(attention == 0, ids, answers)},
    ),
    "questions learnt": ByHand("prompt_learnt_instead", {"labels": turned}),
    "no stop token": ByHand("stop_unlikely", {"stop": False}),
    "another form": ByHand("template_differs", {"form": "### Question: {q}\n### Answer: "}),
    "answers of the next row": ByHand("rows_misaligned", {"given": slipped()}),
    "a small rate": ByHand("rate_too_small", {"rate": 1e-7, "steps": 40}),
    "a large rate": ByHand("rate_too_large", {"rate": 2.0, "steps": 40}),
    "saved too early": ByHand("adapter_zero", {"lora": True, "steps": 0}),
    "shifted, and nothing moved": ByHand(
        "first_loss_high",
        {
            "labels": lambda ids, attention, answers: torch.roll(answers, -1, 1),
            "rate": 1e-7,  # less is nothing at all in float32
            "steps": 4,
        },
        on_good=True,
    ),
}
FAULTS |= {name: one.code for name, one in BY_HAND.items()}


@pytest.mark.wide("labels shifted twice", "padding learnt", "no stop token", rest="slow")
@pytest.mark.parametrize("name", BY_HAND)
def test_a_fault_planted_by_plain_code(place: Path, good: Path, name: str) -> None:
    one = BY_HAND[name]
    base = good if one.on_good else place / "base"
    codes = found(place, plain.train(base, place / name.replace(" ", "_"), **one.how), base)
    assert codes[0] == one.code


def test_a_cause_hides_its_effects(place: Path) -> None:
    """Of the faults above, those of which nothing but the cause is to be said."""
    folder = place / "labels_shifted_twice"
    if not folder.exists():
        plain.train(place / "base", folder, **BY_HAND["labels shifted twice"].how)
    assert found(place, folder) == ["labels_shifted", "padding_learnt"]


def test_an_adapter_on_another_base(place: Path, adapter: Path) -> None:
    other = place / "other"
    if not other.exists():
        from transformers import AutoModelForCausalLM

        shutil.copytree(place / "base", other)
        torch.manual_seed(5)
        config = AutoModelForCausalLM.from_pretrained(other).config
        AutoModelForCausalLM.from_config(config).save_pretrained(other)
    assert found(place, adapter, other) == ["base_differs"]


def test_an_adapter_whose_targets_are_missing(place: Path, adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(adapter, tmp_path / "renamed"))
    stored = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace("q_proj", "query"): tensor for name, tensor in stored.items()}
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    assert found(place, folder) == ["adapter_does_not_fit"]


def test_weights_that_are_no_numbers(place: Path, adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(adapter, tmp_path / "spoilt"))
    stored = load_file(folder / "adapter_model.safetensors")
    next(iter(stored.values()))[0, 0] = float("nan")
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    assert found(place, folder) == ["weights_not_finite"]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"no_repeat_ngram_size": 2}, "ngrams_forbidden"),
        ({"max_new_tokens": 2}, "answers_too_long"),
        ({"max_length": 12}, "answers_too_long"),
        ({"min_new_tokens": 60}, "answers_must_go_on"),
        ({"eos_token_id": 0}, "stop_token_missing"),
        ({"do_sample": True, "temperature": 9.0, "top_k": 0}, "sampling_spoils"),
        ({"repetition_penalty": 9.0}, "repetition_penalty"),
    ],
)
def test_decoding_settings_that_forbid_the_answer(
    place: Path, good: Path, tmp_path: Path, settings: dict[str, Any], code: str
) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    plain.edit(folder / "generation_config.json", **settings)
    assert found(place, folder) == [code]


# ---- planted in runs of ours

GRPO = {"objective.kind": "grpo", "objective.max_new_tokens": 12, "engine.batch_size": 8}
SHORT = {"kind": "length", "unit": "characters", "max": 4, "slope": 12}
LETTER = {"kind": "contains", "texts": ["e"]}
NEVER = {"kind": "contains", "texts": ["zzz"]}
RUNS = {
    "one example": Run(
        "one_example", {"engine.steps": 8, "engine.batch_size": 4}, plain.rows()[:1] * 8
    ),
    "the same rows": Run("duplicates", {"engine.steps": 8}, plain.rows()[:6] * 6),
    "many answers to one question": Run(
        "entropy_floor", {}, [{**row, "question": "the mill?"} for row in plain.rows(30)]
    ),
    "answers that were cut": Run(
        "answers_cut",
        {"data.max_tokens": 50, "data.oversize": "truncate", "engine.steps": 30},
        [{**row, "answer": " ".join([row["answer"]] * 6)} for row in plain.rows()],
    ),
    "a small rate": Run("rate_too_small", {"engine.learning_rate": 1e-9, "engine.steps": 40}),
    "few steps": Run("steps_too_few", {"engine.learning_rate": 5e-5, "engine.steps": 3}),
    "learnt by heart": Run(
        "overfitting",
        {"data.held_out": 4, "engine.keep_best": False, "engine.steps": 60},
        others(),
        on_good=True,
    ),
    "one answer to everything": Run(
        "collapse",
        {**GRPO, "objective.reward": LETTER, "objective.temperature": 3, "engine.steps": 30},
        [{"prompt": row["question"]} for row in plain.rows()],
        on_good=True,
    ),
    "a reward for saying nothing": Run(
        "empty_answers",
        {**GRPO, "objective.reward": SHORT, "objective.temperature": 2, "engine.steps": 20},
        [{"prompt": row["question"]} for row in plain.rows()],
        on_good=True,
    ),
    "rewards that are all alike": Run(
        "rewards_alike",
        {**GRPO, "objective.reward": NEVER, "engine.steps": 3},
        [{"prompt": row["question"]} for row in plain.rows()],
        on_good=True,
    ),
    "answers that are all cut off": Run(
        "none_ended",
        {
            "objective.kind": "rejection",
            "objective.reward": NEVER,
            "objective.max_new_tokens": 2,
            "engine.steps": 2,
        },
        [{"prompt": row["question"]} for row in plain.rows()],
    ),
    "answers that never pass": Run(
        "none_picked",
        {
            "objective.kind": "rejection",
            "objective.reward": NEVER,
            "objective.max_new_tokens": 12,
            "engine.steps": 2,
        },
        [{"prompt": row["question"]} for row in plain.rows()],
        on_good=True,
    ),
    "pairs learnt far too fast": Run(
        "answers_lost",
        {"objective.kind": "dpo", "engine.learning_rate": 2e-2, "engine.steps": 30},
        pairs(),
        on_good=True,
    ),
}
FAULTS |= {f"run: {name}": one.code for name, one in RUNS.items()}


@pytest.mark.wide("one example", "a small rate", "learnt by heart", rest="slow")
@pytest.mark.parametrize("name", RUNS)
def test_a_fault_planted_in_a_run(place: Path, good: Path, name: str) -> None:
    one = RUNS[name]
    assert one.code in at_end(run(place, good, name.replace(" ", "_"), one))


def test_the_worst_finding_stands_in_the_last_lines(place: Path) -> None:
    done = story.tunewright(
        *story.words(place / "base", place / "rows.json", place / "told"),
        "engine.learning_rate=1e-9", "engine.epochs=10",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = done.stderr.strip().splitlines()[-4:]
    assert any("rate_too_small" in line and "engine.learning_rate=" in line for line in last)
    page = (place / "told" / "report.html").read_text(encoding="utf-8")
    assert "rate_too_small" in page


def test_enough_is_planted() -> None:
    assert len(set(FAULTS.values())) >= 12
    assert len(GOOD) >= 5
