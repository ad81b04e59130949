"""A folder appears whole or not at all, whatever happens on the way."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tunewright.core import publish


def fill(folder: Path) -> None:
    (folder / "a.txt").write_text("a", encoding="utf-8")
    (folder / "deep").mkdir()
    (folder / "deep" / "b.txt").write_text("b", encoding="utf-8")


def test_nothing_is_there_before_the_end_and_all_of_it_after(tmp_path: Path) -> None:
    target = tmp_path / "new" / "place" / "x"
    with publish.folder(target) as temporary:
        fill(temporary)
        assert not target.exists() and temporary.parent == target.parent
        assert temporary.name.startswith(".x.tmp-")
    assert (target / "deep" / "b.txt").read_text(encoding="utf-8") == "b"
    assert [place.name for place in target.parent.iterdir()] == ["x"]


def test_an_empty_folder_gives_way_and_a_full_one_stays(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with publish.folder(tmp_path / "x") as temporary:
        fill(temporary)
    with pytest.raises(OSError), publish.folder(tmp_path / "x") as temporary:
        (temporary / "other.txt").touch()
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["a.txt", "deep"]
    assert [place.name for place in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_after_an_error_nothing_is_left_not_even_its_parents(tmp_path: Path, error: Any) -> None:
    with pytest.raises(error), publish.folder(tmp_path / "new" / "place" / "x") as temporary:
        fill(temporary)
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_after_a_failing_disk_nothing_is_left(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    def fail(*given: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError), publish.folder(tmp_path / "new" / "x") as temporary:
        fill(temporary)
    assert not list(tmp_path.iterdir())


def test_every_file_is_on_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: Any
) -> None:
    done: list[str] = []
    sync, rename = publish.fsync_file, os.rename
    monkeypatch.setattr(publish, "fsync_file", lambda p: (done.append(p.name), sync(p)))
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append("rename"), rename(a, b)))
    monkeypatch.setattr(publish, "fsync_directory", lambda p: done.append(f"{p.name}/"))
    with publish.folder(tmp_path / "x") as temporary:
        fill(temporary)
    assert sorted(done[:3]) == ["a.txt", "b.txt", "deep/"]
    assert done[3:] == [f"{temporary.name}/", "rename", f"{tmp_path.name}/"]


def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    for name, days in ((".x.tmp-1-aa", 3), (".x.tmp-2-bb", 1), (".xy.tmp-3-cc", 3)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - days * 86400,) * 2)
    with publish.folder(tmp_path / "x"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x.tmp-2-bb", ".xy.tmp-3-cc", "x"]
    publish.remove_left_overs(tmp_path, ".x.tmp-")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".xy.tmp-3-cc", "x"]
