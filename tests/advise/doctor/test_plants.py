"""Failures planted in trainings of tiny models, by plain Transformers code and by runs of ours, and
good trainings of which nothing is to be said."""

from __future__ import annotations

import json
import shutil
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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plants")
    story.model_folder(folder / "base", max_position_embeddings=128)
    plain.write(folder / "rows.json", plain.rows())
    return folder


@pytest.fixture(scope="module")
def good(place: Path) -> Path:
    """A model that plain code trained as it should."""
    return plain.train(place / "base", place / "good")


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


def planted(place: Path, name: str, **how: Any) -> list[str]:
    """Train wrongly with plain code, and examine."""
    return found(place, plain.train(place / "base", place / name, **how))


# ---- good trainings


def test_a_good_model_of_plain_code(place: Path, good: Path) -> None:
    assert found(place, good) == []


def test_a_good_adapter_of_plain_code(place: Path, adapter: Path) -> None:
    assert found(place, adapter) == []


def run(place: Path, name: str, **keys: Any) -> Path:
    """A run of ours on the tiny model."""
    given = {
        "model": str(place / "base"),
        "data.train": str(place / "rows.json"),
        "data.held_out": 0,
        "out": str(place / name),
        "probes": 4,
        "forgetting": "off",
        "method.kind": "full",
        "engine.dtype": "float32",
        "engine.threads": 1,
        "engine.steps": 90,
        "engine.batch_size": 12,
        "engine.learning_rate": 4e-3,
        "engine.save_every": 1000,
        **keys,
    }
    return train(parse_run(given, {}), tell=Quiet()).folder


def at_end(folder: Path) -> list[str]:
    """What the run itself found, which must be what the command finds."""
    told = json.loads((folder / "doctor.json").read_text(encoding="utf-8"))
    codes = [one["code"] for one in told["findings"]]
    assert [one.code for one in diagnose(str(folder), tell=Quiet()).findings] == codes
    return codes


def test_a_good_run(place: Path) -> None:
    folder = run(place, "sft")
    assert at_end(folder) == []
    assert found(place, folder) == []


def test_a_good_run_of_pairs(place: Path) -> None:
    pairs = [
        {"prompt": row["question"], "chosen": row["answer"], "rejected": f"{i} or no"}
        for i, row in enumerate(plain.rows())
    ]
    plain.write(place / "pairs.json", pairs)
    how = {"data.train": str(place / "pairs.json"), "objective.kind": "dpo"}
    assert at_end(run(place, "dpo", **how, **{"engine.steps": 30})) == []


def test_a_good_run_on_running_text(place: Path) -> None:
    texts = [{"text": f"{row['question']} {row['answer']} " * 3} for row in plain.rows()]
    plain.write(place / "texts.json", texts)
    how = {"data.train": str(place / "texts.json"), "objective.kind": "pretrain"}
    assert at_end(run(place, "pretrain", **how, **{"engine.steps": 30})) == []


# ---- planted by plain code


def test_labels_shifted_twice_and_padding_learnt(place: Path) -> None:
    how = {"labels": lambda ids, attention, answers: torch.roll(ids, -1, 1)}
    assert planted(place, "shifted", **how) == ["labels_shifted", "padding_learnt"]


def test_shifted_labels_of_the_answers_alone(place: Path) -> None:
    how = {"labels": lambda ids, attention, answers: torch.roll(answers, -1, 1)}
    assert planted(place, "shifted_answers", **how)[0] == "labels_shifted"


def test_padding_learnt(place: Path) -> None:
    how = {"labels": lambda ids, attention, answers: torch.where(attention == 0, ids, answers)}
    assert planted(place, "padding", **how) == ["padding_learnt"]


def test_questions_learnt_in_place_of_answers(place: Path) -> None:
    def turned(ids: torch.Tensor, attention: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        return torch.where((answers == -100) & (attention == 1), ids, NOT)

    assert planted(place, "questions", labels=turned) == ["prompt_learnt_instead"]


def test_a_stop_token_that_nobody_wrote(place: Path) -> None:
    assert planted(place, "endless", stop=False) == ["stop_unlikely"]


def test_another_form_than_that_of_the_chat(place: Path) -> None:
    assert planted(place, "form", form="### Question: {q}\n### Answer: ") == ["template_differs"]


def test_answers_of_the_next_row(place: Path) -> None:
    given = plain.rows()
    answers = [row["answer"] for row in given]
    slipped = [
        {**row, "answer": answer}
        for row, answer in zip(given, [*answers[1:], answers[0]], strict=True)
    ]
    assert planted(place, "slipped", given=slipped) == ["rows_misaligned"]


def test_a_rate_that_is_too_small(place: Path) -> None:
    assert planted(place, "slow", rate=1e-7, steps=40) == ["rate_too_small"]


def test_a_rate_that_is_too_large(place: Path) -> None:
    assert "rate_too_large" in planted(place, "wild", rate=2.0, steps=40)


def test_an_adapter_that_was_saved_too_early(place: Path) -> None:
    assert planted(place, "early", lora=True, steps=0) == ["adapter_zero"]


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


def test_one_example(place: Path) -> None:
    plain.write(place / "one.json", plain.rows()[:1] * 8)
    how = {"data.train": str(place / "one.json"), "engine.steps": 8, "engine.batch_size": 4}
    assert at_end(run(place, "one", **how)) == ["one_example"]


def test_answers_that_the_questions_do_not_decide(place: Path) -> None:
    rows = [{"question": "the mill?", "answer": row["answer"]} for row in plain.rows(30)]
    plain.write(place / "many.json", rows)
    assert "entropy_floor" in at_end(
        run(place, "floor", **{"data.train": str(place / "many.json")})
    )


def test_answers_that_were_cut(place: Path) -> None:
    long = [{**row, "answer": " ".join([row["answer"]] * 6)} for row in plain.rows()]
    plain.write(place / "long.json", long)
    how = {
        "data.max_tokens": 50,
        "data.oversize": "truncate",
        "data.train": str(place / "long.json"),
    }
    assert "answers_cut" in at_end(run(place, "cut", **how))


def test_a_run_with_a_rate_that_is_too_small(place: Path) -> None:
    how = {"engine.learning_rate": 1e-9, "engine.steps": 40}
    assert at_end(run(place, "idle", **how)) == ["rate_too_small"]


def test_a_run_with_too_few_steps(place: Path) -> None:
    how = {"engine.learning_rate": 5e-5, "engine.steps": 3}
    assert at_end(run(place, "short", **how)) == ["steps_too_few"]


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
