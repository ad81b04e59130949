"""Rules about the answers: all alike, empty, endless, those of other rows, lost on the way to the
disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tunewright.advise.doctor.facts import Asked, Facts
from tunewright.advise.doctor.outcome import RIGHT, expected_of, right_share
from tunewright.core.comparing import contains, normalised
from tunewright.record.diagnosis import Finding

FEWEST = 3
"""Questions below which answers that are alike may be chance."""
ALIKE = 0.8
"""From this share of one and the same answer on a model has one answer to everything."""
EXPECTED_ALIKE = 0.5
"""Unless the expected answers are so much alike themselves."""
ROWS = ("train", "held_out")
"""Kinds of questions that are rows of the data, not the person's own."""
LOST = 0.5
"""Share of the rightly answered questions that must be left for a training to have done no harm."""
EMPTY = 0.5
ENDLESS = 0.5
SHIFTED_ROWS = 0.6
"""Share of the answers that must be those of the row at one and the same distance."""
FORGOTTEN, FEWEST_GENERAL = 0.5, 4
"""Share of general questions that were answered right before and are wrong now."""


def collapse(facts: Facts) -> Finding | None:
    """Different questions get one and the same answer."""
    known = expected_of(facts.asked)
    if len(known) < FEWEST:
        return _collapse_of_prompts(facts)
    answers = [normalised(one.after) for one in known]
    top, count = Counter(answers).most_common(1)[0]
    expected = Counter(normalised(one.expected) for one in known).most_common(1)[0][1]
    if not top or count < ALIKE * len(known) or expected > EXPECTED_ALIKE * len(known):
        return None
    if (right_share(known) or 0.0) >= RIGHT or _was_so(known, top):
        return None
    shown = next(one.after for one in known if normalised(one.after) == top)
    return Finding(
        "collapse", "bad", {"count": count, "asked": len(known), "answer": _short(shown)}
    )


def _collapse_of_prompts(facts: Facts) -> Finding | None:
    """The same of a run that learns from rewards, whose rows expect nothing: what had different
    answers before has one now. It may be what the reward wants."""
    asked = _prompts(facts)
    if len({one.question for one in asked}) < FEWEST:
        return None
    after = Counter(normalised(one.after) for one in asked)
    before = Counter(normalised(one.before or "") for one in asked)
    top, count = after.most_common(1)[0]
    if not top or count < ALIKE * len(asked):
        return None
    if before.most_common(1)[0][1] > EXPECTED_ALIKE * len(asked):
        return None
    shown = next(one.after for one in asked if normalised(one.after) == top)
    return Finding(
        "collapse", "warn", {"count": count, "asked": len(asked), "answer": _short(shown)}
    )


def _prompts(facts: Facts) -> list[Asked]:
    """Rows of a run that learns from rewards, which expect nothing."""
    if facts.course is None or not facts.course.rewarded:
        return []
    return [one for one in facts.asked or () if one.kind in ROWS and one.before is not None]


def _was_so(known: Sequence[Asked], top: str) -> bool:
    """Whether the base gave this one answer already, so that training did not bring it about."""
    before = [normalised(one.before) for one in known if one.before is not None]
    return bool(before) and sum(text == top for text in before) >= ALIKE * len(before)


def empty_answers(facts: Facts) -> Finding | None:
    """The model ends before it has said anything."""
    known = expected_of(facts.asked) or _prompts(facts)
    if len(known) < FEWEST:
        return None
    # What was cut off was not empty: it held nothing but special tokens.
    count = sum(not one.after.strip() and not one.cut for one in known)
    before = sum(
        one.before is not None and not one.before.strip() and not one.cut_before for one in known
    )
    if count < EMPTY * len(known) or count <= before:
        return None
    return Finding("empty_answers", "bad", {"count": count, "asked": len(known)})


def endless_answers(facts: Facts) -> Finding | None:
    """Answers go on to the length limit, though the training had an end for each."""
    known = expected_of(facts.asked)
    course, data = facts.course, facts.data
    if len(known) < FEWEST or (course is not None and course.objective not in ("", "sft")):
        return None
    count = sum(one.cut for one in known)
    # What was not learnt at all does not end either; there the stop token is not to blame.
    begun = sum(one.cut and contains(one.after, one.expected) for one in known)
    if count < ENDLESS * len(known) or begun < ENDLESS * count:
        return None
    figures = {"count": count, "asked": len(known), "begun": begun}
    cut = data.truncated if data is not None else 0
    return Finding("stop_not_learnt", "bad", figures | {"truncated": cut})


def answers_lost(facts: Facts) -> Finding | None:
    """Most of what was answered right before the training is answered wrong after it."""
    known = expected_of(facts.asked)
    right = [one for one in known if one.before is not None and contains(one.before, one.expected)]
    kept = sum(contains(one.after, one.expected) for one in right)
    after = sum(contains(one.after, one.expected) for one in known)
    if len(right) < FEWEST or kept > LOST * len(right) or after > LOST * len(right):
        return None
    figures = {"before": len(right), "after": after, "asked": len(known)}
    return Finding("answers_lost", "bad", figures)


def rows_misaligned(facts: Facts) -> Finding | None:
    """Questions get the answers of their neighbours: the two columns slipped against each other."""
    known = [one for one in expected_of(facts.asked) if one.row is not None]
    texts = {one.row: normalised(one.expected) for one in known}
    if len(known) < FEWEST or len(set(texts.values())) < FEWEST:
        return None
    own, distances = 0, Counter[int]()
    for one in known:
        answer, expected = normalised(one.after), normalised(one.expected)
        own += answer == expected
        if not answer or answer == expected or one.row is None:
            continue
        for row, text in texts.items():
            if row is not None and text == answer and text != expected:
                distances[row - one.row] += 1
    if not distances:
        return None
    distance, count = distances.most_common(1)[0]
    if count < FEWEST or count <= own or count < SHIFTED_ROWS * (len(known) - own - abs(distance)):
        return None
    figures = {"count": count, "asked": len(known), "distance": distance, "right": own}
    return Finding("rows_misaligned", "bad", figures)


def reload_differs(facts: Facts) -> Finding | None:
    """The files that were saved answer otherwise than the model that was trained."""
    count = sum(one.differs for one in facts.asked or ())
    if not count:
        return None
    return Finding("reload_differs", "bad", {"count": count, "asked": len(facts.asked or ())})


def forgot(facts: Facts) -> Finding | None:
    """General questions that were answered right before and are wrong now."""
    general = [one for one in facts.asked or () if one.kind == "general" and one.expected.strip()]
    knew = [one for one in general if one.before is not None and contains(one.before, one.expected)]
    lost = sum(not contains(one.after, one.expected) for one in knew)
    if len(knew) < FEWEST_GENERAL or lost < FORGOTTEN * len(knew):
        return None
    figures = {"count": lost, "known": len(knew), "lost_share": lost / len(knew)}
    return Finding("forgot_general", "warn", figures)


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
