"""This machine in the words of the first screen: what it has, and what stands in the way."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tunewright.core.machine import (
    available_processors,
    free_bytes,
    is_busy,
    processor_name,
    total_memory,
)
from tunewright.core.version import __version__
from tunewright.core.words import language, say
from tunewright.studio.places import Places

GIB = 2**30
LITTLE_DISK, LITTLE_MEMORY = 2 * GIB, GIB
PACKAGES = ("torch", "transformers", "peft")


def about(places: Places) -> dict[str, Any]:
    """The reply to `GET /api/about`; torch is not loaded for it."""
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "processors": available_processors(),
        "memory_bytes": total_memory(),
        "free_memory_bytes": free_bytes("cpu"),
        "free_disk_bytes": shutil.disk_usage(places.root).free,
        "gpus": gpus(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    return {
        "version": __version__,
        "language": language(),
        "root": str(places.root),
        "machine": machine,
        "health": _health(places, machine),
    }


@cache
def gpus() -> list[dict[str, Any]]:
    """NVIDIA's GPUs as their driver lists them; empty where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
    return [
        {"name": name.strip(), "memory_bytes": int(mib) * 2**20}
        for name, _, mib in rows
        if mib.strip().isdigit()
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _health(places: Places, machine: dict[str, Any]) -> list[dict[str, str]]:
    """What is good, and what may go wrong, worst first."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    for name, there in machine["packages"].items():
        if there is None:
            found.append(("bad", "package", {"name": name}))
    disk, memory = machine["free_disk_bytes"], machine["free_memory_bytes"]
    if disk < LITTLE_DISK:
        found.append(("bad", "disk", {"free": f"{disk / GIB:.1f}"}))
    if memory < LITTLE_MEMORY:
        found.append(("warn", "memory", {"free": f"{memory / GIB:.1f}"}))
    if not os.access(places.root, os.W_OK):
        found.append(("bad", "root", {"folder": places.root}))
    if is_busy():
        found.append(("warn", "busy", {}))
    if machine["gpus"]:
        found.append(("good", "gpu", {"name": machine["gpus"][0]["name"]}))
    else:
        found.append(("good", "cpu", {"count": machine["processors"]}))
    if not any(level == "bad" for level, _, _ in found):
        figures = {"memory": f"{memory / GIB:.1f}", "disk": f"{disk / GIB:.0f}"}
        found.append(("good", "room", figures))
    order = ("bad", "warn", "good")
    return [
        {
            "level": level,
            "text": say(f"studio.health.{key}", **fields),
            "do": say(f"studio.health.{key}.do", **fields) if level != "good" else "",
        }
        for level, key, fields in sorted(found, key=lambda one: order.index(one[0]))
    ]
