"""What the doctor's figures are made of: the floor of the data, decoding settings, training logs,
forms of asking."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import building

from tunewright.advise.doctor import forms, logs
from tunewright.advise.doctor.decoding import Line, decoding_of, repeats, settings_of
from tunewright.advise.doctor.floor import entropy_floor
from tunewright.advise.doctor.lines_of import line_of, spread
from tunewright.core.types import Branch, Message, Sample


def sample(prompt: list[int], answer: list[int], index: int = 0, weight: float = 1.0) -> Sample:
    tokens = prompt + answer
    learnt = list(range(len(prompt), len(tokens)))
    branch = Branch(tokens, learnt, [weight] * len(learnt))
    return Sample([branch], index, facts={"last_span": (len(prompt), len(tokens))})


# ---- the floor


def best_possible(rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> float:
    """The lowest mean loss by counting token after token, the slow way."""
    after: dict[tuple[int, ...], Counter[int]] = {}
    for prompt, answer in rows:
        for i, token in enumerate(answer):
            after.setdefault((*prompt, *answer[:i]), Counter())[token] += 1
    nats = sum(
        -math.log(count / sum(seen.values())) * count
        for seen in after.values()
        for count in seen.values()
    )
    return nats / sum(len(answer) for _, answer in rows)


@pytest.mark.parametrize("seed", range(5))
def test_the_floor_is_what_counting_every_token_gives(seed: int) -> None:
    draw = random.Random(seed)
    rows = [
        ((draw.randrange(3),), (*(draw.randrange(3) for _ in range(draw.randint(1, 3))), 9))
        for _ in range(60)
    ]
    found = entropy_floor(sample(list(p), list(a), i) for i, (p, a) in enumerate(rows))
    assert found is not None
    assert found.loss == pytest.approx(best_possible(rows))


def test_questions_with_one_answer_each_have_no_floor() -> None:
    found = entropy_floor([sample([i], [i + 10, 9]) for i in range(20)] * 2)
    assert found is not None
    assert (found.loss, found.rows) == (0.0, 0)


def test_two_answers_to_one_question() -> None:
    found = entropy_floor([sample([1], [2, 9]), sample([1], [3, 9]), sample([5], [6, 9])])
    assert found is not None
    assert found.loss == pytest.approx(2 * math.log(2) / 6)
    assert (found.rows, found.counted) == (2, 3)


def test_a_row_without_weight_does_not_count() -> None:
    rows = [sample([1], [2, 9]), sample([1], [3, 9], weight=0.0)]
    found = entropy_floor(rows)
    assert found is not None
    assert found.loss == 0.0


def test_rows_from_which_nothing_is_learnt_have_no_floor() -> None:
    assert entropy_floor([]) is None
    assert entropy_floor([Sample([Branch([1, 2], [], [])], 0)]) is None


def test_no_more_time_is_taken_than_there_is() -> None:
    endless = (sample([i % 7], [i % 5, 9]) for i in itertools.count())
    found = entropy_floor(endless, most_seconds=0.02)
    assert found is not None
    assert found.counted <= 20_000


# ---- lines


def test_the_last_answer_of_a_row() -> None:
    assert line_of(sample([1, 2], [3, 9]), {9}) == Line([1, 2], [3], 9)
    assert line_of(sample([1, 2], [3, 4]), {9}) == Line([1, 2], [3, 4], None)
    assert line_of(Sample([Branch([1], [], [])], 0, facts={"last_span": (0, 0)}), {9}) is None


def test_places_from_everywhere() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(100, 4) == [0, 25, 50, 75]


# ---- decoding


def transformers_bans(line: Line, size: int) -> bool:
    """Whether Transformers' own processor forbids a token of the answer, or its stop."""
    import torch
    from transformers import NoRepeatNGramLogitsProcessor

    processor = NoRepeatNGramLogitsProcessor(size)
    ids = line.ids
    for place in range(len(line.prompt), len(ids)):
        scores = processor(torch.tensor([ids[:place]]), torch.zeros(1, 50))
        if scores[0, ids[place]] == -math.inf:
            return True
    return False


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_repeated_ngrams_are_those_that_transformers_forbids(size: int) -> None:
    draw = random.Random(size)
    seen = set()
    for _ in range(60):
        prompt = [draw.randrange(3) for _ in range(draw.randint(1, 8))]
        answer = [draw.randrange(3) for _ in range(draw.randint(1, 6))]
        line = Line(prompt, answer, 40)
        assert repeats(line, size) == transformers_bans(line, size)
        seen.add(repeats(line, size))
    assert seen == {True, False}


LINES = [Line([1, 2, 3], [4, 5], 9), Line([1, 2, 3], [4, 6, 7, 8], 9)]


def decoded(**settings: Any) -> Any:
    return decoding_of(settings, LINES, stop="<end>")


def test_limits_cut_what_is_longer() -> None:
    assert decoded(max_new_tokens=4).too_short == 0
    assert decoded(max_new_tokens=3).too_short == 1
    assert decoded(max_length=6).too_short == 1
    assert decoded(max_length=7).too_short == 0
    # `generate` passes over the second where the first is there.
    assert decoded(max_new_tokens=50, max_length=2).too_short == 0


def test_least_lengths_let_nothing_end() -> None:
    assert decoded(min_new_tokens=3).must_go_on == 1
    assert decoded(min_length=6).must_go_on == 1
    assert decoded(min_length=5).must_go_on == 0


def test_tokens_that_may_not_be_written() -> None:
    assert decoded(suppress_tokens=[8]).forbidden == 1
    assert decoded(begin_suppress_tokens=[4]).forbidden == 2
    assert decoded(begin_suppress_tokens=[5]).forbidden == 0
    assert decoded(bad_words_ids=[[6, 7]]).forbidden == 1
    assert decoded(bad_words_ids=[[7, 6]]).forbidden == 0
    assert decoded(bad_words_ids="what").forbidden == 0


def test_stop_tokens() -> None:
    assert decoded(eos_token_id=9).stop_missing is False
    assert decoded(eos_token_id=[2, 9]).stop_missing is False
    assert decoded(eos_token_id=2).stop_missing is True
    assert decoded(eos_token_id=[9, 5]).cuts == 1
    elsewhere = decoding_of({"eos_token_id": 2}, LINES, looks_at_stop=False)
    assert elsewhere is not None
    assert elsewhere.stop_missing is False


def test_a_strong_penalty_without_a_model_to_try_it() -> None:
    again = [Line([1, 2, 3], [1, 2, 3, 8], 9)]
    strong = decoding_of({"repetition_penalty": 1.3}, again)
    assert strong is not None
    assert strong.penalty == 1
    weak = decoding_of({"repetition_penalty": 1.1}, again)
    assert weak is not None
    assert weak.penalty is None


def test_nothing_to_look_at() -> None:
    assert decoding_of({}, LINES) is None
    assert decoding_of({"max_length": 3}, []) is None


def test_settings_of_the_nearest_folder(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    near.mkdir()
    far.mkdir()
    (far / "config.json").write_text('{"eos_token_id": 3, "hidden_size": 8}', encoding="utf-8")
    (far / "generation_config.json").write_text('{"top_p": 0.9}', encoding="utf-8")
    assert settings_of(near, far) == {"top_p": 0.9, "eos_token_id": 3}
    (near / "generation_config.json").write_text('{"max_length": 9}', encoding="utf-8")
    assert settings_of(near, far) == {"max_length": 9}


# ---- logs


def state(folder: Path, history: list[dict[str, Any]], **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"log_history": history, **more})
    (folder / "trainer_state.json").write_text(text, encoding="utf-8")


def test_a_log_of_transformers(tmp_path: Path) -> None:
    history = [
        {"step": 10, "loss": 2.0, "grad_norm": 1.5, "learning_rate": 1e-4},
        {"step": 10, "eval_loss": 2.2},
        {"step": 20, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 5e-5},
        {"step": 20, "eval_loss": 1.8},
        {"step": 20, "train_runtime": 3.0, "train_loss": 1.5},
    ]
    state(tmp_path, history, global_step=20, best_metric=1.8)
    course, place = logs.course_of(tmp_path)
    assert course is not None
    assert (list(course.losses), list(course.rates)) == ([2.0, 1.0], [1e-4, 5e-5])
    assert (list(course.held), course.held_kept) == ([(10, 2.2), (20, 1.8)], 1.8)
    assert (course.steps, course.objective) == (20, "")
    assert place.endswith("trainer_state.json")


def test_a_log_says_what_kind_of_training_it_was(tmp_path: Path) -> None:
    state(tmp_path / "a", [{"step": 1, "loss": 0.69, "rewards/chosen": 0.1}] * 2)
    state(tmp_path / "b", [{"step": 1, "loss": 0.0, "reward": 0.3}] * 2)
    pairs, drawn = (logs.course_of(tmp_path / name)[0] for name in "ab")
    assert pairs is not None and pairs.objective == "dpo"
    assert drawn is not None and drawn.rewarded


def test_the_newest_checkpoint_and_the_folder_around(tmp_path: Path) -> None:
    state(tmp_path / "checkpoint-9", [{"loss": 3.0}] * 2)
    state(tmp_path / "checkpoint-10", [{"loss": 1.0}] * 2)
    newest, _ = logs.course_of(tmp_path)
    assert newest is not None and list(newest.losses) == [1.0, 1.0]
    state(tmp_path, [{"loss": 7.0}] * 2)
    (tmp_path / "checkpoint-3").mkdir()
    around, _ = logs.course_of(tmp_path / "checkpoint-3")
    assert around is not None and list(around.losses) == [7.0, 7.0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trainer_log.jsonl", '{"current_steps": 1, "loss": 2.0, "lr": 1e-4}\n{"loss": 1.0}\n'),
        ("log.json", '[{"loss": 2.0}, {"loss": 1.0}]'),
        ("loss.json", "[2.0, 1.0]"),
        ("train_log.json", '{"losses": [2.0, 1.0]}'),
        ("metrics.csv", "step,loss\n1,2.0\n2,1.0\n"),
    ],
)
def test_other_logs(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    course, place = logs.course_of(tmp_path)
    assert course is not None and list(course.losses) == [2.0, 1.0]
    assert place.endswith(name)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"log_history": 3}', "[" * 9999])
def test_a_damaged_log_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer_state.json").write_text(text, encoding="utf-8")
    assert logs.course_of(tmp_path) == (None, "")


def test_losses_that_are_no_numbers_are_kept(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(
        '{"log_history": [{"loss": NaN}, {"loss": "inf"}, {"loss": true}]}', encoding="utf-8"
    )
    course, _ = logs.course_of(tmp_path)
    assert course is not None
    assert [math.isfinite(loss) for loss in course.losses] == [False, False]


# ---- forms


def test_a_question_in_every_form() -> None:
    tokenizer = building.make_tokenizer()
    messages = [Message("system", "be brief"), Message("user", "who learns?")]
    for form in forms.FORMS:
        line = forms.lines_in(form, tokenizer, messages, "a model")
        assert line is not None
        assert tokenizer.decode(line.answer).strip() == "a model"
        assert "who learns?" in tokenizer.decode(line.prompt)


def test_a_dialogue_of_several_turns_fits_no_form() -> None:
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    assert forms.lines_in("Alpaca", building.make_tokenizer(), turns, "d") is None


def test_the_stop_that_is_named_is_that_of_the_rows() -> None:
    """Gemma's tokenizer ends texts with <eos>, its template answers with another token."""
    from types import SimpleNamespace

    from helpers import families

    from tunewright.advise.doctor.foreign import _Probe

    tokenizer = families.tokenizer_of("gemma3")
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    probe: Any = SimpleNamespace(
        reading=None,
        renderer=SimpleNamespace(tokenizer=tokenizer, end_text="<eos>"),
        settings={"eos_token_id": tokenizer.eos_token_id},
        lines=[Line([5, 6], [7], end)],
        pair=SimpleNamespace(tuned=SimpleNamespace(run=None)),
    )
    found = _Probe.decoding(probe)
    assert found is not None and found.stop_missing and found.stop == "<end_of_turn>"
