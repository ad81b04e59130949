"""The row of the report that says how much reasoning is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunewright.report.markup import Child, el, words
from tunewright.report.page import Page, whole
from tunewright.report.record import finite, mapping

TONES = {"kept": "good", "lost": "bad", "worse": "bad", "none": "warn"}


def fields_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the sentence `reasoning.VERDICT` about `reasoning` of the summary."""
    told: dict[str, Any] = {"n": whole(found.get("asked")), "most": whole(found.get("most_tokens"))}
    for side in ("before", "after"):
        side_of = mapping(found.get(side))
        told[f"thoughts_{side}"] = whole(side_of.get("with_thoughts"))
        told[f"right_{side}"] = whole(side_of.get("right"))
        told[f"cut_{side}"] = whole(side_of.get("cut_off"))
        told[f"tokens_{side}"] = whole(round(finite(side_of.get("thought_tokens")) or 0))
    return told


def row(page: Page) -> tuple[Child, Child] | None:
    """Title and content; None for a run whose model does not think, or of an earlier version."""
    found = mapping(page.record.summary.get("reasoning"))
    if not found or (found.get("skipped") in ("no_thinking", None) and "verdict" not in found):
        return None
    title = page.say("evaluation.reasoning")
    if found.get("skipped"):
        return title, words(f"reasoning.skipped.{found['skipped']}", page.lang, seconds="")
    verdict = str(found.get("verdict"))
    sentence = words(f"reasoning.{verdict}", page.lang, **fields_of(found))
    return title, el("span", sentence, class_=f"tone {TONES.get(verdict, 'warn')}")
