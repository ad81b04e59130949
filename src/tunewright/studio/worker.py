"""The process that does the queue: one command after the other, each in a session of its own.

    python -m tunewright.studio.worker ROOT

It holds a lock while it lives, goes on after an error, and ends when nothing waits. It outlives
server and page, and when it dies itself its command goes on: the next worker finds it by its
process and waits for it. A command that vanished without a word is marked `lost`, with what is
known. A stop is the signal that `tunewright train` answers with a checkpoint; who does not end
within 30 seconds is asked again, then ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunewright.core.errors import problem
from tunewright.core.processes import born, detached
from tunewright.core.words import speaking
from tunewright.record.folder import read_summary
from tunewright.studio.jobs import Jobs, last_line, lives
from tunewright.studio.places import Places

LOOK_SECONDS = 0.2
GENTLE_SECONDS, HARDER_SECONDS = 30.0, 10.0
STOPPED_CODES = (130, 143, -signal.SIGINT, -signal.SIGTERM)


def main(root: str) -> int:
    """Work until nothing waits; 0, also where another worker is at it."""
    places = Places(Path(root))
    lock = FileLock(places.private / "worker.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return 0
    jobs = Jobs(places)
    for left in [job for job in jobs.all() if job["state"] == "running"]:
        with speaking(left["language"]):
            _wait(jobs, left, None)
    while True:
        with jobs.changing():
            job = next((j for j in jobs.all() if j["state"] == "queued"), None)
            if job is None:
                # Given back while the queue is locked: who adds a job afterwards finds no worker
                # and starts one.
                lock.release()
                return 0
            child = _start(jobs, job)
        _wait(jobs, job, child)


def _start(jobs: Jobs, job: dict[str, Any]) -> subprocess.Popen[bytes] | None:
    """Start a job's command and record its process; inside `changing`."""
    folder, log = jobs.folder / job["id"], Path(job["log"])
    job |= {"state": "running", "started": round(time.time(), 3)}
    job["log_from"] = log.stat().st_size if log.exists() else 0
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    if job["language"]:
        environment["TUNEWRIGHT_LANG"] = job["language"]
    command = [sys.executable, "-m", "tunewright", *job["argv"]]
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(folder / "out.json", "wb") as out, open(log, "ab") as told:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=told,
                cwd=jobs.places.root,
                env=environment,
                **detached(),
            )
        job |= {"pid": child.pid, "born": born(child.pid)}
    except OSError as error:
        child, job["code"] = None, 1
        said = problem("E-STUDIO-21", str(folder), folder=folder, cause=error).as_dict()
        job["problems"] = [said]
    jobs.write(job)
    return child


def _wait(jobs: Jobs, job: dict[str, Any], child: subprocess.Popen[bytes] | None) -> None:
    """Stay until a job's command has ended, passing on what was asked; record how it ended."""
    asked_at, sent = 0.0, 0
    while (child.poll() is None) if child else lives(job):
        now = jobs.read(job["id"])
        if now and now["asked"]:
            asked_at = asked_at or time.monotonic()
            sent = _press(job["pid"], sent, time.monotonic() - asked_at)
        time.sleep(LOOK_SECONDS)
    code = child.returncode if child else None
    with jobs.changing():
        ended = {**job, **(jobs.read(job["id"]) or {})}
        jobs.write({**ended, **_ending(jobs, ended, code), "ended": round(time.time(), 3)})


def _press(pid: int, sent: int, seconds: float) -> int:
    """Send the next signal that is due; how many were sent. First the one that saves a checkpoint,
    then again (it ends at once), then one that nothing withstands, to the whole session."""
    due = 1 if seconds < GENTLE_SECONDS else 2 if seconds < GENTLE_SECONDS + HARDER_SECONDS else 3
    if due == sent:
        return sent
    with contextlib.suppress(OSError):
        if os.name == "nt":
            soft = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM)
            os.kill(pid, soft if due < 3 else signal.SIGTERM)
        elif due < 3:
            # Not SIGINT: a program that a shell started in the background ignores that one, and
            # its children do.
            os.kill(pid, signal.SIGTERM)
        else:
            os.killpg(pid, signal.SIGKILL)
    return due


def _ending(jobs: Jobs, job: dict[str, Any], code: int | None) -> dict[str, Any]:
    """State, exit code and problems of a command that ended. Without a code (it was not our child)
    its files tell."""
    if job["problems"]:
        return {"state": "failed", "code": code}
    out = jobs.result(job)
    if code is None:
        code = _code_by_files(job, out)
    problems = out.get("problems") or [] if isinstance(out, dict) else []
    problems = [said for said in problems if isinstance(said, dict) and "code" in said]
    if code is not None and job["asked"]:
        return {"state": "stopped" if code else "done", "code": code, "problems": []}
    if code is None:
        last = last_line(Path(job["log"]), job["log_from"])
        said = problem("E-STUDIO-16", job["id"], last=last or "-").as_dict()
        return {"state": "lost", "code": None, "problems": [said]}
    if code in STOPPED_CODES:
        return {"state": "stopped", "code": code, "problems": problems}
    if code and not problems and not _is_told(job, out):
        last = last_line(Path(job["log"]), job["log_from"])
        problems = [problem("E-STUDIO-26", job["id"], code=code, last=last or "-").as_dict()]
    # A gate that failed, or data with stops, ends with a code and a whole report.
    failed = bool(code) and (bool(problems) or not _is_told(job, out))
    return {"state": "failed" if failed else "done", "code": code, "problems": problems}


def _is_told(job: dict[str, Any], out: Any) -> bool:
    return isinstance(out, dict) and "problems" not in out and job["kind"] in ("check", "doctor")


def _code_by_files(job: dict[str, Any], out: Any) -> int | None:
    if isinstance(out, dict):
        return 1 if out.get("problems") else 0
    if job["run_path"]:
        run = Path(job["run_path"])
        with contextlib.suppress(OSError):
            # The summary of a continued run may be that of its first part.
            if (run / "summary.json").stat().st_mtime >= job["started"]:
                codes = {"done": 0, "stopped": 130, "failed": 1}
                return codes.get(str(read_summary(run).get("status")))
    return None


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (IndexError, json.JSONDecodeError) as error:
        sys.exit(f"python -m tunewright.studio.worker ROOT ({error})")
