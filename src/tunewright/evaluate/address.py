"""Questions to an OpenAI-compatible chat address (`http://host:port/v1#model`): vLLM, SGLang,
llama.cpp, Ollama, LM Studio, `tunewright serve`, a provider.

A few dozen lines over urllib instead of a client library: one call is used, and what matters is
what goes wrong. Busy servers are asked again (429, 5xx, a lost connection) with growing pauses;
whatever else is wrong ends in an error that says what to change. The key comes from the
environment, goes to the host that was named and nowhere else (redirects are never followed), and
stands in no message, result or file.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import queue
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn
from urllib.parse import SplitResult, urlsplit, urlunsplit

from tunewright.core.errors import TunewrightError, UsageError, problem
from tunewright.core.types import Message
from tunewright.core.words import say

KEYS = ("TUNEWRIGHT_API_KEY", "OPENAI_API_KEY")
"""Environment variables with the key, the first that is set. The second goes only where nobody on
the way can read it: over https, or to this machine or a private network."""
SECONDS, TRIES, AT_ONCE = 120.0, 5, 4
"""How long one try may take, how often a busy server is asked, and how many questions wait there at
the same time."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
MOST_BYTES = 64 * 2**20
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses after which the same question may get an answer."""
END = "/chat/completions"


class AddressError(TunewrightError):
    """An address that does not answer as it should."""


class Told(NamedTuple):
    """One answer of an address."""

    text: str
    finish_reason: str
    """"stop", "length" or what else the server says; "" where it says nothing."""
    usage: dict[str, int]
    """`prompt_tokens` and `completion_tokens` as the server counts them; empty where it does
    not."""


class _Busy(Exception):
    """The same question may be asked again, after `pause` seconds where the server says so."""

    def __init__(self, why: str, pause: float | None = None):
        super().__init__(why)
        self.pause = pause


class _Refused(Exception):
    """The server understood and said no."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects come back as answers: urllib would send the key along to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def is_address(target: str) -> bool:
    """Whether a person means an address by `target`, and not a folder, file or hub name."""
    return target.lower().startswith(("http://", "https://"))


@dataclass
class Address:
    """An address that can be asked, many questions at once. `Address.of` reads it."""

    base: SplitResult
    """Without model and without `/chat/completions`."""
    model: str | None
    key: str | None = field(default=None, repr=False)
    seconds: float = SECONDS
    tries: int = TRIES
    at_once: int = AT_ONCE
    pause: float = FIRST_PAUSE
    notes: list[str] = field(default_factory=list)
    """What this server would not be asked, in words: each once."""
    _dropped: dict[str, str | None] = field(default_factory=dict)
    """Names of the request that this server wants otherwise: the other name, or None."""
    _answered: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(
        cls, url: str, *, model: str | None = None, key: str | None = None, **how: Any
    ) -> Address:
        """Read `http(s)://host:port/v1#model`; a bare host stands for `/v1` on it. `key` None: that
        of the environment. Raises UsageError (E-ADDR-01) for what is no address."""
        try:
            parts = urlsplit(url.strip())
            _ = parts.port, (parts.hostname or "").encode("idna")
            if re.search(r"[^!-~]", parts.netloc + parts.path + parts.query):
                raise ValueError(say("address.letters"))
        except ValueError as e:  # UnicodeError is one
            raise UsageError(problem("E-ADDR-01", _shown(url), reason=str(e))) from e
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(problem("E-ADDR-01", _shown(url), reason=say("address.no_host")))
        if parts.username is not None or parts.password is not None:
            raise UsageError(problem("E-ADDR-01", _shown(url), reason=say("address.password")))
        path = parts.path.rstrip("/").removesuffix(END).removesuffix("/completions") or "/v1"
        base = parts._replace(path=path, fragment="")
        given = key if key is not None else key_for(base)
        named = model or parts.fragment or None
        return cls(base, named, _clean(given, _shown(url)), **how)

    @property
    def name(self) -> str:
        """The address as it may be shown and stored: no query, which may hold a secret."""
        shown = urlunsplit(self.base._replace(query=""))
        return f"{shown}#{self.model}" if self.model else shown

    # ---- asking

    def ask(
        self,
        messages: Sequence[Message | dict[str, Any]],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = 0,
        stop: threading.Event | None = None,
    ) -> Told:
        """One answer. Raises AddressError where none comes, UsageError for a key or model that the
        server does not take."""
        body: dict[str, Any] = {
            "model": self.chosen_model(),
            "messages": [_plain(one) for one in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if seed is not None:
            body["seed"] = seed
        for _ in range(4):  # a server may dislike each of three names
            try:
                return _read(self._call(END, self._as_taken(body), stop), self.name)
            except _Refused as refused:
                if not self._learn(refused, body):
                    self._fail(refused, name_models=True)
        raise AssertionError("every name was dropped")

    def stream(
        self,
        messages: Sequence[Message | dict[str, Any]],
        on_piece: Callable[[str], None],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
        **more: Any,
    ) -> Told:
        """One answer, told in pieces as it comes; `more` are further fields of the request. A
        server that does not stream gives it at once, and a stream that breaks off is an error:
        what was told cannot be taken back. Raises as `ask` does."""
        body = {
            "model": self.chosen_model(),
            "messages": [_plain(one) for one in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            **more,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if seed is not None:
            body["seed"] = seed
        for _ in range(4):
            try:
                with self._open(END, self._as_taken(body)) as answer:
                    return self._streamed(answer, on_piece)
            except _Busy as busy:
                reason = self._blot(str(busy))
                raise AddressError.of("E-ADDR-06", self.name, tries=1, reason=reason) from busy
            except _Refused as refused:
                if not self._learn(refused, body):
                    self._fail(refused, name_models=True)
        raise AssertionError("every name was dropped")

    def _streamed(self, answer: Any, on_piece: Callable[[str], None]) -> Told:
        """What a stream of server-sent events says, or one reply that is none."""
        text, reason, size, done = "", "", 0, False
        usage: dict[str, int] = {}
        if "json" in answer.headers.get("Content-Type", ""):
            told = _read(json.loads(answer.read(MOST_BYTES)), self.name)
            on_piece(told.text)
            return told
        for raw in answer:
            size += len(raw)
            line = raw.decode("utf-8", "replace").strip()
            if size > MOST_BYTES:
                raise AddressError.of("E-ADDR-05", self.name, reason=f"> {MOST_BYTES >> 20} MiB")
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                done = True
                break
            try:
                chunk = json.loads(data)
                if "error" in chunk:
                    quoted = self._quote(data.encode())
                    raise AddressError.of("E-ADDR-07", self.name, status="-", reason=quoted)
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices", [])[:1]:
                    piece = (choice.get("delta") or {}).get("content") or ""
                    reason = choice.get("finish_reason") or reason
                    text += piece
                    if piece:
                        on_piece(piece)
            except (ValueError, AttributeError, TypeError) as e:
                quoted = self._quote(data.encode())
                raise AddressError.of("E-ADDR-05", self.name, reason=quoted) from e
        if not done and not reason:
            raise AddressError.of("E-ADDR-05", self.name, reason=say("address.broke_off"))
        counts = ("prompt_tokens", "completion_tokens")
        counted: dict[str, int] = {k: usage[k] for k in counts if k in usage}
        return Told(text.strip(), reason, counted)

    def ask_all(
        self,
        questions: Sequence[Sequence[Message | dict[str, Any]]],
        *,
        max_tokens: int | Sequence[int] = 512,
        temperature: float = 0.0,
        seed: int | None = 0,
        on_answer: Callable[[int, Told, float], None] | None = None,
    ) -> list[Told]:
        """Answers in the order of the questions, `at_once` of them asked at the same time.

        `on_answer(index, answer, seconds)` is called by this thread as they come, so that nothing
        is lost when a later one fails. Raises what `ask` raises, as soon as one does.
        """
        rooms = [max_tokens] * len(questions) if isinstance(max_tokens, int) else list(max_tokens)
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Told | BaseException, float]] = queue.SimpleQueue()
        stop = threading.Event()
        for index in range(len(questions)):
            todo.put(index)

        def work() -> None:
            with contextlib.suppress(queue.Empty):
                while not stop.is_set():
                    index, began = todo.get_nowait(), time.perf_counter()
                    found: Told | BaseException
                    try:
                        found = self.ask(
                            questions[index],
                            max_tokens=rooms[index],
                            temperature=temperature,
                            seed=seed,
                            stop=stop,
                        )
                    except BaseException as e:
                        found = e
                    done.put((index, found, time.perf_counter() - began))

        # Threads of our own: those of concurrent.futures are waited for at exit, so that Ctrl-C
        # would hang as long as the server does.
        for _ in range(min(self.at_once, len(questions))):
            threading.Thread(target=work, daemon=True).start()
        answers: dict[int, Told] = {}
        try:
            while len(answers) < len(questions):
                index, found, seconds = done.get()
                if isinstance(found, BaseException):
                    raise found
                answers[index] = found
                if on_answer:
                    on_answer(index, found, seconds)
        finally:
            stop.set()
        return [answers[index] for index in range(len(questions))]

    def models(self) -> list[str]:
        """Names of the models that the server says it has. Raises as `ask` does."""
        try:
            found = self._call("/models", None, None)
        except _Refused as refused:
            self._fail(refused)
        rows = found.get("data") if isinstance(found, dict) else None
        names = [row.get("id") for row in rows or [] if isinstance(row, dict)]
        return [name for name in names if isinstance(name, str)]

    def chosen_model(self) -> str:
        """The model that was named, or the only one that the server has. Raises UsageError
        (E-ADDR-04) where it has several or none."""
        with self._lock:
            if self.model is None:
                names = self.models()
                if len(names) != 1:
                    raise UsageError(
                        problem(
                            "E-ADDR-04",
                            self.name,
                            model="-",
                            reason=say("address.which_model"),
                            known=", ".join(names[:20]) or "-",
                        )
                    )
                self.model = names[0]
            return self.model

    # ---- one request

    def _call(self, path: str, body: dict[str, Any] | None, stop: threading.Event | None) -> Any:
        """What the server answers, as plain data; a busy one is asked `tries` times."""
        why = ""
        for attempt in range(self.tries):
            try:
                found = self._once(path, body)
                self._answered = True
                return found
            except _Busy as busy:
                why = str(busy)
                wait = busy.pause if busy.pause is not None else self.pause * 2**attempt
                if attempt + 1 == self.tries or (stop or _NEVER).wait(min(wait, LONGEST_PAUSE)):
                    break
        raise AddressError.of("E-ADDR-06", self.name, tries=self.tries, reason=self._blot(why))

    @contextlib.contextmanager
    def _open(self, path: str, body: dict[str, Any] | None) -> Iterator[Any]:
        """The server's answer to one try, to be read. Raises _Busy, _Refused, or an error for
        people."""
        url = urlunsplit(self.base._replace(path=self.base.path + path))
        headers = {"Accept": "application/json", "User-Agent": "tunewright"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers)  # noqa: S310
        if self.key:
            # Not a header that a redirect would take along.
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            with _opener(self.base.hostname or "").open(request, timeout=self.seconds) as answer:
                yield answer
        except urllib.error.HTTPError as e:
            self._judge(e)
        except urllib.error.URLError as e:
            self._unreachable(e.reason)
        except (OSError, http.client.HTTPException) as e:
            raise _Busy(str(e) or type(e).__name__) from e

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        """One try, as plain data. Raises as `_open` does."""
        with self._open(path, body) as answer:
            raw = answer.read(MOST_BYTES + 1)
            if answer.length and len(raw) <= MOST_BYTES:  # a limited read does not say so
                raise http.client.IncompleteRead(raw, answer.length)
        if len(raw) > MOST_BYTES:
            raise AddressError.of("E-ADDR-05", self.name, reason=f"> {MOST_BYTES >> 20} MiB")
        try:
            return json.loads(raw)
        except ValueError as e:
            raise AddressError.of("E-ADDR-05", self.name, reason=self._quote(raw)) from e

    def _unreachable(self, why: object) -> NoReturn:
        """A connection that was not made: a server that never answered is not waited for."""
        if self._answered and not isinstance(why, socket.gaierror | ssl.SSLError):
            raise _Busy(str(why) or type(why).__name__)
        raise AddressError.of("E-ADDR-02", self.name, reason=self._blot(str(why)))

    def _judge(self, error: urllib.error.HTTPError) -> NoReturn:
        """What a status other than 200 means."""
        with error:
            try:
                raw = error.read(1 << 16)
            except (OSError, http.client.HTTPException):
                raw = b""
        status, text = error.code, self._quote(raw)
        if 300 <= status < 400:
            to = self._blot(_shown(str(error.headers.get("Location", "-"))))
            raise AddressError.of("E-ADDR-08", self.name, status=status, to=to)
        if status in BUSY and "insufficient_quota" not in text:
            raise _Busy(f"{status} {text}", _seconds(error.headers.get("Retry-After")))
        raise _Refused(status, text)

    def _fail(self, refused: _Refused, name_models: bool = False) -> NoReturn:
        """The error for people of an answer that says no."""
        status, text = refused.status, refused.text
        if status in (401, 403):
            key = say("address.key_sent" if self.key else "address.no_key", names=" / ".join(KEYS))
            raise UsageError(problem("E-ADDR-03", self.name, status=status, reason=text, key=key))
        if status == 404:
            known: list[str] = []
            with contextlib.suppress(TunewrightError):
                known = self.models() if name_models else []
            shown, model = ", ".join(known[:20]) or "-", self.model or "-"
            raise UsageError(problem("E-ADDR-04", self.name, model=model, reason=text, known=shown))
        raise AddressError.of("E-ADDR-07", self.name, status=status, reason=text)

    # ---- servers differ

    def _as_taken(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request with the names that this server takes."""
        renamed = {self._dropped.get(name, name): value for name, value in body.items()}
        return {name: value for name, value in renamed.items() if name is not None}

    def _learn(self, refused: _Refused, body: dict[str, Any]) -> bool:
        """Whether another form of the request may be taken: some servers know no seed, want their
        own temperature, or call the room of an answer otherwise."""
        if refused.status not in (400, 422):
            return False
        for name, other in (
            ("max_tokens", "max_completion_tokens"),
            ("seed", None),
            ("temperature", None),
        ):
            named = re.search(rf"\b{name}\b", refused.text)
            if name not in body or not named or name in self._dropped:
                continue
            if other is not None and other not in refused.text:
                continue
            with self._lock:
                self._dropped[name] = other
                note = say(
                    "address.renamed" if other else "address.left_out", name=name, other=other
                )
                if other is None and note not in self.notes:
                    self.notes.append(note)
            return True
        return False

    def _quote(self, raw: bytes) -> str:
        """What a server said, short and without the key."""
        text = raw.decode("utf-8", "replace")
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            found = json.loads(text)
            inner = found.get("error", found.get("detail", found.get("message", found)))
            said = inner.get("message", inner) if isinstance(inner, dict) else inner
            text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
            kind = inner.get("code") if isinstance(inner, dict) else None
            text += f" ({kind})" if isinstance(kind, str) and kind not in text else ""
        return self._blot(" ".join(text.split())[:300] or "-")

    def _blot(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


_NEVER = threading.Event()


def key_for(base: SplitResult) -> str | None:
    """The key of the environment for an address: `TUNEWRIGHT_API_KEY` was set for this, the other
    goes over https, to this machine and to a private network only."""
    own, common = (os.environ.get(name, "").strip() for name in KEYS)
    if own or base.scheme == "https" or _is_near(base.hostname or ""):
        return own or common or None
    return None


def _is_near(host: str) -> bool:
    """This machine, or a private network."""
    if host.lower() == "localhost":
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    return found.is_loopback or found.is_private


def _clean(key: str | None, where: str) -> str | None:
    """A key that can stand in a header. Raises UsageError, which does not show it."""
    found = (key or "").strip()
    if not all(" " < character < "\x7f" for character in found):
        text = say("address.key_letters")
        raise UsageError(problem("E-ADDR-03", where, status="-", reason=text, key="-"))
    return found or None


def _shown(url: str) -> str:
    """An address without password and query, for messages."""
    return re.sub(r"\?[^#]*", "", re.sub(r"//[^/@\s]*@", "//***@", url.strip()))


def _opener(host: str) -> urllib.request.OpenerDirector:
    """What opens a connection: a proxy of the environment is for other machines, never for this
    one."""
    direct = [urllib.request.ProxyHandler({})] if _is_near(host) else []
    return urllib.request.build_opener(_NoRedirect, *direct)


def _seconds(header: str | None) -> float | None:
    """A `Retry-After` in seconds; its other form, a date, is not waited for by the clock."""
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        return None


def _plain(message: Message | dict[str, Any]) -> dict[str, Any]:
    """A message as the address takes it."""
    if isinstance(message, dict):
        return message
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    for name in ("tool_calls", "name", "tool_call_id"):
        if getattr(message, name) is not None:
            out[name] = getattr(message, name)
    return out


def _read(found: Any, where: str) -> Told:
    """The answer in what a server sent. Raises AddressError (E-ADDR-05) for another form."""
    try:
        choice = found["choices"][0]
        content = choice["message"].get("content")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        if content is not None and not isinstance(content, str):
            raise TypeError("content")
        usage = found.get("usage") or {}
        counted = {k: usage[k] for k in ("prompt_tokens", "completion_tokens") if k in usage}
        return Told((content or "").strip(), str(choice.get("finish_reason") or ""), counted)
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        shown = json.dumps(found, ensure_ascii=False)[:200]
        raise AddressError.of("E-ADDR-05", where, reason=shown) from e
