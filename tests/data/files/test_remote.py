"""Rows at an address become files on this machine: once for each state, whole or not at all."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tunewright.core.errors import DataError
from tunewright.data.files import remote
from tunewright.data.files.reading import find_parts, stream

ROWS = [{"instruction": f"What is {n}?", "output": str(n)} for n in range(50)]


class Handler(http.server.SimpleHTTPRequestHandler):
    """A web server that can tell a state, and break off."""

    asked: list[str] = []
    tag: str | None = "one"
    breaks = 0

    def end_headers(self) -> None:
        if self.tag is not None:
            self.send_header("ETag", self.tag)
        super().end_headers()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if type(self).breaks > 0:
            type(self).breaks -= 1
            content = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:100])
            self.close_connection = True
            return
        super().do_GET()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    folder = tmp_path / "site"
    folder.mkdir()
    Handler.asked, Handler.tag, Handler.breaks = [], "one", 0
    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_at(place: str) -> list[Any]:
    return [row.value for file in find_parts(place).train for row in stream(file).rows]


def test_a_web_address_is_read_once_for_each_state(site: tuple[Path, str]) -> None:
    folder, address = site
    written(folder / "rows.jsonl", ROWS)
    assert rows_at(f"{address}/rows.jsonl?download=true") == ROWS
    assert rows_at(f"{address}/rows.jsonl?download=true") == ROWS
    assert len(Handler.asked) == 1
    written(folder / "rows.jsonl", ROWS[:7])
    Handler.tag = "two"
    assert rows_at(f"{address}/rows.jsonl?download=true") == ROWS[:7]


def test_without_a_state_it_is_asked_again(
    site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = site
    Handler.tag = None
    monkeypatch.setattr(Handler, "date_time_string", lambda self, timestamp=None: "today")
    monkeypatch.setattr(remote, "STATE", ("ETag",))
    written(folder / "rows.jsonl", ROWS)
    assert rows_at(f"{address}/rows.jsonl") == ROWS
    written(folder / "rows.jsonl", ROWS[:3])
    assert rows_at(f"{address}/rows.jsonl") == ROWS[:3]


def test_a_connection_that_breaks_is_tried_again(site: tuple[Path, str]) -> None:
    folder, address = site
    written(folder / "rows.jsonl", ROWS)
    Handler.breaks = 2
    assert rows_at(f"{address}/rows.jsonl") == ROWS
    Handler.breaks, Handler.tag = 9, "other"
    with pytest.raises(DataError, match="E-DATA-90"):
        rows_at(f"{address}/rows.jsonl")
    Handler.breaks = 0
    # Nothing half is left under the name of a copy.
    assert rows_at(f"{address}/rows.jsonl") == ROWS


def test_offline_the_newest_copy_is_used(
    site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = site
    written(folder / "rows.jsonl", ROWS)
    assert rows_at(f"{address}/rows.jsonl") == ROWS
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert rows_at(f"{address}/rows.jsonl") == ROWS
    assert len(Handler.asked) == 1
    with pytest.raises(DataError, match="no copy of it"):
        rows_at(f"{address}/others.jsonl")


def test_what_is_not_there_says_so(site: tuple[Path, str]) -> None:
    _, address = site
    with pytest.raises(DataError, match=r"E-DATA-90.*none\.jsonl"):
        rows_at(f"{address}/none.jsonl")


def test_passwords_and_signatures_are_not_shown(site: tuple[Path, str]) -> None:
    _, address = site
    with pytest.raises(DataError, match="E-DATA-92") as caught:
        rows_at("https://me:hidden@example.org/rows.jsonl")
    assert "hidden" not in str(caught.value)
    with pytest.raises(DataError, match="E-DATA-90") as caught:
        rows_at(f"{address}/none.jsonl?signature=hidden")
    assert "hidden" not in str(caught.value)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """fsspec's store in memory in place of an object store."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(remote.LIBRARIES, "memory", "fsspec")
    monkeypatch.setattr(remote, "STATE", ("created",))
    fs = fsspec.filesystem("memory")
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "notes.bin"):
        text = "".join(json.dumps({**row, "from": name}) + "\n" for row in ROWS[:2])
        fs.pipe(f"/bucket/{name}", text.encode())
    yield fs
    fs.rm("/bucket", recursive=True)


def test_a_pattern_and_a_folder_of_a_store(store: Any) -> None:
    files = find_parts("memory://bucket/*.jsonl").train
    assert [path.name for path in files] == ["00000-a.jsonl", "00001-b.jsonl"]
    assert find_parts("memory://bucket/*.jsonl").train == files
    assert [row["from"] for row in rows_at("memory://bucket")] == ["a.jsonl"] * 2 + ["b.jsonl"] * 2
    assert [row["from"] for row in rows_at("memory://bucket/sub/c.jsonl")] == ["sub/c.jsonl"] * 2
    with pytest.raises(DataError, match="no file that can be read"):
        find_parts("memory://bucket/*.parquet")


def test_parts_of_a_folder_are_told_from_their_names_as_they_are_here(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train.jsonl", "test.jsonl", "valid.jsonl"):
        text = "".join(json.dumps({**row, "from": name}) + "\n" for row in ROWS[:2])
        store.pipe(f"/bucket/parted/{name}", text.encode())
        (tmp_path / name).write_text(text)
    here = find_parts(str(tmp_path))
    for _ in range(2):
        far = find_parts("memory://bucket/parted")
        for one, other in ((far.train, here.train), (far.valid, here.valid), (far.test, here.test)):
            assert [path.name for path in one] == [path.name for path in other] != []
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_file_with_another_name_is_another_copy(store: Any) -> None:
    store.pipe("/bucket/only/a.jsonl", b'{"text": "one"}\n')
    assert [path.name for path in find_parts("memory://bucket/only").train] == ["a.jsonl"]
    store.mv("/bucket/only/a.jsonl", "/bucket/only/b.jsonl")
    assert [path.name for path in find_parts("memory://bucket/only").train] == ["b.jsonl"]


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(DataError, match=r"E-DATA-91.*pip install ossfs"):
        find_parts("oss://bucket/rows.jsonl")


def test_a_full_disk_is_told_before_anything_is_copied(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(DataError, match=r"E-DATA-93.*10 are free"):
        find_parts("memory://bucket/a.jsonl")


@pytest.mark.parametrize(
    "place", ["s3:/x/rows.jsonl", "file:///etc/passwd", "data/rows.jsonl", "C://x"]
)
def test_other_names_are_no_addresses(place: str) -> None:
    assert not remote.is_named(place)
