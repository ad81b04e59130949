"""What the routes of one server share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.machine import total_memory
from tunewright.studio.checks import Checks
from tunewright.studio.children import Child
from tunewright.studio.commands import Commands, shown_command
from tunewright.studio.datafiles import DataFiles
from tunewright.studio.jobs import Jobs, last_line, progress_of, said_again
from tunewright.studio.places import Places
from tunewright.studio.runs import Head, Runs, read_head
from tunewright.studio.series import Curves

SHORT_SECONDS = 0.5
"""How long the list of runs is good for all streams together."""
SMALL_MEMORY = 12 * 2**30
"""Below it a training and a model that answers do not share the machine."""


@dataclass
class Studio:
    """One workspace, served."""

    places: Places
    host: str = "127.0.0.1"
    port: int | None = None
    token: str = ""
    upload_bytes: int = 512 * 2**20
    started: float = field(default_factory=lambda: round(time.time(), 3))

    def __post_init__(self) -> None:
        self.jobs = Jobs(self.places)
        self.runs = Runs(self.places, self.jobs)
        self.data = DataFiles(self.places)
        self.checks = Checks(self.places, self.path_of)
        self.commands = Commands(self.places, self.checks, self.jobs)
        self.curves = Curves(self.places.private / "curves")
        logs = self.places.private
        self.desk = Child("tunewright.studio.desk", self.places.root, logs / "desk.log")
        self.answerer = Child("tunewright.studio.answerer", self.places.root, logs / "answerer.log")
        self.ended = asyncio.Event()
        self._heads: tuple[float, dict[str, Head]] = (0.0, {})
        self._pages: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def path_of(self, text: str) -> Path | None:
        """The file or folder of an id of any list."""
        return self.runs.find(text) or self.data.path_of(text)

    def heads(self) -> dict[str, Head]:
        """Every run by id, at most `SHORT_SECONDS` old."""
        with self._lock:
            if time.monotonic() - self._heads[0] > SHORT_SECONDS:
                found = {head["id"]: head for head in self.runs.heads()}
                self._heads = (time.monotonic(), found)
            return self._heads[1]

    def shown(self, job: dict[str, Any], *, whole: bool = False) -> dict[str, Any]:
        """A job as the page gets it, in the reader's language."""
        told = {
            key: job[key] for key in ("id", "kind", "title", "state", "created", "started", "ended")
        }
        told |= {
            "command": shown_command(self.places, job),
            "run": job["run"],
            "asked": job["asked"],
            "problems": said_again(job["problems"]),
            "progress": self._progress(job),
            "out": self.places.short(job["out"]) if job.get("out") else None,
            "pages": self.pages(job),
        }
        if whole:
            text, offset = self.jobs.log(job)
            told |= {"result": self.jobs.result(job), "log": text, "log_offset": offset}
        return told

    def pages(self, job: dict[str, Any]) -> list[str]:
        """The pages that a command wrote into its folder."""
        if job["state"] not in ("done", "failed"):
            return []
        if job["id"] not in self._pages:
            folder = self.jobs.folder / job["id"]
            found = (p for p in folder.rglob("*.html") if p.is_file() and not p.is_symlink())
            self._pages[job["id"]] = sorted(p.relative_to(folder).as_posix() for p in found)
        return self._pages[job["id"]]

    def _progress(self, job: dict[str, Any]) -> dict[str, Any] | None:
        if job["state"] != "running":
            return None
        told = progress_of(last_line(Path(job["log"]), job["log_from"]))
        if job["run_path"]:
            head = read_head(Path(job["run_path"]))
            if head["total_steps"] and head["heard"] and head["heard"] >= (job["started"] or 0):
                left = told["left_seconds"]
                if left is None and head["steps"]:
                    spent = time.time() - (head["started"] or time.time())
                    left = spent / head["steps"] * max(0, head["total_steps"] - head["steps"])
                told |= {"done": head["steps"], "total": head["total_steps"]}
                told["left_seconds"] = None if left is None else round(left)
        return told

    def all_jobs(self) -> dict[str, dict[str, Any]]:
        """Every job by id, as the page gets it."""
        return {job["id"]: self.shown(job) for job in self.jobs.all()}

    def files_of(self, run_id: str) -> Callable[[], tuple[Path, Path] | None]:
        """Where a run's events and log lie; they may come later."""

        def files() -> tuple[Path, Path] | None:
            folder = self.runs.find(run_id)
            log = self.places.private / "logs" / f"{run_id}.txt"
            if folder is None:
                job = self.runs.job_of(run_id)
                folder = Path(job["run_path"]) if job else None
            return (folder / "events.jsonl", log) if folder else None

        return files

    async def make_room(self) -> None:
        """Let go of the models that answer where a training needs their memory."""
        if total_memory() < SMALL_MEMORY and self.answerer.is_alive:
            await self.answerer.stop()
