"""events.jsonl: every full line stays readable, whatever happened to the process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunewright.record.events import EventLog, plain


def read_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_what_is_written_comes_back_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("started", step=0)
    log.write("step", step=1, loss=0.5, rows=["a.json:3"], nothing=None)
    log.close()
    events = read_events(tmp_path / "events.jsonl")
    assert [e["event"] for e in events] == ["started", "step"]
    assert (events[1]["loss"], events[1]["rows"], events[1]["nothing"]) == (0.5, ["a.json:3"], None)
    assert all(e["time"] > 1.6e9 for e in events)


def test_a_line_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("step", step=1)
    assert len(read_events(tmp_path / "events.jsonl")) == 1
    log.close()


@pytest.mark.parametrize(
    "text", ["a\u2028b", "c\u0085d", "e\u2029f", "g\x1ch", "line\nbreak", "\ud7ff \U0001f600"]
)
def test_characters_that_look_like_line_ends_do_not_cut_an_event(tmp_path: Path, text: str) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("warning", text=text)
    log.close()
    assert [e["text"] for e in read_events(tmp_path / "events.jsonl")] == [text]


def test_a_line_cut_by_a_crash_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for step in range(3):
        log.write("step", step=step)
    log.close()
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        assert [e["step"] for e in read_events(path)] == [0, 1] or cut == len(whole) - 1
        again = EventLog(path)
        again.write("resumed", step=1)
        again.close()
        assert [e["event"] for e in read_events(path)] == ["step", "step", "resumed"]


def test_numbers_json_lacks_become_words_that_float_reads_back(tmp_path: Path) -> None:
    values = {"loss": float("nan"), "inner": [float("inf"), (float("-inf"), 1.5)], "ok": 2}
    assert plain(values) == {"loss": "NaN", "inner": ["Infinity", ["-Infinity", 1.5]], "ok": 2}
    assert float(plain(float("-inf"))) == float("-inf")
    log = EventLog(tmp_path / "events.jsonl")
    log.write("step", **values)
    log.close()
    text = (tmp_path / "events.jsonl").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
