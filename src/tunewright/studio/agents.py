"""What an agent may ask of a workspace: the functions behind `tunewright mcp`.

Each does what a route of the page does, through the same objects: the same roots (`places`), the
same looks at paths and settings (`checks`), the same queue (`jobs`), the same limit of what one
request may hold. So what the page refuses is refused here.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tunewright.core.errors import TunewrightError, UsageError, problem
from tunewright.studio.details import details
from tunewright.studio.given import Given
from tunewright.studio.guard import JSON_BYTES, too_long
from tunewright.studio.runs import ID
from tunewright.studio.state import Studio

MOST_RUNS = 200
LOG_BYTES = 16 * 1024
"""Of a log, the end, in one answer."""
MOST_ANSWERS = 50
NOT_TOLD = ("yaml", "has_report", "folder")
"""Parts of a run's page that say the same again, or where the workspace lies on this machine."""
LONGEST_WAIT = 55.0
"""Seconds that one call waits for a job: clients give up after a minute."""


class Agents:
    """The tools of one workspace. Every method raises TunewrightError for what is refused."""

    def __init__(self, studio: Studio):
        self.studio = studio

    async def runs(self, search: str = "") -> list[dict[str, Any]]:
        """The runs, newest first."""
        names = ("id", "name", "path", "status", "model", "data", "steps", "total_steps")
        found = await asyncio.to_thread(self.studio.runs.heads, search[:500], "")
        return [{name: head.get(name) for name in names} for head in found[:MOST_RUNS]]

    async def data(self) -> list[dict[str, Any]]:
        """The files of rows."""
        return await asyncio.to_thread(self.studio.data.all)

    async def check_data(self, fields: dict[str, Any]) -> Any:
        """What a model would learn from rows."""
        args = self.studio.checks.about_data(given(fields))
        return await self.studio.desk.ask("inspect", args)

    async def estimate(self, config: dict[str, Any]) -> Any:
        """Memory and time of a run, or what is wrong with its settings."""
        checked = self.studio.checks.config(given({"config": config}).mapping("config"))
        return await self.studio.desk.ask("plan", {"config": checked})

    async def start(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Queue a command."""
        asked = given({**fields, "kind": kind})
        job = await asyncio.to_thread(self.studio.commands.add, asked, None)
        if job["kind"] == "train":
            await self.studio.make_room()
        return self.studio.shown(job)

    async def resume(self, run: str) -> dict[str, Any]:
        """Go on with a run that was stopped."""
        folder = self.studio.runs.folder(run)
        job = await asyncio.to_thread(self.studio.commands.resume, folder, None)
        return self.studio.shown(job)

    async def jobs(self) -> list[dict[str, Any]]:
        """The queue, then what ended."""
        return list((await asyncio.to_thread(self.studio.all_jobs)).values())[:MOST_RUNS]

    async def job(self, job_id: str, wait_seconds: float = 0.0) -> dict[str, Any]:
        """A job, once it has ended or `wait_seconds` have passed."""
        until = asyncio.get_running_loop().time() + min(max(0.0, wait_seconds), LONGEST_WAIT)
        while True:
            job = self.studio.jobs.get(job_id)
            late = asyncio.get_running_loop().time() >= until
            if job["state"] not in ("queued", "running") or late:
                break
            await asyncio.sleep(0.2)
        told = await asyncio.to_thread(self.studio.shown, job, whole=True)
        told["log"] = str(told["log"])[-LOG_BYTES:]
        return told

    async def stop(self, job_id: str) -> dict[str, Any]:
        """Take a job out of the queue, or end it gently, with a checkpoint."""
        return self.studio.shown(await asyncio.to_thread(self.studio.jobs.stop, job_id))

    async def report(self, run: str) -> dict[str, Any]:
        """What a run's page says, for a reader of texts."""
        return await asyncio.to_thread(self._report, run)

    def _report(self, run: str) -> dict[str, Any]:
        runs, places = self.studio.runs, self.studio.places
        run_id = run if ID.fullmatch(run) else places.id_of(places.inside(run, "run"))
        found = details(runs, self.studio.jobs, run_id)
        found["before_after"] = found["before_after"][:MOST_ANSWERS]
        found["page"] = f"{found['path']}/report.html" if found["has_report"] else None
        return {key: value for key, value in found.items() if key not in NOT_TOLD}


def given(fields: dict[str, Any]) -> Given:
    """The fields of a call under the limits of a request of the page."""
    try:
        body = json.dumps({k: v for k, v in fields.items() if v is not None}).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(problem("E-STUDIO-09", cause=str(error)[:200])) from error
    if len(body) > JSON_BYTES:
        raise UsageError(too_long(JSON_BYTES).problem)
    return Given.read(body)


def told(error: TunewrightError) -> str:
    """An error as an agent reads it: all problems, with codes and what to do."""
    return json.dumps({"problems": [one.as_dict() for one in error.problems]}, ensure_ascii=False)
