"""The section that holds what the doctor found, from `doctor.json`, in the page's language."""

from __future__ import annotations

from tunewright.record.diagnosis import Finding, read
from tunewright.report.markup import Child, Html, coded, el, words
from tunewright.report.page import Page


def section(page: Page) -> Html | None:
    """Each finding with what was seen, why, and what to do; None where nobody examined the run."""
    examination = read(page.record.run)
    if examination is None:
        return None
    checked = len(examination.checked)
    if not examination.findings:
        return page.section("doctor", el("p", page.say("doctor.nothing", checked=checked)))
    found = [_finding(page, finding) for finding in examination.findings]
    intro = page.say("doctor.intro", count=len(found), checked=checked)
    return page.section("doctor", el("p", intro), el("ul", *found, class_="findings"))


def _finding(page: Page, finding: Finding) -> Html:
    """One finding as a list item."""
    tone = "warn" if finding.severity == "info" else finding.severity

    def part(label: str, text: str) -> list[Child]:
        return [el("br"), el("b", words(f"doctor.label.{label}", page.lang)), coded(text)]

    return el(
        "li",
        el("b", finding.name(page.lang)),
        " ",
        el("code", finding.code),
        part("evidence", finding.what(page.lang)),
        part("cause", finding.cause(page.lang)),
        part("do", finding.remedy(page.lang)),
        class_=tone,
    )
