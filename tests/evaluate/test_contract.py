"""Contracts that are wrong: each mistake with its code, its line, and everything at once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.building import codes

from tunewright.core.errors import TunewrightError
from tunewright.evaluate.contract import Contract, questions_of
from tunewright.evaluate.contract_reading import load

GOOD = """
error_rate: 0.1
must_know:
  - name: sums
    questions:
      - {ask: "what is 2+2?", expect: 4}
      - {ask: "is it?", expect: true}
    least: 0.5
form:
  json: true
size: {most: 1.5 GB}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "contract.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_contract_is_read_as_people_write_it(tmp_path: Path) -> None:
    contract = load(write(tmp_path, GOOD))
    assert [name for _, name, _ in contract.clauses()] == ["sums", "form", "size"]
    assert contract.size[0].most == 1_500_000_000 and contract.error_rate == 0.1
    assert [q.expect for q in contract.must_know[0].questions] == ["4", "true"]
    assert Contract.model_validate({"memory": {"most": "2 GiB"}}).memory[0].most == 2**31


def test_clauses_without_a_name_are_numbered(tmp_path: Path) -> None:
    text = "size:\n  - {most: 5}\n  - {margin: 0.1}\n"
    names = [name for _, name, _ in load(write(tmp_path, text)).clauses()]
    assert names == ["size 1", "size 2"]


Q = "questions: [{ask: a, expect: b}]"
WRONG = {
    "an unknown section": ("must_knwo: {}\n", ["E-GATE-01"], "line 1"),
    "an unknown key": (f"must_know:\n  - {{{Q}, margn: 0.1}}\n", ["E-GATE-01"], "line 2"),
    "a key like nothing": (f"must_know: {{{Q}, zzz: 1}}\n", ["E-GATE-02"], "line 1"),
    "an unknown key of a question": (
        "must_know: {questions: [{ask: a, expects: b}]}\n", ["E-GATE-01"], "line 1"
    ),
    "a share above 1": (f"must_know: {{{Q}, least: 90}}\n", ["E-GATE-03"], "line 1"),
    "an error rate of 0": (f"error_rate: 0\nmust_know: {{{Q}}}\n", ["E-GATE-03"], "line 1"),
    "an unknown metric": (f"must_know: {{{Q}, metric: blue}}\n", ["E-GATE-03"], ""),
    "a size in words": ("size: {most: large}\n", ["E-GATE-03"], ""),
    "an unknown language": ("language: {answers: klingon}\n", ["E-GATE-03"], ""),
    "a question that is a number": ("must_refuse: {questions: [7]}\n", ["E-GATE-03"], ""),
    "a clause that is a word": ("must_know: facts\n", ["E-GATE-03"], "line 1"),
    "undecided counts as nothing": (f"undecided: maybe\nmust_know: {{{Q}}}\n", ["E-GATE-03"], ""),
    "no clause": ("error_rate: 0.05\n", ["E-GATE-04"], ""),
    "an empty list of clauses": ("must_know: []\n", ["E-GATE-04"], ""),
    "one name twice": (f"must_know: {{name: x, {Q}}}\nsize: {{name: x, most: 5}}\n",
                       ["E-GATE-05"], ""),
    "nothing forbidden": ("must_not_say: {questions: [a]}\n", ["E-GATE-06"], "line 1"),
    "an empty forbidden text": ("must_not_say: {questions: [a], texts: ['']}\n", ["E-GATE-06"], ""),
    "no form": ("form: {questions: [a]}\n", ["E-GATE-06"], ""),
    "no speed": ("speed: {}\n", ["E-GATE-06"], ""),
    "no size": ("size: {}\n", ["E-GATE-06"], ""),
    "nothing demanded": (f"must_know: {{{Q}, least: null}}\n", ["E-GATE-06"], ""),
    "samples at temperature 0": (f"samples: 3\nmust_know: {{{Q}}}\n", ["E-GATE-07"], "line 1"),
    "a clause of nobody": (f"must_know: {{name: k, {Q}}}\nform: {{json: true, of: [w]}}\n",
                           ["E-GATE-08"], "line 2"),
    "no questions": ("must_refuse: {least: 0.5}\n", ["E-GATE-09"], "line 1"),
    "an empty list of questions": ("must_know: {questions: []}\n", ["E-GATE-09"], ""),
    "form without any questions": ("form: {json: true}\n", ["E-GATE-09"], ""),
    "no expected answer": ("must_know: {questions: [what is it]}\n", ["E-GATE-10"], ""),
    "a pattern that is none": ("form: {questions: [a], pattern: '('}\n", ["E-GATE-11"], ""),
    "a forbidden pattern that is none": (
        "must_not_say: {questions: [a], patterns: ['[']}\n", ["E-GATE-11"], ""
    ),
    "an unknown keyword of a schema": (
        "form: {questions: [a], schema: {pattern: x}}\n", ["E-GATE-12"], ""
    ),
    "two mistakes": (f"must_know: {{{Q}, zzz: 1}}\nlanguge: {{}}\n",
                     ["E-GATE-01", "E-GATE-02"], ""),
    "a question mark without quotes": (
        "must_know:\n  questions:\n    - {ask: who?, expect: b}\n", ["E-CONFIG-45"], "line 3"
    ),
    "a key twice": (f"must_know: {{{Q}}}\nseed: 1\nseed: 2\n", ["E-CONFIG-06"], "line 3"),
    "a key twice in a list": (
        f"must_know:\n  - {{{Q}, limit: 3, limit: 4}}\n", ["E-CONFIG-06"], "line 2"
    ),
    "no mapping": ("- a\n", ["E-CONFIG-02"], ""),
    "nothing": ("", ["E-CONFIG-45"], ""),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_contract_is_refused(mistake: str, tmp_path: Path) -> None:
    text, wanted, place = WRONG[mistake]
    with pytest.raises(TunewrightError) as e:
        load(write(tmp_path, text))
    assert sorted(set(codes(e.value))) == wanted
    assert e.value.exit_code == 2
    assert all(place in p.where and "contract.yaml" in p.where for p in e.value.problems)
    assert not re.search(r"\{[a-z_]+\}", e.value.text())  # every field of a sentence is filled in


def test_a_contract_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TunewrightError) as e:
        load(tmp_path / "none.yaml")
    assert codes(e.value) == ["E-GATE-17"] and e.value.exit_code == 2
    (found,) = e.value.problems
    assert "contract" in found.what()
    assert f"tunewright init FILE --contract {tmp_path / 'none.yaml'}" in found.remedy()
    with pytest.raises(TunewrightError) as e:
        load(tmp_path)  # a run folder in the contract's place
    assert codes(e.value) == ["E-GATE-17"]


def test_a_guess_is_made() -> None:
    from tunewright.evaluate.contract_reading import parse

    with pytest.raises(TunewrightError, match="must_know"):
        parse({"must_knwo": {}})


def test_questions_come_from_files_beside_the_contract(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(30)]
    (tmp_path / "held.json").write_text(json.dumps(rows), encoding="utf-8")
    contract = load(write(tmp_path, "must_know: {data: held.json, limit: 7, least: 0.5}\n"))
    clause = contract.must_know[0]
    found = questions_of(clause, "must_know", tmp_path, 0, "be brief")
    assert len(found) == 7 and found == questions_of(clause, "must_know", tmp_path, 0, "be brief")
    assert found[0].messages[0].content == "be brief" and found[0].expected.startswith("a")
    other = questions_of(clause, "must_know", tmp_path, 1, None)
    assert [q.expected for q in other] != [q.expected for q in found]


def test_files_that_cannot_be_used_are_said(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps([{"text": "once"}] * 3), encoding="utf-8")
    (tmp_path / "p.json").write_text(json.dumps([{"prompt": "a"}] * 3), encoding="utf-8")
    for line, code in (
        ("data: none.json", "E-DATA-01"), ("data: t.json", "E-EVAL-40"),
        ("data: p.json, format: prompts", "E-GATE-10"),
    ):  # fmt: skip
        contract = load(write(tmp_path, f"must_know: {{{line}}}\n"))
        with pytest.raises(TunewrightError) as e:
            questions_of(contract.must_know[0], "k", tmp_path, 0, None)
        assert codes(e.value) == [code]
