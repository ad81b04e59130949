"""A conversation on the terminal: what follows what, and what the words with a slash do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import story, stub_server

from tunewright.core.types import Message
from tunewright.engine.decoding.answers import Answer
from tunewright.serve import chatting
from tunewright.serve.chatting import Conversation, converse, speed


class Echo:
    """Says how many messages it was asked with, and the last one."""

    attached = None

    def __init__(self) -> None:
        self.asked: list[list[Message]] = []
        self.how: list[dict[str, Any]] = []
        self.raises: BaseException | None = None

    def start(self, system: str | None = None) -> list[Message]:
        return [] if system is None else [Message("system", system)]

    def ask(
        self, messages: list[Message], *, on_piece: Callable[[str], None], **how: Any
    ) -> Answer:
        if self.raises is not None:
            raise self.raises
        self.asked.append(messages)
        self.how.append(how)
        text = f"{len(self.asked)}: {messages[-1].content}"
        on_piece(text)
        return Answer(text, "stop", [1, 2, 3])


def talk(echo: Echo, *lines: str, system: str | None = None) -> Conversation:
    given = iter(lines)

    def read(_: str) -> str:
        found = next(given, None)
        if found is None:
            raise EOFError
        return found

    talked = Conversation(echo, system, read=read, how={"temperature": 0.0})
    talked.run()
    return talked


def contents(messages: list[Message]) -> list[str]:
    return [m.content for m in messages]


def test_a_question_stands_after_what_was_said_before() -> None:
    echo = Echo()
    talk(echo, "one", "", "two", "/new", "three", "/quit", "four", system="be brief")
    assert [contents(m) for m in echo.asked] == [
        ["be brief", "one"],
        ["be brief", "one", "1: one", "two"],
        ["be brief", "three"],
    ]


def test_a_question_may_have_several_lines() -> None:
    echo = Echo()
    talk(echo, "a\\", "b\\", "c", '"""', "def f():", "", "    /quit", '"""', '"""x"""')
    assert [m[-1].content for m in echo.asked] == ["a\nb\nc", "def f():\n\n    /quit", "x"]


def test_retry_asks_again_and_undo_forgets(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    talked = talk(echo, "/retry", "/undo", "one", "two", "/retry", "/undo", "/show")
    assert [contents(m) for m in echo.asked[1:]] == [["one", "1: one", "two"]] * 2
    assert contents(talked.messages) == ["one", "1: one"]
    assert "[user] one\n[assistant] 1: one" in capsys.readouterr().out


def test_the_system_prompt_and_the_settings_can_be_changed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    echo = Echo()
    words = ["/system", "/system be kind", "one", '/system ""', "/set temperature 0.5"]
    talk(echo, *words, "/set top_k=3", "/set mood good", "/set seed x", "two", "/what", "/help")
    assert contents(echo.asked[0]) == ["be kind", "one"] and echo.asked[1][0].content == ""
    assert echo.how[0]["temperature"] == 0.0
    assert echo.how[1]["temperature"] == 0.5 and echo.how[1]["top_k"] == 3
    said = capsys.readouterr().err
    assert said.count("E-CHAT-03") == 2 and "/what is not known" in said and "/retry" in said
    assert "3 tokens" in said and "tokens/s" in said


def test_a_conversation_is_kept_and_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, other = tmp_path / "对话.json", tmp_path / "notes.txt"
    other.write_text("mine", encoding="utf-8")
    talk(Echo(), "one", f"/save {kept}", f"/save {other}", "/save", system="s")
    assert other.read_text(encoding="utf-8") == "mine"
    given = json.loads(kept.read_text(encoding="utf-8"))["messages"]
    assert [m["role"] for m in given] == ["system", "user", "assistant"]
    echo = Echo()
    talk(echo, "zero", f"/load {kept}", f"/load {other}", "/load", "two", f"/save {kept}")
    assert contents(echo.asked[1]) == ["s", "one", "1: one", "two"]
    said = capsys.readouterr().err
    assert said.count("E-CHAT-01") == 2 and said.count("E-CHAT-02") == 2


def test_ctrl_c_ends_an_answer_and_not_the_conversation() -> None:
    echo = Echo()
    given = iter(["one", "two", "/retry", "three"])

    def read(_: str) -> str:
        found = next(given, None)
        if found is None:
            raise EOFError
        echo.raises = KeyboardInterrupt() if found in ("two", "/retry") else None
        return found

    talked = Conversation(echo, None, read=read)
    talked.run()
    assert contents(talked.messages) == ["one", "1: one", "three", "2: three"]


def test_piped_lines_are_questions_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    echo = Echo()
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n/new\ntwo\n/retry\n/quit\nthree\n"))
    converse(echo, system=None, compare=False)
    assert [contents(m) for m in echo.asked] == [["one"], ["two"], ["/retry"]]


def test_questions_are_remembered_where_nobody_else_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("readline")
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path))
    with chatting._remembered():
        pass
    assert (tmp_path / "questions").stat().st_mode & 0o077 == 0


def test_speed_counts_what_came_after_the_first_token() -> None:
    assert "11 tokens" in speed(11, 0.0, 1.0, 3.0) and "5.0 tokens/s" in speed(11, 0.0, 1.0, 3.0)


# ---- an address


def events(*pieces: str, end: str = "stop") -> str:
    chunks: list[Any] = [{"choices": [{"delta": {"content": p}}]} for p in pieces]
    chunks.append({"choices": [{"delta": {}, "finish_reason": end}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})
    return "".join(f"data: {json.dumps(c)}\n\n" for c in chunks) + "data: [DONE]\n\n"


def test_an_address_is_talked_to_as_a_model_is() -> None:
    with stub_server.serving(lambda path, body: (200, events("Hel", "lo ", "你"))) as stub:
        done = story.tunewright(
            *("chat", f"{stub.url}#m", "-q", "hi", "--system", "be kind", "--top-p", "0.5"),
            *("--temperature", "0.7", "--seed", "3", "--stop", "x", "--max-new-tokens", "9"),
        )
    assert done.returncode == 0 and done.stdout == "Hello 你\n"
    body = stub.asked[0][2]
    assert body["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
    ]
    assert {k: body[k] for k in ("temperature", "top_p", "seed", "stop", "max_tokens")} == {
        "temperature": 0.7, "top_p": 0.5, "seed": 3, "stop": ["x"], "max_tokens": 9,
    }  # fmt: skip


def test_a_server_that_does_not_stream_is_heard_too() -> None:
    whole = (200, stub_server.chat(" all at once ")[1], {"Content-Type": "application/json"})
    with stub_server.serving(lambda path, body: whole) as stub:
        done = story.tunewright("chat", f"{stub.url}#m", "-q", "hi", "--json")
    assert json.loads(done.stdout)["answer"] == "all at once"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ((200, events("half").partition('data: {"choices": [{"delta": {}')[0]), "E-ADDR-05"),
        ((200, 'data: {"error": {"message": "broken"}}\n\n'), "E-ADDR-07"),
        ((200, "data: nonsense\n\n"), "E-ADDR-05"),
        ((401, {"error": {"message": "no"}}), "E-ADDR-03"),
        ((500, {"error": {"message": "no"}}), "E-ADDR-06"),
    ],
)
def test_what_goes_wrong_at_an_address_is_said(given: Any, code: str) -> None:
    with stub_server.serving(lambda path, body: given) as stub:
        done = story.tunewright("chat", f"{stub.url}#m", "-q", "hi")
    assert done.returncode != 0 and code in done.stderr


@pytest.mark.parametrize("flag", ["--base", "--complete", "--think"])
def test_what_needs_the_model_itself_is_refused_at_an_address(flag: str) -> None:
    with stub_server.serving(lambda path, body: (200, events("x"))) as stub:
        done = story.tunewright("chat", f"{stub.url}#m", "-q", "hi", flag)
    assert done.returncode == 2 and "E-CHAT-04" in done.stderr and not stub.asked
