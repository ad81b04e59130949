"""Processes that outlive whoever started them, and how one is known again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def detached() -> dict[str, Any]:
    """What makes a child independent of its parent's terminal and end."""
    if os.name == "nt":
        group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        return {"creationflags": group | getattr(subprocess, "CREATE_NO_WINDOW", 0)}
    return {"start_new_session": True}


def born(pid: int) -> str | None:
    """When a process began, as the system counts, so that another one with the same number is told
    apart; None where it does not live, an empty text where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        if sys.platform.startswith("linux"):
            return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return ""
