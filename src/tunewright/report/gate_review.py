"""The verdict of a gate for people and for build servers: lines of a terminal, a review in Markdown
that reads like one of code (what changed, worst first), and a JUnit file. All are made from the
figures of `tunewright gate --json`.

The JUnit file follows the form that Jenkins, GitLab and GitHub's actions read: `testsuites`,
`testsuite`, `testcase` with `failure` and `system-out`.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from typing import Any
from xml.etree import ElementTree

from tunewright.core.telling import duration
from tunewright.core.words import language, say
from tunewright.data.checks.private import hidden
from tunewright.report.side_by_side import plain

SHOWN = 8
"""Changes on a terminal; the review has more."""
LISTED = 60
"""Changes that a review shows in full."""
LONGEST_LINE = 90
MARKS = {"fails": "✗", "undecided": "?", "holds": "✓"}
KINDS = {"worse": "−", "wrong": "✗", "better": "+", "reworded": "~"}
# What XML cannot hold at all.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def shown(text: str | None) -> str:
    """A text of an answer or a row as it is handed on: its private values masked, nothing that a
    terminal would obey. `gate.json` holds it as it is."""
    return plain(hidden(text or ""))


def headline(result: dict[str, Any], lang: str | None = None) -> str:
    """The verdict in one sentence."""
    failed = result["failed"]
    key = "gate.failed" if failed else "gate.passed"
    return say(
        key,
        lang,
        model=plain(result["a"]["name"]),
        count=len(failed),
        clauses=len(result["clauses"]),
        names=", ".join(failed),
    )


def rate_sentence(result: dict[str, Any], lang: str | None = None) -> str:
    """What the verdict may be relied on for."""
    text = say("gate.rate", lang, rate=f"{100 * result['error_rate']:g}")
    if result["undecided"]:
        counts = say(f"gate.counts_as.{result['undecided_counts_as']}", lang)
        count = len(result["undecided"])
        text += " " + say("gate.undecided_count", lang, count=count, counts=counts)
    return text


def clause_line(clause: dict[str, Any], lang: str | None = None) -> str:
    """One clause: mark, name, what was found."""
    verdict = say(f"gate.verdict.{clause['verdict']}", lang)
    if clause["verdict"] == "undecided":
        verdict += " " + say("gate.as_passed" if clause["passed"] else "gate.as_failed", lang)
    return say(
        "gate.clause", lang, name=plain(clause["name"]), section=clause["section"], verdict=verdict
    )


# ---- the terminal


def lines(result: dict[str, Any]) -> list[str]:
    """The verdict for a terminal, in the reader's language."""
    out = []
    for clause in result["clauses"]:
        mark = MARKS[clause["verdict"]]
        out.append(f"{mark} {clause_line(clause)}")
        out += [f"    {shown(text)}" for text in clause["sentences"]]
    changes = [one for one in result["changes"] if one["kind"] != "reworded"]
    if result["changes"]:
        out += ["", _counted(result)]
    for change in changes[:SHOWN]:
        out += ["", *_change_lines(change)]
    if len(changes) > SHOWN:
        out += ["", say("gate.more", count=len(changes) - SHOWN)]
    against = "" if result["b"] is None else plain(result["b"]["name"])
    out += ["", rate_sentence(result)]
    if against:
        out.append(say("gate.against", name=against, time=duration(result["seconds"])))
    else:
        out.append(say("gate.alone", time=duration(result["seconds"])))
    return [*out, "", headline(result)]


def _counted(result: dict[str, Any], lang: str | None = None) -> str:
    counts = Counter(one["kind"] for one in result["changes"])
    parts = [say(f"gate.kind.{kind}", lang, count=counts[kind]) for kind in KINDS if counts[kind]]
    return say("gate.changed", lang, questions=result["questions"], parts=", ".join(parts))


def _one_line(text: str | None) -> str:
    line = " ".join(shown(text).split())
    line = line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE].rstrip() + " …"
    return line or say("beside.empty")


def _change_lines(change: dict[str, Any]) -> list[str]:
    out = [f"{KINDS[change['kind']]} {plain(change['origin'])} · {_blamed(change)}"]
    out.append(f"    ? {_one_line(change['question'])}")
    if change["expected"].strip():
        out.append(f"    = {_one_line(change['expected'])}")
    if change["before"] is not None and change["before"] != change["after"]:
        out.append(f"    - {_one_line(change['before'])}")
    return [*out, f"    + {_one_line(change['after'])}"]


def _blamed(change: dict[str, Any], lang: str | None = None) -> str:
    """Which clauses mind, and why."""
    parts = []
    for note in change["clauses"]:
        before, score = note["before"], note["score"]
        if score == 1 and before in (None, 1):
            continue
        moved = f"{score:.2f}" if before in (None, score) else f"{before:.2f} → {score:.2f}"
        why = f": {note['note']}" if note["note"] and score < 1 else ""
        parts.append(f"{plain(note['name'])} {moved}{shown(why)}")
    return "; ".join(parts) or say("gate.nobody_minds", lang)


# ---- the review


def review(result: dict[str, Any], lang: str | None = None) -> str:
    """The verdict as Markdown: for a pull request, or to read."""
    chosen = lang or language()
    head = say("gate.review.no" if result["failed"] else "gate.review.yes", chosen)
    against = "" if result["b"] is None else f" · {_code(result['b']['name'])}"
    out = [f"# {head}", "", f"{_code(result['contract'])} · {_code(result['a']['name'])}{against}"]
    out += ["", headline(result, chosen), "", rate_sentence(result, chosen), ""]
    columns = [say(f"gate.column.{name}", chosen) for name in ("clause", "verdict", "found")]
    out += ["| " + " | ".join(["", *columns]) + " |", "|---|---|---|---|"]
    for clause in result["clauses"]:
        verdict = say(f"gate.verdict.{clause['verdict']}", chosen)
        found = "<br>".join(map(_cell, clause["sentences"]))
        mark = MARKS[clause["verdict"]]
        out.append(f"| {mark} | {_cell(clause['name'])} | {verdict} | {found} |")
    if result["changes"]:
        out += ["", f"## {say('gate.review.changed', chosen)}", "", _counted(result, chosen)]
    listed = [one for one in result["changes"] if one["kind"] != "reworded"][:LISTED]
    for number, change in enumerate(listed, 1):
        out += _change_section(number, change, chosen)
    out += _reworded(result, chosen)
    return "\n".join(out).rstrip() + "\n"


def _change_section(number: int, change: dict[str, Any], lang: str) -> list[str]:
    title = f"### {number}. {KINDS[change['kind']]} {_text(_blamed(change, lang))}"
    out = ["", title, "", *(f"> {_text(line)}" for line in shown(change["question"]).split("\n"))]
    out += [">", f"> <sub>{_text(change['origin'])}</sub>", ""]
    if change["expected"].strip():
        out += [f"{say('beside.expected', lang)} {_code(change['expected'])}", ""]
    return [*out, *_diff(change["before"], change["after"])]


def _reworded(result: dict[str, Any], lang: str) -> list[str]:
    """Answers that changed and that no clause minds, folded."""
    rest = [one for one in result["changes"] if one["kind"] == "reworded"]
    if not rest:
        return []
    title = say("gate.review.reworded", lang, count=len(rest))
    out = ["", "<details>", f"<summary>{title}</summary>", ""]
    for change in rest[:LISTED]:
        out += [f"**{_text(_one_line(change['question']))}**", ""]
        out += [*_diff(change["before"], change["after"]), ""]
    return [*out, "</details>"]


def _diff(before: str | None, after: str) -> list[str]:
    """Both answers as a diff, and the words that changed where both are one line."""
    old, new = shown(before).split("\n"), shown(after).split("\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", f"{before}{after}")), default=0))
    if before is None:
        return [f"{fence}diff", *(f"+ {line}" for line in new), fence]
    body = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            body += [f"  {line}" for line in old[a:b]]
        else:
            body += [f"- {line}" for line in old[a:b]] + [f"+ {line}" for line in new[c:d]]
    return [f"{fence}diff", *body, fence]


def _text(text: str) -> str:
    """Text in Markdown that stays text."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", shown(text))


def _cell(text: str) -> str:
    return _text(text).replace("\n", " ")


def _code(text: str) -> str:
    """Text between backticks, however many it has itself."""
    line = " ".join(shown(text).split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


# ---- JUnit


def junit(result: dict[str, Any]) -> str:
    """The verdict as a JUnit file: a test case a clause. A clause that is undecided passes or fails
    as the contract says, and its output says that it is undecided."""
    clauses = result["clauses"]
    failures = sum(not clause["passed"] for clause in clauses)
    counts = {"tests": str(len(clauses)), "failures": str(failures), "errors": "0"}
    timed = {"time": f"{result['seconds']:.3f}"}
    root = ElementTree.Element("testsuites", {"name": "tunewright gate", **counts, **timed})
    name = _xml(f"{result['contract']}: {result['a']['name']}")
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": name, **counts, "skipped": "0", **timed}
    )
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _properties(result).items():
        ElementTree.SubElement(properties, "property", {"name": key, "value": _xml(value)})
    for clause in clauses:
        _case(suite, clause, result)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _properties(result: dict[str, Any]) -> dict[str, str]:
    return {
        "model": result["a"]["name"],
        "against": "" if result["b"] is None else result["b"]["name"],
        "error_rate": f"{result['error_rate']:g}",
        "undecided_counts_as": result["undecided_counts_as"],
        "seed": str(result["seed"]),
        "samples": str(result["samples"]),
        "temperature": f"{result['temperature']:g}",
    }


def _case(suite: ElementTree.Element, clause: dict[str, Any], result: dict[str, Any]) -> None:
    names = {"classname": f"gate.{clause['section']}", "name": _xml(clause["name"])}
    case = ElementTree.SubElement(suite, "testcase", {**names, "time": "0"})
    sentences = [shown(text) for text in clause["sentences"]]
    found = "\n".join([clause_line(clause), *sentences])
    if not clause["passed"]:
        message = "; ".join(sentences)
        failure = ElementTree.SubElement(
            case, "failure", {"message": _xml(message), "type": clause["verdict"]}
        )
        failure.text = _xml("\n\n".join([found, *_evidence(clause, result)]))
    output = ElementTree.SubElement(case, "system-out")
    output.text = _xml(found)


def _evidence(clause: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """The worst answers of a clause."""
    out: list[str] = []
    for change in result["changes"]:
        mine = [note for note in change["clauses"] if note["name"] == clause["name"]]
        if mine and mine[0]["score"] < 1 and len(out) < SHOWN:
            out.append("\n".join(_change_lines(change)))
    return out


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
