"""The table of docs/README.md that leads newcomers into the code names what is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
LINK = re.compile(r"\]\((\.\./src/tunewright/[\w/]+\.py)\)")
NAME = re.compile(r"`([A-Za-z_]+)`")


def rows() -> dict[str, str]:
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    part = text.split("## Where it stands in the code")[1].split("\n## ")[0]
    found = re.findall(r"^\| (.+?\?) \| (.+) \|$", part, re.MULTILINE)
    return dict(found)


def defined(path: Path) -> set[str]:
    """Functions, classes and methods of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_the_five_questions_are_there() -> None:
    words = ("loss masked", "learning rate", "NaN", "checkpoint", "reference")
    questions = list(rows())
    assert len(questions) == len(words)
    assert all(word in question for word, question in zip(words, questions, strict=True))


@pytest.mark.parametrize("question", list(rows()))
def test_an_answer_names_at_most_two_files_and_what_stands_in_them(question: str) -> None:
    answer = rows()[question]
    files = list(dict.fromkeys(LINK.findall(answer)))
    assert 1 <= len(files) <= 2
    known = set().union(*(defined(DOCS / file) for file in files))
    names = [name for name in NAME.findall(answer) if name not in ("auto",)]
    assert names and [name for name in names if name not in known] == []
    for file in files:
        assert defined(DOCS / file) & set(names), f"nothing of {file} is named"
