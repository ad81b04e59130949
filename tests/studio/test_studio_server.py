"""The real server: it starts, is killed and starts again while a training goes on, and ends at once
with streams open."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import story
from helpers.studio_world import Served, lives

from tunewright.studio.jobs import born


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunewright", "studio", "--no-browser", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_port_that_is_taken_and_a_folder_that_is_none_are_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = cli("--port", port, "--root", str(tmp_path))
    assert (done.returncode, "E-STUDIO-02" in done.stderr, port in done.stderr) == (2, True, True)
    assert "--port 0" in done.stderr
    for words in (["--root", str(tmp_path / "none")], ["--allow", str(tmp_path / "none")]):
        done = cli("--port", "0", *words)
        assert (done.returncode, "E-STUDIO-03" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_a_missing_extra_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunewright.core.errors import UsageError
    from tunewright.core.telling import Quiet
    from tunewright.studio import launch

    monkeypatch.setattr(launch, "NEEDS", ("fastapi", "no_such_module"))
    with pytest.raises(UsageError, match="E-STUDIO-01") as caught:
        launch.studio(Quiet(), root=tmp_path)
    assert "no_such_module" in str(caught.value)


class Stream:
    """Reads a stream in a thread, as a tab does, and comes back with what it had last."""

    def __init__(self, served: Served, run: str):
        self.served, self.run, self.last = served, run, ""
        self.lines: list[str] = []
        self.text = ""
        self.kinds: list[str] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._all, daemon=True)
        self.thread.start()

    def _all(self) -> None:
        while not self.ended.is_set():
            try:
                self._once()
            except (OSError, ValueError):
                time.sleep(0.1)

    def _once(self) -> None:
        more = {"Last-Event-ID": self.last} if self.last else {}
        with self.served.open(f"/api/stream?run={self.run}", **more) as reply:
            event: dict[str, str] = {}
            while not self.ended.is_set():
                raw = reply.readline()
                if not raw:
                    return
                line = raw.decode("utf-8").rstrip("\n")
                if line:
                    name, _, value = line.partition(": ")
                    event[name] = value
                    continue
                self._take(event)
                event = {}

    def _take(self, event: dict[str, str]) -> None:
        self.kinds.append(event.get("event", ""))
        if event.get("event") == "event":
            self.lines.append(event["data"])
        elif event.get("event") == "log":
            self.text += json.loads(event["data"])["text"]
        if event.get("event") in ("event", "log"):
            self.last = event["id"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace with a tiny model; whatever it started is ended."""
    root = tmp_path / "work"
    root.mkdir()
    story.model_folder(root / "model")
    story.rows_file(root / "rows.json", 40)
    servers: list[Served] = []
    whole = Served.__init__

    def kept(self: Served, *given: Any, **named: Any) -> None:
        servers.append(self)
        whole(self, *given, **named)

    monkeypatch.setattr(Served, "__init__", kept)
    yield root
    for served in servers:
        served.kill()
    for job in (root / ".studio" / "jobs").glob("*/job.json"):
        pid = json.loads(job.read_text()).get("pid")
        if pid and lives(pid):
            os.killpg(pid, signal.SIGKILL)


def training(steps: int) -> dict[str, Any]:
    config = {"model": "model", "data.train": "rows.json", "data.held_out": 0}
    config |= {"engine.steps": steps, "engine.batch_size": 2, "engine.dtype": "float32"}  # type: ignore[dict-item]
    config |= {"engine.threads": 1, "probes": 1, "forgetting": "off", "engine.save_every": 100}  # type: ignore[dict-item]
    return {"kind": "train", "config": config, "name": "tiny"}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_training_outlives_the_server_and_nobody_misses_a_line(place: Path) -> None:
    served = Served(place)
    job = served.call("/api/jobs", training(300))
    tabs = [Stream(served, job["run"]) for _ in range(2)]
    end = time.monotonic() + 90
    while not any('"step"' in line for line in tabs[0].lines):
        assert time.monotonic() < end, served.call(f"/api/jobs/{job['id']}")
        time.sleep(0.1)
    record = json.loads((place / ".studio" / "jobs" / job["id"] / "job.json").read_text())
    pid, when = record["pid"], born(record["pid"])
    served.kill()
    time.sleep(1.0)
    assert born(pid) == when  # the training did not stop
    again = Served(place, port=served.port)
    assert again.token == served.token
    (seen,) = [one for one in again.call("/api/jobs") if one["id"] == job["id"]]
    assert (seen["state"], seen["run"]) == ("running", job["run"])
    after = again.call("/api/jobs", {"kind": "check", "data": "rows.json"})
    done = again.wait_for(job["id"], "done", "failed", "stopped", "lost")
    assert (done["state"], done["problems"]) == ("done", [])
    assert done["result"]["status"] == "done"
    assert again.wait_for(after["id"], "done", "failed")["state"] == "done"
    events = place / "runs" / "tiny" / "events.jsonl"
    log = place / ".studio" / "logs" / f"{job['run']}.txt"
    wanted = events.read_text(encoding="utf-8").splitlines()
    told = log.read_text(encoding="utf-8")
    end = time.monotonic() + 10
    while any((tab.lines, tab.text) != (wanted, told) for tab in tabs) and time.monotonic() < end:
        time.sleep(0.1)
    for tab in tabs:
        assert tab.lines == wanted
        assert tab.text == told
        assert tab.kinds.count("hello") == 2
    found = again.call(f"/api/runs/{job['run']}/series")["keys"]["loss"]
    steps = [json.loads(line) for line in wanted if '"event": "step"' in line]
    assert found == [[step["step"], step["loss"]] for step in steps]
    began = time.monotonic()
    assert again.stop() == 128 + signal.SIGTERM
    assert time.monotonic() - began < 8  # two streams were open
    for tab in tabs:
        tab.ended.set()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_run_is_paused_resumed_and_stopped(place: Path) -> None:
    served = Served(place)
    job = served.call("/api/jobs", training(20_000))
    events = place / "runs" / "tiny" / "events.jsonl"
    end = time.monotonic() + 90
    while not events.exists() or events.read_text().count('"step"') < 20:
        assert time.monotonic() < end
        time.sleep(0.1)
    served.call(f"/api/runs/{job['run']}/pause", {})
    ended = served.wait_for(job["id"], "stopped", "done", "failed", "lost")
    assert (ended["state"], ended["problems"]) == ("stopped", [])
    head = served.call(f"/api/runs/{job['run']}")
    assert (head["status"], head["paused"]) == ("stopped", True)
    assert head["checkpoints"]
    reached = head["steps"]
    again = served.call(f"/api/runs/{job['run']}/resume", {})
    end = time.monotonic() + 90
    while served.call(f"/api/runs/{job['run']}")["steps"] <= reached:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert served.call(f"/api/runs/{job['run']}")["status"] == "running"
    served.call(f"/api/jobs/{again['id']}/stop", {})
    assert served.wait_for(again["id"], "stopped", "failed")["state"] == "stopped"
    steps = [step for step, _ in served.call(f"/api/runs/{job['run']}/series")["keys"]["loss"]]
    assert steps == sorted(set(steps))
    assert served.stop() == 128 + signal.SIGTERM


@pytest.mark.slow
def test_raw_paths_of_the_wire_lead_nowhere(place: Path) -> None:
    """Clients tidy a path up before they send it; a socket does not."""
    served = Served(place)
    (place.parent / "secret.txt").write_text("canary-91")
    paths = ["/../secret.txt", "/../../secret.txt", "/assets/../../../secret.txt", "//etc/passwd"]
    paths += [
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "/..%5csecret.txt",
        "/.%00./x",
        "/etc/passwd",
    ]
    paths += [
        "http://evil.example/",
        "/api/../../secret.txt",
        "/api/runs/..%2f..%2fsecret.txt",
        "*",
        "/\xff",
    ]
    for path in paths:
        for token in (served.token, "wrong"):
            with socket.create_connection(("127.0.0.1", served.port), timeout=10) as line:
                request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
                request += f"Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
                line.sendall(request.encode("latin-1"))
                reply = b""
                while piece := line.recv(65536):
                    reply += piece
            status = int(re.match(rb"HTTP/1.1 (\d+)", reply)[1])  # type: ignore[index]
            assert status in ((400, 401) if token == "wrong" else (400, 403, 404, 200)), (
                path,
                reply[:200],
            )
            assert b"canary-91" not in reply
            assert b"root:" not in reply
    assert served.stop() == 128 + signal.SIGTERM
