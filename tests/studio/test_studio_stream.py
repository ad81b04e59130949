"""A browser that comes back goes on where it was: no line twice, none missing."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers.studio_world import step_event, workspace, write_run

from tunewright.studio.stream import Source, Told, follow, sse


def parse(data: bytes) -> list[dict[str, str]]:
    """Server-sent events as the standard reads them."""
    found = []
    for block in data.decode("utf-8").split("\n\n"):
        event: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            event[name] = f"{event['data']}\n{value}" if name == "data" in event else value
        if block.strip():
            found.append(event)
    return found


class Reader:
    """Reads a run's stream until it is told to go, again and again."""

    def __init__(self, events: Path, log: Path):
        self.source = Source(lambda: (events, log), dict, dict, 1.0)
        self.last: str | None = None
        self.lines: list[str] = []
        self.text = ""
        self.seen: list[dict[str, str]] = []

    def read(self, most: int) -> None:
        """Take up to `most` events, then drop the connection (some may be lost on the way)."""
        asyncio.run(asyncio.wait_for(self._read(most), 20))

    async def _read(self, most: int) -> None:
        async def gone() -> bool:
            return False

        stream = follow(self.source, Told.of(self.last), gone, asyncio.Event())
        taken = 0
        try:
            while taken < most:
                piece = await asyncio.wait_for(anext(stream), 0.7)
                (event,) = parse(piece)
                if event["event"] in ("event", "log"):
                    self.last = event["id"]
                    taken += 1
                if event["event"] == "event":
                    self.lines.append(event["data"])
                elif event["event"] == "log":
                    self.text += json.loads(event["data"])["text"]
                self.seen.append(event)
        except (asyncio.TimeoutError, StopAsyncIteration):
            pass


def test_no_line_is_told_twice_or_lost_over_many_breaks(tmp_path: Path) -> None:
    events, log = tmp_path / "events.jsonl", tmp_path / "log.txt"
    reader, rng = Reader(events, log), random.Random(5)
    lines = [
        json.dumps({**step_event(n), "text": "zwölf\u2028 Jäger 🙂"}, ensure_ascii=False)
        for n in range(60)
    ]
    text = "".join(f"step {n}/60 · ⏳ größer\n" for n in range(60))
    data, told = ("\n".join(lines) + "\n").encode(), text.encode()
    at = at_log = 0
    while at < len(data) or at_log < len(
        told
    ):  # in pieces that end anywhere, within a character too
        piece, said = rng.randint(1, 2500), rng.randint(1, 500)
        with open(events, "ab") as one, open(log, "ab") as two:
            one.write(data[at : at + piece])
            two.write(told[at_log : at_log + said])
        at, at_log = at + piece, at_log + said
        reader.read(rng.randint(0, 9))
    reader.read(10_000)
    assert reader.lines == lines
    assert reader.text == text


def test_every_event_says_how_far_the_files_were_told(tmp_path: Path) -> None:
    events = write_run(tmp_path / "run", 3) / "events.jsonl"
    reader = Reader(events, tmp_path / "none.txt")
    reader.read(100)
    hello, *rest = reader.seen
    assert (hello["event"], json.loads(hello["data"])) == ("hello", {"started": 1.0})
    whole = events.read_bytes()
    ends = [int(event["id"].split(".")[0]) for event in rest if event["event"] == "event"]
    assert ends[-1] == len(whole)
    assert [whole[:end].count(b"\n") for end in ends] == list(range(1, len(ends) + 1))


@pytest.mark.parametrize(
    "text", [None, "", "x", "-1.2", "1", "1.2.3", "1e3.4", "9" * 40 + ".1", "1.2\n"]
)
def test_a_strange_identity_begins_at_the_start(text: str | None) -> None:
    told = Told.of(text)
    assert (told.events, told.log) in ((0, 0), (1, 2))


def test_an_event_is_one_event_whatever_stands_in_it() -> None:
    for text in ("a\nb", "a\n\nevent: evil\ndata: x", "<script>"):
        (event,) = parse(sse("log", json.dumps({"text": text}), "1.2"))
        assert json.loads(event["data"]) == {"text": text}
        assert (event["event"], event["id"]) == ("log", "1.2")


def test_jobs_and_runs_are_told_when_they_change_and_when_they_go(tmp_path: Path) -> None:
    studio = workspace(tmp_path)
    now: dict[str, Any] = {"a": {"id": "a", "state": "queued"}, "b": {"id": "b", "state": "done"}}
    source = Source(lambda: None, lambda: dict(now), dict, studio.started)

    async def read() -> list[dict[str, Any]]:
        async def gone() -> bool:
            return False

        ended = asyncio.Event()
        found: list[dict[str, Any]] = []
        stream = follow(source, Told(), gone, ended)
        async for piece in stream:
            (event,) = parse(piece)
            if event["event"] == "job":
                found.append(json.loads(event["data"]))
            if len(found) == 2 and now.get("a", {}).get("state") == "queued":
                now["a"] = {"id": "a", "state": "running"}
            elif len(found) == 3 and "b" in now:
                del now["b"]
            elif len(found) == 4:
                ended.set()  # the server ends: so does every stream, at once
        return found

    found = asyncio.run(asyncio.wait_for(read(), 20))
    assert found[2:] == [{"id": "a", "state": "running"}, {"id": "b", "gone": True}]
