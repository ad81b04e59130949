"""`tunewright batch`: a file of prompts in, a file of answers out.

Rows are asked as the server asks them, all in one batch. Answers are appended to `OUT.part` as they
come, each under a key of its prompt and settings, and `OUT` appears in the order of the prompts
once all are there: a run that was killed goes on where it was, and one under other settings is
told from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.errors import DataError, UsageError, problem
from tunewright.core.files import with_retry, write_json_lines
from tunewright.core.signals import StopFlag
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.data.files.reading import stream
from tunewright.data.files.source import ending_of
from tunewright.serve import asking, shapes
from tunewright.serve.asking import Limits
from tunewright.serve.batch_rows import asked
from tunewright.serve.generation import Event, Failed, Generation, Said, Wanted
from tunewright.serve.pool import Served
from tunewright.serve.refusals import Refused
from tunewright.serve.requests import Chat, Completion, parse
from tunewright.serve.worker import Worker

BLOCK = 512
"""Rows whose prompts are rendered and sorted together, so that equal beginnings are read once."""
SHOWN = 5
"""Wrong rows that a message names."""
TEXTS = ("prompt", "question", "instruction", "input", "text")
"""Fields of a row that may hold its question, the first that is there."""


OWN = ("tools", "response_format")
"""Fields of a row that are settings of its own."""
TABLES = (".csv", ".tsv", ".tab", ".parquet", ".arrow", ".feather")
"""Endings of files that have columns and no lines."""
WRITTEN = (
    "answer", "finish_reason", "reasoning_content", "tool_calls", "answers", "usage", "error",
)  # fmt: skip
"""Fields that an answer may have."""
GIVEN = "given_"
"""Before the name of a field that the row had already: what was expected stays."""


@dataclass(frozen=True)
class Row:
    """One line of the file: what is asked, and the form in which its answer is written."""

    index: int
    given: Any
    body: dict[str, Any]
    completion: bool = False
    openai: bool = False
    """It is a line of OpenAI's batch files, and so is its answer."""
    key: str = ""


@dataclass
class Done:
    """What became of a file."""

    rows: int
    kept: int
    """Answers that were there already."""
    failed: int
    tokens: int
    seconds: float = 0.0


@dataclass
class _Open:
    """A row whose answers are being written."""

    row: Row
    wanted: Wanted
    choices: list[shapes.Choice] = field(default_factory=list)
    left: int = 0


def read_rows(path: Path, defaults: dict[str, Any], about: str) -> list[Row]:
    """The rows of a JSONL file (or one text a line). `defaults` are settings of rows that bring
    none, `about` says who answers. Raises DataError with every row that is none."""
    if not path.exists():
        raise DataError.of("E-DATA-01", str(path), file=str(path), here=str(Path.cwd()))
    try:
        lines = _table(path) or _lines(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(problem("E-BATCH-01", str(path), reason=str(error))) from error
    rows, wrong = [], []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = _row(i, line, defaults)
        except ValueError as error:
            wrong.append(problem("E-BATCH-02", f"{path}:{i + 1}", reason=str(error)))
            continue
        text = json.dumps([about, row.index, row.body, row.completion], sort_keys=True)
        key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        rows.append(Row(row.index, row.given, row.body, row.completion, row.openai, key))
    if wrong:
        raise DataError(wrong[:SHOWN])
    if not rows:
        raise DataError(problem("E-BATCH-01", str(path), reason=say("batch.empty")))
    return rows


def _row(index: int, line: str, defaults: dict[str, Any]) -> Row:
    """Raises ValueError for a line that asks nothing."""
    given = json.loads(line) if line.lstrip()[:1] in ('"', "{", "[") else line
    settings = dict(defaults)
    if settings.get("seed") is not None:
        settings["seed"] += index  # a draw of its own for every row, the same at every run
    system = settings.pop("system", None)
    if isinstance(given, dict) and isinstance(given.get("body"), dict):
        completion = str(given.get("url", "")).endswith("/v1/completions")
        settings.pop("complete", None)
        body = settings | given["body"]
        if system is not None and isinstance(body.get("messages"), list):
            body["messages"] = _under(system, body["messages"])
        return Row(index, given, body, completion, openai=True)
    cells = given.items() if isinstance(given, dict) else ()
    more = {name: value for name, value in cells if name in OWN and value is not None}
    read = _as_data(given) if not settings.get("complete") else None
    if read is not None:
        messages, more = read["messages"], more | read
    elif isinstance(given, dict) and isinstance(given.get("messages"), list):
        messages = given["messages"]
    else:
        found: Any = given
        if isinstance(given, dict):
            found = next((given[name] for name in TEXTS if given.get(name)), None)
            if given.get("instruction") and given.get("input"):
                found = f"{given['instruction']}\n{given['input']}"
        if not isinstance(found, str) or not found.strip():
            raise ValueError(say("batch.no_prompt"))
        messages = [{"role": "user", "content": found}]
        if settings.pop("complete", False):
            return Row(index, given, settings | {"prompt": found}, completion=True)
    settings.pop("complete", None)
    if system is not None:
        messages = _under(system, messages)
    return Row(index, given, settings | more | {"messages": messages})


def _as_data(given: Any) -> dict[str, Any] | None:
    """What a row of a data set asks; None for what is no such row, and for messages that end with a
    question, which are asked as they stand."""
    if not isinstance(given, dict):
        return None
    turns = given.get("messages")
    if isinstance(turns, list):
        ends = turns[-1] if turns else None
        if not isinstance(ends, dict) or ends.get("role") != "assistant":
            return None
    return asked(given)


def _table(path: Path) -> list[str]:
    """The rows of a table or a packed file as lines of JSON; nothing for lines of text. Raises what
    reading data raises."""
    ending, packed = ending_of(path)
    if not (packed or ending in TABLES):
        return []
    return [json.dumps(row.value, ensure_ascii=False, default=str) for row in stream(path).rows]


def _lines(text: str) -> list[str]:
    """Lines as JSONL has them: a text may hold characters at which Python would split as well. The
    elements of a file that is one JSON list are lines, too."""
    if text.lstrip()[:1] == "[":
        with contextlib.suppress(ValueError):
            whole = json.loads(text)
            if isinstance(whole, list):
                return [json.dumps(row, ensure_ascii=False) for row in whole]
    return text.split("\n")


def _under(system: str, messages: list[Any]) -> list[Any]:
    """The messages under a system prompt, where they bring none."""
    if any(isinstance(m, dict) and m.get("role") == "system" for m in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]


def run(
    served: Served,
    rows: list[Row],
    out: Path,
    tell: Tell,
    *,
    limits: Limits | None = None,
    overwrite: bool = False,
    stop: StopFlag | None = None,
) -> Done:
    """Answer `rows` into `out`. Raises UsageError for a file that holds something else, and
    Interrupted at a signal; what was answered by then is kept."""
    part = out.with_name(out.name + ".part")
    found = _kept(out, part, rows, overwrite)
    kept = len(found)
    if kept:
        tell.line(say("batch.resumed", kept=kept, rows=len(rows)))
    todo = [row for row in rows if row.key not in found]
    work = _Work(served, limits or Limits())
    with contextlib.ExitStack() as leave:
        if todo:
            part.parent.mkdir(parents=True, exist_ok=True)
            file = leave.enter_context(open(part, "a", encoding="utf-8"))
            work.worker.start()
            leave.callback(work.worker.stop)
            tell.start(say("batch.progress"))
            for line in work.answers(todo, stop):
                found[line["key"]] = line
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                tell.progress(
                    say("batch.progress"),
                    len(found),
                    len(rows),
                    say("batch.tokens", tokens=f"{work.worker.tokens:,}"),
                )
            os.fsync(file.fileno())
            tell.finish()
    write_json_lines(out, (_public(found[row.key], row) for row in rows))
    with contextlib.suppress(FileNotFoundError):
        with_retry(part.unlink)
    failed = sum("error" in found[row.key] for row in rows)
    return Done(len(rows), kept, failed, work.worker.tokens)


def _kept(out: Path, part: Path, rows: list[Row], overwrite: bool) -> dict[str, dict[str, Any]]:
    """The answers that are there already, by key; wrong ones are asked again."""
    if overwrite:
        for path in (out, part):
            path.unlink(missing_ok=True)
    known = {row.key for row in rows}
    if out.exists():
        raise UsageError(problem("E-BATCH-03", str(out)))
    found: dict[str, dict[str, Any]] = {}
    if not part.exists():
        return found
    for line in _lines(part.read_text(encoding="utf-8", errors="replace")):
        with contextlib.suppress(ValueError):  # the last line, of a run that was killed
            one = json.loads(line)
            if isinstance(one, dict) and isinstance(one.get("key"), str):
                found[one["key"]] = one
    if found and not known & set(found):
        raise UsageError(problem("E-BATCH-04", str(part)))
    found = {key: one for key, one in found.items() if key in known and "error" not in one}
    write_json_lines(part, found.values())
    return found


def _public(line: dict[str, Any], row: Row) -> dict[str, Any]:
    """An answer as the file holds it: the row's own fields and the answer, or OpenAI's form."""
    reply = line.get("reply")
    if row.openai:
        response = None
        if reply is not None:
            response = {"status_code": 200, "request_id": line["key"], "body": reply}
        error = line.get("error")
        return {
            "id": f"batch_req_{line['key']}",
            "custom_id": row.given.get("custom_id"),
            "response": response,
            "error": error,
        }
    given = row.given if isinstance(row.given, dict) else {"prompt": row.given}
    given = {GIVEN + name if name in WRITTEN else name: value for name, value in given.items()}
    if reply is None:
        return {**given, "answer": None, "error": line["error"]["message"]}
    texts = [_text(choice) for choice in reply["choices"]]
    first = reply["choices"][0]
    found = {**given, "answer": texts[0], "finish_reason": first["finish_reason"]}
    message = first.get("message", {})
    for name in ("reasoning_content", "tool_calls"):
        if message.get(name):
            found[name] = message[name]
    if len(texts) > 1:
        found["answers"] = texts
    return {**found, "usage": reply["usage"]}


def _text(choice: dict[str, Any]) -> str:
    return str(choice["message"]["content"] or "") if "message" in choice else str(choice["text"])


class _Work:
    """Rows in, finished lines out, as they end."""

    def __init__(self, served: Served, limits: Limits) -> None:
        self.served, self.limits = served, limits
        self.worker = Worker(rows=limits.rows)
        self.events: queue.SimpleQueue[tuple[_Open, Event]] = queue.SimpleQueue()

    def answers(self, rows: list[Row], stop: StopFlag | None) -> Iterator[dict[str, Any]]:
        """The line of each row, in whatever order they end."""
        under_way = 0
        for start in range(0, len(rows), BLOCK):
            ready, wrong = self._prepared(rows[start : start + BLOCK], stop)
            yield from wrong
            while ready or under_way > 2 * self.limits.rows:
                while ready and under_way < 4 * self.limits.rows:
                    self._submit(ready.pop(0))
                    under_way += 1
                line = self._next(stop)
                if line is not None:
                    under_way -= 1
                    yield line
        while under_way:
            line = self._next(stop)
            if line is not None:
                under_way -= 1
                yield line

    def _prepared(
        self, rows: list[Row], stop: StopFlag | None
    ) -> tuple[list[_Open], list[dict[str, Any]]]:
        """Rows with their prompts, sorted by what they begin with; and what cannot be asked."""
        ready, wrong = [], []
        for row in rows:
            if stop is not None:
                stop.check()
            try:
                ready.append(_Open(row, self._wanted(row)))
            except Refused as refused:
                wrong.append({"key": row.key, **refused.body()})
        ready.sort(key=lambda one: one.wanted.prompt)
        return ready, wrong

    def _wanted(self, row: Row) -> Wanted:
        body = {**row.body, "model": self.served.name}
        for name in ("stream", "stream_options"):
            body.pop(name, None)  # a file is not streamed
        raw = json.dumps(body).encode()
        if not row.completion:
            return asking.of_chat(self.served, parse(raw, Chat), self.limits)
        found = asking.of_completion(self.served, parse(raw, Completion), self.limits)
        if len(found) != 1 or found[0][1]:
            name = "echo" if found[0][1] else "prompt"
            raise Refused("type", param=name, name=name)
        return found[0][0]

    def _submit(self, one: _Open) -> None:
        n = one.wanted.n
        one.choices, one.left = [shapes.Choice(i) for i in range(n)], n
        generation = Generation(self.served, one.wanted, lambda e: self.events.put((one, e)))
        self.worker.submit(generation.ticket)

    def _next(self, stop: StopFlag | None) -> dict[str, Any] | None:
        """The line that the next event finishes, if it does."""
        while True:
            if stop is not None:
                stop.check()
            with contextlib.suppress(queue.Empty):
                one, event = self.events.get(timeout=0.5)
                break
            if not self.worker.alive:
                raise RuntimeError("the thread that computes has ended")
        if isinstance(event, Failed):
            no = Refused("failed", 500, code="server_error")
            return {"key": one.row.key, **no.body(), "cause": str(event.error)[:300]}
        one.choices[event.index].add(event)
        if isinstance(event, Said):
            return None
        one.left -= 1
        if one.left:
            return None
        reply = shapes.Reply(
            self.served, chat=not one.row.completion, logprobs=one.wanted.alternatives is not None
        )
        return {"key": one.row.key, "reply": reply.whole(one.choices, len(one.wanted.prompt))}
