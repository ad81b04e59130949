"""What `evaluate` reports equals what plain Transformers says, one row and one option at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.story import model_folder, rows_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunewright.core.errors import ModelError, TunewrightError, UsageError
from tunewright.core.telling import Quiet
from tunewright.engine import opening
from tunewright.evaluate import logprobs, scoring
from tunewright.evaluate.scoring import evaluate_target

TEXTS = [
    "a small model learns quickly",
    "the capital is Paris",
    "it's 10:30, isn't it?",
    "what is small",
    "who learns quickly",
    "a model of 2026",
]


def reviews(path: Path, count: int = 24, answers: tuple[str, ...] = ("yes", "not at all")) -> Path:
    """Rows of few classes; the question differs in length, the second class is the rarer one."""
    rows = [
        {
            "instruction": "is this good? answer yes or not at all",
            "input": f"{TEXTS[i % 6]} {i}",
            "output": answers[1 if i % 3 == 0 else 0],
        }
        for i in range(count)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request, tmp_path_factory):
    return model_folder(
        tmp_path_factory.mktemp("model"),
        request.param,
        initializer_range=0.1,
        tie_word_embeddings=request.param == "llama",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return reviews(tmp_path_factory.mktemp("data") / "reviews.json")


def measure(model, data, **settings):
    settings = {"dtype": "float32", "device": "cpu", "threads": 1, "tell": Quiet(), **settings}
    return evaluate_target(str(model), str(data), **settings)


def slow_scores(model: Path, data: Path, options: list[str], wrapped=None) -> list[list[float]]:
    """The oracle: the template rendered by Transformers, one sequence a forward pass, the model's
    own logits, a sum over the option's tokens and its stop token."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    causal = wrapped or AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for row in json.loads(data.read_text(encoding="utf-8")):
        question = [
            {
                "role": "user",
                "content": row["instruction"] + ("\n" + row["input"] if row.get("input") else ""),
            }
        ]
        prompt = tokenizer.apply_chat_template(
            question, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        scores = []
        for option in options:
            answer = tokenizer(option, add_special_tokens=False)["input_ids"] + [
                tokenizer.convert_tokens_to_ids("<|im_end|>")
            ]
            ids = torch.tensor([prompt + answer])
            with torch.no_grad():
                logprobs = torch.log_softmax(causal(input_ids=ids).logits[0].float(), -1)
            scores.append(
                sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(answer))
            )
        found.append(scores)
    return found


@pytest.mark.parametrize("rows_per_pass", [1024, 70])
def test_scores_and_decisions_are_those_of_plain_transformers(model, data, rows_per_pass):
    result = measure(model, data, details=True, rows_per_pass=rows_per_pass)
    options = result["options"]["options"]
    assert (
        options == ["not at all", "yes"]
        and result["options"]["detected"]
        and result["layout"] == "tree"
    )
    slow = slow_scores(model, data, options)
    for ours, theirs in zip(result["rows"], slow, strict=True):
        assert ours["scores"] == pytest.approx(theirs, abs=1e-5 * max(map(abs, theirs)))
        assert ours["chosen"] == options[theirs.index(max(theirs))]
    gold = [slow[i][0 if i % 3 == 0 else 1] for i in range(24)]
    # The loss is the mean over learnt tokens, which for these rows are the right option's.
    assert result["loss"]["token_mean"] == pytest.approx(
        -sum(gold) / result["loss"]["tokens"], rel=1e-5
    )
    right = [theirs.index(max(theirs)) == (0 if i % 3 == 0 else 1) for i, theirs in enumerate(slow)]
    assert result["options"]["accuracy"] == pytest.approx(sum(right) / 24)


def test_a_model_that_never_answers_with_an_option_is_not_told_by_its_accuracy_alone(model, data):
    """The probability of all options together, from plain Transformers, and a warning in words
    where it is small."""
    found = measure(model, data)
    sums = [
        sum(map(math.exp, scores))
        for scores in slow_scores(model, data, found["options"]["options"])
    ]
    assert found["options"]["probability"]["mean"] == pytest.approx(sum(sums) / len(sums), rel=1e-3)
    assert found["options"]["probability"]["least"] == pytest.approx(min(sums), rel=1e-3)
    assert max(sums) < 0.01 and any(
        "seldom answer with one of the options" in warning for warning in found["warnings"]
    )
    assert any("all options together" in line for line in scoring.lines(found))


def test_loss_of_free_text_equals_transformers_own_loss(model, tmp_path):
    data = rows_file(tmp_path / "rows.json", 8)
    result = measure(model, data, generate=False)
    assert "options" not in result and "exact_match" not in result
    tokenizer, causal = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(),
    )
    total = count = 0.0
    for row in json.loads(data.read_text()):
        question = [{"role": "user", "content": row["instruction"]}]
        prompt = tokenizer.apply_chat_template(
            question, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        answer = tokenizer(row["output"], add_special_tokens=False)["input_ids"] + [
            tokenizer.convert_tokens_to_ids("<|im_end|>")
        ]
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            total += float(
                causal(input_ids=ids, labels=torch.tensor([[-100] * len(prompt) + answer])).loss
            ) * len(answer)
        count += len(answer)
    assert result["loss"]["tokens"] == count
    assert result["loss"]["token_mean"] == pytest.approx(total / count, rel=1e-5)


def test_an_answer_that_is_called_bad_is_no_part_of_the_loss(model, tmp_path):
    good = [{"prompt": f"What is {i} and one?", "completion": f"It is {i + 1}."} for i in range(4)]
    bad = [{**row, "completion": "blorp zug vam kek", "label": False} for row in good]
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "blorp"} for row in good
    ]
    sets = {"good": good, "judged": [*({**r, "label": True} for r in good), *bad], "pairs": pairs}
    found = {}
    for name, rows in sets.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(rows))
        found[name] = evaluate_target(str(model), str(path), dtype="float32", generate=False)
    for name in ("judged", "pairs"):
        assert found[name]["loss"]["token_mean"] == found["good"]["loss"]["token_mean"], name
        assert found[name]["loss"]["rows"] == 4
    assert any("4 of 8" in warning for warning in found["judged"]["warnings"])


def test_padded_and_tree_agree(model, data, monkeypatch):
    tree = measure(model, data, details=True)
    monkeypatch.setattr(
        opening.Opened, "choose_layout", lambda opened, engine, dtype: ("padded", "as asked")
    )
    padded = measure(model, data, details=True)
    assert (
        padded["layout"] == "padded"
        and padded["options"]["confusion"] == tree["options"]["confusion"]
    )
    for one, two in zip(tree["rows"], padded["rows"], strict=True):
        assert one["scores"] == pytest.approx(two["scores"], abs=1e-4)


def test_many_visits_to_the_head_change_nothing(model, data, monkeypatch):
    once = measure(model, data, details=True)
    monkeypatch.setattr(logprobs, "HEAD_ROWS", 5)
    monkeypatch.setattr(logprobs, "VOCABULARY_CHUNK", 100)
    many = measure(model, data, details=True, rows_per_pass=60)
    for one, two in zip(once["rows"], many["rows"], strict=True):
        assert one["scores"] == pytest.approx(two["scores"], abs=1e-4)


def test_an_adapter_is_measured_and_left_out_when_asked(tmp_path, data):
    from peft import LoraConfig, get_peft_model

    base = model_folder(tmp_path / "base", initializer_range=0.1)
    causal = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(3)
    wrapped = get_peft_model(
        causal,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            target_modules=["q_proj", "down_proj"],
            init_lora_weights=False,
        ),
    )
    wrapped.save_pretrained(str(tmp_path / "run" / "adapter"), save_embedding_layers=False)
    (tmp_path / "run" / "run.yaml").write_text(f"model: {base}\nengine:\n  dtype: float32\n")
    tuned = measure(tmp_path / "run", data, dtype=None, details=True)
    slow = slow_scores(base, data, tuned["options"]["options"], wrapped.eval())
    for ours, theirs in zip(tuned["rows"], slow, strict=True):
        assert ours["scores"] == pytest.approx(theirs, abs=1e-4)
    plain, left_out = measure(base, data), measure(tmp_path / "run", data, base=True)
    assert left_out["loss"] == plain["loss"] != tuned["loss"] and left_out["adapter"] == ""


def test_half_precision_keeps_options_apart(model, data):
    exact = measure(model, data, details=True)
    half = measure(model, data, details=True, dtype="bfloat16")
    # Logits of the stock head in bfloat16 would be multiples of 2^-7 and tie; ours are float32 sums
    # of bfloat16 rows.
    assert half["options"]["ties"] == 0
    for one, two in zip(exact["rows"], half["rows"], strict=True):
        assert one["scores"] == pytest.approx(two["scores"], abs=0.3)


def test_given_options_leave_out_rows_with_another_answer_and_say_so(model, data, tmp_path):
    rows = json.loads(data.read_text())
    rows[3]["output"] = "perhaps"
    (tmp_path / "d.json").write_text(json.dumps(rows))
    assert "options" not in measure(
        model, tmp_path / "d.json", generate=False
    )  # one answer stands alone: free text
    result = measure(model, tmp_path / "d.json", options=[" yes ", "not at all"])
    found = result["options"]
    assert found["n"] == 23 and found["rows_left_out"] == 1 and not found["detected"]
    (example,) = found["left_out"]["not_an_option"]["examples"]
    assert example.startswith(str(tmp_path / "d.json"))
    assert any("rows are not counted" in w for w in result["warnings"]) and scoring.lines(result)


def test_answers_are_written_for_free_text_and_compared_both_ways(tmp_path, data):
    base = model_folder(tmp_path / "base", initializer_range=0.1)
    tokenizer, causal = (
        AutoTokenizer.from_pretrained(base),
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval(),
    )
    rows = []
    for text in TEXTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=False,
        )
        out = causal.generate(
            ids,
            max_new_tokens=4,
            do_sample=False,
            attention_mask=torch.ones_like(ids),
            pad_token_id=0,
            eos_token_id=[2],
        )
        rows.append(
            {
                "instruction": text,
                "output": tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
                or "?",
            }
        )
    rows[1]["output"] += "x"
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False))
    found = measure(base, tmp_path / "rows.json", max_new_tokens=4)["exact_match"]
    assert (
        found["n"] == 6 and found["max_new_tokens"] == 4 and found["answers_longer_than_room"] > 0
    )
    assert found["exact"]["right"] == 5 - sum(r["output"] == "?" for r in rows)
    assert found["mistakes"][0]["expected"] == rows[1]["output"]


def test_option_data_is_generated_only_when_asked(model, data):
    result = measure(model, data, generate=True, max_new_tokens=3, limit=4)
    assert result["data_report"]["rows_kept"] == 4
    assert result["exact_match"]["n"] == 4 and result["exact_match"]["none_of_the_options"] <= 4
    assert any("none of the options" in line for line in scoring.lines(result))


def test_running_text_gets_a_loss_and_nothing_else(model, tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    result = measure(model, tmp_path / "t.jsonl")
    assert result["loss"]["rows"] == 6 and "options" not in result and "exact_match" not in result


def test_the_result_is_plain_json_and_speaks_both_languages(model, data):
    from tunewright.core.words import set_language

    result = measure(model, data)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    try:
        for lang in ("en", "zh"):
            set_language(lang)
            text = "\n".join(scoring.lines(result))
            assert "evaluate." not in text and "{" not in text
    finally:
        set_language(None)


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"options": ["yes"]}, "E-EVAL-01"), ({"options": ["yes", " yes"]}, "E-EVAL-01"), ({"options": ["1", "0"]}, "E-EVAL-02"), ({"limit": 0}, "E-EVAL-05"), ({"dtype": "int8"}, "E-CONFIG-08")],
)  # fmt: skip
def test_what_cannot_be_measured_is_said(model, data, settings, code):
    with pytest.raises(UsageError) as error:
        measure(model, data, **settings)
    assert error.value.problems[0].code == code


def test_scores_that_are_no_numbers_are_not_reported(tmp_path, data):
    base = model_folder(tmp_path / "base")
    causal = AutoModelForCausalLM.from_pretrained(base)
    causal.model.layers[0].mlp.down_proj.weight.data[0] = float("nan")
    causal.save_pretrained(base)
    with pytest.raises(TunewrightError):
        measure(base, data)


def test_a_pickled_model_is_not_opened(tmp_path, data):
    base = model_folder(tmp_path / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(ModelError):
        measure(base, data)
