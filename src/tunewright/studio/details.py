"""One run as its own page shows it: settings, what was decided, answers before and after, a
verdict, its files and its log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tunewright.core.comparing import contains
from tunewright.core.errors import UsageError, problem, problem_of
from tunewright.core.words import language, say
from tunewright.studio.jobs import Jobs, read_text
from tunewright.studio.places import shown
from tunewright.studio.runs import Head, Runs, read_json, read_lines, read_settings

SHOWN_FILES = (
    *("run.yaml", "summary.json", "data_report.json", "events.jsonl", "before_after.jsonl"),
    *("report.html", "answers.jsonl", "doctor.json", "pipeline.yaml", "gate.json"),
)
INNER = ("adapter", "model")
ORIGIN = re.compile(r"^\s*(?P<key>\w+):\s.*?#\sauto: (?P<why>.*)$")


def details(runs: Runs, jobs: Jobs, run_id: str) -> Head:
    """A head and everything else that the folder says."""
    head = runs.head(run_id)
    folder, job = runs.find(run_id), runs.job_of(run_id)
    problems = [problem_of(p).as_dict() for p in (job or {}).get("problems") or []]
    if folder is None:
        config = (job or {}).get("config") or {}
        text = read_text(jobs.folder / job["id"] / "run.yaml", 0)[0] if job else ""
        return {**EMPTY, **head, "config": config, "yaml": text, "problems": problems}
    settings, summary = read_settings(folder), read_json(folder / "summary.json")
    if not problems and summary.get("status") == "failed" and summary.get("reason"):
        said = {"code": "", "what": str(summary["reason"]), "where": "", "do": ""}
        problems = [said]
    return {
        **EMPTY,
        **head,
        "config": settings,
        "yaml": read_text(folder / "run.yaml", 0)[0],
        "summary": summary,
        "decided": decided(folder),
        "files": files_of(folder),
        "problems": problems,
        "verdict": verdict(folder, head),
        "before_after": before_after(folder),
        "has_report": (folder / "report.html").is_file(),
        "checkpoints": checkpoints(folder),
        "folder": str(folder),
    }


EMPTY: dict[str, Any] = {
    "config": {},
    "yaml": "",
    "summary": {},
    "decided": [],
    "files": [],
    "problems": [],
    "verdict": None,
    "before_after": [],
    "has_report": False,
    "checkpoints": [],
    "folder": "",
}


def decided(folder: Path) -> list[dict[str, str]]:
    """What the program chose itself, with its reasons: the comments of run.yaml."""
    found, section = [], ""
    for line in read_text(folder / "run.yaml", 0)[0].splitlines():
        if line and not line[0].isspace():
            section = line.partition(":")[0]
        match = ORIGIN.match(line)
        if match:
            key = f"{section}.{match['key']}" if line[0].isspace() else match["key"]
            value = line.partition(":")[2].partition("  #")[0].strip()
            found.append({"key": key, "value": value, "why": match["why"]})
    return found


def verdict(folder: Path, head: Head) -> dict[str, str] | None:
    """The report's own sentence on whether the model learnt; None while it is too early."""
    if head["status"] not in ("finished", "stopped", "failed", "interrupted"):
        return None
    from tunewright.report.record import read_record
    from tunewright.report.verdict import advice, headline, warnings_of

    record = read_record(folder)
    first = headline(record)
    lang = language()
    more = [*warnings_of(record), *advice(record)]
    return {
        "text": say(first.key, lang=lang, **first.fields),
        "level": first.tone,
        "more": [  # type: ignore[dict-item]
            {"text": say(one.key, lang=lang, **one.fields), "level": one.tone} for one in more
        ],
    }


def before_after(folder: Path) -> list[dict[str, Any]]:
    """The questions of the run with both answers, and whether they hold what was expected."""
    found = []
    for row in read_lines(folder / "before_after.jsonl"):
        expected = str(row.get("expected") or "")
        before, after = row.get("before"), row.get("after")
        found.append(
            {
                "question": str(row.get("question") or ""),
                "before": before,
                "after": after,
                "expected": expected,
                "kind": row.get("kind") or "",
                "correct_before": contains(str(before), expected) if expected and before else None,
                "correct_after": contains(str(after), expected) if expected and after else None,
            }
        )
    return found


def files_of(folder: Path) -> list[dict[str, Any]]:
    """The files of a run that the page may fetch."""
    paths = [folder / name for name in SHOWN_FILES]
    for inner in INNER:
        if (folder / inner).is_dir() and not (folder / inner).is_symlink():
            paths += sorted((folder / inner).iterdir())
    return [
        {"name": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size}
        for path in paths
        if path.is_file() and not path.is_symlink()
    ]


def file_of(folder: Path, name: str) -> Path:
    """A listed file. Raises UsageError for any other name."""
    if name not in {one["name"] for one in files_of(folder)}:
        raise UsageError(problem("E-STUDIO-12", "name", what=shown(name)))
    return folder / name


def checkpoints(folder: Path) -> list[dict[str, Any]]:
    """The checkpoints there are, newest first."""
    place = folder / "checkpoints"
    found = []
    if place.is_dir():
        for one in place.iterdir():
            step = re.fullmatch(r"step-(\d+)", one.name)
            if step and one.is_dir():
                size = sum(p.stat().st_size for p in one.rglob("*") if p.is_file())
                found.append({"name": one.name, "step": int(step[1]), "bytes": size})
    return sorted(found, key=lambda one: -int(one["step"]))


def differences(runs: Runs, ids: list[str]) -> list[dict[str, Any]]:
    """Settings in which runs differ: key and the value of each, None where a run has none."""
    settings = [read_settings(runs.folder(run_id)) for run_id in ids]
    keys = dict.fromkeys(key for one in settings for key in one if key != "out")
    rows = [{"key": key, "values": [one.get(key) for one in settings]} for key in keys]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"][1:])]
