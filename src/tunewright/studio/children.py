"""The two programs that compute for the server: `desk` looks at data and settings, `answerer`
speaks for models. Each is a child that reads and writes lines of JSON.

A request is `{id, call, language, args}`; replies are `{id, event, ...}` and end with
`{id, done: true, result}` or `{id, done: true, problems}`. `{cancel: id}` stops a request. A child
that dies fails the requests it had, with the last line it said, and is started again for the next
one. Nothing heavy is loaded in the server itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tunewright.core.errors import Problem, TunewrightError, problem, problem_of
from tunewright.core.words import language

LINE_BYTES = 64 * 2**20
"""Of one reply: a preview of long rows."""
END_SECONDS = 3.0


class ChildError(TunewrightError):
    """What a child refused, or how it ended."""


class Child:
    """One child program. `module` is started with `python -m`; `cwd` is its folder."""

    def __init__(self, module: str, cwd: Path, log: Path):
        self.module, self.cwd, self.log = module, cwd, log
        self.process: asyncio.subprocess.Process | None = None
        self.started_at: float | None = None
        self._waiting: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._number = 0
        self._starting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: deque[str] = deque(maxlen=20)

    @property
    def is_alive(self) -> bool:
        """Whether the child runs."""
        return self.process is not None and self.process.returncode is None

    async def ask(self, call: str, args: dict[str, Any]) -> Any:
        """The result of one call. Raises ChildError with the child's problems."""
        result = None
        async for event in self.stream(call, args):
            if event.get("done"):
                result = event.get("result")
        return result

    async def stream(self, call: str, args: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The events of one call, the last one with `done`; leaving the loop cancels the call.
        Raises ChildError."""
        await self.start()
        self._number += 1
        number, queue = self._number, asyncio.Queue[dict[str, Any]]()
        self._waiting[number] = queue
        asked = {"id": number, "call": call, "language": language(), "args": args}
        finished = False
        try:
            await self._send(asked)
            while not finished:
                event = await queue.get()
                finished = bool(event.get("done"))
                if finished and event.get("problems"):
                    raise ChildError(_problems(event["problems"]))
                yield event
        finally:
            del self._waiting[number]
            if not finished and self.is_alive:
                with contextlib.suppress(Exception):  # it has ended: nothing is left to cancel
                    await self._send({"cancel": number})

    async def start(self) -> None:
        """Start the child where it does not run."""
        async with self._starting:
            if self.is_alive:
                return
            self._last.clear()
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=self.cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
                limit=LINE_BYTES,
            )
            self.started_at = time.time()
            for reading in (self._read(self.process), self._listen(self.process)):
                task = asyncio.ensure_future(reading)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End the child."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(Exception):
            if process.stdin is not None:
                process.stdin.close()
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _send(self, message: dict[str, Any]) -> None:
        process = self.process
        if process is None or process.stdin is None:
            raise ChildError(self._ended())
        try:
            process.stdin.write(json.dumps(message, ensure_ascii=False).encode() + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChildError(self._ended()) from error

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Pass every reply on to who waits for it; when the child is gone, tell everybody."""
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                try:
                    event = json.loads(line)
                    queue = self._waiting.get(event["id"])
                except (ValueError, KeyError, TypeError):
                    self._last.append(line.decode("utf-8", "replace").strip()[:300])
                    continue
                if queue is not None:
                    queue.put_nowait(event)
        except ValueError:  # a line longer than anything that is right
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        await asyncio.sleep(0.05)  # its last words may still be on the way
        for number, queue in self._waiting.items():
            problems = [self._ended().as_dict()]
            queue.put_nowait({"id": number, "done": True, "problems": problems})

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """What a child says to people goes into a file; its last lines explain its end."""
        assert process.stderr is not None
        with open(self.log, "ab") as log:
            while piece := await process.stderr.read(64 * 1024):
                log.write(piece)
                log.flush()
                said = piece.decode("utf-8", "replace").splitlines()
                self._last.extend(line.strip()[:300] for line in said if line.strip())

    def _ended(self) -> Problem:
        code = self.process.returncode if self.process else None
        name = self.module.rpartition(".")[2]
        last = self._last[-1] if self._last else "-"
        return problem("E-STUDIO-17", name, name=name, code=code, last=last, log=str(self.log))


def _problems(said: list[Any]) -> list[Problem]:
    """A child's problems as ours. One without its fields keeps the sentence that was said."""
    found = []
    for one in said:
        if isinstance(one, dict) and "fields" in one:
            found.append(problem_of(one))
        elif isinstance(one, dict):
            found.append(_Said(str(one.get("code", "")), str(one.get("where", "")), dict(one)))
    return found or [problem("E-STUDIO-17", name="-", code=None, last="-", log="-")]


class _Said(Problem):
    """A problem whose sentences are given."""

    def what(self) -> str:
        return str(self.fields.get("what", ""))

    def remedy(self) -> str:
        return str(self.fields.get("do", ""))
