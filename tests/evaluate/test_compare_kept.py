"""A comparison that was ended asks only what is missing, and ends with the same figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import story
from helpers.stub_server import chat, serving

from tunewright.core.telling import Quiet
from tunewright.evaluate import subjects
from tunewright.run.comparing import compare

ASKED = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    story.model_folder(folder / "model")
    story.model_folder(folder / "other", hidden_size=32)
    story.rows_file(folder / "rows.json", ASKED)
    return folder


def beside(place: Path, out: Path, *names: str, **how: Any) -> dict[str, Any]:
    targets = [name if "://" in name else str(place / name) for name in names]
    settings = {"max_new_tokens": 8, "dtype": "float32", "tell": Quiet(), "loss": False, **how}
    return compare(targets, str(place / "rows.json"), out=out, **settings)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions each asking had."""
    real, counts = subjects.LocalSubject.ask, list[int]()

    def ask(self: Any, questions: Any, **how: Any) -> Any:
        counts.append(len(questions))
        return real(self, questions, **how)

    monkeypatch.setattr(subjects.LocalSubject, "ask", ask)
    return counts


def told(result: dict[str, Any]) -> list[Any]:
    return [(row["origin"], row["answers"], row["ends"]) for row in result["rows"]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_was_answered_before_a_kill_is_not_asked_again(
    place: Path,
    tmp_path: Path,
    asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
) -> None:
    whole = beside(place, tmp_path / "whole", "model", "other", temperature=temperature)
    added = [0]

    class Killed(Exception):
        pass

    from tunewright.evaluate.kept import Kept

    add = Kept.add

    def die(self: Any, lines: Any) -> None:
        add(self, lines)
        added[0] += 1
        if added[0] == ASKED + 2:  # the second model has given two answers
            raise Killed

    monkeypatch.setattr(Kept, "add", die)
    with pytest.raises(Killed):
        beside(place, tmp_path / "cut", "model", "other", temperature=temperature)
    monkeypatch.setattr(Kept, "add", add)
    asked.clear()
    again = beside(place, tmp_path / "cut", "model", "other", temperature=temperature)
    assert asked == [0, ASKED - 2]
    assert told(again) == told(whole)
    assert all(subject["tokens_per_second"] > 0 for subject in again["subjects"])
    table = (tmp_path / "cut" / "compare.answers.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in table.splitlines()]
    assert len(lines) == 2 * ASKED and {"question", "text", "model"} <= lines[0].keys()
    asked.clear()
    beside(place, tmp_path / "cut", "model", "other", temperature=temperature, wanted=["f1"])
    assert asked == [0, 0]  # other metrics of the same answers


def test_another_model_or_room_is_asked_anew(place: Path, tmp_path: Path, asked: list[int]) -> None:
    beside(place, tmp_path, "model", "model")
    assert asked == [ASKED, ASKED]  # a model beside itself answers for itself
    asked.clear()
    beside(place, tmp_path, "model", "other")
    assert asked == [0, ASKED]
    asked.clear()
    beside(place, tmp_path, "model", "other", max_new_tokens=9)
    assert asked == [ASKED, ASKED]


def test_damaged_lines_are_asked_again(place: Path, tmp_path: Path, asked: list[int]) -> None:
    whole = beside(place, tmp_path, "model", "other")
    table = tmp_path / "compare.answers.jsonl"
    first, second, *rest = table.read_text(encoding="utf-8").splitlines()
    spoilt = json.dumps({**json.loads(second), "tokens": ["x"]})
    table.write_text("\n".join([first[:20], spoilt, *rest]), encoding="utf-8")
    asked.clear()
    assert told(beside(place, tmp_path, "model", "other")) == told(whole)
    assert asked == [2, 0]


def test_answers_of_an_address_are_kept(place: Path, tmp_path: Path) -> None:
    with serving(lambda path, body: chat("it is 7")) as stub:
        first = beside(place, tmp_path, "model", stub.url + "#m")
        count = len(stub.asked)
        again = beside(place, tmp_path, "model", stub.url + "#m")
        assert len(stub.asked) == count == ASKED
    assert told(again) == told(first)


def test_nothing_is_kept_without_a_folder(place: Path, asked: list[int]) -> None:
    targets = [str(place / "model"), str(place / "other")]
    compare(targets, str(place / "rows.json"), max_new_tokens=2, loss=False, tell=Quiet())
    assert asked == [ASKED, ASKED]


def test_the_page_of_another_comparison_stays(place: Path, tmp_path: Path) -> None:
    first = beside(place, tmp_path, "model", "other")
    page, figures = tmp_path / "compare.html", tmp_path / "compare.json"
    kept = page.read_bytes(), figures.read_bytes()
    second = beside(place, tmp_path, "other", "model")
    assert (page.read_bytes(), figures.read_bytes()) == kept and first["page"] == str(page)
    assert second["page"] == str(tmp_path / "compare-2.html")
    assert beside(place, tmp_path, "other", "model")["page"] == second["page"]
    figures.write_text("{broken", encoding="utf-8")
    assert beside(place, tmp_path, "model", "other")["page"] == str(tmp_path / "compare-3.html")
