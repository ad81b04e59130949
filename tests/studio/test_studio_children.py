"""The server's children: asked by lines of JSON, told to stop, started again when they die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.studio_world import lives

from tunewright.core.words import speaking
from tunewright.studio.children import Child, ChildError

STAND_IN = """
import json, sys, threading, time
cancelled = set()
def say(**event):
    sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\\n"); sys.stdout.flush()
def answer(asked):
    number, call, args = asked["id"], asked["call"], asked["args"]
    if call == "echo":
        say(id=number, done=True, result={"args": args, "language": asked["language"]})
    elif call == "refuse":
        problem = {"code": "E-RUN-04", "what": "w", "where": "here", "do": "", "fields": {}}
        say(id=number, done=True, problems=[problem])
    elif call == "foreign":
        say(id=number, done=True, problems=[{"code": "E-X-01", "what": "as said", "where": "", "do": "d"}])
    elif call == "count":
        for n in range(10_000):
            if number in cancelled:
                say(id=number, done=True, result="cancelled"); return
            say(id=number, event="piece", n=n)
            time.sleep(0.01)
    elif call == "large":
        say(id=number, done=True, result="ä" * args["size"])
    elif call == "noise":
        print("not a line of JSON"); print('{"id": 99999}'); print("[1]"); say(id=number, done=True, result=1)
    elif call == "die":
        print("out of memory, it seems", file=sys.stderr, flush=True)
        import os; os._exit(7)
for line in sys.stdin:
    asked = json.loads(line)
    if "cancel" in asked:
        cancelled.add(asked["cancel"]); say(id=0, event="x")
    else:
        threading.Thread(target=answer, args=(asked,), daemon=True).start()
"""

Use = Callable[[Child], Awaitable[Any]]


@pytest.fixture
def use(tmp_path: Path) -> Callable[[Use], Any]:
    """Run something with a child, and end it."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)

    def run(action: Use) -> Any:
        async def whole() -> Any:
            child = Child("stand_in", tmp_path, tmp_path / "log.txt")
            try:
                return await action(child)
            finally:
                await child.stop()
                assert not child.is_alive

        return asyncio.run(asyncio.wait_for(whole(), 30))

    return run


def test_several_questions_at_once_each_in_its_language(use: Callable[[Use], Any]) -> None:
    async def action(child: Child) -> Any:
        async def one(n: int) -> Any:
            with speaking("zh" if n % 2 else "en"):
                return await child.ask("echo", {"n": n, "text": "问\u2028\n题"})

        return await asyncio.gather(*(one(n) for n in range(12)))

    found = use(action)
    assert [one["args"]["n"] for one in found] == list(range(12))
    assert {one["args"]["text"] for one in found} == {"问\u2028\n题"}
    assert [one["language"] for one in found] == ["en", "zh"] * 6


def test_problems_come_back_and_are_said_again(use: Callable[[Use], Any]) -> None:
    async def action(child: Child) -> None:
        with pytest.raises(ChildError) as ours:
            await child.ask("refuse", {})
        (problem,) = ours.value.problems
        assert (problem.code, problem.where) == ("E-RUN-04", "here")
        with speaking("zh"):
            assert not problem.as_dict()["what"].isascii()
        with pytest.raises(ChildError) as foreign:
            await child.ask("foreign", {})
        said = foreign.value.problems[0].as_dict()
        assert (said["code"], said["what"], said["do"]) == ("E-X-01", "as said", "d")

    use(action)


def test_whoever_leaves_stops_the_writing(use: Callable[[Use], Any]) -> None:
    async def action(child: Child) -> None:
        stream: AsyncIterator[dict[str, Any]] = child.stream("count", {})
        async for event in stream:
            if event.get("n") == 3:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        assert child._waiting == {}
        assert (await child.ask("echo", {}))["args"] == {}

    use(action)


def test_a_large_reply_and_noise_between_lines(use: Callable[[Use], Any]) -> None:
    async def action(child: Child) -> None:
        assert len(await child.ask("large", {"size": 3_000_000})) == 3_000_000
        assert await child.ask("noise", {}) == 1

    use(action)


def test_a_child_that_dies_says_its_last_line_and_is_started_again(
    use: Callable[[Use], Any], tmp_path: Path
) -> None:
    async def action(child: Child) -> None:
        assert (await child.ask("echo", {"a": 1}))["args"] == {"a": 1}
        first = child.process.pid  # type: ignore[union-attr]
        waiting = asyncio.ensure_future(child.ask("count", {}))
        await asyncio.sleep(0.1)
        with pytest.raises(ChildError, match="E-STUDIO-17") as died:
            await child.ask("die", {})
        assert "out of memory, it seems" in str(died.value)
        assert "code 7" in str(died.value)
        with pytest.raises(ChildError, match="E-STUDIO-17"):
            await waiting
        assert (await child.ask("echo", {"b": 2}))["args"] == {"b": 2}
        assert child.process.pid != first  # type: ignore[union-attr]
        assert not lives(first)

    use(action)
    assert "out of memory, it seems" in (tmp_path / "log.txt").read_text()
