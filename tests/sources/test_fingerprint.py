"""The fingerprint of a model: its bytes, read as seldom as that is safe."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tunewright.sources import fingerprint as prints


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prints, "SMALLEST_BYTES", 0)
    monkeypatch.setattr(prints, "SETTLED_NS", 0)
    made = tmp_path / "model"
    made.mkdir()
    (made / "model-1.safetensors").write_bytes(b"a" * 3_000_000)
    (made / "model-2.safetensors").write_bytes(b"b" * 10)
    (made / "config.json").write_text("{}")
    (made / "chat_template.jinja").write_text("{{ messages }}")
    return made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every time that weights are read."""
    found: list[int] = []
    digest = prints._digest
    monkeypatch.setattr(prints, "_digest", lambda files: found.append(len(files)) or digest(files))
    return found


def test_the_digest_is_that_of_names_sizes_and_bytes(folder: Path) -> None:
    expected = hashlib.blake2b(digest_size=16)
    expected.update(b"model-1.safetensors 3000000\n" + b"a" * 3_000_000)
    expected.update(b"model-2.safetensors 10\n" + b"b" * 10)
    assert prints.weights_digest(folder) == expected.hexdigest()
    assert prints.weights_digest(folder) == expected.hexdigest()  # from what was kept


def test_weights_are_read_once(folder: Path, reads: list[int]) -> None:
    first = prints.fingerprint(folder)
    assert prints.fingerprint(folder) == first
    assert reads == [2]


def rewritten(path: Path) -> None:
    path.write_bytes(b"c" * path.stat().st_size)


def rewritten_and_dated_back(path: Path) -> None:
    before = path.stat()
    rewritten(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_a_copy(path: Path) -> None:
    before, other = path.stat(), path.with_name("other")
    other.write_bytes(b"d" * before.st_size)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [rewritten, rewritten_and_dated_back, replaced_by_a_copy])
def test_changed_weights_are_read_again(folder: Path, reads: list[int], change: object) -> None:
    first = prints.fingerprint(folder)
    change(folder / "model-2.safetensors")  # type: ignore[operator]
    assert prints.fingerprint(folder) != first
    assert reads == [2, 2]


def test_a_file_that_was_written_a_moment_ago_is_not_remembered(
    folder: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prints, "SETTLED_NS", 3600 * 10**9)
    assert prints.weights_digest(folder) == prints.weights_digest(folder)
    assert reads == [2, 2]


def test_small_models_leave_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prints, "SMALLEST_BYTES", 4 << 20)
    prints.fingerprint(folder)
    assert not prints.is_kept_about(folder)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.json", "{ }"), ("chat_template.jinja", "{{ x }}"), ("modeling.py", "print()")],
)
def test_small_files_count_by_their_content(folder: Path, name: str, text: str) -> None:
    first = prints.fingerprint(folder)
    before = (folder / name).read_text() if (folder / name).is_file() else None
    (folder / name).write_text(text)
    assert prints.fingerprint(folder) != first
    if before is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(before)
    assert prints.fingerprint(folder) == first


def test_our_own_marker_is_no_part_of_a_model(folder: Path) -> None:
    first = prints.fingerprint(folder)
    (folder / "tunewright.json").write_text('{"files": {}}')
    assert prints.fingerprint(folder) == first


def test_what_computes_has_versions_and_a_processor() -> None:
    found = prints.computed_by()
    assert {"torch", "transformers", "peft", "tunewright", "files", "processor"} <= set(found)
    assert len(found["files"]) == 32
