"""The runs of a workspace as the page sees them, read from their folders.

A run is a folder with `run.yaml` (or a pipeline's). Its id is made from its path, so it is the same
in every process and after the index was lost. What the page adds (a label, tags, a note) stands
beside, in `notes/`; the folder itself is never changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from tunewright.core.comparing import contains
from tunewright.core.errors import UsageError, problem
from tunewright.core.runfile import QuickLoader, flatten
from tunewright.record.folder import is_held
from tunewright.studio.index import Index
from tunewright.studio.jobs import Jobs
from tunewright.studio.places import Places, free_name, shown, write_private
from tunewright.studio.series import newest_events

WATCHED = ("run.yaml", "summary.json", "events.jsonl", "before_after.jsonl", "pipeline.yaml")
DEEPEST, MOST_FOLDERS, MOST_RUNS = 2, 5000, 5000
LONGEST_LABEL, MOST_TAGS, LONGEST_NOTE = 200, 30, 20_000
ID = re.compile(r"[0-9a-f]{16}")
HIDDEN = ("checkpoints", "adapter", "model", "node_modules", "__pycache__")
STATUS = {"done": "finished", "stopped": "stopped", "failed": "failed"}

Head = dict[str, Any]


class Runs:
    """The runs below the roots."""

    def __init__(self, places: Places, jobs: Jobs):
        self.places, self.jobs = places, jobs
        self.index = Index(places.private / "index.sqlite")
        self._folders: dict[str, Path] = {}

    def folders(self) -> dict[str, Path]:
        """Id -> folder of every run there is."""
        found: dict[str, Path] = {}
        for root in (self.places.runs, self.places.root, *self.places.allowed):
            for folder in islice(_walk(root, DEEPEST, [MOST_FOLDERS]), MOST_RUNS):
                found.setdefault(self.places.id_of(folder), folder)
        self._folders = found
        return found

    def heads(self, search: str = "", tag: str = "") -> list[Head]:
        """Every run, newest first, of those that hold all words of `search` in what is shown of
        them, and have the tag."""
        folders, kept = self.folders(), self.index.get_all()
        jobs, noted = self._jobs_by_run(), self._all_notes()
        fresh, heads = [], []
        for run_id, folder in folders.items():
            stamp = _stamp(folder)
            there = kept.get(run_id)
            if there is None or there[0] != stamp:
                there = (stamp, read_head(folder))
                fresh.append((run_id, str(folder), stamp, there[1]))
            heads.append(
                self._dressed(run_id, folder, there[1], jobs.get(run_id), noted.get(run_id, {}))
            )
        self.index.put(fresh)
        self.index.forget([run_id for run_id in kept if run_id not in folders])
        for run_id, job in jobs.items():
            if run_id not in folders and job["state"] in ("queued", "running"):
                heads.append(self._planned(run_id, job))
        heads = [head for head in heads if _matches(head, search, tag)]
        return sorted(heads, key=lambda head: -(head["started"] or 0))

    def head(self, run_id: str) -> Head:
        """One run. Raises UsageError where there is none."""
        job = self._jobs_by_run().get(run_id)
        folder = self.find(run_id)
        if folder is None:
            if job is None:
                raise unknown_run(run_id)
            return self._planned(run_id, job)
        return self._dressed(run_id, folder, read_head(folder), job)

    def find(self, run_id: str) -> Path | None:
        """The folder of a run's id; None where there is none."""
        if not ID.fullmatch(run_id):
            return None
        job = self._jobs_by_run().get(run_id)
        if job is not None and (Path(job["run_path"]) / "run.yaml").is_file():
            return Path(job["run_path"])
        known = self._folders.get(run_id)
        if known is not None and (known / "run.yaml").is_file():
            return known
        return self.folders().get(run_id)

    def folder(self, run_id: str) -> Path:
        """The folder of a run. Raises UsageError."""
        found = self.find(run_id)
        if found is None:
            raise unknown_run(run_id)
        return found

    def job_of(self, run_id: str) -> dict[str, Any] | None:
        """The latest training of a run."""
        return self._jobs_by_run().get(run_id)

    def _jobs_by_run(self) -> dict[str, dict[str, Any]]:
        """Run -> its latest training."""
        found: dict[str, dict[str, Any]] = {}
        for job in sorted(self.jobs.all(), key=lambda job: job["created"]):
            if job["kind"] == "train" and job["run"]:
                found[job["run"]] = job
        return found

    def _dressed(
        self,
        run_id: str,
        folder: Path,
        head: Head,
        job: dict[str, Any] | None,
        noted: dict[str, Any] | None = None,
    ) -> Head:
        """A head with what is not the folder's: its label, whether it is alive, its job."""
        status = head["status"]
        if job is not None and job["state"] == "running":
            status = "running"
        elif status == "running" and not is_held(folder):
            status = "interrupted"
        noted = self.notes(run_id) if noted is None else noted
        paused = job is not None and job["asked"] == "pause" and status in ("stopped", "running")
        return {
            **{key: value for key, value in head.items() if key != "heard"},
            "id": run_id,
            "name": noted.get("name") or (job or {}).get("label") or folder.name,
            "path": self.places.short(folder),
            "status": status,
            "paused": paused,
            "tags": noted.get("tags") or [],
            "note": noted.get("note") or "",
            "job": job["id"] if job else None,
        }

    def _planned(self, run_id: str, job: dict[str, Any]) -> Head:
        """A run whose folder is not there yet: it appears when model and data are read."""
        config, folder = job.get("config") or {}, Path(job["run_path"])
        state = {"queued": "empty", "running": "running"}.get(job["state"], job["state"])
        head = {**EMPTY_HEAD, **_settings(config), "started": job["started"] or job["created"]}
        head |= {"ended": job["ended"], "status": "failed" if state == "lost" else state}
        return self._dressed(run_id, folder, head, job) | {"status": head["status"]}

    def notes(self, run_id: str) -> dict[str, Any]:
        """Label, tags and note of a run."""
        try:
            found = json.loads(self._notes_file(run_id).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _all_notes(self) -> dict[str, dict[str, Any]]:
        """The notes of all runs that have some."""
        try:
            names = [one.name for one in (self.places.private / "notes").iterdir()]
        except OSError:
            return {}
        ids = [name.removesuffix(".json") for name in names if name.endswith(".json")]
        return {run_id: self.notes(run_id) for run_id in ids if ID.fullmatch(run_id)}

    def annotate(self, run_id: str, facts: dict[str, Any]) -> None:
        """Keep a label, tags or a note: texts, shown as texts."""
        self.head(run_id)
        kept = {**self.notes(run_id), **facts}
        text = json.dumps(kept, ensure_ascii=False, indent=2)
        write_private(self._notes_file(run_id), text)

    def _notes_file(self, run_id: str) -> Path:
        if not ID.fullmatch(run_id):
            raise unknown_run(run_id)
        return self.places.private / "notes" / f"{run_id}.json"

    def trash(self, run_id: str) -> None:
        """Move a run to the trash. Raises UsageError for one that runs, or lies outside the
        workspace (an allowed folder is only read)."""
        head, folder = self.head(run_id), self.folder(run_id)
        if head["status"] == "running":
            raise UsageError(problem("E-STUDIO-15", head["name"]))
        if not folder.is_relative_to(self.places.root) or folder == self.places.root:
            raise UsageError(problem("E-STUDIO-27", str(folder), folder=folder))
        place = self.places.private / "trash" / f"{run_id}-{time.time_ns():x}"
        place.mkdir(mode=0o700)
        facts = {"id": place.name, "run": run_id, "name": head["name"], "path": str(folder)}
        write_private(place / "trash.json", json.dumps({**facts, "at": round(time.time(), 3)}))
        os.rename(folder, place / "run")

    def in_trash(self) -> list[dict[str, Any]]:
        """What lies in the trash, newest first."""
        found = []
        for place in _folders(self.places.private / "trash"):
            with contextlib.suppress(OSError, ValueError):
                facts = json.loads((place / "trash.json").read_text(encoding="utf-8"))
                size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
                path = self.places.short(facts["path"])
                found.append({**facts, "id": place.name, "path": path, "bytes": size})
        return sorted(found, key=lambda one: -one.get("at", 0))

    def restore(self, trash_id: str) -> str:
        """Put something back where it was, or beside what stands there now; the path."""
        place = self._trashed(trash_id)
        facts = json.loads((place / "trash.json").read_text(encoding="utf-8"))
        target = Path(facts["path"])
        target = free_name(target.parent, target.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(place / "run", target)
        shutil.rmtree(place, ignore_errors=True)
        return str(target)

    def purge(self, trash_id: str) -> None:
        """Remove something from the trash for good."""
        shutil.rmtree(self._trashed(trash_id))

    def _trashed(self, trash_id: str) -> Path:
        place = self.places.private / "trash" / trash_id
        if not re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", trash_id) or not place.is_dir():
            raise UsageError(problem("E-STUDIO-12", "trash", what=shown(trash_id)))
        return place


EMPTY_HEAD: Head = {
    "status": "empty",
    "started": None,
    "ended": None,
    "model": "",
    "data": "",
    "method": "",
    "objective": "",
    "steps": 0,
    "total_steps": None,
    "loss": None,
    "held_out": None,
    "correct_before": None,
    "correct_after": None,
    "questions": None,
    "heard": None,
}


def unknown_run(run_id: str) -> UsageError:
    """The refusal of an id that no run has."""
    return UsageError(problem("E-STUDIO-12", "run", what=shown(run_id)))


def read_head(folder: Path) -> Head:
    """What the list shows of a run, from its files. Never raises for what is in them."""
    head = {**EMPTY_HEAD, **_settings(read_settings(folder))}
    summary = read_json(folder / "summary.json")
    if "stages" in summary or (folder / "pipeline.yaml").is_file():
        head["status"] = "pipeline"
    # Of a run that is over the summary says most.
    most = 8 * 1024 if summary.get("status") == "done" else 64 * 1024
    events = newest_events(folder / "events.jsonl", most)
    steps = [e for e in events if e.get("event") == "step"]
    held = [e for e in events if e.get("event") == "evaluation"]
    first = _first_event(folder / "events.jsonl")
    head["heard"] = _time(events[-1]) if events else None
    head["started"] = _time(first) or _made_at(folder)
    head["total_steps"] = summary.get("total_steps") or _total(events) or first.get("total_steps")
    head["steps"] = _whole(steps[-1].get("step")) if steps else _whole(summary.get("steps")) or 0
    head["loss"] = _figure(steps[-1].get("loss") if steps else summary.get("final_loss"))
    last_held = held[-1].get("held_out_loss") if held else None
    head["held_out"] = _figure(summary.get("held_out_loss", last_held))
    resumed = events and events[-1].get("event") not in ("finished", "failed", "stopped")
    status = STATUS.get(str(summary.get("status")))
    if resumed and status and _mtime(folder / "events.jsonl") > _mtime(folder / "summary.json"):
        status = None if status != "finished" else status
    if head["status"] != "pipeline" and (status or events):
        head["status"] = status or "running"
    if status:
        head["ended"] = head["heard"] or _mtime(folder / "summary.json")
    return {**head, **_counts(folder)}


def _counts(folder: Path) -> Head:
    """How many questions were answered rightly before and after."""
    asked = [row for row in read_lines(folder / "before_after.jsonl") if row.get("expected")]
    if not asked:
        return {}
    right = {
        when: sum(contains(str(row.get(when) or ""), str(row["expected"])) for row in asked)
        for when in ("before", "after")
    }
    after = right["after"] if any(row.get("after") for row in asked) else None
    return {"correct_before": right["before"], "correct_after": after, "questions": len(asked)}


def read_settings(folder: Path) -> dict[str, Any]:
    """run.yaml by dotted keys; empty where it cannot be read. Read with libyaml: 200 runs open at
    once."""
    try:
        text = (folder / "run.yaml").read_text(encoding="utf-8")
        found = yaml.load(text, Loader=QuickLoader)  # noqa: S506 - a safe loader
        return flatten(found) if isinstance(found, dict) else {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}


def _settings(config: dict[str, Any]) -> Head:
    train = config.get("data.train", "")
    names = train if isinstance(train, list) else [train]
    files = [str(one.get("file", "")) if isinstance(one, dict) else str(one) for one in names]
    return {
        "model": str(config.get("model") or ""),
        "data": ", ".join(Path(name).name if "/" in name else name for name in files),
        "method": str(config.get("method.kind") or config.get("method") or "lora"),
        "objective": str(config.get("objective.kind") or config.get("objective") or "sft"),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a run folder; empty where it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_lines(path: Path, most: int = 5000) -> list[dict[str, Any]]:
    """The objects of a file of lines."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as handle:
        for line in handle:
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
            if len(found) >= most:
                break
    return found


def _walk(root: Path, deepest: int, left: list[int]) -> Iterator[Path]:
    """Folders of runs down to a depth; what is hidden, linked or inside a run is left out, and so
    is what comes after `left` folders: somebody may start the server in their home."""
    for place in _folders(root):
        left[0] -= 1
        if left[0] < 0:
            return
        if place.name.startswith(".") or place.name in HIDDEN or place.is_symlink():
            continue
        if (place / "run.yaml").is_file() or (place / "pipeline.yaml").is_file():
            yield place
        if deepest > 1:
            yield from _walk(place, deepest - 1, left)


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _stamp(folder: Path) -> str:
    """The files that a head is made from, as they are now."""
    parts = []
    for name in WATCHED:
        try:
            stat = (folder / name).stat()
            parts.append(f"{stat.st_mtime_ns}:{stat.st_size}")
        except OSError:
            parts.append("-")
    return " ".join(parts)


def _matches(head: Head, search: str, tag: str) -> bool:
    if tag and tag not in head["tags"]:
        return False
    shown_fields = ("name", "path", "model", "data", "method", "objective", "note", "status")
    text = " ".join([*(str(head[f]) for f in shown_fields), *head["tags"]]).casefold()
    return all(word in text for word in search.casefold().split())


def _first_event(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError), open(path, "rb") as handle:
        found = json.loads(handle.readline(64 * 1024))
        if isinstance(found, dict):
            return found
    return {}


def _total(events: list[dict[str, Any]]) -> int | None:
    started = [e for e in events if e.get("event") == "started"]
    return _whole(started[-1].get("total_steps")) if started else None


def _time(event: dict[str, Any]) -> float | None:
    value = event.get("time")
    return float(value) if isinstance(value, int | float) else None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _figure(value: Any) -> float | None:
    """A finite figure; JSON has no NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") else None


def _mtime(path: Path) -> float:
    try:
        return round(path.stat().st_mtime, 3)
    except OSError:
        return 0.0


def _made_at(folder: Path) -> float | None:
    return _mtime(folder / "run.yaml") or _mtime(folder) or None
