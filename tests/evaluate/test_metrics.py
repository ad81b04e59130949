"""Metrics against the libraries and the published scripts that define them."""

from __future__ import annotations

import collections
import json
import random
import re
import string
import unicodedata

import pytest

from tunewright.core.errors import UsageError
from tunewright.core.types import Answer
from tunewright.evaluate import metrics
from tunewright.rewards import read as read_rewards

ENGLISH = (
    "the a an cat sat on mat, it's well-known that: 3.5 dogs (two) slept. café U.S. don't".split()
)
CHINESE = list("今天天气很好，我们去公园。数据模型训练的结果！") + ["Qwen2", "3.5", "GPU"]


def texts(words: list[str], joint: str, seed: int, count: int = 40) -> tuple[list[str], list[str]]:
    """Expected answers, and answers that share some of their words; some rows are empty or equal."""
    rng = random.Random(seed)
    expected, answers = [], []
    for i in range(count):
        one = [rng.choice(words) for _ in range(rng.randint(1, 14))]
        other = [rng.choice(words) if rng.random() < 0.3 else word for word in one]
        expected.append(joint.join(one))
        answers.append("" if i == 3 else joint.join(one if i % 7 == 0 else other[: 1 + i % 13]))
    return expected, answers


SETS = {
    "english": texts(ENGLISH, " ", 1),
    "chinese": texts(CHINESE, "", 2),
    "mixed": tuple(
        a + b for a, b in zip(texts(ENGLISH, " ", 3), texts(CHINESE, "", 4), strict=True)
    ),
}


@pytest.mark.parametrize("kind", SETS)
def test_bleu_and_chrf_are_sacrebleus(kind: str) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    expected, answers = SETS[kind]
    tokens = "13a" if kind == "english" else "zh"
    bleu, chrf = BLEU(tokenize=tokens), CHRF()
    assert metrics.METRICS["bleu"].corpus(expected, answers) == pytest.approx(
        bleu.corpus_score(answers, [expected]).score, abs=1e-6
    )
    assert metrics.METRICS["chrf"].corpus(expected, answers) == pytest.approx(
        chrf.corpus_score(answers, [expected]).score, abs=1e-6
    )
    single = BLEU(tokenize=tokens, effective_order=True)
    assert metrics.per_row("bleu", expected, answers) == pytest.approx(
        [single.sentence_score(a, [e]).score for e, a in zip(expected, answers, strict=True)],
        abs=1e-6,
    )
    assert metrics.per_row("chrf", expected, answers) == pytest.approx(
        [chrf.sentence_score(a, [e]).score for e, a in zip(expected, answers, strict=True)],
        abs=1e-6,
    )
    found = metrics.figure("bleu", expected, answers)
    assert found["value"] == pytest.approx(bleu.corpus_score(answers, [expected]).score, abs=1e-6)
    assert tokens in found["how"]


def test_bleus_interval_is_that_of_sacrebleus_own_bootstrap() -> None:
    from sacrebleu.metrics import BLEU

    expected, answers = texts(ENGLISH, " ", 5, count=200)
    score = BLEU().corpus_score(answers, [expected], n_bootstrap=2000)
    low, high = metrics.figure("bleu", expected, answers)["interval_95"]
    # Two random bootstraps of 2,000 draws: their ends differ by chance by a few per cent of a width.
    assert (low + high) / 2 == pytest.approx(score._mean, abs=0.3 * score._ci)
    assert (high - low) / 2 == pytest.approx(score._ci, rel=0.12)
    mean = sum(metrics.per_row("bleu", expected, answers)) / len(expected)
    assert abs(mean - score.score) > 1  # a corpus score is no mean of rows


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_rouge_scores(kind: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    expected, answers = SETS["english"]
    scorer = RougeScorer([kind])
    wanted = [scorer.score(e, a)[kind].fmeasure for e, a in zip(expected, answers, strict=True)]
    assert metrics.per_row(kind, expected, answers) == pytest.approx(wanted, abs=1e-6)
    assert metrics.figure(kind, expected, answers)["value"] == pytest.approx(
        sum(wanted) / len(wanted), abs=1e-6
    )


class Split:
    """A tokenizer for rouge-score: what stands between spaces."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
@pytest.mark.parametrize("words", ["auto", "jieba"])
def test_rouge_of_chinese_is_by_characters_or_by_jieba(kind: str, words: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    jieba = pytest.importorskip("jieba")
    pure = [c for c in CHINESE if "\u4e00" <= c <= "\u9fff"] + ["，"]
    expected, answers = texts(pure, "", 6)

    def spaced(text: str) -> str:
        return " ".join(c for c in (jieba.cut(text) if words == "jieba" else text) if c != "，")

    scorer = RougeScorer([kind], tokenizer=Split())
    wanted = [
        scorer.score(spaced(e), spaced(a))[kind].fmeasure
        for e, a in zip(expected, answers, strict=True)
    ]
    assert metrics.per_row(kind, expected, answers, words=words) == pytest.approx(wanted, abs=1e-6)
    assert max(wanted) == 1 and min(wanted) == 0


def squad_f1(prediction: str, truth: str) -> float:
    """SQuAD 1.1's evaluate-v1.1.py, `normalize_answer` and `f1_score`."""

    def normalize(s: str) -> str:
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())

    prediction_tokens, truth_tokens = normalize(prediction).split(), normalize(truth).split()
    if not prediction_tokens or not truth_tokens:  # as in evaluate-v2.0.py
        return float(prediction_tokens == truth_tokens)
    common = collections.Counter(prediction_tokens) & collections.Counter(truth_tokens)
    same = sum(common.values())
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction_tokens), same / len(truth_tokens)
    return (2 * precision * recall) / (precision + recall)


def mlqa_zh_f1(prediction: str, truth: str) -> float:
    """MLQA's mlqa_evaluation_v1.py for zh."""
    punct = set(string.punctuation) | {
        c for c in map(chr, range(0x11000)) if unicodedata.category(c).startswith("P")
    }

    def segments(text: str) -> list[str]:
        out, held = [], ""
        for char in text:
            if re.search(r"[\u4e00-\u9fa5]", char) or char in punct:
                out += held.split()
                held = ""
                out.append(char)
            else:
                held += char
        return out + held.split()

    def normalize(text: str) -> list[str]:
        return segments("".join(ch for ch in text.lower() if ch not in punct))

    a, b = normalize(prediction), normalize(truth)
    if not a or not b:
        return float(a == b)
    same = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * same / (len(a) + len(b))


def test_f1_is_squads() -> None:
    expected, answers = SETS["english"]
    wanted = [squad_f1(a, e) for e, a in zip(expected, answers, strict=True)]
    assert metrics.per_row("f1", expected, answers) == pytest.approx(wanted, abs=1e-6)
    assert 0 < sum(wanted) < len(wanted)


def test_f1_of_chinese_is_mlqas() -> None:
    expected, answers = SETS["chinese"]
    wanted = [mlqa_zh_f1(a, e) for e, a in zip(expected, answers, strict=True)]
    assert metrics.per_row("f1", expected, answers) == pytest.approx(wanted, abs=1e-6)
    assert 0 < sum(wanted) < len(wanted)


def test_numbers_are_read_and_compared_as_the_reward_function_does() -> None:
    pairs = [
        ("12", "It is 12."),
        ("#### 1,234", "so 1234"),
        ("3/4", "0.75"),
        ("12", "13"),
        ("5", "none"),
        ("-2", "x = -2"),
    ]
    judge = read_rewards("numeric")
    answers = [Answer([], a, 1, True, {"answer": e}) for e, a in pairs]
    wanted = judge.score(answers).total
    assert (
        metrics.per_row("number", *map(list, zip(*pairs, strict=True)))
        == wanted
        == [1, 1, 1, 0, 0, 1]
    )


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ('{"a": 1}', 1),
        ('```json\n{"a": 1}\n```', 1),
        ('{"a": 1} so', 0),
        ("", 0),
        ("{'a': 1}", 0),
        ('{"a": NaN}', 0),
        ("[1, 2]", 1),
    ],
)
def test_json_is_what_the_standard_says(answer: str, valid: int) -> None:
    assert metrics.METRICS["json"].per_row("anything", answer) == valid


def test_equal_json_may_differ_in_order_and_space_and_never_in_kind() -> None:
    equal = metrics.METRICS["json_equal"].per_row
    assert equal('{"a": 1, "b": [2, {"c": null}]}', '{"b":[2.0,{"c":null}],"a":1}') == 1
    assert equal('{"a": 1}', '{"a": true}') == 0
    assert equal("[1, 2]", "[2, 1]") == 0


def test_what_cannot_be_met_is_left_out_of_the_figure_and_counted() -> None:
    found = metrics.figure("contains", ["", "yes", " "], ["yes", "oh yes", ""])
    assert (found["value"], found["n"], found["left_out"]) == (1.0, 1, 2)
    none = metrics.figure("number", ["one", "two"], ["1", "2"])
    assert none["value"] is None and none["interval_95"] is None and none["left_out"] == 2


def test_every_metric_has_an_interval_around_its_value_and_a_row_alone_is_not_sure() -> None:
    for name, metric in metrics.METRICS.items():
        expected, answers = SETS["mixed"]
        expected, answers = ['{"a": 3}', *expected], ['{"a": 3}', *answers]
        found = metrics.figure(name, expected, answers)
        low, high = found["interval_95"]
        assert 0 <= low <= found["value"] <= high <= metric.scale, name
        assert found == metrics.figure(name, expected, answers), "the same seed gives the same"
        one = metrics.figure(name, ['{"a": 3 and so on}', '{"a": 3}'][-1:], ['{"a": 3}'])
        assert one["value"] == pytest.approx(metric.corpus(['{"a": 3}'], ['{"a": 3}']))
        assert one["interval_95"][1] - one["interval_95"][0] > 0.5 * metric.scale, name


@pytest.mark.parametrize(
    ("expected", "chosen"),
    [
        (["positive", "negative"] * 5, ["exact", "normalised", "contains", "f1"]),
        ([json.dumps({"a": i}) for i in range(9)] + ["none"], ["exact", "json", "json_equal"]),
        (["12", "3.5", "-4", "1,000 kg"], ["exact", "normalised", "number"]),
        (["She has 3 left.\n#### 3"] * 3, ["exact", "normalised", "number"]),
        (
            ["A sentence that goes on for more than a few words, as summaries do."] * 3,
            ["exact", "normalised", "f1", "bleu", "chrf", "rougeL"],
        ),
        (
            ["今天天气很好，我们一起去公园散步吧。"] * 3,
            ["exact", "normalised", "f1", "bleu", "chrf", "rougeL"],
        ),
        (["", " "], ["exact", "normalised"]),
        ([], []),
    ],
)
def test_metrics_suit_the_answers(expected: list[str], chosen: list[str]) -> None:
    assert metrics.chosen_for(expected) == chosen


def test_an_unknown_metric_is_named_with_those_that_are() -> None:
    with pytest.raises(UsageError) as caught:
        metrics.named(["f1", "meteor"])
    assert caught.value.problems[0].code == "E-EVAL-20" and "rougeL" in str(caught.value)
    assert metrics.named(["f1", "exact", "f1"]) == ["f1", "exact"]


def test_japanese_is_compared_by_characters() -> None:
    from sacrebleu.metrics import BLEU

    expected, answers = ["今日はとても天気がいいです"], ["今日はとても天気がわるいです"]
    assert metrics.bleu_tokens(expected) == "char"
    assert metrics.METRICS["bleu"].corpus(expected, answers) == pytest.approx(
        BLEU(tokenize="char").corpus_score(answers, [expected]).score
    )
