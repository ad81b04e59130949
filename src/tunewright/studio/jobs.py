"""The queue on disk: one folder a job, read and written by the server and the worker alike.

`jobs/<id>/job.json` is the record; its changes are made under one lock, so that the two processes
do not lose each other's. The worker holds another lock as long as it lives: whoever can take that
one knows that no worker is there. A job's output goes straight into files (`out.json`, a log), so
it outlives whoever started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunewright.core.errors import UsageError, problem, problem_of
from tunewright.core.files import write_json
from tunewright.core.processes import born, detached
from tunewright.studio.places import Places

ENDED = ("done", "failed", "stopped", "lost")
ID = re.compile(r"[0-9a-f]{16}")
PROGRESS = re.compile(r"^(?P<what>.*?)\s(?P<done>[\d,]+)/(?P<total>[\d,]+)(?P<rest>\s·.*)?$")
LEFT = re.compile(r"·\s(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d\d)(?:\s⏳)?$")


class Jobs:
    """The jobs of one workspace."""

    def __init__(self, places: Places):
        self.places, self.folder = places, places.private / "jobs"
        self._lock = FileLock(places.private / "queue.lock")
        self._known: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Alone with the queue."""
        with self._lock:
            yield

    def all(self) -> list[dict[str, Any]]:
        """Every job as it is recorded: the queue in its order, then what ended, newest first."""
        found = [job for entry in self._entries() if (job := self.read(entry)) is not None]
        waiting = sorted((j for j in found if j["state"] == "queued"), key=lambda j: j["order"])
        running = [j for j in found if j["state"] == "running"]
        ended = [j for j in found if j["state"] in ENDED]
        return [*running, *waiting, *sorted(ended, key=lambda j: -(j["ended"] or j["created"]))]

    def _entries(self) -> list[str]:
        try:
            return [one.name for one in self.folder.iterdir() if ID.fullmatch(one.name)]
        except OSError:
            return []

    def read(self, job_id: str) -> dict[str, Any] | None:
        """One job's record; None where there is none that can be read."""
        path = self.folder / job_id / "job.json"
        if not ID.fullmatch(job_id):
            return None
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            kept = self._known.get(job_id)
            if kept is None or kept[0] != stamp:
                found = json.loads(path.read_text(encoding="utf-8"))
                kept = self._known[job_id] = (stamp, {**EMPTY, **found})
            return dict(kept[1])
        except (OSError, ValueError, TypeError):
            return None

    def get(self, job_id: str) -> dict[str, Any]:
        """One job's record. Raises UsageError where there is none."""
        found = self.read(job_id)
        if found is None:
            raise UsageError(problem("E-STUDIO-12", "job", what=job_id[:40]))
        return found

    def add(self, kind: str, title: str, argv: list[str], **facts: Any) -> dict[str, Any]:
        """Queue a command: `argv` without the program. Files that it needs are written by
        `files`: name -> text, into the job's folder, which `{job}` in argv stands for."""
        files = facts.pop("files", {})
        job_id = secrets.token_hex(8)
        folder = self.folder / job_id
        folder.mkdir(parents=True, mode=0o700)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        argv = [word.replace("{job}", str(folder)) for word in argv]
        with self.changing():
            order = 1 + max((job["order"] for job in self.all()), default=0)
            job = {
                **EMPTY,
                "id": job_id,
                "kind": kind,
                "title": title,
                "argv": argv,
                "created": round(time.time(), 3),
                "order": order,
                "log": str(folder / "log.txt"),
                **facts,
            }
            self.write(job)
        self.ensure_worker()
        return job

    def write(self, job: dict[str, Any]) -> None:
        """Replace a job's record; call it inside `changing`."""
        write_json(self.folder / job["id"] / "job.json", job)

    def change(self, job_id: str, **facts: Any) -> dict[str, Any]:
        """Change some facts of a job."""
        with self.changing():
            job = {**self.get(job_id), **facts}
            self.write(job)
        return job

    def stop(self, job_id: str, how: str = "stop") -> dict[str, Any]:
        """Take a queued job out, or ask the worker to end a running one gently. Raises
        UsageError for one that has ended."""
        with self.changing():
            job = self.get(job_id)
            if job["state"] == "queued":
                job |= {"state": "stopped", "ended": round(time.time(), 3)}
                self.write(job)
            elif job["state"] == "running":
                job["asked"] = how
                self.write(job)
            else:
                raise UsageError(problem("E-STUDIO-19", job_id, state=job["state"]))
        self.ensure_worker()
        return job

    def move(self, job_id: str, before: str | None) -> dict[str, Any]:
        """Put a queued job before another queued one, or last."""
        with self.changing():
            job = self.get(job_id)
            queue = [j for j in self.all() if j["state"] == "queued" and j["id"] != job_id]
            if job["state"] != "queued":
                raise UsageError(problem("E-STUDIO-19", job_id, state=job["state"]))
            place = next((i for i, j in enumerate(queue) if j["id"] == before), len(queue))
            queue.insert(place, job)
            for order, one in enumerate(queue, 1 + min(j["order"] for j in queue)):
                if one["order"] != order:
                    self.write({**one, "order": order})
            return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Remove a job that does not run; what it made stays."""
        with self.changing():
            job = self.get(job_id)
            if job["state"] == "running":
                raise UsageError(problem("E-STUDIO-19", job_id, state=job["state"]))
            shutil.rmtree(self.folder / job_id, ignore_errors=True)
            self._known.pop(job_id, None)

    def has_worker(self) -> bool:
        """Whether a worker lives."""
        lock = FileLock(self.places.private / "worker.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def ensure_worker(self) -> None:
        """Start a worker where work waits and none lives."""
        if any(job["state"] in ("queued", "running") for job in self.all()) and (
            not self.has_worker()
        ):
            start_worker(self.places.root)

    def result(self, job: dict[str, Any]) -> Any:
        """What the command printed for machines; None where it printed nothing that can be read."""
        path = self.folder / job["id"] / "out.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def log(self, job: dict[str, Any], offset: int = 0, most: int = 2**20) -> tuple[str, int]:
        """(text, the offset after it) of a job's log from a byte on."""
        return read_text(Path(job["log"]), max(offset, int(job.get("log_from") or 0)), most)


EMPTY: dict[str, Any] = {
    "state": "queued",
    "started": None,
    "ended": None,
    "run": None,
    "run_path": None,
    "asked": None,
    "pid": None,
    "born": None,
    "code": None,
    "problems": [],
    "log_from": 0,
    "language": None,
}


def start_worker(root: Path) -> None:
    """A worker in a session of its own: it outlives who started it."""
    command = [sys.executable, "-m", "tunewright.studio.worker", str(root)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with open(root / ".studio" / "worker.log", "ab") as log:
        child = subprocess.Popen(command, **quiet, stderr=log, cwd=root, **detached())  # type: ignore[call-overload]
    _reap(child)


def _reap(child: subprocess.Popen[bytes]) -> None:
    """A child that ended stays as a zombie until somebody asks for it."""
    import threading

    threading.Thread(target=child.wait, daemon=True).start()


def lives(job: dict[str, Any]) -> bool:
    """Whether the process of a running job is there."""
    return bool(job["pid"]) and born(job["pid"]) == job["born"]


def read_text(path: Path, offset: int, most: int = 2**20) -> tuple[str, int]:
    """(text, the offset after it) of a growing UTF-8 file; a character that is half written waits
    for the next time."""
    try:
        with open(path, "rb") as handle:
            handle.seek(offset)
            data = handle.read(most)
    except OSError:
        return "", offset
    for cut in range(min(4, len(data) + 1)):
        with contextlib.suppress(UnicodeDecodeError):
            whole = data[: len(data) - cut]
            return whole.decode("utf-8"), offset + len(whole)
    return data.decode("utf-8", "replace"), offset + len(data)


def last_line(path: Path, start: int = 0) -> str:
    """The last full line of a log."""
    with contextlib.suppress(OSError), open(path, "rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(start, size - 4096))
        lines = handle.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def progress_of(line: str) -> dict[str, Any]:
    """A line of the log as progress: its text, and how much of how much where it says so."""
    told: dict[str, Any] = {"text": line[:300], "done": None, "total": None, "left_seconds": None}
    found = PROGRESS.match(line)
    if found and (total := int(found["total"].replace(",", ""))):
        told |= {"text": found["what"], "done": int(found["done"].replace(",", "")), "total": total}
        left = LEFT.search(found["rest"] or "")
        if left:
            hours, minutes, seconds = (int(left[n] or 0) for n in ("hours", "minutes", "seconds"))
            told["left_seconds"] = 3600 * hours + 60 * minutes + seconds
    return told


def said_again(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Recorded problems in the language of the reader."""
    return [
        problem_of(said).as_dict() if "fields" in said else said
        for said in problems
        if isinstance(said, dict)
    ]
