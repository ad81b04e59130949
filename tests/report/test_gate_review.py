"""The verdict as lines, review and JUnit file. The JUnit file is read by junitparser, the review by
nobody's eyes but is checked for what a hostile answer could do to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from junitparser import Failure, JUnitXml

from tunewright.core.telling import Quiet
from tunewright.evaluate.contract_reading import parse
from tunewright.evaluate.gate import gate
from tunewright.evaluate.subjects import FunctionSubject
from tunewright.report.gate_review import junit, lines, review

HOSTILE = '```\n</failure>]]> <script>x</script> \x07\x1b[2J \ud800 \u202e | **bold** & "q"'


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    questions = [{"ask": f"q{i}", "expect": f"a{i}"} for i in range(12)]

    def old(messages: Any, seed: int) -> str:
        return f"a{messages[-1].content[1:]}"

    def new(messages: Any, seed: int) -> str:
        number = int(messages[-1].content[1:])
        return HOSTILE if number < 8 else f"it is a{number}"

    contract = parse({
        "must_still_do": {"name": "skill <&>", "questions": questions},
        "must_know": {"name": "some", "questions": questions, "least": 0.6},
        "language": {"name": "tongue", "answers": "en"},
        "form": {"name": "short", "most_characters": 100},
    })  # fmt: skip
    return gate(
        contract, FunctionSubject("new", new), against=FunctionSubject("old", old), tell=Quiet()
    )


def test_junitparser_reads_what_failed(result: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "gate.xml"
    path.write_text(junit(result), encoding="utf-8")
    read = JUnitXml.fromfile(str(path))
    (suite,) = list(read)
    assert (suite.tests, suite.failures, suite.errors) == (4, len(result["failed"]), 0)
    cases = {case.name: case for case in suite}
    assert set(cases) == {"skill <&>", "some", "tongue", "short"}
    failed = {name for name, case in cases.items() if case.result}
    assert failed == set(result["failed"]) and "skill <&>" in failed
    (failure,) = cases["skill <&>"].result
    assert isinstance(failure, Failure) and "8 worse" in failure.message
    assert "<script>" in failure.text and cases["short"].classname == "gate.form"
    assert "tongue" in (cases["tongue"].system_out or "")
    assert {p.name: p.value for p in suite.properties()}["against"] == "old"


def test_an_undecided_clause_passes_and_its_output_says_so(tmp_path: Path) -> None:
    questions = [{"ask": f"q{i}", "expect": "yes"} for i in range(5)]
    contract = parse({"must_know": {"questions": questions, "least": 0.9}})
    answers = FunctionSubject("m", lambda m, s: "no" if m[-1].content == "q0" else "yes")
    found = gate(contract, answers, tell=Quiet())
    (case,) = next(iter(JUnitXml.fromstring(junit(found).encode())))
    assert not case.result and "undecided" in case.system_out
    text = "\n".join(lines(found))
    assert "undecided (counts as passed)" in text and "PASSED" in text


def test_the_review_reads_like_one_of_code(result: dict[str, Any]) -> None:
    for lang, head in (("en", "# Changes requested"), ("zh", "# 请求修改")):
        text = review(result, lang)
        assert text.startswith(head)
        assert "````diff\n- a0\n+ ```" in text  # the fence is longer than any in the answer
        assert "\x1b" not in text and "\u202e" not in text and "\ud800" not in text
        assert text.index("q0") < text.index("<details>")
        assert text.count("<details>") == 1 and "skill \\<&\\>" in text
        outside = text.split("````diff")[0]
        assert "<script>" not in outside
        text.encode("utf-8")


def test_a_good_model_is_approved(result: dict[str, Any]) -> None:
    contract = parse({"must_know": {"questions": [{"ask": "q", "expect": "a"}]}})
    found = gate(contract, FunctionSubject("m", lambda m, s: "a"), tell=Quiet())
    assert review(found, "en").startswith("# Approved") and found["changes"] == []
    assert lines(found)[-1].startswith("PASSED")


def test_lines_show_the_worst_answers_and_obey_none(result: dict[str, Any]) -> None:
    text = "\n".join(lines(result))
    assert "\x1b" not in text and "FAILS" in text and "FAILED: new breaks" in text
    assert "- a0" in text and "p = " in text
