"""Subjects of every kind answer as the model they stand for, and draw the same with the same
seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story
from helpers.building import write_gguf

from tunewright.core.errors import ModelError, UsageError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.core.types import Message
from tunewright.evaluate.subjects import FunctionSubject, Reply, luck_of, open_subject
from tunewright.story import train

QUESTIONS = [[Message("user", text)] for text in story.QUESTIONS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subjects")
    story.model_folder(folder / "model", initializer_range=0.3, tie_word_embeddings=False)
    story.rows_file(folder / "rows.json")
    keys = {
        "model": str(folder / "model"), "data.train": str(folder / "rows.json"),
        "data.held_out": 0, "out": str(folder / "run"), "probes": 0, "forgetting": "off", "engine.dtype": "float32",
        "engine.threads": 1, "engine.steps": 6, "engine.learning_rate": 0.05,
    }  # fmt: skip
    train(parse_run(keys, {}), tell=Quiet())
    return folder


def texts(replies: list[Reply]) -> list[str]:
    return [one.text for one in replies]


def ask(target: Path | str, **how: Any) -> list[str]:
    base = how.pop("base", False)
    subject = open_subject(str(target), Quiet(), base=base, dtype="float32")
    return texts(subject.ask(QUESTIONS, max_new_tokens=12, **how))


def test_a_base_answers_as_transformers_lets_it(place: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    wanted = []
    for question in QUESTIONS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question[0].content}], add_generation_prompt=True,
            return_tensors="pt", return_dict=True,
        )  # fmt: skip
        said = model.generate(**ids, max_new_tokens=12, do_sample=False)
        new = said[0][ids["input_ids"].shape[1] :]
        wanted.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    assert any(wanted) and ask(place / "model") == wanted


def test_kinds_and_what_they_weigh(place: Path, tmp_path: Path) -> None:
    from helpers.building import make_model, make_tokenizer

    file = write_gguf(tmp_path / "m.gguf", make_model(), make_tokenizer())
    kinds = {}
    for target in (place / "model", place / "run", place / "run" / "adapter", file):
        subject = open_subject(str(target), Quiet())
        kinds[target.name] = subject.kind
        assert subject.bytes_on_disk and subject.memory_bytes
    assert kinds == {"model": "model", "run": "run", "adapter": "adapter", "m.gguf": "gguf"}
    assert open_subject(str(file), Quiet()).bytes_on_disk == file.stat().st_size
    base, run = (open_subject(str(place / name), Quiet()) for name in ("model", "run"))
    assert run.bytes_on_disk > base.bytes_on_disk


def test_a_run_its_adapter_and_its_base(place: Path) -> None:
    run, base = ask(place / "run"), ask(place / "model")
    assert run != base
    assert ask(place / "run" / "adapter") == run
    assert ask(place / "run", base=True) == base


def test_draws_depend_on_the_question_and_the_seed_alone(place: Path) -> None:
    subject = open_subject(str(place / "model"), Quiet(), dtype="float32")
    how: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.5}
    all_of_them = texts(subject.ask(QUESTIONS, seed=1, **how))
    assert texts(subject.ask(QUESTIONS, seed=1, **how)) == all_of_them
    assert texts(subject.ask(QUESTIONS, seed=2, **how)) != all_of_them
    some = texts(subject.ask([QUESTIONS[3], QUESTIONS[1]], seed=1, **how))
    assert some == [all_of_them[3], all_of_them[1]]
    twice = texts(subject.ask([QUESTIONS[0], QUESTIONS[0]], seed=1, **how))
    assert twice[0] == all_of_them[0] and twice[0] != twice[1]


def test_ends_and_counts(place: Path) -> None:
    subject = open_subject(str(place / "model"), Quiet(), dtype="float32")
    long, cut = subject.ask([[Message("user", "a " * 400)], QUESTIONS[0]], max_new_tokens=3)
    assert (long.end, long.text, long.written) == ("no_room", "", 0)
    assert cut.end == "length" and cut.written == 3 and len(cut.tokens or []) == 3
    assert cut.seconds > 0 and cut.prompt_tokens and cut.prompt_tokens > 3
    assert subject.ask([], max_new_tokens=3) == []


def test_a_function_is_a_subject() -> None:
    seen: list[int] = []

    def function(messages: list[Message], seed: int) -> str | Reply:
        seen.append(seed)
        return messages[-1].content.upper() if len(seen) % 2 else Reply("x", "length", 0.5)

    subject = FunctionSubject("mine", function)
    replies = subject.ask(QUESTIONS[:2], max_new_tokens=5, seed=4)
    assert replies[0].text == QUESTIONS[0][0].content.upper() and replies[0].end == "stop"
    assert replies[1] == Reply("x", "length", 0.5)
    assert seen == luck_of(QUESTIONS[:2], 4)


def test_what_cannot_be_asked_is_said(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        open_subject(str(tmp_path / "nothing"), Quiet())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text(f"model: {place / 'model'}\n", encoding="utf-8")
    with pytest.raises(UsageError) as e:
        open_subject(str(tmp_path / "run"), Quiet())
    assert [p.code for p in e.value.problems] == ["E-RUN-05"]
