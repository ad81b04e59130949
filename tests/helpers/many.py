"""Several processes of one run on this machine, for tests: started here, ended for certain."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from helpers import forks


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def environment(rank: int, world: int, port: int, **more: str) -> dict[str, str]:
    """What torchrun would tell a process."""
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "TUNEWRIGHT_LANG": "en",
        **more,
    }


class Pair:
    """Processes that run the same command, each with its place among them. Their output is read
    when all have ended. They are forked from one that has imported everything; with `fresh` the
    interpreter starts. `other`: (command, folder, environment) of ranks that are not like the
    others, which start fresh."""

    def __init__(
        self,
        words: Sequence[str],
        world: int = 2,
        cwd: Path | None = None,
        *,
        fresh: bool = not hasattr(os, "fork"),
        other: dict[int, tuple[Sequence[str], Path | None, dict[str, str]]] | None = None,
        **more: str,
    ) -> None:
        self.port = free_port()
        self.outputs = [tempfile.NamedTemporaryFile("w+") for _ in range(world)]  # noqa: SIM115
        self.processes: list[subprocess.Popen[bytes] | forks.Apart] = []
        for rank in range(world):
            own = (other or {}).get(rank)
            start = self._start if fresh or own else self._fork
            self.processes.append(start(rank, world, *(own or (words, cwd, more))))

    def _fork(
        self, rank: int, world: int, words: Sequence[str], cwd: Path | None, more: dict[str, str]
    ) -> forks.Apart:
        env = environment(rank, world, self.port, **more)
        return forks.Apart([str(one) for one in words], env, cwd, self.outputs[rank].name)

    def _start(
        self, rank: int, world: int, words: Sequence[str], cwd: Path | None, more: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *words],
            env=environment(rank, world, self.port, **more),
            cwd=cwd,
            stdout=self.outputs[rank],
            stderr=subprocess.STDOUT,
        )

    def so_far(self, rank: int) -> str:
        """What a process has printed."""
        return os.pread(self.outputs[rank].fileno(), 1 << 20, 0).decode(errors="replace")

    def wait(self, seconds: float) -> list[tuple[int, str]]:
        """(exit code, output) of each; whoever is still there after `seconds` is killed."""
        found = []
        try:
            for process in self.processes:
                process.wait(seconds)
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            for process, output in zip(self.processes, self.outputs, strict=True):
                output.seek(0)
                found.append((process.returncode, output.read()))
                output.close()
        return found
