"""How the server talks to its children: one answer for each request, nothing else on stdout, older
requests dropped, calls cancelled, and an end with stdin."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from tunewright.core.errors import UsageError
from tunewright.studio.lines import Args, Child, Request

CHILD = """
    import os, sys, time
    from tunewright.core.errors import UsageError, problem
    from tunewright.core.words import say
    from tunewright.studio.lines import Args, Cancelled, Child

    class Numbers(Args):
        first: int
        second: int = 1

    def add(request):
        asked = request.read(Numbers)
        return asked.first + asked.second

    def noisy(request):
        print("a library prints")
        os.write(1, b"and another writes\\n")
        os.system("echo and a program speaks")
        request.event("half", text="\u534a", number=float("nan"))
        return {"read": sys.stdin.read(), "nan": float("inf")}

    def slow(request):
        request.event("began")
        end = time.time() + 30
        while time.time() < end:
            time.sleep(0.01)
            if request.args.get("polite"):
                request.check()

    def refused(request):
        raise UsageError(problem("E-STUDIO-36", "here"))

    def broken(request):
        raise RuntimeError("what nobody foresaw")

    def memory(request):
        raise MemoryError

    def spoken(request):
        return say("studio.plan.measured")

    calls = dict(add=add, noisy=noisy, slow=slow, refused=refused, broken=broken, memory=memory,
                 spoken=spoken, kept=slow)
    Child(calls, keeps=("kept",), interrupts="interrupts" in sys.argv).run()
"""


class Talk:
    """A child process and what it said."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CHILD), *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip

    def say(self, **request: Any) -> None:
        self.line(json.dumps(request))

    def line(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> tuple[str, str]:
        return self.process.communicate(timeout=30)


@pytest.fixture(params=["polite", "interrupts"])
def talk(request: pytest.FixtureRequest) -> Iterator[Talk]:
    one = Talk(request.param)
    yield one
    one.process.kill()
    one.close()


def codes(said: dict[str, Any]) -> list[str]:
    return [one["code"] for one in said["problems"]]


def test_a_request_gets_one_answer_with_its_id(talk: Talk) -> None:
    talk.say(id="a7", call="add", args={"first": 2, "second": 3, "of a newer page": 1})
    assert talk.hear() == {"id": "a7", "done": True, "result": 5}


def test_what_prints_never_reaches_the_answers(talk: Talk) -> None:
    talk.say(id=1, call="noisy")
    assert talk.hear() == {"id": 1, "event": "half", "text": "半", "number": "NaN"}
    assert talk.hear() == {"id": 1, "done": True, "result": {"read": "", "nan": "Infinity"}}
    talk.say(id=2, call="add", args={"first": 1})
    assert talk.hear()["result"] == 2
    out, err = talk.close()
    assert out == ""
    for text in ("a library prints", "and another writes", "and a program speaks"):
        assert text in err
    assert talk.process.returncode == 0


def test_requests_that_are_none_are_answered_and_the_next_is_heard(talk: Talk) -> None:
    for line in (
        "no json",
        "[1]",
        '{"id": 3, "call": "rm"}',
        '{"id": 3, "call": "add", "args": 5}',
    ):
        talk.line(line)
        assert codes(talk.hear()) == ["E-STUDIO-30"]
    talk.say(id=4, call="add", args={"first": "x", "second": None})
    said = talk.hear()
    assert said["id"] == 4 and codes(said) == ["E-STUDIO-31", "E-STUDIO-31"]
    assert [one["where"] for one in said["problems"]] == ["first", "second"]


def test_errors_carry_code_and_language_and_end_only_their_request(talk: Talk) -> None:
    talk.say(id=1, call="refused", language="zh")
    said = talk.hear()
    assert codes(said) == ["E-STUDIO-36"] and "result" not in said
    assert "问题" in said["problems"][0]["what"]
    talk.say(id=2, call="broken", language="en")
    said = talk.hear()
    assert codes(said) == ["E-STUDIO-32"] and "what nobody foresaw" in said["problems"][0]["what"]
    assert "Traceback" not in json.dumps(said)
    talk.say(id=3, call="memory")
    assert codes(talk.hear()) == ["E-STUDIO-33"]
    talk.say(id=4, call="spoken", language="zh")
    talk.say(id=5, call="spoken", language="en")
    talk.hear(), talk.hear()
    assert "Traceback" not in talk.close()[0]


def test_of_those_that_wait_only_the_newest_of_a_kind_stays(talk: Talk) -> None:
    talk.say(id=0, call="slow", args={"polite": True})
    assert talk.hear()["event"] == "began"
    for number in (1, 2, 3):
        talk.say(id=number, call="add", args={"first": number})
    talk.say(id=4, call="kept", args={"polite": True})
    talk.say(id=5, call="kept", args={"polite": True})
    assert [talk.hear() for _ in range(2)] == [
        {"id": n, "done": True, "dropped": True} for n in (1, 2)
    ]
    talk.say(cancel=5)
    assert talk.hear() == {"id": 5, "done": True, "cancelled": True}
    talk.say(cancel=0)
    assert talk.hear() == {"id": 0, "done": True, "cancelled": True}
    assert talk.hear() == {"id": 3, "done": True, "result": 4}
    assert talk.hear() == {"id": 4, "event": "began"}
    talk.say(cancel=4)
    assert talk.hear() == {"id": 4, "done": True, "cancelled": True}
    talk.say(cancel="nobody")
    talk.say(id=6, call="add", args={"first": 6})
    assert talk.hear()["result"] == 7


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_a_call_that_never_looks_up_is_stopped_where_it_may_be() -> None:
    talk = Talk("interrupts")
    for number in range(3):
        talk.say(id=number, call="slow")
        assert talk.hear()["event"] == "began"
        talk.say(cancel=number)
        assert talk.hear() == {"id": number, "done": True, "cancelled": True}
    talk.close()
    assert talk.process.returncode == 0


def test_it_ends_with_its_stdin_even_while_it_works(talk: Talk) -> None:
    talk.say(id=1, call="slow")
    talk.hear()
    talk.close()
    assert talk.process.returncode == 0


def test_ctrl_c_in_the_terminal_is_the_servers_business(talk: Talk) -> None:
    import signal

    talk.say(id=1, call="add", args={"first": 1})
    talk.hear()
    talk.process.send_signal(signal.SIGINT)
    talk.say(id=2, call="add", args={"first": 2})
    assert talk.hear()["result"] == 3


def test_arguments_are_read_once_with_every_fault() -> None:
    class Two(Args):
        a: int
        b: float

    request = Request(1, "x", None, {"a": "no", "b": float("inf")}, lambda said: None)
    with pytest.raises(UsageError) as caught:
        request.read(Two)
    assert [one.fields["field"] for one in caught.value.problems] == ["a", "b"]


def test_what_is_done_when_nobody_asks_may_fail() -> None:
    """Idle work is a favour: an error there must not end the process."""
    seen = []

    def idle() -> None:
        seen.append(1)
        child._ended = len(seen) > 1
        raise RuntimeError("nobody asked")

    child = Child({}, idle=idle, idle_seconds=0.01)
    assert child._next() is None and len(seen) == 2
