"""A conversation on the terminal, with a model in this process or at an address."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tunewright.core.errors import TunewrightError, UsageError, problem
from tunewright.core.files import write_json
from tunewright.core.publish import cache_root
from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.engine.decoding.answers import Answer
from tunewright.serve.speech import split

_show = partial(print, end="", flush=True)
BLOCK = '"""'
"""Opens and closes a question of several lines."""
MOST_LINES = 1000
"""Questions of earlier conversations that the arrow keys find."""
SETTINGS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "seed": int,
    "max_new_tokens": int,
}
"""What /set changes: name -> how its value is read."""


class Speaker(Protocol):
    """What is talked to."""

    def start(self, system: str | None = None) -> list[Message]:
        """What stands before the first question."""
        ...

    def ask(
        self, messages: list[Message], *, on_piece: Callable[[str], None], **how: Any
    ) -> Answer:
        """The answer to a dialogue, told in pieces."""
        ...


def reply(
    answerer: Speaker, messages: list[Message], *, compare: bool, timed: bool = False, **how: Any
) -> str:
    """Print the answer as it comes; with `compare` the base's first. `how` are the settings of
    `Answerer.ask`; `timed` says on stderr how fast it was. Returns the (tuned) answer."""
    if compare:
        _show(say("chat.base"))
        _ask(answerer, messages, timed, base=True, **how)
        _show(say("chat.tuned"))
    return _ask(answerer, messages, timed, **how)


def _ask(answerer: Speaker, messages: list[Message], timed: bool, **how: Any) -> str:
    began, first = time.perf_counter(), 0.0
    # Continued text has no thought: it is shown as it comes.
    apart = Apart(bare=bool(how.get("complete")))

    def shown(piece: str) -> None:
        nonlocal first
        first = first or time.perf_counter()
        apart.add(piece)

    found = answerer.ask(messages, on_piece=shown, **how)
    apart.end()
    print(flush=True)
    if found.end == "context":
        print(say("chat.context_full"), file=sys.stderr)
    elif found.end == "limit" and timed:
        print(say("chat.limit_reached"), file=sys.stderr)
    if timed and found.tokens:
        print(speed(len(found.tokens), began, first, time.perf_counter()), file=sys.stderr)
    return found.text


class Apart:
    """Shows an answer as it comes: the answer on stdout, the thought before it on stderr, dim where
    that is a terminal."""

    def __init__(self, *, bare: bool = False) -> None:
        self.bare, self.text, self.said = bare, "", {"thought": 0, "text": 0}

    def add(self, piece: str) -> None:
        """Show what is new."""
        self._show(piece, whole=False)

    def end(self) -> None:
        """Show what waited for more."""
        self._show("", whole=True)

    def _show(self, piece: str, *, whole: bool) -> None:
        if self.bare:
            _show(piece)
            return
        self.text += piece
        thought, text = split(self.text, opened=False, whole=whole)
        thought, text = thought.strip(), text.lstrip("\n") if thought else text
        if len(thought) > self.said["thought"]:
            self._think(thought[self.said["thought"] :])
            self.said["thought"] = len(thought)
        if len(text) > self.said["text"]:
            if self.said["thought"] and not self.said["text"]:
                print(file=sys.stderr, flush=True)
            _show(text[self.said["text"] :])
            self.said["text"] = len(text)

    def _think(self, piece: str) -> None:
        live = sys.stderr.isatty()
        begins = "" if self.said["thought"] else say("chat.thought")
        told = begins + piece
        print(f"\x1b[2m{told}\x1b[0m" if live else told, end="", file=sys.stderr, flush=True)


def speed(tokens: int, began: float, first: float, ended: float) -> str:
    """How fast an answer was: seconds to its first token, and tokens a second after that."""
    rate = (tokens - 1) / max(ended - first, 1e-9) if tokens > 1 else 0.0
    return say(
        "chat.speed", tokens=tokens, first=f"{max(0.0, first - began):.2f}", rate=f"{rate:.1f}"
    )


def converse(answerer: Speaker, *, system: str | None, compare: bool, **how: Any) -> None:
    """Read questions until the input ends or /quit. Piped input is answered line by line, each on
    its own.

    Raises ModelError for a piped question that fills the context; in a conversation what goes wrong
    is said, and the next question may be another.
    """
    if sys.stdin.isatty():
        with _remembered():
            print(say("chat.hint"), file=sys.stderr)
            Conversation(answerer, system, compare=compare, how=how).run()
        return
    start = answerer.start(system)
    for text in iter(_piped, None):
        if text.strip() in ("/quit", "/exit"):
            return
        if text.strip() and text.strip() != "/new":
            reply(answerer, [*start, Message("user", text)], compare=compare, **how)


def _piped() -> str | None:
    try:
        return input()
    except EOFError:
        return None


class Conversation:
    """Questions and answers that follow each other, and the words that begin with a slash."""

    def __init__(
        self,
        answerer: Speaker,
        system: str | None,
        *,
        compare: bool = False,
        how: dict[str, Any] | None = None,
        read: Callable[[str], str] = input,
    ) -> None:
        self.answerer, self.compare, self.read = answerer, compare, read
        self.how = dict(how or {})
        self.messages = answerer.start(system)
        self.words: dict[str, Callable[[str], None]] = {
            "new": self._new,
            "system": self._system,
            "retry": self._retry,
            "undo": self._undo,
            "show": self._list,
            "save": self._save,
            "load": self._load,
            "set": self._set,
            "help": lambda _: print(say("chat.help"), file=sys.stderr),
        }

    def run(self) -> None:
        """Until the input ends or /quit."""
        while True:
            try:
                text = self._question()
            except EOFError:
                return
            except KeyboardInterrupt:
                print(file=sys.stderr)
                continue
            if not text.strip():
                continue
            word, _, rest = text.strip().partition(" ")
            if word in ("/quit", "/exit"):
                return
            try:
                if not word.startswith("/"):
                    self._answer(text)
                elif word[1:] in self.words:
                    self.words[word[1:]](rest.strip())
                else:
                    print(say("chat.unknown", word=word), file=sys.stderr)
            except TunewrightError as e:
                print(e.text(), file=sys.stderr)

    def _question(self) -> str:
        """One question: a line, lines that end in a backslash, or a block between triple quotes."""
        text = self.read(say("chat.you"))
        if text.lstrip().startswith(BLOCK):
            text = text.lstrip()[len(BLOCK) :]
            while not text.rstrip().endswith(BLOCK):
                text += "\n" + self.read(say("chat.more"))
            return text.rstrip()[: -len(BLOCK)].strip("\n")
        while text.endswith("\\"):
            text = text[:-1] + "\n" + self.read(say("chat.more"))
        return text

    def _answer(self, text: str) -> None:
        """Ask, and go on from the answer. Ctrl-C ends the answer and forgets the question."""
        asked = [*self.messages, Message("user", text)]
        try:
            said = reply(self.answerer, asked, compare=self.compare, timed=True, **self.how)
        except KeyboardInterrupt:
            print(f"\n{say('chat.interrupted')}", file=sys.stderr)
            return
        self.messages = [*asked, Message("assistant", said)]

    # ---- words

    @property
    def _start(self) -> list[Message]:
        return [m for m in self.messages[:1] if m.role == "system"]

    def _new(self, _: str) -> None:
        self.messages = self._start
        print(say("chat.forgotten"), file=sys.stderr)

    def _system(self, text: str) -> None:
        if not text:
            now = self._start
            print(now[0].content if now else say("chat.no_system"), file=sys.stderr)
            return
        rest = self.messages[len(self._start) :]
        self.messages = [Message("system", "" if text in ('""', "''") else text), *rest]
        print(say("chat.system_set"), file=sys.stderr)

    def _retry(self, _: str) -> None:
        last = self._last_question()
        if last is None:
            print(say("chat.nothing_asked"), file=sys.stderr)
            return
        text = self.messages[last].content
        kept, self.messages = self.messages, self.messages[:last]
        try:
            self._answer(text)
        finally:
            if len(self.messages) == last:  # no new answer: the old one stands
                self.messages = kept

    def _undo(self, _: str) -> None:
        last = self._last_question()
        if last is None:
            print(say("chat.nothing_asked"), file=sys.stderr)
            return
        self.messages = self.messages[:last]
        print(say("chat.undone"), file=sys.stderr)

    def _last_question(self) -> int | None:
        found = [i for i, m in enumerate(self.messages) if m.role == "user"]
        return found[-1] if found else None

    def _list(self, _: str) -> None:
        for message in self.messages:
            print(f"[{message.role}] {message.content}")

    def _set(self, text: str) -> None:
        name, _, value = text.replace("=", " ").partition(" ")
        if name in SETTINGS and value.strip():
            try:
                self.how[name] = SETTINGS[name](value.strip())
            except ValueError:
                raise UsageError(problem("E-CHAT-03", f"/set {name}", value=value)) from None
        shown = [f"{one} {self.how[one]}" for one in SETTINGS if self.how.get(one) is not None]
        print(" · ".join(shown), file=sys.stderr)
        if name and name not in SETTINGS:
            raise UsageError(problem("E-CHAT-03", "/set", value=name))

    def _save(self, name: str) -> None:
        place = Path(name or "").expanduser()
        if not name:
            raise UsageError(problem("E-CHAT-02", "/save", reason=say("chat.no_file")))
        try:
            if place.exists():
                _read(place)  # only a conversation gives way to a conversation
            write_json(place, {"messages": [_plain(m) for m in self.messages]})
        except (OSError, ValueError) as error:
            raise UsageError(problem("E-CHAT-02", str(place), reason=str(error))) from error
        print(say("chat.saved", file=place, count=len(self.messages)), file=sys.stderr)

    def _load(self, name: str) -> None:
        place = Path(name or "").expanduser()
        try:
            if not name:
                raise ValueError(say("chat.no_file"))
            self.messages = _read(place)
        except (OSError, ValueError) as error:
            raise UsageError(problem("E-CHAT-01", str(place), reason=str(error))) from error
        print(say("chat.loaded", file=place, count=len(self.messages)), file=sys.stderr)


def _plain(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _read(place: Path) -> list[Message]:
    """The conversation of a file. Raises ValueError for anything else."""
    given = json.loads(place.read_text(encoding="utf-8-sig"))
    found = given.get("messages") if isinstance(given, dict) else given
    if not isinstance(found, list) or not all(
        isinstance(m, dict)
        and m.get("role") in ("system", "user", "assistant")
        and isinstance(m.get("content"), str)
        for m in found
    ):
        raise ValueError(say("chat.no_conversation"))
    return [Message(m["role"], m["content"]) for m in found]


@contextlib.contextmanager
def _remembered() -> Iterator[None]:
    """Inside, the arrow keys find earlier questions, of other days too where they can be kept: in
    a file that nobody else can read."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    place = cache_root() / "questions"
    with contextlib.suppress(OSError):
        readline.read_history_file(place)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.set_history_length(MOST_LINES)
            readline.write_history_file(place)
            place.chmod(0o600)
