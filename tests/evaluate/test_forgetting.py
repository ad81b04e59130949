"""The general questions: their scores are those of plain Transformers, a language that the start
did not speak does not count, and what was forgotten is seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story

from tunewright.core.telling import Quiet
from tunewright.engine import opening
from tunewright.engine.tree import build_tree
from tunewright.evaluate import forgetting
from tunewright.evaluate.forgetting import Item, all_items, compare, points, refuses

ITEMS = all_items()
CHOSEN = [item for item in ITEMS if item.answers]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> opening.Opened:
    place = tmp_path_factory.mktemp("forgetting") / "base"
    story.model_folder(place, initializer_range=0.2, tie_word_embeddings=False)
    return opening.open_target(str(place), Quiet(), dtype="float32")


def asked(opened: opening.Opened, items: Any = ITEMS, context: int | None = 256) -> Any:
    return forgetting.asked(opened.renderer, items, context)


# ---- the set


def test_the_set_is_balanced_and_each_question_can_be_scored() -> None:
    for language in forgetting.LANGUAGES:
        mine = [item for item in ITEMS if item.language == language]
        kinds = Counter(item.kind for item in mine)
        assert kinds == {"fact": 3, "sense": 3, "arithmetic": 2, "form": 2, "language": 1,
                         "harmless": 1, "reasoning": 1}  # fmt: skip
    assert len({item.id for item in ITEMS}) == len({item.question for item in ITEMS}) == 26
    for item in ITEMS:
        assert len(set(item.answers)) == len(item.answers)
        checks = (item.answers, item.one_of, item.script, item.refused is False, item.thoughts)
        assert sum(map(bool, checks)) == 1 and bool(item.most) != bool(item.answers)
    first = Counter(item.language for item in ITEMS[:10])
    assert first["en"] == first["zh"]


def test_no_question_of_the_demo_is_in_it() -> None:
    from tunewright.commands.demo import demo_data

    for lang in ("en", "zh"):
        data = demo_data(lang)
        known = {row["instruction"] for row in data.rows} | {p.question for p in data.probes}
        assert not known & {item.question for item in ITEMS}


# ---- scores


def by_transformers(opened: opening.Opened, item: Item, answer: str) -> float:
    """The log-probability of an answer and its stop token, one forward pass for each."""
    tokenizer = opened.tokenizer
    question = [{"role": "user", "content": item.question}]
    whole = [*question, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
    start = len(
        tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
    )
    end = max(i for i, token in enumerate(ids) if token in opened.renderer.stop_ids) + 1
    with torch.no_grad():
        logprobs = opened.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(logprobs[i - 1, ids[i]] for i in range(start, end)))


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_scores_are_those_of_plain_transformers(opened: opening.Opened, layout: str) -> None:
    what = asked(opened)
    found = forgetting.score(opened, what, layout=layout, rows_per_pass=512)
    assert [item.id for item in what.scored] == [item.id for item in CHOSEN]
    for item in CHOSEN[:6]:
        for value, answer in zip(found[item.id], item.answers, strict=True):
            assert value == pytest.approx(by_transformers(opened, item, answer), abs=1e-4)


def test_what_questions_share_is_computed_once(opened: opening.Opened) -> None:
    samples = asked(opened).samples
    alone = sum(len(b.tokens) for s in samples for b in s.branches)
    rows = build_tree(samples).num_rows
    assert rows < 0.45 * alone
    what = forgetting.asked(opened.renderer, CHOSEN, 256)
    counted = what.shared + sum(map(what.tokens_of, what.items))
    assert what.shared > 0 and rows <= counted < 1.5 * rows  # a little more than is computed


def test_asking_leaves_the_random_state_and_the_weights(opened: opening.Opened) -> None:
    what, state = asked(opened), torch.get_rng_state()
    before = [p.clone() for p in opened.model.parameters()]
    first = forgetting.score(opened, what, layout="tree", rows_per_pass=512)
    forgetting.write(opened.answering, what)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, opened.model.parameters(), strict=True))
    assert forgetting.score(opened, what, layout="tree", rows_per_pass=512) == first


def test_questions_that_do_not_fit_are_left_out(opened: opening.Opened) -> None:
    some = asked(opened, context=60)
    assert 0 < len(some.items) < len(asked(opened).items)
    assert asked(opened, context=4).items == []


def test_thoughts_are_asked_of_models_that_think_only(opened: opening.Opened) -> None:
    assert not any(item.thoughts for item in asked(opened).items)


# ---- comparing


def side(right: set[str], ids: list[str] | None = None) -> dict[str, Any]:
    """A model that surely gets `right` right and everything else wrong."""
    out: dict[str, Any] = {}
    for item in ITEMS:
        good = item.id in right
        if item.answers:
            out[item.id] = [-1.0 if good else -9.0, *(-4.0 for _ in item.answers[1:])]
        else:
            words = item.one_of[0] if item.one_of else {"zh": "因为他们需要休息", "en": "They need to rest"}[item.language]  # fmt: skip
            out[item.id] = {"text": words if good else "", "end": "stop"}
    return out if ids is None else {i: out[i] for i in ids}


EN = {item.id for item in ITEMS if item.language == "en"}
ZH = {item.id for item in ITEMS if item.language == "zh"}


def test_the_same_answers_are_no_difference_at_all() -> None:
    found = compare(ITEMS, side(EN | ZH), side(EN | ZH))
    assert found["verdict"] == "kept" and found["counted"] == found["asked"] == 24
    assert found["score"]["difference"] == 0 and found["forgotten"] == found["gained"] == []


def test_what_was_forgotten_is_named_with_both_answers() -> None:
    lost = {"en-fact-1", "en-fact-2", "zh-fact-1", "zh-fact-2", "en-arithmetic-1", "zh-sense-1"}
    found = compare(ITEMS, side(EN | ZH), side((EN | ZH) - lost))
    assert found["verdict"] == "forgot" and found["score"]["interval_95"][1] < 0
    assert {one["id"] for one in found["forgotten"]} == lost
    first = next(one for one in found["forgotten"] if one["id"] == "en-fact-1")
    assert first["before"] == first["expected"] == "We breathe with our lungs." != first["after"]
    assert found["kinds"]["fact"] | {"n": 6, "before": 6, "after": 2} == found["kinds"]["fact"]


def test_a_language_that_the_start_did_not_speak_cannot_be_forgotten() -> None:
    guessed = {"zh-fact-1", "zh-sense-2", "zh-language-1", "zh-harmless-1"}
    found = compare(ITEMS, side(EN | guessed), side(EN))
    assert not found["languages"]["zh"]["able"] and found["languages"]["en"]["able"]
    assert found["languages"]["zh"]["before"] == 4 and found["languages"]["zh"]["after"] == 0
    assert found["counted"] == 12 and found["verdict"] == "kept" and found["forgotten"] == []


def test_of_a_start_that_can_do_nothing_nothing_is_claimed() -> None:
    found = compare(ITEMS, side(set()), side(EN))
    assert found["verdict"] == "unknown" and found["score"] is None and found["counted"] == 0


def test_few_lost_answers_are_uncertain() -> None:
    found = compare(ITEMS, side(EN | ZH), side((EN | ZH) - {"en-fact-1", "zh-form-1"}))
    assert found["verdict"] == "unclear" and len(found["forgotten"]) == 2


def test_points_are_the_probability_of_the_right_answer() -> None:
    item = CHOSEN[0]
    assert points(item, [0.0] * 4) == pytest.approx(0.25)
    assert points(item, [-1000.0, -2000.0, -2000.0, -2000.0]) == pytest.approx(1.0)
    assert points(item, [float("nan"), 0.0, 0.0, 0.0]) == 0
    assert not forgetting.is_right(item, [-1.0, -1.0, -2.0, -3.0])  # a tie is no choice


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot assist with violence.", True),
        ("Sorry, no.", True),
        ("很抱歉，我无法回答这个问题。", True),
        ("我不能提供这方面的帮助。", True),
        ("Press Ctrl+Alt+Del and end the task.", False),
        ("To stop it, open a terminal. You can't lose data.", False),
        ("可以用拖鞋打死它。", False),
    ],
)
def test_refusals(answer: str, refused: bool) -> None:
    assert refuses(answer) is refused


@pytest.mark.parametrize(
    ("name", "answer", "met"),
    [
        ("en-form-1", " Yes.", True),
        ("en-form-1", "Yes, stones are hard", False),
        ("zh-form-1", "是。", True),
        ("zh-form-1", "火是热的", False),
        ("en-language-1", "To protect their feet.", True),
        ("en-language-1", "为了保护双脚。", False),
        ("zh-language-1", "为了恢复体力。", True),
        ("zh-language-1", "To recover strength.", False),
        ("en-harmless-1", "", False),
        ("en-harmless-1", "Use the task manager.", True),
    ],
)
def test_written_answers(name: str, answer: str, met: bool) -> None:
    item = next(item for item in ITEMS if item.id == name)
    assert points(item, {"text": answer, "end": "stop"}) == float(met)


def test_a_damaged_file_is_not_a_side() -> None:
    whole = side(EN)
    assert forgetting.read_side(ITEMS, whole) == whole
    lost = forgetting.read_side(ITEMS, whole | {"en-fact-1": ["NaN", -1.0, -1.0, -1.0]})
    assert lost is not None and points(CHOSEN[0], lost["en-fact-1"]) == 0
    for bad in ({}, whole | {"en-fact-1": [1.0]}, whole | {"en-fact-1": "x"},
                whole | {"en-form-1": {"text": 3}}, whole | {"en-form-1": [1.0]}):  # fmt: skip
        assert forgetting.read_side(ITEMS, bad) is None


def test_the_texts_lie_in_the_package() -> None:
    folder = Path(forgetting.ASSETS) / "forgetting"
    assert {path.name for path in folder.iterdir()} == {"en.jsonl", "zh.jsonl", "README.md"}
