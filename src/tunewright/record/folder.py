"""The run folder is the record: it appears by a rename with `run.yaml` already inside, and is the
only thing other parts read."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunewright.core import publish
from tunewright.core.config import RunConfig
from tunewright.core.errors import ConfigError, UsageError
from tunewright.core.files import write_json, write_text
from tunewright.core.runfile import ParsedRun, as_dict, flatten, kind_of, parse_value, value_text

LOCK = ".running"
"""Held by the process that trains in a run folder; gone with it, however it ends."""


class Hold:
    """The right to train in one folder, given back at the end of a `with`."""

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    def __enter__(self) -> Hold:
        return self

    def take(self, folder: Path) -> None:
        """Hold `folder`. Raises UsageError (E-RUN-19) where another process does."""
        if self._lock is None:
            lock = FileLock(folder / LOCK)
            try:
                lock.acquire(timeout=1)  # whoever asks `is_held` has it for a moment
            except Timeout:
                raise UsageError.of("E-RUN-19", str(folder)) from None
            self._lock = lock

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            place = Path(self._lock.lock_file)
            self._lock.release()
            place.unlink(missing_ok=True)


def is_held(folder: Path) -> bool:
    """Whether a process trains in `folder` at this moment."""
    place = folder / LOCK
    if not place.is_file():
        return False
    try:
        with FileLock(place, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def out_of(config: RunConfig) -> Path:
    """Where a run goes: the folder that it names, else `runs/<data>-<method>-<n>`."""
    if config.out:
        return Path(config.out)
    first = config.data.train if isinstance(config.data.train, str) else config.data.train[0]
    name = first if isinstance(first, str) else str(first.get("file", "data"))
    return free_folder(f"{stem_of(name, 'data')}-{kind_of(config.method)}")


def stem_of(name: str | Path, usual: str) -> str:
    """The stem of a file's name as a part of a folder's name; `usual` where nothing is left."""
    return re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-.") or usual


def free_folder(name: str) -> Path:
    """`runs/<name>-<n>` with the first free n."""
    n = 1
    while (out := Path("runs", f"{name}-{n}")).exists():
        n += 1
    return out


def require_free(out: Path) -> None:
    """Raise UsageError if `out` exists and is not an empty folder; nothing is touched."""
    if not out.exists():
        return
    if (out / "run.yaml").is_file():
        raise_if_finished(out)
        raise UsageError.of("E-RUN-01", str(out))
    if not out.is_dir():
        raise UsageError.of("E-RUN-21", str(out), file=out)
    if any(out.iterdir()):
        raise UsageError.of("E-RUN-02", str(out))


def raise_if_finished(folder: Path) -> None:
    """Raise UsageError, with the way on, for the folder of a run or a pipeline that is done:
    nothing is left to continue there."""
    if read_summary(folder).get("status") == "done":
        raise UsageError.of("E-RUN-18", str(folder), further=further(folder))


def further(folder: Path) -> str:
    """The command that trains on what a finished run, or the last stage of a finished pipeline, has
    learnt: the same run from there in a new folder."""
    stages = read_summary(folder).get("stages")
    run = folder / str(stages[-1]["folder"]) if stages else folder
    n = 2
    while folder.with_name(f"{folder.name}-{n}").exists():
        n += 1
    start = (
        f"model={run / 'model'}"
        if (run / "model" / "config.json").is_file()
        else f"adapter={run / 'adapter'}"
    )
    return shlex.join(
        [
            "tunewright",
            "train",
            str(run / "run.yaml"),
            start,
            f"out={folder.with_name(f'{folder.name}-{n}')}",
        ]
    )


def create(
    out: Path, text: str, data_report: dict[str, Any], more: Mapping[str, str] | None = None
) -> None:
    """Publish the run folder with `run.yaml` and `data_report.json` inside, and `more` files (name
    -> text). Raises UsageError when it cannot be written."""
    try:
        with publish.folder(out) as temporary:
            write_json(temporary / "data_report.json", data_report)
            for name, content in (more or {}).items():
                write_text(temporary / name, content)
            write_text(temporary / "run.yaml", text)
    except OSError as e:
        raise UsageError.of("E-RUN-03", str(out), cause=e) from e


def run_text(parsed: ParsedRun, resolved: dict[str, Any], reasons: dict[str, str]) -> str:
    """run.yaml: every value as resolved, with where it came from as a comment at the end of the
    line."""

    def line(indent: str, key: str, value: Any) -> str:
        name, text = key.rpartition(".")[2], value_text(resolved.get(key, value))
        return f"{indent}{name}: {text}  # {_origin(key, parsed, resolved, reasons)}"

    lines: list[str] = []
    for section, content in as_dict(parsed.config).items():
        if isinstance(content, dict):
            lines.append(f"{section}:")
            lines += [line("  ", f"{section}.{name}", value) for name, value in content.items()]
        else:
            lines.append(line("", section, content))
    return "\n".join(lines) + "\n"


def _origin(key: str, parsed: ParsedRun, resolved: dict[str, Any], reasons: dict[str, str]) -> str:
    text = f"auto: {reasons[key]}" if key in reasons and key in resolved else parsed.source(key)
    return " ".join(text.split())


def read_run(folder: Path) -> dict[str, Any]:
    """The values of a run folder's run.yaml, by dotted key. Raises ConfigError for a folder that is
    not a run."""
    path = folder / "run.yaml"
    if not path.is_file():
        raise ConfigError.of("E-RUN-04", str(folder))
    content = parse_value(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ConfigError.of("E-RUN-04", str(folder))
    return flatten(content)


def read_data_report(folder: Path) -> dict[str, Any]:
    """data_report.json of a run folder; empty where it cannot be read."""
    try:
        return dict(json.loads((folder / "data_report.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def note_end(folder: Path, status: str, reason: str, **figures: Any) -> None:
    """Say in summary.json how a run ended, keeping what stands there from before. Raises OSError
    when it cannot be written."""
    write_json(
        folder / "summary.json",
        {**read_summary(folder), "status": status, "reason": reason, **figures},
    )


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run folder; empty if it was not written yet."""
    try:
        return dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
