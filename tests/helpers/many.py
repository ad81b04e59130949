"""Several processes of one run on this machine, for tests: started here, ended for certain."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


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
    when all have ended."""

    def __init__(
        self, words: Sequence[str], world: int = 2, cwd: Path | None = None, **more: str
    ) -> None:
        self.port = free_port()
        self.outputs = [tempfile.TemporaryFile("w+") for _ in range(world)]  # noqa: SIM115
        self.processes = [self._start(rank, world, words, cwd, more) for rank in range(world)]

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

    def replace(
        self, rank: int, words: Sequence[str], cwd: Path | None = None, **more: str
    ) -> None:
        """Let another command take the place of a rank that has just been started."""
        self.processes[rank].kill()
        self.processes[rank].wait()
        self.outputs[rank].truncate(0)
        world = len(self.processes)
        self.processes[rank] = self._start(rank, world, words, cwd, more)

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
