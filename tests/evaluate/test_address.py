"""An OpenAI-compatible address: what is sent, what is asked again, what ends in which error, and
where the key goes."""

from __future__ import annotations

import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.building import codes
from helpers.stub_server import chat, serving

from tunewright.core.errors import TunewrightError, UsageError
from tunewright.core.types import Message
from tunewright.evaluate import address
from tunewright.evaluate.address import Address, AddressError, is_address

QUESTION = [Message("system", "Short."), Message("user", "Capital of France?")]
SECRET = "sk-very-secret-7"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUNEWRIGHT_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def ask_address(url: str, messages: list[Message], **how: Any) -> Any:
    """(text, finish_reason, usage) of one question."""
    return Address.of(url).ask(messages, **how)


def quick(url: str, **how: Any) -> Address:
    return Address.of(url, pause=0.001, **{"model": "m", **how})


def test_a_question_is_sent_as_openai_writes_it_and_the_answer_read() -> None:
    with serving(lambda path, body: chat(" Paris ", "length")) as stub:
        text, finish, usage = ask_address(stub.url + "#tiny", QUESTION, max_tokens=7, seed=3)
    assert (text, finish, usage) == (
        "Paris",
        "length",
        {"prompt_tokens": 5, "completion_tokens": 2},
    )
    ((path, headers, body),) = stub.asked
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Short."},
            {"role": "user", "content": "Capital of France?"},
        ],
        "max_tokens": 7,
        "temperature": 0.0,
        "seed": 3,
    }
    assert "Authorization" not in headers


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_every_spelling_of_the_address_is_the_same(end: str) -> None:
    with serving(lambda path, body: chat("x")) as stub:
        ask_address(stub.url.removesuffix("/v1") + end + "#m", QUESTION)
    assert stub.asked[0][0] == "/v1/chat/completions"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/v1",
        "localhost:8000",
        "http://",
        "http://u:p@h/v1",
        "http://h:x/v1",
        "https:///v1",
        "http://h/v1 x",
        "http://主机/v1",
        "http://" + "a" * 70 + ".com/v1",
        "http://[::1/v1",
    ],
)
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        ask_address(url, QUESTION)
    assert codes(caught.value) == ["E-ADDR-01"]
    assert "u:p" not in str(caught.value)


def test_addresses_are_told_from_files() -> None:
    assert is_address("http://h/v1")
    assert is_address("HTTPS://h/v1#m")
    assert not is_address("runs/http")


def test_the_only_model_of_a_server_needs_no_name() -> None:
    def answer(path: str, body: Any) -> Any:
        return (200, {"data": [{"id": "only"}]}) if path == "/v1/models" else chat("x")

    with serving(answer) as stub:
        address = Address.of(stub.url)
        address.ask_all([QUESTION] * 6)
    assert address.name.endswith("/v1#only")
    assert [path for path, _, _ in stub.asked].count("/v1/models") == 1
    assert {body["model"] for _, _, body in stub.asked if body} == {"only"}


def test_several_models_are_named_in_the_error() -> None:
    with (
        serving(lambda path, body: (200, {"data": [{"id": "a"}, {"id": "b"}]})) as stub,
        pytest.raises(UsageError, match="a, b") as caught,
    ):
        Address.of(stub.url).ask(QUESTION)
    assert codes(caught.value) == ["E-ADDR-04"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_a_busy_server_is_asked_again(status: int) -> None:
    tries = iter([(status, {"error": "busy"}), (status, "no json"), chat("there")])
    with serving(lambda path, body: next(tries)) as stub:
        assert quick(stub.url).ask(QUESTION).text == "there"
    assert len(stub.asked) == 3
    assert len({str(body) for _, _, body in stub.asked}) == 1


def test_the_servers_own_pause_is_kept() -> None:
    tries = iter([(429, "slow down", {"Retry-After": "0.2"}), chat("there")])
    began = time.perf_counter()
    with serving(lambda path, body: next(tries)) as stub:
        assert quick(stub.url).ask(QUESTION).text == "there"
    assert time.perf_counter() - began >= 0.2


def test_a_server_that_stays_busy_ends_in_an_error() -> None:
    with (
        serving(lambda path, body: (503, {"error": {"message": "overloaded"}})) as stub,
        pytest.raises(AddressError, match="3 tries: 503 overloaded") as caught,
    ):
        quick(stub.url, tries=3).ask(QUESTION)
    assert codes(caught.value) == ["E-ADDR-06"]
    assert len(stub.asked) == 3


def test_an_answer_that_breaks_off_is_asked_again_and_then_an_error() -> None:
    with (
        serving(lambda path, body: (200, '{"choi', {"Content-Length": "500"})) as stub,
        pytest.raises(AddressError) as caught,
    ):
        quick(stub.url, tries=2, seconds=0.3).ask(QUESTION)
    assert codes(caught.value) == ["E-ADDR-06"]
    assert len(stub.asked) == 2


def test_no_answer_in_time_is_an_error() -> None:
    free = threading.Event()

    def answer(path: str, body: Any) -> Any:
        free.wait(5)
        return chat("late")

    with serving(answer) as stub, pytest.raises(AddressError, match="timed out") as caught:
        quick(stub.url, tries=2, seconds=0.1).ask(QUESTION)
    free.set()
    assert codes(caught.value) == ["E-ADDR-06"]


def test_a_refused_connection_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits to ask again."""
    waits: list[float] = []
    monkeypatch.setattr(address, "_NEVER", SimpleNamespace(wait=waits.append))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(AddressError, match="refused") as caught:
        ask_address(f"http://127.0.0.1:{port}/v1#m", QUESTION)
    assert codes(caught.value) == ["E-ADDR-02"] and waits == []


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {SECRET}"}}, "E-ADDR-03"),
        (403, "forbidden", "E-ADDR-03"),
        (404, {"error": {"message": "model `m` not found"}}, "E-ADDR-04"),
        (400, {"error": {"message": "context length exceeded"}}, "E-ADDR-07"),
        (429, {"error": {"message": "no credit", "code": "insufficient_quota"}}, "E-ADDR-07"),
        (200, "<html>hello</html>", "E-ADDR-05"),
        (200, {"choices": []}, "E-ADDR-05"),
        (200, [], "E-ADDR-05"),
        (200, {"choices": [{"message": {"content": 3}}]}, "E-ADDR-05"),
        (200, {"choices": [{"message": None}]}, "E-ADDR-05"),
    ],
)
def test_what_a_server_says_wrong_is_an_error_that_shows_no_key(
    status: int, body: Any, code: str
) -> None:
    with (
        serving(lambda path, asked: (status, body)) as stub,
        pytest.raises(TunewrightError) as caught,
    ):
        quick(stub.url, key=SECRET).ask(QUESTION)
    assert codes(caught.value) == [code]
    assert SECRET not in str(caught.value)
    assert sum(path.endswith("/chat/completions") for path, _, _ in stub.asked) == 1


def test_a_missing_model_is_said_with_those_that_are_there() -> None:
    def answer(path: str, body: Any) -> Any:
        return (200, {"data": [{"id": "qwen"}]}) if path == "/v1/models" else (404, "no such model")

    with serving(answer) as stub, pytest.raises(UsageError, match="models there: qwen"):
        quick(stub.url).ask(QUESTION)


@pytest.mark.parametrize("content", [None, "", [{"type": "text", "text": "a"}, {"text": "b"}]])
def test_answers_may_be_empty_or_in_parts(content: Any) -> None:
    with serving(lambda path, body: chat(content)) as stub:
        assert quick(stub.url).ask(QUESTION).text == ("ab" if content else "")


# ---- the key


@pytest.mark.parametrize("name", ["TUNEWRIGHT_API_KEY", "OPENAI_API_KEY"])
def test_the_key_of_the_environment_is_sent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f" {SECRET}\n")
    with serving(lambda path, body: chat("x")) as stub:
        address = quick(stub.url)
        address.ask(QUESTION)
    assert stub.asked[0][1]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in repr(address) + address.name


def test_ours_goes_before_the_common_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", "ours")
    monkeypatch.setenv("OPENAI_API_KEY", "common")
    assert quick("http://127.0.0.1/v1").key == "ours"


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://127.0.0.1:1/v1", True),
        ("http://localhost/v1", True),
        ("http://[::1]:80/v1", True),
        ("http://192.168.1.7:8000/v1", True),
        ("https://api.example.com/v1", True),
        ("http://api.example.com/v1", False),
        ("http://8.8.8.8/v1", False),
    ],
)
def test_the_common_key_is_not_sent_in_the_clear(
    url: str, sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert (quick(url).key == SECRET) is sent
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", "ours")
    assert quick(url).key == "ours"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_key_stays_here(status: int) -> None:
    with serving(lambda path, body: chat("stolen")) as other:
        elsewhere = {"Location": f"{other.url}/chat/completions?token={SECRET}"}
        with (
            serving(lambda path, body: (status, "", elsewhere)) as stub,
            pytest.raises(AddressError) as caught,
        ):
            quick(stub.url, key=SECRET).ask(QUESTION)
    assert codes(caught.value) == ["E-ADDR-08"]
    assert other.asked == []
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("key", ["a\nb", "schlüssel", "两"])
def test_a_key_that_cannot_be_one_is_said_without_showing_it(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        quick("http://127.0.0.1:1/v1", key=key)
    assert codes(caught.value) == ["E-ADDR-03"]
    assert key not in str(caught.value)


def test_a_query_is_sent_and_not_shown() -> None:
    with serving(lambda path, body: chat("x")) as stub:
        address = quick(stub.url + "?api-version=2&code=abc")
        address.ask(QUESTION)
    assert stub.asked[0][0] == "/v1/chat/completions?api-version=2&code=abc"
    assert "abc" not in address.name


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(lambda path, body: chat("x")) as stub:
        assert quick(stub.url).ask(QUESTION).text == "x"


# ---- servers differ


@pytest.mark.parametrize(
    ("said", "left", "noted"),
    [
        (
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "max_tokens",
            0,
        ),
        ("Unknown field: seed", "seed", 1),
        ("Unsupported value: 'temperature' does not support 0.0", "temperature", 1),
    ],
)
def test_a_name_that_a_server_does_not_take_is_asked_otherwise(
    said: str, left: str, noted: int
) -> None:
    def answer(path: str, body: Any) -> Any:
        return (400, {"error": {"message": said}}) if left in body else chat("x")

    with serving(answer) as stub:
        address = quick(stub.url)
        assert address.ask(QUESTION, max_tokens=9).text == "x"
        assert address.ask(QUESTION, max_tokens=9).text == "x"
    assert len(stub.asked) == 3  # it is remembered
    assert len(address.notes) == noted
    if left == "max_tokens":
        assert stub.asked[-1][2]["max_completion_tokens"] == 9


# ---- many questions


def test_answers_come_in_the_order_of_the_questions_and_no_more_than_four_at_once() -> None:
    lock, here, most = threading.Lock(), 0, 0

    def answer(path: str, body: Any) -> Any:
        nonlocal here, most
        with lock:
            here += 1
            most = max(most, here)
        number = int(body["messages"][0]["content"])
        time.sleep(0.002 * (7 - number % 7))
        with lock:
            here -= 1
        return chat(str(number))

    seen: list[int] = []
    with serving(answer) as stub:
        found = quick(stub.url).ask_all(
            [[Message("user", str(i))] for i in range(30)],
            max_tokens=list(range(1, 31)),
            on_answer=lambda index, told, seconds: seen.append(index),
        )
    assert [one.text for one in found] == [str(i) for i in range(30)]
    assert sorted(seen) == list(range(30))
    assert 1 < most <= 4
    rooms = {body["messages"][0]["content"]: body["max_tokens"] for _, _, body in stub.asked}
    assert rooms == {str(i): i + 1 for i in range(30)}


def test_a_models_name_may_have_any_letters() -> None:
    with serving(lambda path, body: chat("x")) as stub:
        ask_address(stub.url + "#组织/模型 7B", QUESTION)
    assert stub.asked[0][2]["model"] == "组织/模型 7B"


def test_what_came_before_an_error_was_handed_out() -> None:
    def answer(path: str, body: Any) -> Any:
        return chat("x") if body["messages"][0]["content"] != "5" else (400, "bad")

    seen: list[int] = []
    with serving(answer) as stub, pytest.raises(AddressError):
        quick(stub.url, at_once=1).ask_all(
            [[Message("user", str(i))] for i in range(9)],
            on_answer=lambda index, told, seconds: seen.append(index),
        )
    assert seen == [0, 1, 2, 3, 4]
    assert len(stub.asked) == 6


def test_no_questions_need_no_server() -> None:
    assert quick("http://127.0.0.1:1/v1").ask_all([]) == []
