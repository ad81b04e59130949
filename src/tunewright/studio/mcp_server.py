"""`tunewright mcp`: a Model Context Protocol server for coding agents, over standard input and
output, made with the official library."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tunewright.core.errors import TunewrightError, UsageError
from tunewright.core.version import __version__
from tunewright.studio.agents import Agents, told
from tunewright.studio.places import open_places
from tunewright.studio.state import Studio

T = TypeVar("T")
Table = dict[str, Any]
INSTRUCTIONS = """Fine-tune language models in one workspace folder. The usual road: list_data, \
check_data (what would be learnt, and what is wrong with the rows), estimate (memory, time, wrong \
settings), train (queues a job), get_job with wait_seconds until it has ended, read_report. \
Settings are those of a run file, by dotted key: {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", \
"data.train": "rows.jsonl", "method": "lora", "engine.epochs": 3}. Paths lie inside the \
workspace; whatever leaves it is refused. Errors carry a code, what happened and what to do. Long \
work runs as a job that outlives this server."""


def serve(root: Path, allow: Sequence[Path] = ()) -> None:
    """Serve the workspace `root` on standard input and output until the client leaves. Raises
    UsageError for a missing extra or a folder that cannot be used."""
    if importlib.util.find_spec("mcp") is None:
        raise UsageError.of("E-MCP-01", "mcp")
    make_server(Studio(open_places(root, allow))).run("stdio")


def make_server(studio: Studio) -> Any:
    """The server of a workspace."""
    from mcp.server.mcpserver import MCPServer

    @contextlib.asynccontextmanager
    async def life(_: Any) -> AsyncIterator[None]:
        studio.jobs.ensure_worker()
        try:
            yield
        finally:
            await studio.desk.stop()
            studio.runs.index.close()

    server = MCPServer(
        "tunewright",
        title="Tunewright",
        instructions=INSTRUCTIONS,
        version=__version__,
        lifespan=life,
        log_level="ERROR",
    )
    agents = Agents(studio)
    _looking(server, agents)
    _working(server, agents)
    return server


async def _answer(asked: Awaitable[T]) -> T:
    """The result, or an error that the agent can read."""
    from mcp.server.mcpserver.exceptions import ToolError

    try:
        return await asked
    except TunewrightError as error:
        raise ToolError(told(error)) from error


def _looking(server: Any, agents: Agents) -> None:
    """Tools that change nothing."""

    @server.tool()
    async def list_runs(search: str = "") -> list[Table]:
        """The runs of the workspace, newest first, with id, status, model, data and steps."""
        return await _answer(agents.runs(search))

    @server.tool()
    async def list_data() -> list[Table]:
        """The files of rows in the workspace, with id, format and number of rows."""
        return await _answer(agents.data())

    @server.tool()
    async def check_data(
        data: str, model: str | None = None, format: str | None = None, limit: int | None = None
    ) -> Table:
        """What a model would learn from a file: rows kept and dropped with reasons, findings, an
        example as the model sees it. `data` is an id of list_data, a path in the workspace, or
        hf:OWNER/NAME."""
        fields = {"data": data, "model": model, "format": format, "limit": limit}
        return dict(await _answer(agents.check_data(fields)))

    @server.tool()
    async def estimate(config: Table) -> Table:
        """Memory and time that a run would take here, whether it fits, and all that is wrong with
        its settings. `config` is a run file by dotted key."""
        return dict(await _answer(agents.estimate(config)))

    @server.tool()
    async def list_jobs() -> list[Table]:
        """The queue, then what has ended."""
        return await _answer(agents.jobs())

    @server.tool()
    async def get_job(job: str, wait_seconds: float = 0.0) -> Table:
        """One job: state (queued, running, done, failed, stopped, lost), progress, problems,
        result, the end of its log. With wait_seconds (at most 55) the answer comes when it has
        ended, or then."""
        return await _answer(agents.job(job, wait_seconds))

    @server.tool()
    async def read_report(run: str) -> Table:
        """What a run's report says: verdict, summary with held-out figures, answers before and
        after. `run` is an id of list_runs, or the path of its folder."""
        return await _answer(agents.report(run))


def _working(server: Any, agents: Agents) -> None:
    """Tools that queue or end work."""

    @server.tool()
    async def train(config: Table, name: str = "", questions: list[str] | None = None) -> Table:
        """Queue a training. `config` is a run file by dotted key; the workspace chooses the folder.
        `questions` are asked before and after. Returns the job; its `run` is for read_report."""
        fields = {"config": config, "name": name, "questions": questions}
        return await _answer(agents.start("train", fields))

    @server.tool()
    async def resume_training(run: str) -> Table:
        """Go on with a run that was stopped or failed, from its newest checkpoint."""
        return await _answer(agents.resume(run))

    @server.tool()
    async def evaluate(
        target: str,
        data: str | None = None,
        exam: str | None = None,
        base: bool | None = None,
        limit: int | None = None,
        metrics: str | None = None,
    ) -> Table:
        """Queue an evaluation of a run or a model on rows (`data`) or an exam; `base` asks the
        untuned model the same. Poll with get_job; the result holds figures with intervals."""
        fields = {"target": target, "data": data, "exam": exam, "base": base, "limit": limit}
        return await _answer(agents.start("evaluate", {**fields, "metrics": metrics}))

    @server.tool()
    async def start_job(kind: str, fields: Table) -> Table:
        """Queue another command: compare, advise, doctor, export, check or bench, with the fields
        that its form in the Studio has (doctor: target; export: way, target, name, options)."""
        return await _answer(agents.start(kind, fields))

    @server.tool()
    async def stop_job(job: str) -> Table:
        """Take a job out of the queue, or end it gently: a training saves a checkpoint first."""
        return await _answer(agents.stop(job))
