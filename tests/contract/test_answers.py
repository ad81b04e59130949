"""Whatever answers has the method on: every kind, asked by every command that opens a run, against
tokens chosen one by one from the model's logits."""

from __future__ import annotations

import ast
import functools
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story, tiny
from test_methods import ROWS
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunewright
from tunewright.core.config import BaseConfig
from tunewright.core.errors import UsageError
from tunewright.core.registry import methods
from tunewright.core.telling import Quiet
from tunewright.core.types import Message
from tunewright.engine.decoding.answers import answer
from tunewright.evaluate.scoring import evaluate_target
from tunewright.models import anatomy
from tunewright.models.load import load_model
from tunewright.serve.answering import Answerer, open_target

QUESTIONS = [
    "what is the capital",
    "a small model",
    "who learns quickly, and how",
    "which model is small",
]
TOKENS = 6
MOVE = {
    "ia3": 0.5,
    "vera": 0.5,
    "norms": 0.3,
    "bitfit": 0.5,
    "embeddings": 0.1,
    "llama_pro": 0.3,
    "mixture_of_depths": 0.1,
    "new_tokens": 0.5,
}
"""Noise on what trains, where 0.05 would leave every answer as it is."""
PROMPTS = ["prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2"]
PLACE = tempfile.TemporaryDirectory()


tokenizer_of = functools.cache(AutoTokenizer.from_pretrained)


@functools.cache
def base_folder(family: str) -> Path:
    return story.model_folder(
        Path(PLACE.name) / family, family, initializer_range=0.2, tie_word_embeddings=False
    )


def prompt_of(folder: Path, question: str) -> list[int]:
    ids = tokenizer_of(folder).apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    return list(ids)


def by_hand(model: Any, folder: Path, question: str) -> str:
    """The oracle: the likeliest token, again and again, each time from a whole forward pass."""
    tokenizer = tokenizer_of(folder)
    ids = prompt_of(folder, question)
    written: list[int] = []
    model.eval()
    with torch.no_grad():
        for _ in range(TOKENS):
            token = int(
                model(input_ids=torch.tensor([[*ids, *written]]), use_cache=False)
                .logits[0, -1]
                .argmax()
            )
            if token in (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")):
                break
            written.append(token)
    return str(tokenizer.decode(written, skip_special_tokens=True)).strip()


def run_of(kind: str, place: Path) -> tuple[Path, Path, list[str]]:
    """(base folder, run folder, the answers by hand): a run as `train` leaves it, with noise on
    what trains."""
    base = base_folder("qwen2" if "llama" in ROWS[kind].refused else "llama")
    bits = ROWS[kind].bits
    model = load_model(base, dtype="float32", base=BaseConfig(bits=bits) if bits else None)
    entry = methods.get(kind)
    assert entry is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attached = entry.function(
            entry.config(**ROWS[kind].config), model, anatomy.of(model), str(base)
        )
        if attached.look:
            attached.look(
                [[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3], [6, 6, 44, 100, 2, 1, 19, 55, 21, 60, 200]]
            )
    if attached.begin:
        attached.begin(4)
    tiny.randomise(attached, 1, MOVE.get(kind, 0.05))
    model.set_attn_implementation("sdpa")
    answers = [by_hand(attached.model, base, question) for question in QUESTIONS]
    folder = place / ("model" if attached.saves_model else "adapter")
    attached.save(folder)
    tokenizer_of(base).save_pretrained(str(folder))
    quantised = f"base:\n  bits: {bits}\n" if bits else ""
    (place / "run.yaml").write_text(
        f"model: {base}\nengine:\n  dtype: float32\n  threads: 1\nmethod:\n  kind: {kind}\n{quantised}",
        encoding="utf-8",
    )
    return base, place, answers


def measured(target: Path, rows: Path, **more: Any) -> list[str]:
    """The answers that `evaluate --generate` writes: all of them are mistakes."""
    found = evaluate_target(
        str(target),
        str(rows),
        generate=True,
        max_new_tokens=TOKENS,
        dtype="float32",
        device="cpu",
        threads=1,
        tell=Quiet(),
        **more,
    )
    assert found["exact_match"]["n"] == len(QUESTIONS)
    return [one["answer"] for one in found["exact_match"]["mistakes"]]


def asked(answerer: Answerer, count: int, base: bool = False) -> list[str]:
    """The answers to the first `count` questions, asked one after the other."""
    return [
        answerer.ask([Message("user", q)], base=base, max_new_tokens=TOKENS).text
        for q in QUESTIONS[:count]
    ]


@pytest.mark.wide("lora", "prompt_tuning")
@pytest.mark.parametrize("kind", sorted(ROWS))
def test_every_command_that_answers_has_the_method_on_and_the_base_without_it(
    kind: str, tmp_path: Path
) -> None:
    base, run, wanted = run_of(kind, tmp_path / "run")
    rows = tmp_path / "rows.json"
    rows.write_text(
        json.dumps(
            [{"instruction": q, "output": f"none of that, {i}"} for i, q in enumerate(QUESTIONS)]
        )
    )
    answerer = open_target(str(run), Quiet(), dtype="float32", device="cpu")
    assert asked(answerer, 2) == wanted[:2]
    asking = answerer.answering
    prompts = [asking.renderer.prompt([Message("user", q)]) for q in QUESTIONS]
    at_once = answer(asking, prompts, max_new_tokens=TOKENS)
    assert [one.text for one in at_once] == wanted
    assert measured(run, rows) == wanted
    assert [tunewright.Run(run).chat(q, max_new_tokens=TOKENS) for q in QUESTIONS[:1]] == wanted[:1]
    plain = (
        load_model(base, dtype="float32", base=BaseConfig(bits=ROWS[kind].bits))
        if ROWS[kind].bits
        else AutoModelForCausalLM.from_pretrained(base)
    )
    without = [by_hand(plain, base, q) for q in QUESTIONS]
    assert without != wanted
    assert measured(run, rows, base=True) == without
    assert tunewright.Run(run).chat(QUESTIONS[0], base=True, max_new_tokens=TOKENS) == without[0]
    if ROWS[kind].disabled:
        assert asked(answerer, 2, base=True) == without[:2]
        assert asked(answerer, 1) == wanted[:1]  # and it is on again
    else:
        with pytest.raises(UsageError, match="E-RUN-15"):
            asked(answerer, 1, base=True)


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_learnt_prompt_answers_as_plain_peft_does(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    base, run, wanted = run_of(kind, tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), str(run / "adapter")
        ).eval()
        for question, answer in zip(QUESTIONS, wanted, strict=True):
            ids = prompt_of(base, question)
            out = model.generate(
                input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=TOKENS, do_sample=False,
                eos_token_id=[2], pad_token_id=0,
            )  # fmt: skip
            assert (
                tokenizer_of(base).decode(out[0, len(ids) :], skip_special_tokens=True).strip()
                == answer
            )


@pytest.mark.wide("prompt_tuning", "lora")
@pytest.mark.parametrize("kind", [*PROMPTS, "lora"])
def test_a_run_is_measured_with_the_answers_that_it_showed_and_goes_on_from_them(
    kind: str, tmp_path: Path
) -> None:
    base = base_folder("llama")
    rows, questions = tmp_path / "rows.json", QUESTIONS[:2]
    rows.write_text(
        json.dumps([{"instruction": q, "output": "the answer is 7"} for q in questions])
    )
    rate = {"lora": 1e-2, "p_tuning": 2e-2}.get(kind, 1e-1)
    engine = {"steps": 12, "batch_size": 2, "dtype": "float32", "threads": 1, "learning_rate": rate}
    options = {} if kind == "lora" else {"num_tokens": 6}
    first = tunewright.train(
        model=str(base), data={"train": str(rows), "held_out": 0}, method={"kind": kind, **options}, engine=engine, out=str(tmp_path / "one"),
        probes=list(questions), forgetting="off", tell=Quiet(),
    )  # fmt: skip
    shown = {row["question"]: row for row in first.before_after}
    other = tmp_path / "other.json"
    other.write_text(
        json.dumps(
            [{"instruction": q, "output": f"none of that, {i}"} for i, q in enumerate(questions)]
        )
    )
    room = {"generate": True, "max_new_tokens": 96, "tell": Quiet()}
    found = first.evaluate(str(other), **room)["exact_match"]["mistakes"]
    assert [one["answer"] for one in found] == [shown[q]["after_reload"] for q in questions]
    without = first.evaluate(str(other), base=True, **room)["exact_match"]["mistakes"]
    assert (
        [one["answer"] for one in without]
        == [shown[q]["before"] for q in questions]
        != [one["answer"] for one in found]
    )
    again = tunewright.train(
        model=str(base), data={"train": str(rows), "held_out": 0}, adapter=str(first.adapter), engine={**engine, "steps": 1, "learning_rate": 1e-9},
        out=str(tmp_path / "two"), probes=list(questions), forgetting="off", tell=Quiet(),
    )  # fmt: skip
    # It starts where the first run ended, so that is what stands under "before".
    assert [row["before"] for row in again.before_after] == [
        shown[row["question"]]["after_reload"] for row in again.before_after
    ]


def test_there_is_one_way_to_an_answer() -> None:
    """Nobody calls a model's own `generate`: whoever answers asks what `answering` made. Only the
    footprint of an export does: it says how fast the folder is for those who open it without us."""
    source = Path(tunewright.__file__).parent
    calls: dict[str, set[str]] = {"generate": set(), "AnsweringModel": set()}
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = (
                    node.func.attr
                    if isinstance(node.func, ast.Attribute)
                    else getattr(node.func, "id", "")
                )
                if name in calls:
                    calls[name].add(path.relative_to(source).as_posix())
    assert calls == {
        "generate": {"export/footprint.py"},
        "AnsweringModel": {"engine/decoding/answers.py"},
    }
