"""Writing files: a reader sees the old or the new one, never half of either."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tunewright.core import files
from tunewright.core.files import readable_size, with_retry, write_bytes, write_json, write_text


def test_text_is_utf8_with_the_line_ends_it_has(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "ü\n中\r\n")
    assert (tmp_path / "a").read_bytes() == "ü\n中\r\n".encode()


def test_json_is_readable_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"k": ["中", 1.5, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"k": ["中", 1.5, None]}
    assert "中" in text
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"k": float("nan")})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("fails", ["open", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, error: BaseException
) -> None:
    write_bytes(tmp_path / "a", b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(builtins if fails == "open" else os, fails, fail)
    with pytest.raises(type(error)):
        write_bytes(tmp_path / "a", b"new and longer")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_the_file_is_closed_and_on_disk_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), real_sync(handle))[1])
    monkeypatch.setattr(
        os, "replace", lambda a, b: (order.append("replace"), real_replace(a, b))[1]
    )
    write_bytes(tmp_path / "a", b"x")
    # The data, the rename, the directory.
    assert order == ["sync", "replace", "sync"]


class Busy(OSError):
    def __init__(self, code: int):
        super().__init__(13, "busy")
        self.winerror = code


@pytest.mark.parametrize(
    ("code", "times", "works"), [(5, 6, True), (32, 1, True), (33, 7, False), (1224, 1, False)]
)
def test_retries_happen_only_while_windows_says_busy(
    monkeypatch: pytest.MonkeyPatch, code: int, times: int, works: bool
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(files.time, "sleep", slept.append)
    left = [times]

    def action() -> None:
        if left[0]:
            left[0] -= 1
            raise Busy(code)

    if works:
        with_retry(action)
        assert slept == [0.05 * 2**i for i in range(times)]
    else:
        with pytest.raises(Busy):
            with_retry(action)
        assert len(slept) == (6 if code == 33 else 0)


def test_an_error_without_winerror_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.time, "sleep", lambda _: pytest.fail("slept"))

    def action() -> None:
        raise PermissionError(13, "no")

    with pytest.raises(PermissionError):
        with_retry(action)


def test_a_directory_that_cannot_be_synced_is_left_alone(tmp_path: Path) -> None:
    files.fsync_directory(tmp_path)
    files.fsync_directory(tmp_path / "none")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (3 * 2**20, "3.0 MiB"),
        (2.5 * 2**30, "2.5 GiB"),
        (5000 * 2**30, "5000.0 GiB"),
    ],
)
def test_sizes_are_readable(size: float, text: str) -> None:
    assert readable_size(size) == text


def test_a_line_ends_where_json_lines_end(tmp_path: Path) -> None:
    """U+2028 and U+0085 end a line for `str.splitlines`, and stand unescaped in a JSON string."""
    rows = [{"answer": "one\u2028two\u0085\n\r\x1c"}, {"answer": "中"}]
    files.write_json_lines(tmp_path / "a.jsonl", rows)
    assert files.read_json_lines(tmp_path / "a.jsonl") == rows
    assert files.read_json_objects(tmp_path / "a.jsonl") == rows
    with open(tmp_path / "a.jsonl", "a", encoding="utf-8") as handle:
        handle.write('7\n{"answer": "cut of')
    assert files.read_json_objects(tmp_path / "a.jsonl") == rows
    with pytest.raises(ValueError, match="Unterminated"):
        files.read_json_lines(tmp_path / "a.jsonl")
