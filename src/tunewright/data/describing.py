"""The data report for a terminal: counts, what was dropped, and one example with its learnt tokens
marked."""

from __future__ import annotations

from typing import Any

from tunewright.core.words import say
from tunewright.data.checks.dropped import NOTED

TOLD_BY_COUNTS = {"empty", "too_long", "dropped", "duplicates", "held_out_overlap", *NOTED}
SHOWN_DETAIL = 100
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"
OPEN, CLOSE = "\u27e6", "\u27e7"
# What a terminal would obey instead of show: text from a file must not move the cursor or recolour
# the screen.
_SHOWN = {code: f"\\x{code:02x}" for code in [*range(32), *range(127, 160)] if code not in (9, 10)}


def describe(report: dict[str, Any], colour: bool = False) -> str:
    """The report in the reader's language. Learnt tokens are green, or stand between double
    brackets without colour."""
    lines = [
        say(
            "data.say.rows",
            read=report["rows_read"],
            kept=report["rows_kept"],
            dropped=report["rows_dropped"],
        )
    ]
    for entry in report["reasons"].values():
        lines.append(
            "  "
            + say(
                "data.say.reason",
                count=entry["count"],
                what=entry["what"],
                examples=", ".join(places(entry)),
            )
        )
    lines.append(
        say(
            "data.say.split",
            train=report["train"],
            held_out=report["held_out"],
            format=report["format"],
            encoding=report["encoding"],
        )
    )
    for entry in report.get("held_out_reasons", {}).values():
        lines.append(
            "  "
            + say(
                "data.say.held_out_reason",
                count=entry["count"],
                what=entry["what"],
                examples=", ".join(places(entry)),
            )
        )
    lines += report.get("parts", [])
    lines += [one["what"] for one in report.get("findings", ()) if one["key"] == "passed_over"]
    if report["tokens_total"] is not None and report["train"]:
        lines += _token_lines(report)
    lines += [
        say("data.say.mixing", entry=number + 1, **one)
        for number, one in enumerate(report.get("mixing", ()))
    ]
    lines += [f"! {warning}" for warning in report["warnings"]]
    lines += [
        f"! {one['what']}"
        for one in report.get("findings", ())
        if one["severity"] != "info" and one["key"] not in TOLD_BY_COUNTS
    ]
    if report["example"]:
        asks = (
            report["tokens_total"] is not None
            and not report["answers"]
            and not report["learnt_tokens"]
        )
        lines += [
            "",
            say(
                "data.say.example_question" if asks else "data.say.example",
                origin=report["example"]["origin"],
            ),
            _marked(report["example"], colour),
        ]
    return "\n".join(lines)


def places(entry: dict[str, Any]) -> list[str]:
    """Where rows with one reason stand (file:line), with what was found there."""
    details = entry.get("details") or [""] * len(entry["examples"])
    return [
        f"{place} {detail[:SHOWN_DETAIL]}".rstrip()
        for place, detail in zip(entry["examples"], details, strict=True)
    ]


def note(key: str, count: int) -> str:
    """The sentence of a note; what stands behind a colon is a name in it."""
    name, _, about = key.partition(":")
    return say(f"data.note.{name}", count=count, name=about)


def _token_lines(report: dict[str, Any]) -> list[str]:
    lengths, shared = report["length_percentiles"], report["shared_prefix"]
    return [
        say(
            "data.say.tokens",
            total=f"{report['tokens_total']:,}",
            learnt=f"{report['learnt_tokens']:,}",
            share=f"{report['learnt_share']:.0%}",
        ),
        say(
            "data.say.answers",
            answers=report["answers"],
            share=f"{report['stop_learnt_share']:.0%}",
            template=report["template"],
        )
        if report["answers"] or report["learnt_tokens"]
        else say("data.say.asks", template=report["template"]),
        say(
            "data.say.lengths",
            min=lengths["min"],
            p50=lengths["50"],
            p90=lengths["90"],
            p99=lengths["99"],
            max=lengths["max"],
        ),
        say(
            "data.say.shared",
            share=f"{shared['share']:.0%}",
            rows=f"{shared['rows_physical_estimate']:,}",
        ),
        *([rendering_line(report["rendering"])] if report.get("rendering") else []),
    ]


def rendering_line(proof: dict[str, Any]) -> str:
    """The rendering proof in one line."""
    if proof["differences"]:
        name, shown = next(iter(proof["differences"].items()))
        return "! " + say(
            "data.say.rendering_differs",
            count=len(proof["differences"]),
            checked=proof["checked"],
            name=name,
            shown=shown.translate(_SHOWN),
        )
    said = say("data.say.rendering", equal=proof["equal"], checked=proof["checked"])
    said += (
        say("data.say.rendering_completed", count=proof["completed"]) if proof["completed"] else ""
    )
    return said + (
        say("data.say.rendering_refused", names="; ".join(proof["refused"]))
        if proof["refused"]
        else ""
    )


def _marked(example: dict[str, Any], colour: bool) -> str:
    begin, end = (GREEN, PLAIN) if colour else (OPEN, CLOSE)
    pieces = ((piece["text"].translate(_SHOWN), piece["learnt"]) for piece in example["pieces"])
    text = "".join(f"{begin}{text}{end}" if learnt else text for text, learnt in pieces)
    return text + (" ..." if example["cut"] else "")
