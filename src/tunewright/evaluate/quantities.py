"""Answers that are numbers: how far off they are, whether their order is right, whether the best of
several candidates is found; and whether any of it needs a language model.

Next to the model stand the best constant (the median of the expected values) and the best simple
predictor (`baseline.compared`: a formula, trees or words over the question), each on rows that it
did not learn from. Where one of them does as well, that is said. An answer without a number is
worth what the constant is worth, so that silence is no advantage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunewright.core.config import DataConfig
from tunewright.core.errors import UsageError, problem
from tunewright.core.types import Origin
from tunewright.core.words import say
from tunewright.data.beside import columns_beside
from tunewright.evaluate import baseline
from tunewright.evaluate.fits import LARGEST
from tunewright.evaluate.interval import Z95, bootstrap, of_scores, paired
from tunewright.rewards.numeric import final_number, numbers_with_words

if TYPE_CHECKING:
    from tunewright.evaluate.written import Asked

LONGEST = 40
"""Characters of an expected answer that is a number and little else: longer ones are solutions."""
NEARLY_ALL = 0.9
LEAST_VALUES, LEAST_ROWS = 3, 8
"""Fewer different values are labels; of fewer rows no baseline can learn."""


def are_quantities(expected: Sequence[str]) -> bool:
    """Whether expected answers are numbers: nine tenths are short and hold exactly one, and there
    are at least three different ones."""
    values = [_only_number(text) for text in expected]
    found = [value for value in values if value is not None]
    return (
        len(expected) >= LEAST_ROWS
        and len(found) >= NEARLY_ALL * len(expected)
        and len(set(found)) >= LEAST_VALUES
    )


def _only_number(text: str) -> float | None:
    """The number of a short text that has one."""
    if len(text.strip()) > LONGEST or len(numbers_with_words(text)) != 1:
        return None
    return _number(text)


def _number(text: str) -> float | None:
    """The number that an answer ends with, as a float of any sane size."""
    found = final_number(text)
    if found is None or abs(found) > LARGEST:
        return None
    return float(found)


def measured(
    asked: Sequence[Asked], settings: DataConfig, column: str | None, highest: bool, seed: int
) -> dict[str, Any]:
    """{"numbers": figures} of answered rows whose expected answers are numbers, else nothing.
    `column` of the rows' files says which are candidates of one choice. Raises as `measure` and
    `groups_of` do."""
    groups = None
    if column is not None:
        origins = [one.row.origin for one in asked]
        groups = groups_of(origins, columns_beside(settings, origins), column)
    texts = [baseline.question_text(one.row) for one in asked]
    expected, answers = [one.expected for one in asked], [one.text for one in asked]
    found = measure(expected, answers, texts, groups=groups, highest=highest, seed=seed)
    return {} if found is None else {"numbers": found}


def measure(
    expected: Sequence[str],
    answers: Sequence[str],
    texts: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    highest: bool = True,
    seed: int = 0,
) -> dict[str, Any] | None:
    """The figures of answers to questions (`texts`) whose expected answers are numbers (keys in
    docs/numbers.md); None where they are not. Rows of one of `groups` are candidates of one
    choice, of which the `highest` (or the lowest) expected value is the right one. Raises
    UsageError (E-EXAM-11) for groups of answers that are not numbers."""
    if not are_quantities(expected):
        if groups is not None:
            raise UsageError(problem("E-EXAM-11", "--group"))
        return None
    wanted = [_only_number(text) for text in expected]
    kept = [i for i, value in enumerate(wanted) if value is not None]
    values = [value for value in wanted if value is not None]
    given = [_number(answers[i]) for i in kept]
    compared = baseline.compared([texts[i] for i in kept], values, seed=seed)
    found = report(values, given, compared)
    found["left_out"] = len(expected) - len(kept)
    if groups is not None:
        chosen = [groups[i] for i in kept]
        simple = compared.predictions[compared.best]
        found["top_1"] = top_1(values, _filled(values, given), simple, chosen, highest=highest)
    return found


def groups_of(
    origins: Sequence[Origin], columns: Mapping[Origin, Mapping[str, Any]], column: str
) -> list[str]:
    """What stands in `column` of the file's row at each origin. Raises UsageError (E-EXAM-10)
    where a row has no such column."""
    found = []
    for origin in origins:
        value = columns.get(origin, {}).get(column)
        if value is None:
            raise UsageError(problem("E-EXAM-10", str(origin), column=column))
        found.append(str(value))
    return found


def _filled(expected: Sequence[float], given: Sequence[float | None]) -> list[float]:
    """The numbers that were given, with the constant where there is none."""
    middle = float(baseline.constant(expected))
    return [middle if value is None else value for value in given]


def report(
    expected: Sequence[float], given: Sequence[float | None], compared: baseline.Compared
) -> dict[str, Any]:
    """Errors and order of the model's numbers, the constant's and the simple predictor's, and
    whether the model is better than each. `given` is None where an answer has no number."""
    filled = _filled(expected, given)
    simple = _figures(expected, compared.predictions[compared.best])
    against = {
        "constant": _against(expected, filled, compared.predictions["constant"]),
        "simple": _against(expected, filled, compared.predictions[compared.best]),
    }
    return {
        "n": len(expected),
        "without_number": sum(value is None for value in given),
        **_figures(expected, filled),
        "constant": {
            "value": baseline.constant(expected),
            **_figures(expected, compared.predictions["constant"]),
        },
        "simple": {
            "kind": compared.best,
            "formula": compared.formula,
            "suffices": compared.suffices,
            "explained": compared.explained,
            **simple,
        },
        "against": against,
        "verdict": _verdict(against, compared.best),
    }


def _figures(expected: Sequence[float], given: Sequence[float]) -> dict[str, Any]:
    errors = [abs(a - b) for a, b in zip(expected, given, strict=True)]
    ordered = sorted(errors)
    return {
        "mean_absolute_error": math.fsum(errors) / len(errors),
        "mean_absolute_error_interval_95": list(bootstrap(errors)),
        "median_absolute_error": baseline.constant(ordered),
        **dict(zip(("spearman", "spearman_interval_95"), spearman(expected, given), strict=True)),
    }


def spearman(a: Sequence[float], b: Sequence[float]) -> tuple[float | None, list[float] | None]:
    """Rank correlation with its 95 % interval (Fisher's z with the variance of Bonett and Wright
    2000); None where one side has a single value."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None, None
    from scipy.stats import spearmanr

    found = max(-1.0, min(1.0, float(spearmanr(a, b).statistic)))
    if len(a) <= 3:
        return found, [-1.0, 1.0]
    # Fisher's z has no end at 1: the largest value counts that n rows can tell from it.
    most = 1 - 1 / len(a) ** 2
    z = math.atanh(max(-most, min(most, found)))
    half = Z95 * math.sqrt((1 + found * found / 2) / (len(a) - 3))
    low, high = math.tanh(z - half), math.tanh(z + half)
    return found, [min(low, found), max(high, found)]


def _against(
    expected: Sequence[float], given: Sequence[float], other: Sequence[float]
) -> dict[str, Any]:
    """How much smaller the other's errors are, on the same rows."""
    ours = [abs(a - b) for a, b in zip(expected, given, strict=True)]
    theirs = [abs(a - b) for a, b in zip(expected, other, strict=True)]
    found = paired(theirs, ours)
    return {
        "difference": found.difference,
        "interval_95": [found.low, found.high],
        "closer": found.losses,
        "farther": found.wins,
        "equal": found.ties,
        "better": found.high < 0,
        "worse": found.low > 0,
    }


def _verdict(against: dict[str, dict[str, Any]], kind: str) -> str:
    """In a word who wins: `model`, `constant` or `simple` where one is better beyond chance, else
    `equal`. The constant is the simpler one, so it is named first."""
    if not against["constant"]["better"] and kind == "constant":
        return "constant" if against["constant"]["worse"] else "equal"
    if against["simple"]["worse"]:
        return "simple"
    if against["constant"]["worse"]:
        return "constant"
    if against["constant"]["better"] and against["simple"]["better"]:
        return "model"
    return "equal"


# ---- the best of several


def top_1(
    expected: Sequence[float],
    given: Sequence[float],
    simple: Sequence[float],
    groups: Sequence[str],
    *,
    highest: bool = True,
) -> dict[str, Any] | None:
    """In how many groups the candidate with the best given value has the best expected one; equal
    candidates share the point. None where no group has two candidates."""
    choices: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        choices.setdefault(group, []).append(row)
    asked = [rows for rows in choices.values() if len(rows) > 1]
    if not asked:
        return None
    sign = 1.0 if highest else -1.0
    points = {
        name: [_point(rows, expected, values, sign) for rows in asked]
        for name, values in (("model", given), ("simple", simple))
    }
    chance = [_point(rows, expected, [0.0] * len(expected), sign) for rows in asked]
    found = paired(points["simple"], points["model"])
    return {
        "groups": len(asked),
        "alone": len(choices) - len(asked),
        "share": sum(points["model"]) / len(asked),
        "interval_95": list(of_scores(points["model"])),
        "chance": sum(chance) / len(asked),
        "simple": sum(points["simple"]) / len(asked),
        "simple_interval_95": list(of_scores(points["simple"])),
        "difference_to_simple": found.difference,
        "difference_interval_95": [found.low, found.high],
    }


def _point(
    rows: Sequence[int], expected: Sequence[float], given: Sequence[float], sign: float
) -> float:
    """The chance that a right candidate is taken, where ties are drawn."""
    top = max(sign * given[i] for i in rows)
    best = max(sign * expected[i] for i in rows)
    taken = [i for i in rows if sign * given[i] == top]
    return sum(sign * expected[i] == best for i in taken) / len(taken)


# ---- for a terminal


def lines(found: dict[str, Any]) -> list[str]:
    """The figures for a terminal, in the reader's language."""

    def shown(one: dict[str, Any]) -> dict[str, str]:
        low, high = one["mean_absolute_error_interval_95"]
        order = "-" if one["spearman"] is None else f"{one['spearman']:.2f}"
        if one["spearman_interval_95"] is not None:
            order += " ({:.2f} .. {:.2f})".format(*one["spearman_interval_95"])
        error = one["mean_absolute_error"]
        median = f"{one['median_absolute_error']:.4g}"
        return {
            "error": f"{error:.4g}",
            "low": f"{low:.4g}",
            "high": f"{high:.4g}",
            "median": median,
            "order": order,
        }

    simple = found["simple"]
    out = [
        say("numbers.model", n=found["n"], **shown(found)),
        say(
            "numbers.constant", value=f"{found['constant']['value']:g}", **shown(found["constant"])
        ),
        say("numbers.simple", kind=say(f"numbers.kind.{simple['kind']}"), **shown(simple)),
    ]
    if found["without_number"]:
        out.append(say("numbers.without", count=found["without_number"], n=found["n"]))
    if "top_1" in found and found["top_1"] is not None:
        best = found["top_1"]
        low, high = (f"{100 * v:.0f} %" for v in best["interval_95"])
        shares = {k: f"{100 * best[k]:.0f} %" for k in ("share", "chance", "simple")}
        out.append(say("numbers.top_1", groups=best["groups"], low=low, high=high, **shares))
    out.append(
        say(f"numbers.verdict.{found['verdict']}", kind=say(f"numbers.kind.{simple['kind']}"))
    )
    if simple["suffices"] == "formula":
        out.append(say("numbers.formula", formula=simple["formula"]))
    elif simple["suffices"] == "regressor":
        share = f"{100 * simple['explained']:.0f} %"
        kind = say(f"numbers.kind.{simple['kind']}")
        out.append(say("numbers.regressor", share=share, kind=kind))
    return out
