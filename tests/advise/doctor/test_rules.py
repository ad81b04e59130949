"""Each rule on both sides of its edges, and what they find together. The figures are written by
hand: no model, no file."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tunewright.advise.doctor.facts import Asked, Course, Data, Decoding, Facts, Probed, Scores
from tunewright.advise.doctor.facts import Weights as Files
from tunewright.advise.doctor.judging import EXPLAINS, RULES, all_codes, examine

NAN = math.nan
GOOD_COURSE = Course(
    objective="sft",
    method="lora",
    losses=[3.0, 2.5, 2.0, 1.4, 0.9, 0.6, 0.4, 0.3],
    rates=[2e-4] * 8,
    norms=[1.0] * 8,
    steps=80,
    held=[(0, 3.1), (40, 1.5), (80, 1.2)],
    held_kept=1.2,
    usual_rate=2e-4,
    wall="done",
)
GOOD_DATA = Data(rows=100, distinct=99, learnt_tokens=900, tokens=4000, read=100, held_out=10)
BASE = Scores(-3.0, -3.0, -3.0, -4.0, -3.0, -8.0, -9.0, {-1: -9, 0: -6, 1: -3, 2: -7, 3: -8})
TUNED = Scores(-0.2, -0.2, -0.2, -4.2, -0.1, -9.0, -9.0, {-1: -9, 0: -9, 1: -0.2, 2: -9, 3: -9})
GOOD_PROBE = Probed(32, BASE, TUNED, effect=3.0)
GOOD_FILES = Files("adapter", 56, 0, 28, same_base=True)
PLAIN = Decoding(20, {"do_sample": False}, longest=30)


def asked(after: list[str], expected: list[str], before: str = "no", **more: Any) -> list[Asked]:
    return [
        Asked(f"q{i}", e, a, f"{before} {i}", row=i, **more)
        for i, (a, e) in enumerate(zip(after, expected, strict=True))
    ]


NAMES = ["Tamsin", "Odric", "Hestrel", "Brann", "Larkwell", "Ola"]
GOOD_ANSWERS = asked([f"It is {name}." for name in NAMES], NAMES)
GOOD = Facts("good", GOOD_COURSE, GOOD_DATA, GOOD_ANSWERS, GOOD_PROBE, GOOD_FILES, PLAIN)


def codes(facts: Facts) -> list[str]:
    return [finding.code for finding in examine(facts).findings]


def only(group: str, **changes: Any) -> Facts:
    """Facts of one group, changed."""
    return Facts("x", **{group: replace(getattr(GOOD, group), **changes)})


def course(**changes: Any) -> list[str]:
    return codes(only("course", **changes))


def data(**changes: Any) -> list[str]:
    return codes(only("data", **changes))


def probe(**changes: Any) -> list[str]:
    return codes(only("probed", **changes))


def tuned(**changes: Any) -> list[str]:
    return probe(tuned=replace(TUNED, **changes))


def test_nothing_is_wrong_with_a_good_training() -> None:
    examination = examine(GOOD)
    assert list(examination.findings) == []
    assert sorted(examination.checked) == sorted(all_codes())
    assert list(examination.unchecked) == []


def test_a_rule_without_its_figures_is_named_and_not_asked() -> None:
    examination = examine(Facts("bare", course=GOOD_COURSE))
    assert "labels_shifted" in examination.unchecked
    assert "overfitting" in examination.checked
    assert not set(examination.checked) & set(examination.unchecked)


# ---- steps


def test_steps_that_are_not_finite() -> None:
    assert course(skipped=1) == ["nan_steps"]
    assert course(losses=[3.0, NAN, 2.0, 1.0, 0.5, 0.4], steps=6) == ["nan_steps"]
    assert course(norms=[1.0, NAN]) == ["nan_steps"]


def test_float16_may_skip_a_few_steps_to_find_its_scale() -> None:
    assert course(dtype="float16", skipped=3) == []
    assert course(dtype="float16", skipped=4) == ["nan_steps"]
    assert course(dtype="bfloat16", skipped=3) == ["nan_steps"]


def test_severity_of_steps_that_are_not_finite_follows_their_share() -> None:
    def severity(**changes: Any) -> str:
        return examine(only("course", **changes)).findings[0].severity

    assert severity(skipped=3) == "warn"
    assert severity(skipped=4) == "bad"
    assert severity(skipped=1, wall="failed") == "bad"


def test_a_loss_of_exactly_zero_means_masked_labels() -> None:
    assert course(losses=[0.0] * 8, norms=[0.0] * 8, held=()) == ["labels_all_masked"]
    assert course(losses=[1e-3] * 8, held=()) == []


def test_gradients_of_zero() -> None:
    assert course(losses=[3.0] * 8, norms=[0.0] * 8, held=()) == ["gradient_zero"]
    assert course(losses=[3.0] * 8, norms=[0.0] * 8, held=(), rewarded=True) == []


FLAT = [3.0, 3.1, 2.9, 3.0, 3.05, 2.95, 3.0, 2.98] * 5


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"rates": [1e-7], "steps": 80}, "rate_too_small"),
        ({"rates": [1.9e-5], "steps": 80}, "rate_too_small"),
        ({"rates": [2.1e-5], "steps": 80}, "not_learnt"),
        ({"rates": [2e-4], "steps": 29}, "steps_too_few"),
        ({"rates": [], "steps": 80}, "not_learnt"),
    ],
)
def test_why_nothing_was_learnt(changes: dict[str, Any], code: str) -> None:
    assert course(losses=FLAT, held=(), held_kept=None, **changes) == [code]


def test_little_is_less_grave_than_nothing() -> None:
    def severity(last: float) -> str:
        facts = only("course", losses=[3.0] * 20 + [last] * 20, held=(), held_kept=None)
        return examine(facts).findings[0].severity

    assert severity(2.95) == "bad"
    assert severity(2.9) == "warn"


def test_pairs_that_are_ranked_right_are_learnt_however_little_the_loss_falls() -> None:
    pairs: dict[str, Any] = {
        "objective": "dpo",
        "losses": [0.69] * 40,
        "held": (),
        "held_kept": None,
    }
    assert course(**pairs, ranked=0.8) == []
    assert course(**pairs, ranked=0.5) == ["not_learnt"]


def test_of_pairs_the_chosen_answer_may_become_less_likely() -> None:
    less = replace(TUNED, answer=-3.6, first=-3.6, later=-3.6)
    assert probe(tuned=less, pairs=True) == []


def test_a_small_rate_that_learnt_is_no_finding() -> None:
    assert course(rates=[1e-6]) == []


def test_a_small_fall_of_running_text_is_learning() -> None:
    losses = [3.0 - 0.0015 * i for i in range(80)]
    slow = {"losses": losses, "held": (), "held_kept": None}
    assert course(objective="sft", **slow) == ["not_learnt"]
    assert course(objective="pretrain", **slow) == []


def test_what_the_model_knew_before_need_not_be_learnt() -> None:
    assert course(losses=[0.05] * 40, held=(), held_kept=None) == []


def test_a_held_out_loss_that_fell_is_learning() -> None:
    assert course(losses=FLAT, held=[(0, 3.0), (80, 2.5)], held_kept=2.5) == []


def test_right_answers_are_learning_whatever_the_loss_does() -> None:
    flat = replace(GOOD_COURSE, losses=FLAT, held=(), held_kept=None)
    assert codes(Facts("x", course=flat, asked=GOOD_ANSWERS)) == []


def test_a_loss_that_rises_at_a_large_rate() -> None:
    rising = [1.0, 1.2, 3.0, 5.0, 6.0, 6.0, 6.1, 6.0]
    worse = {"losses": rising, "held": ()}
    assert course(rates=[2e-2], **worse) == ["rate_too_large"]
    assert course(rates=[2e-4], **worse) == ["loss_rose"]
    assert course(rates=[], **worse) == ["rate_too_large"]


def test_a_jump_counts_only_where_nothing_came_of_it() -> None:
    jump = [1.0, 1.0, 6.0, 7.0, 6.0, 1.0, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8]
    bare = {"losses": jump, "held": (), "rates": [2e-2]}
    assert course(**bare) == ["rate_too_large"]
    assert course(**{**bare, "rates": [2e-4]}) == []
    # What was broken at once is not learnt by heart, however the held-out loss went.
    held = {"held": [(0, 3.0), (4, 2.9), (12, 4.4)], "held_kept": 4.4}
    assert course(**{**bare, **held}) == ["rate_too_large"]
    healed = replace(GOOD_COURSE, **bare)
    assert codes(Facts("x", course=healed, asked=GOOD_ANSWERS)) == []


def test_noise_of_small_batches_is_no_rise() -> None:
    assert "loss_rose" not in course(losses=[1.0, 2.0, 0.5, 1.8, 0.6, 1.2, 0.9, 1.9], held=())


def test_two_steps_tell_nothing_of_noise() -> None:
    few: dict[str, Any] = {"held": (), "held_kept": None, "rates": [2e-4]}
    assert course(losses=[1.45, 1.67], steps=2, **few) == ["steps_too_few"]
    assert course(losses=[1.45], steps=1, **few) == ["steps_too_few"]
    assert course(losses=[1.45], steps=500, **few) == []  # logged once
    assert course(losses=[1.4, 30.0], steps=2, **few | {"rates": [1.0]}) == ["rate_too_large"]


def test_a_run_that_did_not_reach_its_end() -> None:
    assert course(ended="failed", why="E-TRAIN-01") == ["run_failed"]
    assert course(ended="stopped") == ["run_unfinished"]
    assert course(ended="killed") == ["run_unfinished"]
    assert course(ended="failed", skipped=4) == ["nan_steps", "run_failed"]


def test_overfitting_by_how_the_held_out_loss_went() -> None:
    rising = [(0, 3.0), (20, 1.0), (40, 1.3), (80, 2.0)]
    assert course(held=rising, held_kept=2.0) == ["overfitting"]
    assert course(held=rising, held_kept=1.0) == ["overfitting_kept_best"]
    assert course(held=[(0, 3.0), (20, 1.0), (80, 1.19)], held_kept=1.19) == []
    assert course(held=[(0, 3.0), (20, 0.1), (80, 0.14)], held_kept=0.14) == []  # 0.04 nats


def test_worse_than_the_untouched_model() -> None:
    found = examine(only("course", held=[(0, 2.0), (80, 2.2)], held_kept=2.2)).findings
    assert [(one.code, one.severity) for one in found] == [("overfitting", "bad")]
    assert course(held=[(0, 2.0), (80, 2.03)], held_kept=2.03) == []


def test_rewards_without_a_difference() -> None:
    assert course(rewarded=True, groups_alike=0.95) == ["rewards_alike"]
    assert course(rewarded=True, groups_alike=0.85) == []
    assert course(rewarded=True, picked=0.0, finished=0.0) == ["none_ended"]
    assert course(rewarded=True, picked=0.0, finished=0.3) == ["none_picked"]
    assert course(rewarded=True, picked=0.01, finished=0.3) == []


def test_of_rewards_the_loss_says_nothing() -> None:
    assert course(rewarded=True, losses=[0.0, 0.01, 0.02, 0.2], held=[(0, 1.0), (8, 9.0)]) == []


# ---- rows


def test_one_example() -> None:
    assert data(rows=1, distinct=1) == ["one_example"]
    assert data(rows=40, distinct=1, duplicates=39) == ["one_example"]
    assert data(rows=40, distinct=2, duplicates=38) == ["one_example"]
    assert data(rows=3, distinct=3) == []


def test_duplicates_by_their_share() -> None:
    assert data(duplicates=19, distinct=81) == []
    assert data(duplicates=20, distinct=80) == ["duplicates"]
    assert examine(only("data", duplicates=50, distinct=50)).findings[0].severity == "bad"


def test_few_learnt_tokens_where_it_failed() -> None:
    assert data(learnt_tokens=79) == ["few_learnt_tokens"]
    assert data(learnt_tokens=80) == []
    assert data(learnt_tokens=19, tokens=100) == ["few_learnt_tokens"]
    labels = replace(GOOD_DATA, learnt_tokens=40)
    assert codes(Facts("x", data=labels, asked=GOOD_ANSWERS)) == []


def test_cut_and_dropped_rows() -> None:
    assert data(truncated=4) == []
    assert data(truncated=5) == ["answers_cut"]
    assert data(dropped=9) == []
    assert data(dropped=10, too_long=8) == ["rows_dropped"]


def test_held_out_rows_that_are_trained_on() -> None:
    assert data(leaked=1) == []
    assert data(leaked=2) == ["held_out_leaks"]


def test_findings_of_the_data_check_that_decide_what_is_learnt() -> None:
    assert data(found={"swapped_roles": (5, 100)}) == ["roles_swapped"]
    assert data(found={"swapped_roles": (4, 100)}) == []
    assert data(found={"wrong_template": (5, 100)}) == ["template_in_rows"]
    assert data(found={"constant_answers": (90, 100)}) == ["constant_answers"]
    assert data(found={"constant_answers": (60, 100)}) == []


def test_the_floor_of_the_data() -> None:
    losses = [2.0, 1.5, 1.0, 0.8, 0.75, 0.72, 0.71, 0.7]
    bounded = replace(GOOD_COURSE, losses=losses)

    def found(floor: float, **changes: Any) -> list[str]:
        rows = replace(GOOD_DATA, floor=floor, floor_rows=90)
        return codes(Facts("x", course=replace(bounded, **changes), data=rows))

    assert found(0.65) == ["entropy_floor"]
    assert found(0.3) == []
    assert found(0.65, objective="dpo") == []


# ---- answers


def test_one_answer_to_everything() -> None:
    alike = asked(["Tamsin"] * 6, NAMES)
    assert codes(Facts("x", asked=alike)) == ["collapse"]
    assert codes(Facts("x", asked=asked(["Tamsin"] * 6, ["Tamsin"] * 4 + NAMES[:2]))) == []
    assert codes(Facts("x", asked=alike[:2])) == []
    assert codes(Facts("x", asked=asked([*["Tamsin"] * 4, "Odric", "Brann"], NAMES))) == []


def test_a_base_that_said_it_before_did_not_collapse() -> None:
    same = [replace(one, before="Tamsin") for one in asked(["Tamsin"] * 6, NAMES)]
    assert codes(Facts("x", asked=same)) == []


def test_rows_without_an_expectation_of_a_run_that_learns_from_rewards() -> None:
    rewarded = replace(GOOD_COURSE, objective="grpo", rewarded=True)

    def told(after: list[str], **more: Any) -> list[str]:
        rows = asked(after, [""] * 6, kind="train", **more)
        return codes(Facts("x", asked=rows, course=rewarded))

    assert told(["So be it"] * 6) == ["collapse"]
    assert told(["So be it"] * 4 + ["No", "Yes"]) == []
    assert told([""] * 6) == ["empty_answers"]
    same = [replace(one, before="So") for one in asked(["So"] * 6, [""] * 6, kind="train")]
    assert codes(Facts("x", asked=same, course=rewarded)) == []
    own = asked(["Hello!"] * 6, [""] * 6, kind="probe")
    assert codes(Facts("x", asked=own, course=rewarded)) == []


def test_right_answers_that_were_lost() -> None:
    def told(after: list[str]) -> list[str]:
        knew = [replace(one, before=one.expected) for one in asked(after, NAMES)]
        return codes(Facts("x", asked=knew))

    assert told([f"xx {i}" for i in range(6)]) == ["answers_lost"]
    assert told([*NAMES[:3], "xx", "yy", "zz"]) == ["answers_lost"]
    assert told([*NAMES[:4], "xx", "yy"]) == []
    assert codes(Facts("x", asked=asked([f"xx {i}" for i in range(6)], NAMES))) == []


def test_answers_without_an_expectation_may_be_alike() -> None:
    assert codes(Facts("x", asked=asked(["Hello!"] * 6, [""] * 6))) == []


def test_empty_answers() -> None:
    assert codes(Facts("x", asked=asked([""] * 6, NAMES))) == ["empty_answers"]
    assert codes(Facts("x", asked=asked([""] * 6, NAMES, cut=True))) == []
    as_before = [replace(one, before="") for one in asked([""] * 6, NAMES)]
    assert codes(Facts("x", asked=as_before)) == []


def test_answers_that_do_not_end() -> None:
    running = asked([f"{name} and then and then" for name in NAMES], NAMES, cut=True)
    assert codes(Facts("x", asked=running)) == ["stop_not_learnt"]
    assert codes(Facts("x", asked=asked(["no idea " * 9] * 2 + NAMES[2:], NAMES))) == []
    garbage = asked([f"{i} xx" for i in range(6)], NAMES, cut=True)
    assert codes(Facts("x", asked=garbage)) == []
    dpo = replace(GOOD_COURSE, objective="dpo")
    assert codes(Facts("x", asked=running, course=dpo)) == []


def test_answers_of_the_next_row() -> None:
    slipped = asked([*NAMES[1:], "Nobody"], NAMES)
    found = examine(Facts("x", asked=slipped)).findings
    assert [one.code for one in found] == ["rows_misaligned"]
    assert found[0].evidence["distance"] == 1
    mixed = asked([NAMES[0], NAMES[1], NAMES[3], NAMES[5], NAMES[2], NAMES[4]], NAMES)
    assert codes(Facts("x", asked=mixed)) == []


def test_files_that_answer_otherwise() -> None:
    differs = [replace(GOOD_ANSWERS[0], differs=True), *GOOD_ANSWERS[1:]]
    assert codes(Facts("x", asked=differs)) == ["reload_differs"]


def test_lost_general_knowledge() -> None:
    knew = [Asked(f"g{i}", "Paris", "Rome", "Paris", kind="general") for i in range(4)]
    assert codes(Facts("x", asked=knew)) == ["forgot_general"]
    assert codes(Facts("x", asked=[replace(knew[0], after="Paris")] * 3 + knew[:1])) == []
    assert codes(Facts("x", asked=knew[:3])) == []


# ---- what the models say


@pytest.mark.parametrize("offset", [-1, 0, 2, 3])
def test_labels_that_are_not_aligned(offset: int) -> None:
    shifted = {**BASE.by_offset, 1: -6.0, offset: -0.3}
    assert tuned(answer=-6.0, later=-6.0, first=-6.0, by_offset=shifted) == ["labels_shifted"]


def test_a_model_that_repeats_what_it_reads_by_itself_is_not_shifted() -> None:
    """Tiny models with tied embeddings say the token just read; training has not added it."""
    base = replace(BASE, by_offset={**BASE.by_offset, 0: -0.5, 1: -5.0})
    said = replace(TUNED, answer=-4.0, by_offset={**TUNED.by_offset, 0: -0.5, 1: -4.0})
    assert "labels_shifted" not in probe(base=base, tuned=said)


def test_learnt_padding() -> None:
    assert tuned(pad=-0.1) == ["padding_learnt"]
    assert tuned(pad=-0.8) == []
    assert probe(base=replace(BASE, pad=-0.5), tuned=replace(TUNED, pad=-0.1)) == []


def test_padding_that_is_the_stop_token_tells_nothing_by_itself() -> None:
    assert probe(tuned=replace(TUNED, pad=-0.01), pad_is_stop=True) == []
    shifted = {**BASE.by_offset, 1: -6.0, 2: -0.1}
    both = replace(TUNED, pad=-0.01, answer=-6.0, later=-6.0, first=-6.0, by_offset=shifted)
    assert probe(tuned=both, pad_is_stop=True) == ["labels_shifted", "padding_learnt"]


THEIRS = replace(GOOD_COURSE, objective="", held=(), held_kept=None)
LOSSES = replace(BASE, taught=3.0, whole=3.5, hardest_row=4.2)


def begun(first: float, **changes: Any) -> list[str]:
    """A training of another tool whose log begins at a loss of `first`."""
    theirs = replace(THEIRS, losses=[first, *THEIRS.losses[1:]], **changes)
    return codes(Facts("x", course=theirs, probed=replace(GOOD_PROBE, base=LOSSES)))


def test_a_first_loss_that_is_not_that_of_the_rows() -> None:
    assert begun(4.7) == ["first_loss_high"]
    assert begun(4.55) == []  # a first batch of hard rows
    assert begun(3.0) == []
    assert begun(NAN) == ["nan_steps"]
    assert begun(9.0, method="prompt_tuning") == []
    assert begun(9.0, objective="sft") == []  # labels of our own making
    assert begun(9.0, rewarded=True) == []


def test_a_log_that_begins_at_the_answers_clears_the_questions() -> None:
    learnt = replace(GOOD_PROBE, base=LOSSES, tuned=replace(TUNED, prompt=-2.0))
    apart = replace(learnt, base=replace(LOSSES, whole=6.0))

    def told(first: float, probed: Any, **changes: Any) -> list[str]:
        theirs = replace(THEIRS, losses=[first, *THEIRS.losses[1:]], **changes)
        return codes(Facts("x", course=theirs, probed=probed))

    assert told(3.1, apart) == []
    assert told(5.9, apart) == ["prompt_learnt"]
    near = replace(learnt, base=replace(LOSSES, whole=3.4))
    assert told(3.1, near) == ["prompt_learnt"]  # too near each other to tell
    assert told(3.1, learnt, objective="sft") == []  # labels of our own making


def test_learnt_questions() -> None:
    assert tuned(prompt=-3.3) == []  # 0.7 nats beside 2.8 of the answers
    assert tuned(prompt=-2.5) == ["prompt_learnt"]
    assert tuned(answer=-2.8, later=-2.8, prompt=-1.0) == ["prompt_learnt_instead"]
    assert tuned(prompt=NAN) == []


def test_a_stop_token_that_was_not_learnt() -> None:
    assert tuned(stop=-4.0) == ["stop_unlikely"]
    assert tuned(stop=-1.5) == []
    assert "stop_unlikely" not in tuned(stop=-4.0, answer=-2.0)
    assert tuned(stop=NAN) == []


def test_a_first_token_that_was_not_learnt() -> None:
    assert tuned(first=-3.2) == ["first_token_not_learnt"]
    assert tuned(first=-2.0) == []


def test_answers_that_end_before_they_begin() -> None:
    assert tuned(early_stop=-0.1) == ["stops_at_once"]
    assert tuned(early_stop=-1.0) == []


def test_rows_that_were_cut_at_one_place() -> None:
    places = [*range(20, 60)] * 2
    base = replace(BASE, by_place=[(p, -3.0) for p in places])
    cut = replace(TUNED, answer=-1.5, by_place=[(p, -0.1 if p < 40 else -2.9) for p in places])
    found = examine(only("probed", base=base, tuned=cut)).findings
    assert [one.code for one in found] == ["answers_cut_at"]
    assert found[0].evidence["place"] == 40
    whole = replace(TUNED, by_place=[(p, -0.1) for p in places])
    assert probe(base=base, tuned=whole) == []


def test_another_form_of_asking() -> None:
    poor = replace(TUNED, answer=-2.5, first=-2.5, later=-2.5)
    forms = {"chat": (-3.0, -2.5), "Q: / A:": (-3.2, -0.3)}
    assert probe(tuned=poor, templates=forms) == ["template_differs"]
    assert probe(tuned=poor, templates={**forms, "Q: / A:": (-0.4, -0.3)}) == []
    assert probe(tuned=poor, templates={**forms, "Q: / A:": (-5.0, -2.1)}) == []


def test_a_training_without_effect() -> None:
    same = Probed(8, BASE, BASE, effect=1e-6)
    assert codes(Facts("x", probed=same)) == ["no_effect"]
    assert codes(Facts("x", probed=replace(same, effect=0.01))) == ["answers_not_learnt"]


def test_answers_that_became_less_likely() -> None:
    assert tuned(answer=-3.6, first=-3.6, later=-3.6) == ["answers_worse"]
    assert tuned(answer=-3.4, first=-3.4, later=-3.4) == ["answers_not_learnt"]
    assert tuned(answer=-2.8, first=-2.8, later=-2.8) == []


def test_a_model_that_gives_no_numbers_is_told_by_that_alone() -> None:
    nothing = replace(TUNED, **dict.fromkeys(("answer", "first", "later", "stop", "pad"), NAN))
    nothing = replace(nothing, by_offset=dict.fromkeys(range(-1, 4), NAN))
    assert probe(tuned=nothing, effect=NAN) == ["output_not_finite"]


# ---- files and decoding


def test_weights_that_are_wrong() -> None:
    def found(**changes: Any) -> list[str]:
        return codes(only("weights", **changes))

    assert found(zero=28) == ["adapter_zero"]
    assert found(zero=27) == []
    assert found(not_finite=1) == ["weights_not_finite"]
    assert found(same_base=False) == ["base_differs"]
    assert found(same_base=None) == []
    assert found(lost=3) == ["adapter_does_not_fit"]
    assert found(kind="model", same_as_base=True) == ["weights_unchanged"]


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("ngram", "ngrams_forbidden"),
        ("penalty", "repetition_penalty"),
        ("forbidden", "tokens_forbidden"),
        ("too_short", "answers_too_long"),
        ("must_go_on", "answers_must_go_on"),
        ("cuts", "stop_token_inside"),
    ],
)
def test_settings_by_the_share_of_answers_that_they_spoil(field: str, code: str) -> None:
    def found(count: int) -> list[tuple[str, str]]:
        facts = only("decoding", **{field: count})
        return [(one.code, one.severity) for one in examine(facts).findings]

    assert found(1) == []
    assert found(2) == [(code, "warn")]
    assert found(6) == [(code, "bad")]


def test_stops_and_sampling() -> None:
    assert codes(only("decoding", stop_missing=True)) == ["stop_token_missing"]
    assert codes(only("decoding", luck=0.4)) == ["sampling_spoils"]
    assert codes(only("decoding", luck=0.6)) == []


# ---- together


def test_causes_hide_their_effects() -> None:
    small = replace(GOOD_COURSE, losses=FLAT, held=(), held_kept=None, rates=[1e-8])
    zero = replace(GOOD_FILES, zero=28)
    facts = Facts("x", course=small, weights=zero, probed=Probed(8, BASE, BASE, effect=0.0))
    assert codes(facts) == ["adapter_zero"]


def test_the_worst_comes_first() -> None:
    rows = replace(GOOD_DATA, duplicates=30, distinct=70)
    found = examine(Facts("x", data=rows, weights=replace(GOOD_FILES, not_finite=2))).findings
    assert [(one.code, one.severity) for one in found] == [
        ("weights_not_finite", "bad"),
        ("duplicates", "warn"),
    ]


def test_what_explains_and_what_is_explained_are_codes() -> None:
    known = set(all_codes())
    assert len(known) == sum(len(rule.codes) for rule in RULES)
    assert set(EXPLAINS) <= known
    assert {code for effects in EXPLAINS.values() for code in effects} <= known
