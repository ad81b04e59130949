"""What a written answer is worth next to the expected one.

`exact`, `normalised`, `contains` and `number` compare as the rest of Tunewright does
(core/comparing.py, rewards/numeric.py); `json` and `json_equal` look at the form; `f1` is SQuAD's
(for scripts without spaces MLQA's: a character is a word); BLEU and chrF are sacrebleu's, ROUGE is
rouge-score's. BLEU and chrF of a set are made of sums over its rows and are not the mean of the
rows' own scores; their interval comes from those sums. Sources: Rajpurkar et al. 2016 (SQuAD),
Lewis et al. 2020 (MLQA), Post 2018 (sacrebleu), Popovic 2015 (chrF), Lin 2004 (ROUGE).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Literal, cast

from tunewright.core import comparing
from tunewright.core.errors import UsageError, problem
from tunewright.evaluate import interval
from tunewright.rewards.base import has_no_spaces, words_of
from tunewright.rewards.numeric import NumericConfig, final_number, is_near
from tunewright.rewards.structure import json_value

Texts = Sequence[str]
Words = Literal["auto", "jieba"]
"""How ROUGE parts Chinese: into characters, or into words with jieba."""


def _always(expected: str) -> bool:
    return True


@dataclass(frozen=True)
class Metric:
    """One way to compare. `scores` gives a value from 0 to `scale` a row, in the order of the rows;
    higher is better.

    `sums` is for figures of the whole set that are no mean of rows: the numbers a row adds, and the
    figure of their sum. `fits` says whether an expected answer can be met at all; rows that it
    rejects are worth 0 and are left out of `figure`.
    """

    name: str
    scale: int
    scores: Callable[[Texts, Texts, Words], list[float]]
    sums: Callable[[Texts, Texts], tuple[list[list[float]], Callable[[Any], float]]] | None = None
    fits: Callable[[str], bool] = _always

    def per_row(self, expected: str, answer: str) -> float:
        """The score of one answer by itself."""
        return self.scores([expected], [answer], "auto")[0]

    def corpus(self, expected: Texts, answers: Texts, words: Words = "auto") -> float:
        """The score of a set of answers. Raises ValueError for none."""
        if not expected:
            raise ValueError("no rows")
        if self.sums is not None:
            rows, statistic = self.sums(expected, answers)
            return statistic([sum(column) for column in zip(*rows, strict=True)])
        found = self.scores(expected, answers, words)
        return sum(found) / len(found)


def named(names: Sequence[str]) -> list[str]:
    """The names of metrics a person gave, each once. Raises UsageError for one that is none
    (E-EVAL-20)."""
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise UsageError(
            problem(
                "E-EVAL-20", "--metrics", names=", ".join(unknown) or "-", known=", ".join(METRICS)
            )
        )
    return list(dict.fromkeys(names))


def per_row(name: str, expected: Texts, answers: Texts, *, words: Words = "auto") -> list[float]:
    """The score of every row. Raises ValueError for lists of different lengths."""
    _check_lengths(expected, answers)
    return METRICS[name].scores(expected, answers, words)


def figure(
    name: str, expected: Texts, answers: Texts, *, seed: int = 0, words: Words = "auto"
) -> dict[str, Any]:
    """{"value", "interval_95", "n", "scale", "left_out"} of a set of answers; value and interval
    are None where no row could be judged. `how` says what a value depends on (BLEU's tokens).
    Raises ValueError for lists of different lengths."""
    _check_lengths(expected, answers)
    metric = METRICS[name]
    pairs = [(e, a) for e, a in zip(expected, answers, strict=True) if metric.fits(e)]
    out: dict[str, Any] = {"value": None, "interval_95": None, "n": len(pairs)}
    out |= {"scale": metric.scale, "left_out": len(expected) - len(pairs)}
    if not pairs:
        return out
    expected, answers = [e for e, _ in pairs], [a for _, a in pairs]
    if metric.sums is None:
        found = metric.scores(expected, answers, words)
        out["value"] = sum(found) / len(found)
        out["interval_95"] = list(interval.of_scores(found, metric.scale, seed=seed))
        return out
    rows, statistic = metric.sums(expected, answers)
    value = statistic([sum(column) for column in zip(*rows, strict=True)])
    low, high = interval.bootstrap_of(rows, statistic, seed=seed)
    if low == high:  # one row, or every row the same: see interval.of_scores
        low, high = interval.of_scores([value] * len(pairs), metric.scale)
    how = {"how": f"sacrebleu, tokens: {bleu_tokens(expected)}"} if name == "bleu" else {}
    return out | {"value": value, "interval_95": [low, high]} | how


def _check_lengths(expected: Texts, answers: Texts) -> None:
    if len(expected) != len(answers):
        raise ValueError(f"{len(expected)} expected answers, {len(answers)} answers")


def chosen_for(expected: Texts) -> list[str]:
    """The metrics that suit these expected answers, the most telling first.

    JSON where nine of ten are objects or lists; numbers where nine of ten are a number or end in
    one as GSM8K's do; for short answers whether they are met or contained and the words they share;
    for longer ones also BLEU, chrF and ROUGE-L.
    """
    filled = [text for text in expected if text.strip()]
    if not filled:
        return ["exact", "normalised"] if expected else []
    if _most(map(_is_structure, filled), len(filled)):
        return ["exact", "json", "json_equal"]
    if _most(map(_is_number, filled), len(filled)):
        return ["exact", "normalised", "number"]
    if median(len(words_of(text)) for text in filled) <= SHORT_WORDS:
        return ["exact", "normalised", "contains", "f1"]
    return ["exact", "normalised", "f1", "bleu", "chrf", "rougeL"]


SHORT_WORDS = 8
"""An answer of at most so many words is rather met than resembled."""


def _most(claims: Any, count: int) -> bool:
    return 10 * sum(claims) >= 9 * count


def _is_structure(text: str) -> bool:
    try:
        return isinstance(json_value(text), dict | list)
    except ValueError:
        return False


_BARE_NUMBER = re.compile(r"[^\w\s]?\s*[-+−]?[\d.,/\s]*\d\s*[^\w\s]?\s*\w{0,3}")


def _is_number(text: str) -> bool:
    marked = "####" in text or "\\boxed{" in text
    return (marked or _BARE_NUMBER.fullmatch(text.strip()) is not None) and _has_number(text)


# ---- right or wrong


def _each(judge: Callable[[str, str], float]) -> Callable[[Texts, Texts, Words], list[float]]:
    return lambda expected, answers, words: [
        float(judge(e, a)) for e, a in zip(expected, answers, strict=True)
    ]


def _exact(expected: str, answer: str) -> bool:
    return comparing.matches(expected, answer)[0]


def _normalised(expected: str, answer: str) -> bool:
    return comparing.matches(expected, answer)[1]


def _contains(expected: str, answer: str) -> bool:
    return comparing.contains(answer, expected)


def _has_text(expected: str) -> bool:
    return bool(expected.strip())


def _has_number(expected: str) -> bool:
    return final_number(expected) is not None


def _number(expected: str, answer: str) -> bool:
    wanted, found = final_number(expected), final_number(answer)
    return wanted is not None and found is not None and is_near(found, wanted, NumericConfig())


def _json(expected: str, answer: str) -> bool:
    try:
        json_value(answer)
    except ValueError:
        return False
    return True


def _has_json(expected: str) -> bool:
    return _json("", expected)


def _json_equal(expected: str, answer: str) -> bool:
    try:
        return _same(json_value(expected), json_value(answer))
    except (ValueError, RecursionError):
        return False


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON: 1 is 1.0, and neither is true."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


# ---- words in common


_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_SINGLE = re.compile(r"[\u3400-\u9fff\u3040-\u30ff\uf900-\ufaff\U00020000-\U000323af]")


def f1_words(text: str, unspaced: bool) -> list[str]:
    """SQuAD's words: lower case, without ASCII punctuation and English articles. `unspaced`: MLQA's
    for Chinese: without any punctuation, characters of scripts without spaces one by one."""
    text = text.lower()
    if not unspaced:
        bare = "".join(c for c in text if c not in string.punctuation)
        return _ARTICLES.sub(" ", bare).split()
    bare = "".join(
        c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P"
    )
    return _SINGLE.sub(lambda found: f" {found[0]} ", bare).split()


def _f1(expected: str, answer: str) -> float:
    unspaced = has_no_spaces(expected) or has_no_spaces(answer)
    wanted, given = f1_words(expected, unspaced), f1_words(answer, unspaced)
    if not wanted or not given:
        return float(wanted == given)
    same = sum((Counter(wanted) & Counter(given)).values())
    return 2 * same / (len(wanted) + len(given))


class _Words:
    """What rouge-score asks of a tokenizer: its own for texts in Latin letters, of which it knows
    a-z and digits alone; else words in any script, Chinese by character or by jieba."""

    def __init__(self, words: Words):
        self.words = words

    def tokenize(self, text: str) -> list[str]:
        if self.words == "jieba":
            return [word for word in _cut(text.lower()) if words_of(word)]
        return words_of(text.lower())


def _cut(text: str) -> list[str]:
    """Chinese words. Raises UsageError where jieba is not installed (E-EVAL-21)."""
    try:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jieba reads pkg_resources, which warns of its end
            import jieba
    except ImportError as e:
        raise UsageError(problem("E-EVAL-21", "--words jieba", package="jieba")) from e
    jieba.setLogLevel("ERROR")
    return list(jieba.cut(text))


def _beyond_latin(text: str) -> bool:
    return any(c > "\u024f" and c.isalpha() for c in text)


def _rouge(kind: str) -> Callable[[Texts, Texts, Words], list[float]]:
    def scores(expected: Texts, answers: Texts, words: Words) -> list[float]:
        from rouge_score.rouge_scorer import RougeScorer

        latin = RougeScorer([kind])
        other = RougeScorer([kind], tokenizer=_Words(words))
        return [
            float((other if _beyond_latin(e) or _beyond_latin(a) else latin).score(e, a)[kind][2])
            for e, a in zip(expected, answers, strict=True)
        ]

    return scores


# ---- sacrebleu


_KANA = re.compile(r"[\u3040-\u30ff]")


def bleu_tokens(expected: Texts) -> str:
    """sacrebleu's tokenizer for these texts: 13a; zh where any holds Chinese characters, which it
    parts one by one; char where kana are more than a tenth of those."""
    text = "".join(expected)
    if not has_no_spaces(text):
        return "13a"
    return "char" if 10 * len(_KANA.findall(text)) > len(_SINGLE.findall(text)) else "zh"


def _sacre(kind: str, expected: Texts, *, single: bool) -> Any:
    from sacrebleu.metrics import BLEU, CHRF

    if kind == "chrf":
        return CHRF()
    return BLEU(tokenize=bleu_tokens(expected), effective_order=single)


def _statistics(metric: Any, expected: Texts, answers: Texts) -> list[list[float]]:
    """What a row adds to the whole: sacrebleu's own numbers, which its bootstrap draws from too."""
    return cast("list[list[float]]", metric._extract_corpus_statistics(answers, [expected]))


def _sacre_scores(kind: str, expected: Texts, answers: Texts, words: Words) -> list[float]:
    if not expected:
        return []
    metric = _sacre(kind, expected, single=True)
    rows = _statistics(metric, expected, answers)
    return [float(metric._compute_score_from_stats(list(row)).score) for row in rows]


def _sacre_sums(
    kind: str, expected: Texts, answers: Texts
) -> tuple[list[list[float]], Callable[[Any], float]]:
    metric = _sacre(kind, expected, single=False)

    def statistic(sums: Any) -> float:
        return float(metric._compute_score_from_stats([int(value) for value in sums]).score)

    return _statistics(metric, expected, answers), statistic


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("exact", 1, _each(_exact)),
        Metric("normalised", 1, _each(_normalised)),
        Metric("contains", 1, _each(_contains), fits=_has_text),
        Metric("number", 1, _each(_number), fits=_has_number),
        Metric("f1", 1, _each(_f1)),
        Metric("bleu", 100, partial(_sacre_scores, "bleu"), partial(_sacre_sums, "bleu")),
        Metric("chrf", 100, partial(_sacre_scores, "chrf"), partial(_sacre_sums, "chrf")),
        *(Metric(kind, 1, _rouge(kind)) for kind in ("rouge1", "rouge2", "rougeL")),
        Metric("json", 1, _each(_json)),
        Metric("json_equal", 1, _each(_json_equal), fits=_has_json),
    )
}
