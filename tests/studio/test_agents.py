"""The MCP server does what the page may do, through the official client, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import story

from tunewright.core.errors import UsageError
from tunewright.studio.agents import Agents, given
from tunewright.studio.places import Places
from tunewright.studio.state import Studio

Ask = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place") / "workspace"
    folder.mkdir()
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json", 16)
    (folder.parent / "secret.json").write_text("[]")
    return folder


CONFIG = {
    "model": "model",
    "data.train": "rows.json",
    "data.held_out": 4,
    "engine.steps": 3,
    "engine.batch_size": 4,
    "engine.dtype": "float32",
    "forgetting": "off",
}


def test_what_the_page_refuses_is_refused_to_an_agent(workspace: Path) -> None:
    places = Places(workspace)
    places.prepare()
    agents = Agents(Studio(places))

    def refused(asked: Awaitable[Any]) -> str:
        async def run() -> Any:
            return await asked

        with pytest.raises(UsageError) as caught:
            asyncio.run(run())
        return caught.value.problems[0].code

    outside = str(workspace.parent / "secret.json")
    train = lambda **more: agents.start("train", {"config": {**CONFIG, **more}})  # noqa: E731
    assert refused(train(**{"data.train": outside})) == "E-STUDIO-11"
    assert refused(train(model="../secret.json")) == "E-STUDIO-11"
    assert refused(train(reward_code="x.py")) == "E-STUDIO-14"
    assert refused(train(track=[{"kind": "wandb", "online": True}])) == "E-STUDIO-14"
    assert refused(train(track=[{"kind": "tensorboard", "folder": "elsewhere"}])) == "E-STUDIO-14"
    assert refused(agents.start("delete", {})) == "E-STUDIO-10"
    assert refused(agents.check_data({"data": outside})) == "E-STUDIO-11"
    assert refused(agents.report("/etc")) == "E-STUDIO-11"
    assert refused(agents.report("0" * 16)) == "E-STUDIO-12"
    assert refused(agents.job("0" * 16)) == "E-STUDIO-12"
    assert refused(agents.start("evaluate", {"target": outside})) == "E-STUDIO-11"
    assert agents.studio.jobs.all() == []


def test_the_limits_of_a_request_hold() -> None:
    with pytest.raises(UsageError, match="E-STUDIO-07"):
        given({"config": {"model": "x" * 2**20}})
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"a": deep}
    with pytest.raises(UsageError, match="E-STUDIO-09"):
        given({"config": deep})
    with pytest.raises(UsageError, match="E-STUDIO-09"):
        given({"config": {"a": float("nan")}})


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from tunewright.studio import mcp_server

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"E-MCP-01[\s\S]*tunewright\[mcp\]"):
        mcp_server.serve(tmp_path)


@pytest.mark.peer
def test_the_official_client_trains_polls_and_reads(workspace: Path) -> None:
    mcp = pytest.importorskip("mcp")
    words = ["-m", "tunewright", "mcp", "--root", str(workspace)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TUNEWRIGHT_LANG": "en"}
    server = mcp.StdioServerParameters(command=sys.executable, args=words, env=environment)

    async def road() -> None:
        async with mcp.Client(server) as client:

            async def ask(name: str, /, **arguments: Any) -> Any:
                told = await client.call_tool(name, arguments)
                assert not told.is_error, told.content[0].text
                found = told.structured_content
                return found["result"] if set(found) == {"result"} else found

            async def refused(name: str, /, **arguments: Any) -> list[str]:
                told = await client.call_tool(name, arguments)
                assert told.is_error
                text = told.content[0].text
                return [one["code"] for one in json.loads(text[text.index("{") :])["problems"]]

            names = {tool.name for tool in (await client.list_tools()).tools}
            assert names >= {"train", "get_job", "read_report", "stop_job", "evaluate", "estimate"}
            assert any(row["name"] == "rows.json" for row in await ask("list_data"))
            checked = await ask("check_data", data="rows.json", model="model")
            assert checked, checked
            planned = await ask("estimate", config=CONFIG)
            assert planned["fits"] is True
            wrong = await ask("estimate", config={**CONFIG, "method.rnak": 3})
            assert wrong["problems"][0]["code"] == "E-CONFIG-03"
            job = await ask("train", config=CONFIG, name="by an agent", questions=["what is it"])
            while True:
                told = await ask("get_job", job=job["id"], wait_seconds=30)
                if told["state"] not in ("queued", "running"):
                    break
            assert told["state"] == "done", told["log"]
            report = await ask("read_report", run=job["run"])
            summary = json.loads(
                (workspace / "runs" / "by-an-agent" / "summary.json").read_text(encoding="utf-8")
            )
            assert report["summary"]["held_out_loss"] == summary["held_out_loss"]
            assert report["verdict"]["text"] and report["before_after"]
            assert (await ask("read_report", run="runs/by-an-agent"))["id"] == job["run"]
            assert [run["name"] for run in await ask("list_runs")] == ["by an agent"]
            outside = {**CONFIG, "data.train": str(workspace.parent / "secret.json")}
            assert await refused("train", config=outside) == ["E-STUDIO-11"]
            assert await refused("read_report", run="../..") == ["E-STUDIO-11"]
            assert await refused("stop_job", job=job["id"]) == ["E-STUDIO-19"]

    asyncio.run(road())
