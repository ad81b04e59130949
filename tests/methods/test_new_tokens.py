"""New tokens: the tokenizer takes them as one piece, only their rows train, and PEFT opens what was
saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story, tiny
from pydantic import ValidationError

from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.models import anatomy, vocabulary
from tunewright.models.load import load_model
from tunewright.text.tokenizer import load_tokenizer

WORDS = ["<plan>", "</plan>"]


def attach(model: Any, **settings: Any) -> Any:
    entry = methods.get("new_tokens")
    assert entry is not None
    return entry.function(
        entry.config(**settings), model, anatomy.of(model), str(model.name_or_path)
    )


@pytest.mark.parametrize("tied", [True, False])
def test_room_is_made_and_old_rows_stay(tied: bool) -> None:
    model = tiny.make_model("llama", tie_word_embeddings=tied)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert vocabulary.make_room(model, 215) == 4
    assert vocabulary.make_room(model, 215) == vocabulary.make_room(model, 3) == 0
    assert model.config.vocab_size == 215
    for name, p in model.named_parameters():
        assert torch.equal(p[: len(before[name])], before[name]) if p.ndim else True
        assert not p.requires_grad
    table = model.get_input_embeddings().weight
    assert torch.allclose(table[211:], table[:211].mean(0), atol=1e-6)
    assert (model.get_output_embeddings().weight is table) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_row_starts_at_its_pieces_and_only_its_rows_train(tmp_path: Path, tied: bool) -> None:
    folder = story.model_folder(
        tmp_path / "model",
        tie_word_embeddings=tied,
        vocab_size=len(load_tokenizer(story.model_folder(tmp_path / "other"))),
    )
    old = load_tokenizer(folder)
    pieces = old("<plan>", add_special_tokens=False)["input_ids"]
    model = load_model(folder, dtype="float32")
    rows = model.get_input_embeddings().weight.detach().clone()
    attached = attach(model, tokens=WORDS)
    trained = {n: p for n, p in attached.model.named_parameters() if p.requires_grad}
    assert sorted(trained) == sorted(attached.parameters) and len(trained) == (1 if tied else 2)
    assert all(p.shape == (2, 64) for p in trained.values())
    first = next(p for n, p in trained.items() if "embed_tokens" in n)
    assert len(pieces) > 1 and torch.allclose(first[0], rows[pieces].mean(0), atol=1e-6)
    mean = attach(load_model(folder, dtype="float32"), tokens=WORDS, start="mean")
    assert torch.allclose(
        next(p for n, p in mean.model.named_parameters() if "delta" in n)[0],
        rows.mean(0),
        atol=1e-6,
    )


@pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`"
)  # PEFT's advice to whoever opens a folder
def test_a_run_reads_rows_with_the_new_words_answers_merges_and_opens_in_plain_peft(
    tmp_path: Path,
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, data = story.model_folder(tmp_path / "model"), tmp_path / "rows.json"
    size = len(load_tokenizer(model))
    rows = [
        {"instruction": f"what is it {i}?", "output": f"<plan>a small model {i}</plan>"}
        for i in range(12)
    ]
    data.write_text(json.dumps(rows), encoding="utf-8")
    out = tmp_path / "run"
    done = story.tunewright(
        *story.words(
            model,
            data,
            out,
            "method.kind=new_tokens",
            'method.tokens=["<plan>","</plan>"]',
            "engine.learning_rate=5e-2",
            "engine.epochs=8",
        )
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["trainable_parameters"] == 2 * 64
    assert summary["final_loss"] < summary["first_loss"]
    tokenizer = AutoTokenizer.from_pretrained(out / "adapter")
    ids = tokenizer("<plan>a</plan>", add_special_tokens=False)["input_ids"]
    assert {size, size + 1} < set(ids) and tokenizer.decode(ids) == "<plan>a</plan>"
    asked = story.tunewright("chat", str(out), "-q", "what is it 3?", "--json")
    assert asked.returncode == 0, asked.stderr
    merged = story.tunewright("export", "merge", str(out), str(tmp_path / "merged"))
    assert merged.returncode == 0, merged.stderr

    row = torch.tensor([ids + [9, 8, 7]])
    opened = AutoPeftModelForCausalLM.from_pretrained(out / "adapter").eval()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        theirs, ours = opened(input_ids=row).logits, whole(input_ids=row).logits
    known = slice(0, size + 2)
    assert torch.allclose(theirs[..., known], ours[..., known], atol=1e-4)
    assert whole.config.vocab_size >= size + 2


def test_ids_name_reserved_tokens_and_nothing_is_added(tmp_path: Path) -> None:
    model = tiny.make_model("qwen2")
    attached = attach(model, tokens=[5, 9])
    assert model.config.vocab_size == tiny.VOCABULARY
    with torch.no_grad():
        for name, p in attached.model.named_parameters():
            if name in attached.parameters:
                p.add_(1.0)
    merged = attached.merge()
    table, base = (
        merged.get_input_embeddings().weight,
        tiny.make_model("qwen2").get_input_embeddings().weight,
    )
    changed = (table != base).any(1).nonzero().flatten().tolist()
    assert changed == [5, 9]


@pytest.mark.parametrize(
    ("tokens", "code"),
    [([5000], "E-METHOD-67"), ([-1], "E-METHOD-67"), (["<plan>"], "E-METHOD-66")],
)
def test_what_cannot_be_is_refused(tokens: list[Any], code: str) -> None:
    with pytest.raises(TunewrightError) as caught:
        attach(tiny.make_model("llama"), tokens=tokens)
    assert [p.code for p in caught.value.problems] == [code]


@pytest.mark.parametrize("tokens", [[], ["a", "a"], [" "], [True]])
def test_lists_that_mean_nothing_are_refused(tokens: list[Any]) -> None:
    with pytest.raises(ValidationError):
        methods.get("new_tokens").config(tokens=tokens)  # type: ignore[union-attr]
