"""Routes of work: the queue, data and its inspection, plans and the schema."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse

from tunewright.core.errors import TunewrightError, UsageError, problem
from tunewright.studio.asked import Body, Shared, spoken
from tunewright.studio.given import Given
from tunewright.studio.guard import REPORT_POLICY
from tunewright.studio.places import shown
from tunewright.studio.runs import read_lines

router = APIRouter(prefix="/api")
ANSWER_KEYS = ("origin", "question", "expected", "answer", "end", "scores")


@router.get("/jobs")
def get_jobs(studio: Shared) -> list[dict[str, Any]]:
    """The queue, then what ended."""
    return list(studio.all_jobs().values())


@router.post("/jobs")
async def add_job(studio: Shared, given: Body) -> dict[str, Any]:
    """Queue a command."""
    job = await asyncio.to_thread(studio.commands.add, given, spoken())
    if job["kind"] == "train":
        await studio.make_room()
    return await asyncio.to_thread(studio.shown, job)


@router.get("/jobs/{job_id}")
def get_job(studio: Shared, job_id: str) -> dict[str, Any]:
    """One job with its result and log."""
    return studio.shown(studio.jobs.get(job_id), whole=True)


@router.post("/jobs/{job_id}/stop")
def stop_job(studio: Shared, job_id: str, given: Body) -> dict[str, Any]:
    """Take a job out of the queue, or end it gently."""
    return studio.shown(studio.jobs.stop(job_id))


@router.post("/jobs/{job_id}/move")
def move_job(studio: Shared, job_id: str, given: Body) -> list[dict[str, Any]]:
    """Change the order of the queue."""
    studio.jobs.move(job_id, given.text("before", None))
    return list(studio.all_jobs().values())


@router.delete("/jobs/{job_id}")
def delete_job(studio: Shared, job_id: str) -> dict[str, bool]:
    """Remove a job that does not run."""
    studio.jobs.delete(job_id)
    return {"removed": True}


@router.get("/jobs/{job_id}/page")
def get_job_page(studio: Shared, job_id: str, name: str = "") -> FileResponse:
    """A page that a command wrote."""
    job = studio.jobs.get(job_id)
    pages = studio.pages(job)
    chosen = name or (pages[0] if pages else "")
    if chosen not in pages:
        raise UsageError(problem("E-STUDIO-12", "name", what=shown(chosen)))
    path = studio.jobs.folder / job["id"] / chosen
    headers = {"content-security-policy": REPORT_POLICY}
    return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)


@router.get("/jobs/{job_id}/answers")
def get_job_answers(studio: Shared, job_id: str) -> list[dict[str, Any]]:
    """What a model answered in an evaluation, row by row; nothing where it wrote no answers."""
    job = studio.jobs.get(job_id)
    rows = read_lines(studio.jobs.folder / job["id"] / "evaluation" / "answers.jsonl")
    return [{key: row.get(key) for key in ANSWER_KEYS} for row in rows]


@router.get("/data")
def get_data(studio: Shared) -> list[dict[str, Any]]:
    """The files of rows."""
    return studio.data.all()


@router.post("/data/upload")
async def upload(request: Request, studio: Shared, name: str = "") -> dict[str, Any]:
    """Take a file, or pasted text."""
    if request.headers.get("content-type", "").startswith("application/json"):
        given = Given.read(await request.body())
        data = given.text("text", most=2**20).encode("utf-8")
        with studio.data.arriving(given.text("name"), len(data)) as (handle, place):
            handle.write(data)
        return await asyncio.to_thread(studio.data.entry, place)
    try:
        size = int(request.headers.get("content-length") or 0)
    except ValueError:
        size = 0
    with studio.data.arriving(name, size) as (handle, place):
        written = 0
        async for piece in request.stream():
            await asyncio.to_thread(handle.write, piece)
            if (written + len(piece)) >> 26 != written >> 26:
                studio.data.require_room(0)
            written += len(piece)
    return await asyncio.to_thread(studio.data.entry, place)


@router.delete("/data/{data_id}")
def delete_data(studio: Shared, data_id: str) -> dict[str, bool]:
    """Move an upload to the trash."""
    studio.data.delete(data_id)
    return {"trashed": True}


@router.post("/data/inspect")
async def inspect(studio: Shared, given: Body) -> Any:
    """What a model would learn from a file."""
    return await studio.desk.ask("inspect", studio.checks.about_data(given))


@router.post("/data/preview")
async def preview(studio: Shared, given: Body) -> Any:
    """One row as the model will see it."""
    return await studio.desk.ask("preview", studio.checks.about_data(given))


@router.post("/data/repair")
async def repair(studio: Shared, given: Body) -> dict[str, Any]:
    """A repaired copy among the uploads."""
    args = studio.checks.about_data(given)
    source = Path(args["data"])
    out = studio.data.place_for(f"{source.name.partition('.')[0]}-repaired{source.suffix}")
    found = await studio.desk.ask("repair", {**args, "out": str(out)})
    changes = found.get("changes", []) if isinstance(found, dict) else []
    place = out if out.is_file() else source
    return {"data": await asyncio.to_thread(studio.data.entry, place), "changes": changes}


@router.get("/schema")
async def get_schema(studio: Shared) -> Any:
    """The forms."""
    return await studio.desk.ask("schema", {})


@router.post("/plan")
async def plan(studio: Shared, given: Body) -> Any:
    """Memory and time of a run, or what is wrong with its settings."""
    args = {**given.values, "config": studio.checks.config(given.mapping("config"))}
    found = await studio.desk.ask("plan", args)
    if isinstance(found, dict) and found.get("problems"):
        status = 200 if "fits" in found else 422
        return JSONResponse(found, status)
    return found


@router.post("/plan/yaml")
async def plan_yaml(studio: Shared, given: Body) -> Any:
    """A pasted run file as settings."""
    found = await studio.desk.ask("plan_yaml", {"yaml": given.text("yaml", most=200_000)})
    if isinstance(found, dict) and isinstance(found.get("config"), dict):
        try:
            studio.checks.config(found["config"])
        except TunewrightError as error:
            more = [one.as_dict() for one in error.problems]
            found = {**found, "problems": [*(found.get("problems") or []), *more]}
    return found
