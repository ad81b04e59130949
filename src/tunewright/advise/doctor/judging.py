"""The table of rules, and what they find together.

A rule is asked where every group of figures that it needs is there. Several may find what one
cause brought about: `EXPLAINS` says which finding makes which others superfluous, so that a reader
is told the cause and not five of its effects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunewright.advise.doctor import (
    rules_answers,
    rules_course,
    rules_data,
    rules_files,
    rules_probe,
)
from tunewright.advise.doctor.facts import Facts
from tunewright.record.diagnosis import ORDER, Examination, Finding


@dataclass(frozen=True)
class Rule:
    """`ask` looks at the groups `needs` of the facts; `codes` are what it may find."""

    ask: Callable[[Facts], Finding | None]
    needs: tuple[str, ...]
    codes: tuple[str, ...]


RULES = (
    # Files.
    Rule(rules_files.does_not_fit, ("weights",), ("adapter_does_not_fit",)),
    Rule(rules_files.base_differs, ("weights",), ("base_differs",)),
    Rule(rules_files.not_finite, ("weights",), ("weights_not_finite",)),
    Rule(rules_files.all_zero, ("weights",), ("adapter_zero", "weights_unchanged")),
    # Steps.
    Rule(rules_course.zero_loss, ("course",), ("labels_all_masked",)),
    Rule(rules_course.not_finite, ("course",), ("nan_steps",)),
    Rule(rules_course.zero_gradient, ("course",), ("gradient_zero",)),
    Rule(rules_course.rate_too_large, ("course",), ("rate_too_large", "loss_rose")),
    Rule(rules_course.rewards_alike, ("course",), ("rewards_alike",)),
    Rule(rules_course.none_picked, ("course",), ("none_picked", "none_ended")),
    # What the model computes.
    Rule(rules_probe.values_not_finite, ("probed",), ("output_not_finite",)),
    Rule(rules_probe.no_effect, ("probed",), ("no_effect",)),
    Rule(rules_probe.labels_shifted, ("probed",), ("labels_shifted",)),
    Rule(rules_answers.rows_misaligned, ("asked",), ("rows_misaligned",)),
    Rule(rules_probe.padding_learnt, ("probed",), ("padding_learnt",)),
    Rule(rules_probe.first_loss_high, ("probed", "course"), ("first_loss_high",)),
    Rule(rules_probe.prompt_learnt, ("probed",), ("prompt_learnt_instead", "prompt_learnt")),
    Rule(rules_probe.template_differs, ("probed",), ("template_differs",)),
    Rule(rules_probe.stops_at_once, ("probed",), ("stops_at_once",)),
    Rule(rules_probe.stop_not_learnt, ("probed",), ("stop_unlikely",)),
    Rule(rules_probe.first_token_not_learnt, ("probed",), ("first_token_not_learnt",)),
    Rule(rules_probe.answers_cut_at, ("probed",), ("answers_cut_at",)),
    # Rows.
    Rule(rules_data.one_example, ("data",), ("one_example",)),
    Rule(rules_data.roles_swapped, ("data",), ("roles_swapped",)),
    Rule(rules_data.template_in_rows, ("data",), ("template_in_rows",)),
    Rule(rules_data.answers_cut, ("data",), ("answers_cut",)),
    Rule(rules_data.few_learnt_tokens, ("data",), ("few_learnt_tokens",)),
    Rule(rules_data.constant_answers, ("data",), ("constant_answers",)),
    Rule(rules_data.duplicates, ("data",), ("duplicates",)),
    Rule(rules_data.rows_dropped, ("data",), ("rows_dropped",)),
    Rule(rules_data.held_out_leaks, ("data",), ("held_out_leaks",)),
    Rule(rules_data.entropy_floor, ("data", "course"), ("entropy_floor",)),
    # Answers.
    Rule(rules_answers.collapse, ("asked",), ("collapse",)),
    Rule(rules_answers.empty_answers, ("asked",), ("empty_answers",)),
    Rule(rules_answers.answers_lost, ("asked",), ("answers_lost",)),
    Rule(rules_answers.endless_answers, ("asked",), ("stop_not_learnt",)),
    Rule(rules_answers.reload_differs, ("asked",), ("reload_differs",)),
    # Decoding.
    Rule(rules_files.ngrams_forbidden, ("decoding",), ("ngrams_forbidden",)),
    Rule(rules_files.penalty, ("decoding",), ("repetition_penalty",)),
    Rule(rules_files.forbidden_tokens, ("decoding",), ("tokens_forbidden",)),
    Rule(rules_files.too_short, ("decoding",), ("answers_too_long",)),
    Rule(rules_files.must_go_on, ("decoding",), ("answers_must_go_on",)),
    Rule(rules_files.stop_missing, ("decoding",), ("stop_token_missing",)),
    Rule(rules_files.stop_inside, ("decoding",), ("stop_token_inside",)),
    Rule(rules_files.too_hot, ("decoding",), ("sampling_spoils",)),
    # Too much, and the bare effects.
    Rule(rules_course.overfitting, ("course",), ("overfitting", "overfitting_kept_best")),
    Rule(rules_answers.forgot, ("asked",), ("forgot_general",)),
    Rule(rules_course.barely_moved, ("course",), ("rate_too_small", "steps_too_few", "not_learnt")),
    Rule(rules_probe.answers_unlearnt, ("probed",), ("answers_worse", "answers_not_learnt")),
    Rule(rules_course.unfinished, ("course",), ("run_failed", "run_unfinished")),
)
"""Causes stand before their effects: of two findings of one severity the earlier is told first."""

NOTHING_LEARNT = ("rate_too_small", "steps_too_few", "not_learnt", "answers_not_learnt")
SYMPTOMS = (
    "answers_worse",
    "answers_lost",
    "collapse",
    "empty_answers",
    "stop_not_learnt",
    "stop_unlikely",
    "stops_at_once",
    "first_token_not_learnt",
    "answers_cut_at",
    "prompt_learnt_instead",
    "few_learnt_tokens",
    "no_effect",
    "entropy_floor",
)
EXPLAINS: dict[str, tuple[str, ...]] = {
    "adapter_does_not_fit": (*NOTHING_LEARNT, *SYMPTOMS),
    "base_differs": (
        *NOTHING_LEARNT,
        *SYMPTOMS,
        "template_differs",
        "labels_shifted",
        "first_loss_high",
    ),
    "weights_not_finite": (*NOTHING_LEARNT, *SYMPTOMS, "output_not_finite"),
    "adapter_zero": (*NOTHING_LEARNT, *SYMPTOMS, "gradient_zero"),
    "weights_unchanged": (*NOTHING_LEARNT, *SYMPTOMS, "gradient_zero"),
    "no_effect": NOTHING_LEARNT,
    "labels_all_masked": (
        *NOTHING_LEARNT,
        *SYMPTOMS,
        "gradient_zero",
        "weights_unchanged",
        "adapter_zero",
    ),
    **dict.fromkeys(
        ("none_picked", "none_ended"),
        (*NOTHING_LEARNT, *SYMPTOMS, "gradient_zero", "weights_unchanged", "adapter_zero"),
    ),
    "gradient_zero": NOTHING_LEARNT,
    "rate_too_large": (*NOTHING_LEARNT, *SYMPTOMS, "overfitting", "overfitting_kept_best"),
    "labels_shifted": (*NOTHING_LEARNT, *SYMPTOMS, "template_differs", "first_loss_high"),
    "padding_learnt": ("first_loss_high",),
    "first_loss_high": ("not_learnt", "answers_not_learnt"),
    "rows_misaligned": (*NOTHING_LEARNT, "answers_worse", "overfitting"),
    "template_differs": (*NOTHING_LEARNT, *SYMPTOMS, "prompt_learnt", "first_loss_high"),
    "prompt_learnt_instead": (*NOTHING_LEARNT, "first_loss_high"),
    "stops_at_once": (*NOTHING_LEARNT, "empty_answers", "collapse"),
    "stop_unlikely": ("stop_not_learnt",),
    "one_example": ("duplicates", "collapse", "few_learnt_tokens", "overfitting", "steps_too_few"),
    "few_learnt_tokens": ("not_learnt", "answers_not_learnt", "steps_too_few"),
    "collapse": ("not_learnt", "answers_not_learnt", "answers_lost"),
    "empty_answers": ("answers_lost",),
    "answers_lost": ("answers_worse",),
    "answers_cut": ("answers_cut_at", "rows_dropped"),
    "constant_answers": ("collapse",),
    "entropy_floor": ("not_learnt", "answers_not_learnt", "steps_too_few", "collapse"),
    "rate_too_small": ("answers_not_learnt", "few_learnt_tokens"),
    "steps_too_few": ("answers_not_learnt", "few_learnt_tokens"),
    "not_learnt": ("answers_not_learnt",),
}


def examine(facts: Facts) -> Examination:
    """Ask every rule whose figures are there."""
    groups = facts.groups()
    asked = [rule for rule in RULES if groups.issuperset(rule.needs)]
    found = [finding for rule in asked if (finding := rule.ask(facts)) is not None]
    codes = {finding.code for finding in found}
    hidden = {effect for code in codes for effect in EXPLAINS.get(code, ())}
    # Two that explain each other stay both.
    kept = [one for one in found if one.code not in hidden or _explains_all(one.code, codes)]
    kept.sort(key=lambda finding: ORDER.index(finding.severity))
    checked = [code for rule in asked for code in rule.codes]
    left = [code for rule in RULES if rule not in asked for code in rule.codes]
    return Examination(kept, checked, left)


def _explains_all(code: str, codes: set[str]) -> bool:
    """Whether `code` explains every finding that explains it."""
    causes = [cause for cause in codes if code in EXPLAINS.get(cause, ())]
    return all(cause in EXPLAINS.get(code, ()) for cause in causes)


def all_codes() -> list[str]:
    """Every code that a rule may find, in the order of the table."""
    return [code for rule in RULES for code in rule.codes]
