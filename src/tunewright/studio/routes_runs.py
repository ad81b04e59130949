"""Routes of runs: the list, one run, curves, notes, the trash, and the stream of what happens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from tunewright.core.errors import UsageError, problem
from tunewright.studio import stream
from tunewright.studio.asked import Body, Shared, listed, spoken
from tunewright.studio.details import details, differences, file_of
from tunewright.studio.guard import REPORT_POLICY
from tunewright.studio.jobs import read_text
from tunewright.studio.runs import LONGEST_LABEL, LONGEST_NOTE, MOST_TAGS, Head, unknown_run
from tunewright.studio.series import WHOLE_POINTS

router = APIRouter(prefix="/api")
MOST_CURVES = 50


@router.get("/runs")
def get_runs(studio: Shared, search: str = "", tag: str = "") -> list[Head]:
    """Every run, newest first."""
    return studio.runs.heads(search[:500], tag[:200])


@router.get("/runs/diff")
def get_diff(studio: Shared, ids: str = "") -> list[dict[str, Any]]:
    """Settings in which runs differ."""
    return differences(studio.runs, listed(ids))


@router.get("/runs/{run_id}")
def get_run(studio: Shared, run_id: str) -> Head:
    """One run."""
    return details(studio.runs, studio.jobs, run_id)


@router.patch("/runs/{run_id}")
def patch_run(studio: Shared, run_id: str, given: Body) -> Head:
    """Change a run's label, tags or note."""
    facts: dict[str, Any] = {}
    if "name" in given:
        facts["name"] = " ".join(given.text("name", most=LONGEST_LABEL).split())
    if "note" in given:
        facts["note"] = given.text("note", most=LONGEST_NOTE)
    if "tags" in given:
        tags = [" ".join(tag.split()) for tag in given.texts("tags", most=LONGEST_LABEL)]
        facts["tags"] = [tag for tag in dict.fromkeys(tags) if tag][:MOST_TAGS]
    studio.runs.annotate(run_id, facts)
    return studio.runs.head(run_id)


@router.delete("/runs/{run_id}")
def delete_run(studio: Shared, run_id: str) -> dict[str, bool]:
    """Move a run to the trash."""
    studio.runs.trash(run_id)
    return {"trashed": True}


@router.get("/trash")
def get_trash(studio: Shared) -> list[dict[str, Any]]:
    """What lies in the trash."""
    return studio.runs.in_trash()


@router.post("/trash/{trash_id}/restore")
def restore(studio: Shared, trash_id: str, given: Body) -> dict[str, str]:
    """Put something back."""
    path = studio.runs.restore(trash_id)
    return {"path": studio.places.short(path), "id": studio.places.id_of(Path(path))}


@router.delete("/trash/{trash_id}")
def purge(studio: Shared, trash_id: str) -> dict[str, bool]:
    """Remove something for good."""
    studio.runs.purge(trash_id)
    return {"removed": True}


@router.get("/runs/{run_id}/series")
def get_series(studio: Shared, run_id: str, points: int = WHOLE_POINTS) -> Response:
    """The curves of a run."""
    events = _events(studio, run_id)
    found = studio.curves.all(events, points)
    return Response(stream.as_json(found), media_type="application/json")


@router.get("/compare-curves")
def get_curves(
    studio: Shared, ids: str = "", key: str = "loss", points: int = WHOLE_POINTS
) -> Response:
    """One key of several runs: `{key, runs: [{id, name, points}]}`."""
    heads = studio.heads()
    found = []
    for run_id in listed(ids, MOST_CURVES):
        events = _events(studio, run_id)
        name = heads[run_id]["name"] if run_id in heads else run_id
        curve = studio.curves.one(events, key[:200], points)
        found.append({"id": run_id, "name": name, "points": curve})
    told = {"key": key[:200], "runs": found}
    return Response(stream.as_json(told), media_type="application/json")


def _events(studio: Any, run_id: str) -> Path:
    files = studio.files_of(run_id)()
    if files is None:
        raise unknown_run(run_id)
    events: Path = files[0]
    return events


@router.get("/runs/{run_id}/log")
def get_log(studio: Shared, run_id: str, offset: int = 0) -> dict[str, Any]:
    """The log of a run from a byte on."""
    files = studio.files_of(run_id)()
    if files is None:
        raise unknown_run(run_id)
    text, after = read_text(files[1], max(0, offset))
    return {"text": text, "offset": after}


@router.get("/runs/{run_id}/file")
def get_file(studio: Shared, run_id: str, name: str = "") -> FileResponse:
    """A listed file of a run, to be saved."""
    path = file_of(studio.runs.folder(run_id), name)
    headers = {"content-security-policy": REPORT_POLICY}
    kind = "application/octet-stream"
    return FileResponse(path, media_type=kind, filename=path.name, headers=headers)


@router.get("/runs/{run_id}/report")
def get_report(studio: Shared, run_id: str) -> FileResponse:
    """The report of a run, to be shown in a frame."""
    path = file_of(studio.runs.folder(run_id), "report.html")
    headers = {"content-security-policy": REPORT_POLICY}
    return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)


@router.post("/runs/{run_id}/stop")
def stop_run(studio: Shared, run_id: str, given: Body) -> dict[str, Any]:
    """Stop a run; a checkpoint is saved."""
    return _stop(studio, run_id, "stop")


@router.post("/runs/{run_id}/pause")
def pause_run(studio: Shared, run_id: str, given: Body) -> dict[str, Any]:
    """Stop a run to go on later."""
    return _stop(studio, run_id, "pause")


def _stop(studio: Any, run_id: str, how: str) -> dict[str, Any]:
    job = studio.runs.job_of(run_id)
    if job is None:
        raise UsageError(problem("E-STUDIO-28", run_id))
    shown: dict[str, Any] = studio.shown(studio.jobs.stop(job["id"], how))
    return shown


@router.post("/runs/{run_id}/resume")
async def resume_run(studio: Shared, run_id: str, given: Body) -> dict[str, Any]:
    """Queue the rest of a run."""
    job = await asyncio.to_thread(_resume, studio, run_id)
    await studio.make_room()
    return await asyncio.to_thread(studio.shown, job)


def _resume(studio: Any, run_id: str) -> dict[str, Any]:
    head, folder = studio.runs.head(run_id), studio.runs.folder(run_id)
    if head["status"] not in ("stopped", "interrupted", "failed", "pipeline"):
        raise UsageError(problem("E-STUDIO-23", head["name"], status=head["status"]))
    job: dict[str, Any] = studio.commands.resume(folder, spoken())
    return job


@router.get("/stream")
async def get_stream(request: Request, studio: Shared) -> StreamingResponse:
    """What happens, as it happens."""
    run_id = request.query_params.get("run", "")[:40]
    last = request.headers.get("last-event-id") or request.query_params.get("from")
    source = stream.Source(
        files=studio.files_of(run_id),
        jobs=studio.all_jobs,
        heads=studio.heads,
        started=studio.started,
    )
    told = stream.Told.of(last)
    pieces = stream.follow(source, told, request.is_disconnected, studio.ended)
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)
