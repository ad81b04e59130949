"""The one place that runs a GGUF file in llama.cpp: logits of every position, answers, tokens of
texts, dialogues as its server renders them.

A process of its own does it (`llamacpp_child.py`), because llama.cpp ends its process when it does
not like a file. The wheel `xllamacpp` brings llama.cpp; nothing is compiled and nothing is asked of
the network.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunewright.core.errors import first_line

PACKAGE = "xllamacpp"
CHILD = Path(__file__).with_name("llamacpp_child.py")
SECONDS, SECONDS_PER_GB = 600, 600
"""How long a job may take."""


class CannotRun(Exception):
    """llama.cpp does not run the file; the message says why."""


@dataclass
class Said:
    """What llama.cpp makes of a file."""

    rows: int
    """Tokens of its vocabulary."""
    ids: list[list[int]]
    """Token ids of the texts."""
    stops: list[bool]
    """For each id that was asked about, whether llama.cpp stops at it."""
    adds_bos: bool
    answers: list[tuple[list[int], str]]
    """Token ids of each answer, and `stop` or `limit`."""
    seconds: dict[str, float]
    """`reading` of the prompts and `writing` of the answers."""


def library() -> Path | None:
    """The shared object of the wheel; None where it is not installed."""
    try:
        found = importlib.util.find_spec(PACKAGE)
    except (ImportError, ValueError):
        return None
    for place in (found.submodule_search_locations or []) if found is not None else []:
        for pattern in ("xllamacpp*.so", "xllamacpp*.pyd", "xllamacpp*.dylib"):
            path = next(iter(sorted(Path(place).glob(pattern))), None)
            if path is not None:
                return path
    return None


def release() -> str:
    """The version of the wheel."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "?"


def run(
    model: Path,
    out: Path,
    *,
    adapter: Path | None = None,
    rows: Sequence[list[int]] = (),
    asks: Sequence[tuple[list[int], int]] = (),
    texts: Sequence[tuple[str, bool]] = (),
    stop_ids: Sequence[int] = (),
    threads: int = 1,
) -> Said:
    """Run `model` with `adapter` on it.

    Logits of `rows` (token ids) are written to `out` as `0.f32`, `1.f32` ...: float32, row after
    row. `asks` are questions as token ids with the most tokens of their answers; `texts` are
    (text, whether control tokens in it are meant). Raises CannotRun.
    """
    place = library()
    if place is None:
        raise CannotRun(f"{PACKAGE} is not installed")
    out.mkdir(exist_ok=True)
    found = _child(
        {
            "library": str(place),
            "model": str(model),
            "adapter": None if adapter is None else str(adapter),
            "rows": list(rows),
            "asks": [list(one) for one in asks],
            "texts": [list(one) for one in texts],
            "stop_ids": list(stop_ids),
            "threads": threads,
            "out": str(out),
        },
        model,
    )
    found["answers"] = [(ids, end) for ids, end in found["answers"]]
    return Said(**found)


def render(model: Path, dialogues: Sequence[list[dict[str, Any]]]) -> list[str]:
    """What llama.cpp's server makes of dialogues with the template in the file. Raises
    CannotRun."""
    job = {"model": str(model), "dialogues": [{"messages": one} for one in dialogues]}
    rendered: list[str] = _child(job, model)["rendered"]
    return rendered


def _child(job: dict[str, Any], model: Path) -> dict[str, Any]:
    seconds = SECONDS + SECONDS_PER_GB * model.stat().st_size / 1e9
    try:
        done = subprocess.run(
            [sys.executable, "-B", str(CHILD)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise CannotRun(first_line(e)) from e
    line = done.stdout.strip().rpartition("\n")[2]
    try:
        answer = json.loads(line)
    except ValueError:
        answer = {"error": f"ended with {done.returncode}"}
    if not isinstance(answer, dict) or "error" in answer:
        cause = answer["error"] if isinstance(answer, dict) else "no answer"
        raise CannotRun(": ".join([str(cause), *_complaint(done.stderr)]))
    return answer


def _complaint(log: str) -> list[str]:
    """The line of llama.cpp's log that says what is wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line.lower() or "GGML_ASSERT" in line]
    return [first_line(wrong[0])] if wrong else []
