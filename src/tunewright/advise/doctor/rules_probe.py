"""Rules about what the base and the trained model say of the same rows.

A training leaves its mark where its labels stood: what was to be predicted there has become
likelier than the base has it. So each rule compares what became likelier with what ought to have.
"""

from __future__ import annotations

import math

from tunewright.advise.doctor.facts import Facts, Probed, Scores
from tunewright.advise.doctor.outcome import BARELY, GAIN, KNOWN, RIGHT, learnt, right_share
from tunewright.record.diagnosis import Finding

SHIFT_MARGIN = 0.5
"""Nats a token by which another offset must be likelier than the next token, and the margin over
the base: no untouched model and no training on aligned labels comes near."""
SHIFT_GAIN = 1.0
PAD_LIKELY = math.log(0.5)
"""Padding that is likelier than all other tokens together was learnt."""
PAD_GAIN = 1.0
PROMPT_GAIN = 0.7
PROMPT_SHARE = 0.5
"""Nats a token, and share of the answers' gain: training on answers alone moves the words of the
questions by less."""
APART, NEAR = 0.5, 0.25
"""Nats by which the losses of answers and of whole rows must differ to tell them apart, and the
share of that within which a first loss counts as that of the answers."""
STOP_UNLIKELY = math.log(0.2)
"""The stop token is not what the model writes after an answer that it knows."""
ANSWER_KNOWN = -0.7
"""Mean log-probability from which on the tokens of an answer are mostly what it would write."""
FIRST_UNLIKELY = math.log(0.1)
LATER_KNOWN = -0.3
TEMPLATE_MARGIN, TEMPLATE_GAIN = 0.5, 0.3
TEMPLATE_KNOWN = -2.0
"""A form in which the answers are less likely than this is not the one that was taught."""
NO_EFFECT = 1e-4
"""Nats: rounding of float32 over a few dozen layers is below this, any training above."""
MUCH_EARLY = math.log(0.5)
CUT_TOKENS = 12
"""Tokens of answers on each side of a place at which they seem cut."""
CUT_BEFORE, CUT_BEHIND = 1.0, 0.3
"""Nats gained before the place, at least, and behind it, at most."""
WORSE = 0.5
FIRST_HIGH, FIRST_HIGH_TIMES = 1.0, 1.1
"""Nats by which the first logged loss must lie above that of the base on these rows, and so many
times above that of the hardest row: a first batch of hard rows is no fault."""
STARTS_ELSEWHERE = ("prompt", "prefix", "p_tuning", "cpt")
"""Methods that do not begin as the base: their first loss is that of random virtual tokens."""


def labels_shifted(facts: Facts) -> Finding | None:
    """What became likely is not the next token but the one just read, or the one after the next."""
    probed = _probed(facts)
    tuned, base = probed.tuned.by_offset, probed.base.by_offset if probed.base else {}
    if 1 not in tuned or not probed.tuned.finite:
        return None
    best = max(tuned, key=lambda offset: tuned[offset])
    gain = tuned[best] - base.get(best, -math.inf)
    aligned_gain = tuned[1] - base.get(1, -math.inf)
    if best == 1 or tuned[best] - tuned[1] < SHIFT_MARGIN:
        return None
    # A tiny untrained model repeats what it reads: what counts is what training added.
    if base and (gain < SHIFT_MARGIN or gain - aligned_gain < SHIFT_GAIN):
        return None
    return Finding(
        "labels_shifted",
        "bad",
        {
            "offset": best,
            "by": best - 1,
            "likely_share": math.exp(tuned[best]),
            "aligned_share": math.exp(tuned[1]),
            "base_share": math.exp(base[1]) if base else None,
            "rows": probed.rows,
        },
    )


def first_loss_high(facts: Facts) -> Finding | None:
    """The first logged loss is far above what the base says of these rows: it was that of other
    labels. Seen even where the training has moved nothing."""
    probed, course = _probed(facts), facts.course
    assert course is not None
    if probed.base is None or probed.pairs or course.rewarded or _is_ours(facts):
        return None
    if not course.losses or any(name in course.method for name in STARTS_ELSEWHERE):
        return None
    first, base = course.losses[0], probed.base
    usual = max(base.taught, base.whole)
    if not math.isfinite(first) or not first >= usual + FIRST_HIGH:
        return None
    if not first >= FIRST_HIGH_TIMES * base.hardest_row:
        return None
    figures = {"first": first, "base": usual, "hardest": base.hardest_row}
    return Finding("first_loss_high", "bad", figures | {"rows": probed.rows})


def padding_learnt(facts: Facts) -> Finding | None:
    """After the end of an answer padding is what the model writes.

    A small model that learnt to stop goes on stopping by itself, so padding that is the stop token
    is named only beside labels that are shifted anyway.
    """
    probed = _probed(facts)
    if probed.pad_is_stop and labels_shifted(facts) is None:
        return None
    before = probed.base.pad if probed.base else -math.inf
    if not probed.tuned.pad >= PAD_LIKELY or probed.tuned.pad - before < PAD_GAIN:
        return None
    return Finding(
        "padding_learnt",
        "warn" if probed.pad_is_stop else "bad",
        {
            "likely_share": math.exp(probed.tuned.pad),
            "base_share": math.exp(before) if probed.base else None,
            "rows": probed.rows,
        },
    )


def prompt_learnt(facts: Facts) -> Finding | None:
    """The words of the questions became about as much likelier as the answers."""
    probed = _probed(facts)
    if probed.base is None or not math.isfinite(probed.tuned.prompt) or _is_ours(facts):
        return None
    prompt = probed.tuned.prompt - probed.base.prompt
    answer = probed.tuned.answer - probed.base.answer
    if not prompt >= PROMPT_GAIN or prompt < PROMPT_SHARE * answer:
        return None
    if _began_with_answers(facts, probed.base):
        return None
    instead = answer < PROMPT_SHARE * prompt
    return Finding(
        "prompt_learnt_instead" if instead else "prompt_learnt",
        "bad" if instead else "warn",
        {"prompt_gain": prompt, "answer_gain": answer, "rows": probed.rows},
    )


def _began_with_answers(facts: Facts, base: Scores) -> bool:
    """Whether the first logged loss is that of the answers alone and clearly not that of the whole
    rows: what became likelier of the questions followed by itself."""
    if facts.course is None or not facts.course.losses:
        return False
    apart = abs(base.whole - base.taught)
    return apart >= APART and abs(facts.course.losses[0] - base.taught) < NEAR * apart


def stop_not_learnt(facts: Facts) -> Finding | None:
    """The model knows the answers and goes on behind them."""
    probed = _probed(facts)
    tuned, base = probed.tuned, probed.base
    if not tuned.answer >= ANSWER_KNOWN or not tuned.stop < STOP_UNLIKELY:
        return None
    # Held-out answers of a base that never stops either: nothing was taught.
    if base is not None and tuned.answer - base.answer < GAIN:
        return None
    if base is not None and tuned.stop - base.stop > SHIFT_GAIN and tuned.stop > math.log(0.05):
        return None  # on its way
    return Finding(
        "stop_unlikely",
        "bad",
        {
            "stop_share": math.exp(tuned.stop),
            "base_share": math.exp(base.stop) if base else None,
            "answer_share": math.exp(tuned.answer),
            "rows": probed.rows,
        },
    )


def first_token_not_learnt(facts: Facts) -> Finding | None:
    """All of an answer is known but its first token: the labels begin one too late."""
    probed = _probed(facts)
    tuned, base = probed.tuned, probed.base
    if not tuned.later >= LATER_KNOWN or not tuned.first < FIRST_UNLIKELY:
        return None
    if base is None or tuned.first - base.first > GAIN or tuned.later - base.later < SHIFT_GAIN:
        return None
    return Finding(
        "first_token_not_learnt",
        "bad",
        {
            "first_share": math.exp(tuned.first),
            "later_share": math.exp(tuned.later),
            "rows": probed.rows,
        },
    )


def template_differs(facts: Facts) -> Finding | None:
    """Asked in another form, the model answers far better than in that of its chat."""
    probed = _probed(facts)
    chat = probed.templates.get("chat")
    if chat is None or len(probed.templates) < 2 or (right_share(facts.asked) or 0.0) >= RIGHT:
        return None
    name, (base, tuned) = max(
        ((k, v) for k, v in probed.templates.items() if k != "chat"), key=lambda item: item[1][1]
    )
    gain, chat_gain = tuned - base, chat[1] - chat[0]
    if tuned < TEMPLATE_KNOWN or tuned - chat[1] < TEMPLATE_MARGIN:
        return None
    if gain < TEMPLATE_GAIN or gain - chat_gain < TEMPLATE_GAIN:
        return None
    return Finding(
        "template_differs",
        "bad",
        {
            "form": name,
            "form_share": math.exp(tuned),
            "chat_share": math.exp(chat[1]),
            "rows": probed.rows,
        },
    )


def no_effect(facts: Facts) -> Finding | None:
    """The trained model computes what the base computes."""
    probed = _probed(facts)
    if probed.effect is None or not probed.effect <= NO_EFFECT:
        return None
    return Finding("no_effect", "bad", {"difference": probed.effect, "rows": probed.rows})


def values_not_finite(facts: Facts) -> Finding | None:
    """The trained model gives no numbers."""
    probed = _probed(facts)
    if probed.tuned.finite:
        return None
    return Finding("output_not_finite", "bad", {"rows": probed.rows})


def answers_cut_at(facts: Facts) -> Finding | None:
    """What stands behind one and the same place of all rows was not learnt: they were cut there."""
    probed = _probed(facts)
    if probed.base is None or len(probed.base.by_place) != len(probed.tuned.by_place):
        return None
    gains = sorted(
        (place, tuned - base, tuned)
        for (place, tuned), (_, base) in zip(
            probed.tuned.by_place, probed.base.by_place, strict=True
        )
    )
    best: tuple[float, int, float, float] | None = None
    for place in sorted({place for place, _, _ in gains})[1:]:
        before = [(gain, told) for at, gain, told in gains if at < place]
        behind = [(gain, told) for at, gain, told in gains if at >= place]
        if min(len(before), len(behind)) < CUT_TOKENS:
            continue
        low, high = _mean([g for g, _ in before]), _mean([g for g, _ in behind])
        known, unknown = _mean([t for _, t in before]), _mean([t for _, t in behind])
        is_cut = low >= CUT_BEFORE and high <= CUT_BEHIND * low and known - unknown >= CUT_BEFORE
        if is_cut and known >= ANSWER_KNOWN and (best is None or low - high > best[0]):
            best = (low - high, place, low, high)
    if best is None:
        return None
    _, place, low, high = best
    return Finding(
        "answers_cut_at",
        "bad",
        {"place": place, "before_gain": low, "behind_gain": high, "rows": probed.rows},
    )


def stops_at_once(facts: Facts) -> Finding | None:
    """The likeliest beginning of an answer is its end."""
    probed = _probed(facts)
    tuned, base = probed.tuned, probed.base
    if not tuned.early_stop >= MUCH_EARLY:
        return None
    if base is not None and tuned.early_stop - base.early_stop < SHIFT_MARGIN:
        return None
    return Finding(
        "stops_at_once", "bad", {"stop_share": math.exp(tuned.early_stop), "rows": probed.rows}
    )


def answers_unlearnt(facts: Facts) -> Finding | None:
    """The answers became no likelier, or less likely."""
    probed = _probed(facts)
    if probed.base is None or probed.pairs or not probed.tuned.finite:
        return None
    if learnt(facts) is not False:
        return None
    base, tuned = -probed.base.answer, -probed.tuned.answer
    if base <= KNOWN or base - tuned >= max(GAIN, BARELY * base):
        return None
    worse = tuned - base > WORSE
    return Finding(
        "answers_worse" if worse else "answers_not_learnt",
        "bad",
        {"base": base, "tuned": tuned, "rows": probed.rows},
    )


def _is_ours(facts: Facts) -> bool:
    """Whether it is a run of ours, whose labels stand where they should: words of the questions
    that became likelier stand in the answers, too."""
    return facts.course is not None and bool(facts.course.objective)


def _probed(facts: Facts) -> Probed:
    assert facts.probed is not None
    return facts.probed


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def scores_of_nothing() -> Scores:
    """Scores of a model that gives no numbers."""
    nan = math.nan
    return Scores(nan, nan, nan, nan, nan, nan, nan)
