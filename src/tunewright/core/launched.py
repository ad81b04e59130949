"""Whether this process is one of several of a run, and which: what torchrun, SLURM or a launcher
that speaks torchrun's variables wrote into the environment. Loads no torch."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_PORT, PORTS = 20000, 10000
"""SLURM gives no port: one is taken from the job's number."""
FOLDER = "TUNEWRIGHT_RANKS"
"""Variable with the folder in which the processes that `run.launching` started leave their logs and
their errors."""


@dataclass(frozen=True)
class Place:
    """One process among `world`; `local` of `local_world` on this host. `attempt` counts elastic
    restarts from 0."""

    rank: int
    world: int
    local: int
    local_world: int
    address: str
    port: int
    by: str
    """Who started it: `torchrun` or `slurm`."""
    attempt: int = 0

    @property
    def host(self) -> str:
        """What this machine calls itself."""
        return socket.gethostname()

    @property
    def hosts(self) -> int:
        """Machines, where each holds as many processes as this one."""
        return max(1, self.world // self.local_world)


def here(environ: Mapping[str, str] | None = None) -> Place | None:
    """The place of this process; None for one that was started by itself."""
    env = os.environ if environ is None else environ
    return _torchrun(env) or _slurm(env)


def _torchrun(env: Mapping[str, str]) -> Place | None:
    try:
        rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
        return Place(
            rank,
            world,
            int(env.get("LOCAL_RANK", rank)),
            int(env.get("LOCAL_WORLD_SIZE", world)),
            env["MASTER_ADDR"],
            int(env["MASTER_PORT"]),
            "torchrun",
            int(env.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )
    except (KeyError, ValueError):
        return None


def _slurm(env: Mapping[str, str]) -> Place | None:
    """What `srun` says of its tasks. In the batch script itself, which runs once, the step's own
    variables are missing."""
    try:
        world = int(env["SLURM_STEP_NUM_TASKS"])
        if world < 2:
            return None
        nodes = int(env.get("SLURM_STEP_NUM_NODES", "1"))
        return Place(
            int(env["SLURM_PROCID"]),
            world,
            int(env["SLURM_LOCALID"]),
            max(1, world // nodes),
            env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST", "localhost")),
            int(env.get("MASTER_PORT") or FIRST_PORT + int(env.get("SLURM_JOB_ID", "0")) % PORTS),
            "slurm",
            int(env.get("SLURM_RESTART_COUNT", "0")),
        )
    except (KeyError, ValueError):
        return None


def first_host(nodes: str) -> str:
    """The first name of a SLURM list: `gpu[03-05,9],cpu1` -> `gpu03`."""
    found = re.match(r"([^\[,]+)(?:\[([^\],\-]+)[^\]]*\]([^,\[]*))?", nodes)
    if found is None:
        return "localhost"
    return found[1] + (found[2] or "") + (found[3] or "")
