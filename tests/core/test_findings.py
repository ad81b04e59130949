"""What was found out once: kept under its key, never wrong, at most unused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tunewright.core import findings

KEY = {"files": "abc", "versions": {"torch": "2"}, "rows": [1, 2]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))


class Counted:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return 0.1 + self.calls


def test_what_was_kept_is_not_worked_out_again() -> None:
    work = Counted()
    assert findings.once("trial", KEY, work) == 1.1
    assert findings.once("trial", KEY, work) == 1.1
    assert work.calls == 1


@pytest.mark.parametrize(
    "other", [KEY | {"files": "abd"}, KEY | {"versions": {"torch": "3"}}, KEY | {"rows": [2, 1]}]
)
def test_another_key_is_another_finding(other: dict[str, object]) -> None:
    findings.keep("trial", KEY, "first")
    assert findings.read("trial", other) is None
    assert findings.read("another kind", KEY) is None
    assert findings.read("trial", KEY) == "first"


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"key": 1}', b"\xff\xfe", b'{"key": "another", "value": "wrong"}'],
)
def test_a_damaged_file_counts_as_none_and_is_replaced(damage: bytes) -> None:
    findings.keep("trial", KEY, "right")
    findings.place_of("trial", KEY).write_bytes(damage)
    assert findings.read("trial", KEY) is None
    assert findings.once("trial", KEY, lambda: "again") == "again"
    assert findings.read("trial", KEY) == "again"


def test_where_nothing_can_be_written_everything_is_worked_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "file"))
    work = Counted()
    assert [findings.once("trial", KEY, work), findings.once("trial", KEY, work)] == [1.1, 2.1]


def test_what_nobody_asked_for_in_two_months_goes_when_something_is_kept() -> None:
    findings.keep("trial", "old", 1)
    findings.keep("trial", "used", 2)
    long_ago = time.time() - (findings.MOST_DAYS + 1) * findings.DAY
    for key in ("old", "used"):
        os.utime(findings.place_of("trial", key), (long_ago, long_ago))
    assert findings.read("trial", "used") == 2  # it was asked for now
    findings.keep("trial", "new", 3)
    assert [findings.read("trial", key) for key in ("old", "used", "new")] == [None, 2, 3]
