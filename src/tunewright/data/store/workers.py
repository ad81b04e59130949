"""Rows read here, shaped, checked, rendered and tokenised in other processes, and written to a
store in the order in which they were read.

A worker is this program started anew with a pipe at each end: nothing of the parent is inherited or
run again (a script without a main guard, a notebook, a loaded model), and it ends when its pipe
does. It knows the tokenizer as text and jinja's sandbox, so it loads neither torch nor
Transformers. Messages are plain values in Python's `marshal` form, which can hold no code. Small
sets are worked on here: starting a worker takes longer.
"""

from __future__ import annotations

import gc
import marshal
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Literal

from tunewright.core.errors import DataError
from tunewright.core.machine import processors
from tunewright.core.types import ROW_KINDS, Message, Origin, PlainText, Preference, Row
from tunewright.core.written import packed, unpacked
from tunewright.data.checks import Check, all_checks
from tunewright.data.files.reading import RawRow
from tunewright.data.formats.common import Unusable
from tunewright.data.formats.ledger import Ledger
from tunewright.data.formats.shaping import Dropped, Shaper, printable
from tunewright.data.labels import EncodedRow, encode_rows
from tunewright.data.store import columns as token_store
from tunewright.data.store.columns import Writer
from tunewright.data.store.documents import windows
from tunewright.data.store.good_answers import only_good
from tunewright.data.store.splitting import keys_of

if TYPE_CHECKING:
    from tunewright.text.renderer import Renderer

CHUNK_ROWS = 256
BYTES_PER_WORKER = 4 << 20
"""A worker is worth starting for this much text: it takes about a second to load, in which one
process does as much."""
EXAMPLES, LISTED = 5, 1000
FEATURES_IN_MEMORY = 8 << 20


@dataclass(frozen=True)
class Recipe:
    """What is done to every row. Plain values, so that a worker can be told."""

    tokenizer: dict[str, Any] | None
    """`Light.state` of the tokenizer; None: rows are not encoded."""
    stop_ids: list[int]
    max_tokens: int | None
    oversize: str
    system: str | None
    wording: str | None
    labels: list[str] | None
    control: list[str]
    """Control tokens, for the checks."""
    check: bool = True
    documents: bool = False
    """Running text longer than `max_tokens` is cut into windows."""
    thinking: dict[str, Any] = field(default_factory=dict)
    """The renderer's `Thinking`."""
    words: list[str] = field(default_factory=list)
    """Added tokens that are no control tokens: written in a row, they are those tokens."""
    good_only: bool = False
    """Only good answers stay (`good_answers`)."""


@dataclass(frozen=True)
class Job:
    """Some rows of one file. `items` are (value, line, row) for a format, or (kind, JSON, line,
    row) for rows that a catalogue's converter made."""

    file: str
    format: str | None
    columns: dict[str, str]
    weight: float
    items: list[Any]
    is_packed: bool = False
    """The values were `written.packed` for the way to a worker."""


@dataclass
class Done:
    """What became of a job. `columns`, `keys` and `features` are bytes, kept as they are until they
    are needed."""

    columns: dict[str, bytes]
    kept: int
    keys: bytes
    dropped: list[tuple[int, int, str, str]]
    notes: dict[str, int]
    seen: list[str]
    features: bytes
    ledger: dict[str, Any] = field(default_factory=dict)
    """`Ledger.plain` of the rows."""


class Kitchen:
    """Does jobs, here or in a worker."""

    def __init__(self, recipe: Recipe, renderer: Renderer | None):
        self.recipe, self.renderer = recipe, renderer
        self.checks: list[Check] = all_checks(recipe.control, recipe.words) if recipe.check else []

    def do(self, job: Job) -> Done:
        """Shape, encode and check the rows of a job."""
        raw: list[Any] = []
        rows, dropped, notes, seen, ledger = self._shaped(job, raw)
        encoded: list[EncodedRow] | None = None
        if self.renderer is not None:
            r = self.recipe
            cut: Literal["truncate", "drop"] = "truncate" if r.oversize == "truncate" else "drop"
            made = encode_rows(
                rows, self.renderer, max_tokens=r.max_tokens, oversize=cut, documents=r.documents
            )
            dropped += [one for one in made if isinstance(one, Dropped)]
            found = [
                (row, value, one)
                for row, value, one in zip(rows, raw, made, strict=True)
                if not isinstance(one, Dropped)
            ]
            if r.documents:
                found = [
                    (piece, value, part)
                    for row, value, one in found
                    for piece, part in self._windows(row, one)
                ]
            rows, raw, encoded = (
                [row for row, _, _ in found],
                [value for _, value, _ in found],
                [one for _, _, one in found],
            )
            for one in encoded:
                notes.update(one.notes)
                if one.thought_tokens:
                    notes["thought_tokens"] += one.thought_tokens
        lost = [(one.origin.line, one.origin.row, one.reason, one.detail) for one in dropped]
        columns = token_store.pack(rows, encoded, 0, 0)
        return Done(
            columns,
            len(rows),
            keys_of(rows, raw),
            lost,
            dict(notes),
            seen,
            marshal.dumps(self._features(rows, encoded)),
            ledger,
        )

    def _windows(self, row: Row, made: EncodedRow) -> list[tuple[Row, EncodedRow]]:
        assert self.renderer is not None
        return (
            [*windows(row, made, self.recipe.max_tokens, self.renderer)]
            if isinstance(row, PlainText)
            else [(row, made)]
        )

    def _features(self, rows: list[Row], encoded: list[EncodedRow] | None) -> list[list[Any]]:
        found = []
        for i, row in enumerate(rows):
            sample = (
                encoded[i].sample(i, row.origin) if encoded is not None and self.checks else None
            )
            found.append([check.feature(row, sample) for check in self.checks])
        return found

    def _shaped(
        self, job: Job, raw: list[Any]
    ) -> tuple[list[Row], list[Dropped], Counter[str], list[str], dict[str, Any]]:
        rows: list[Row] = []
        dropped: list[Dropped] = []
        if job.format is None:
            notes = Counter[str]()
            for kind, data, line, number in job.items:
                self._take(
                    token_store.row_of(kind, data, Origin(job.file, line, number)),
                    None,
                    job,
                    rows,
                    raw,
                    dropped,
                    notes,
                )
            return rows, dropped, notes, [], {}
        shaper = Shaper(
            [], job.format, job.columns, wording=self.recipe.wording, labels=self.recipe.labels
        )
        wanted, seen = set(job.columns.values()), set()
        for value, line, number in job.items:
            value = unpacked(value) if job.is_packed else value
            if wanted and isinstance(value, dict):
                seen |= wanted & value.keys()
            made = shaper.row(RawRow(value, Origin(job.file, line, number)))
            self._take(made, value, job, rows, raw, dropped, shaper.notes)
        return rows, dropped, shaper.notes, sorted(seen), shaper.ledger.plain()

    def _take(
        self,
        made: Row | Dropped,
        value: Any,
        job: Job,
        rows: list[Row],
        raw: list[Any],
        dropped: list[Dropped],
        notes: Counter[str],
    ) -> None:
        """Put a row, finished, to the others, or to those that were dropped."""
        if self.recipe.good_only and not isinstance(made, Dropped):
            before, made = made, only_good(made)
            notes["good_only"] += made is not before and not isinstance(made, Dropped)
        if isinstance(made, Dropped):
            dropped.append(made)
        else:
            rows.append(_finished(made, self.recipe.system, job.weight))
            raw.append(value)


def _finished(row: Row, system: str | None, weight: float) -> Row:
    """The row with the run's system prompt where it has turns and brings none, and its source's
    weight."""
    if system is not None and not isinstance(row, PlainText):
        row = (
            replace(row, prompt=_begun(row.prompt, system))
            if isinstance(row, Preference)
            else replace(row, messages=_begun(row.messages, system))
        )
    return replace(row, weight=row.weight * weight) if weight != 1 else row


def _begun(messages: list[Message], system: str) -> list[Message]:
    return (
        messages
        if messages and messages[0].role == "system"
        else [Message("system", system), *messages]
    )


# ---- workers


def _send(pipe: IO[bytes], value: Any) -> None:
    data = marshal.dumps(value)  # raises ValueError for what is no plain value
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    """The next message. Raises EOFError when the other end is gone."""
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    length = int.from_bytes(head, "little")
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return marshal.loads(data)  # noqa: S302 - from our own process, and marshal holds values, never code that is run


def serve() -> None:
    """The main function of a worker: a recipe, then jobs, until the pipe ends."""
    import signal
    import traceback

    from tunewright.text.renderer import Renderer
    from tunewright.text.thinking import Thinking
    from tunewright.text.tokenizer import Light

    # Ctrl-C is the parent's; a worker ends with its pipe. Whatever prints must not write between
    # the messages.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        recipe = Recipe(**_receive(sys.stdin.buffer))
        thinking = Thinking(**recipe.thinking)
        renderer = (
            Renderer(Light.from_state(recipe.tokenizer), recipe.stop_ids, thinking)
            if recipe.tokenizer
            else None
        )
        kitchen = Kitchen(recipe, renderer)
        # What was loaded stays; jobs make lists by the hundred thousand and hardly a cycle, so
        # looking for cycles every 700 objects is time lost.
        gc.freeze()
        gc.set_threshold(50_000)
        while True:
            job = Job(**_receive(sys.stdin.buffer))
            try:
                _send(answers, {"done": vars(kitchen.do(job))})
            except Exception:
                _send(answers, {"error": traceback.format_exc()})
    except EOFError:
        # The answers are flushed; taking a hundred megabytes of words and tokens apart object by
        # object would keep the parent waiting.
        os._exit(0)


class _Worker:
    def __init__(self, recipe: Recipe):
        # The child finds this package where the parent found it; tokenizers' own threads would only
        # compete with the other workers.
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", "from tunewright.data.store.workers import serve; serve()"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
        )
        self._put(vars(recipe))

    def _put(self, value: Any) -> None:
        assert self.process.stdin is not None
        try:
            _send(self.process.stdin, value)
        except (BrokenPipeError, OSError) as error:
            raise self._gone() from error

    def _gone(self) -> DataError:
        return DataError.of("E-DATA-60", "data.train", code=self.process.wait())

    def do(self, job: Job) -> Done:
        assert self.process.stdout is not None
        try:
            self._put(vars(job))
        except ValueError:
            # Numbers that keep their spelling are no plain values; few sets have any, so only those
            # are gone through.
            if job.format is None:
                raise
            self._put(
                vars(
                    replace(
                        job,
                        items=[(packed(value), line, row) for value, line, row in job.items],
                        is_packed=True,
                    )
                )
            )
        try:
            answer = _receive(self.process.stdout)
        except EOFError as error:
            raise self._gone() from error
        if "error" in answer:
            text = answer["error"].strip()
            raise RuntimeError(f"in a worker process: {text.splitlines()[-1]}\n{text}")
        return Done(**answer["done"])

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait()


class Staff:
    """Workers, or (`count` 0) this process. `results` gives what became of jobs, in their order,
    with a few of them under way at a time."""

    def __init__(self, recipe: Recipe, renderer: Renderer | None, count: int):
        self.here = Kitchen(recipe, renderer)
        self.count = count
        self._workers = [_Worker(recipe) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(max(1, count))
        self._alone = threading.Lock()

    def __enter__(self) -> Staff:
        return self

    def __exit__(self, *error: Any) -> None:
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _do(self, job: Job) -> Done:
        worker = self._idle.get()
        try:
            return worker.do(job)
        except ValueError:
            # A table may hold dates and other values that cannot be sent.
            with self._alone:
                return self.here.do(job)
        finally:
            self._idle.put(worker)

    def results(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Done]]:
        """(job, result) in order."""
        if not self.count:
            for job in jobs:
                yield job, self.here.do(job)
            return
        under_way: deque[tuple[Job, Future[Done]]] = deque()
        for job in jobs:
            under_way.append((job, self._threads.submit(self._do, job)))
            while len(under_way) > 2 * self.count + 1:
                done, result = under_way.popleft()
                yield done, result.result()
        for done, result in under_way:
            yield done, result.result()


def worker_count(num_bytes: int, threads: int | str | None = None) -> int:
    """How many workers a set of this size gets; 0 where one process is as fast."""
    count = min(processors(threads), num_bytes // BYTES_PER_WORKER)
    return count if count > 1 else 0


# ---- the whole set


@dataclass
class Source:
    """One file and how its rows are made. `rows` gives (value, origin); `convert` is a catalogue's."""

    file: str
    rows: Iterator[tuple[Any, Origin]]
    format: str | None
    columns: dict[str, str]
    weight: float
    number: int
    """Of the entry of `data.train` it belongs to."""
    held: bool = False
    convert: Callable[[Any, Origin], Row | Unusable] | None = None
    after: Callable[[set[str], Ledger], None] | None = None
    """Called with the columns that were seen and the file's ledger, after the last row."""


@dataclass
class Tally:
    """What happened to the rows of a set, without sentences, so that it can be kept and told in any
    language."""

    read: int = 0
    dropped: int = 0
    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)
    listed: list[tuple[str, int, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    ledger: Ledger = field(default_factory=Ledger)

    def drop(self, one: Dropped, listed_of_file: int) -> None:
        """Count a dropped row; the first ones of each file are listed."""
        self.dropped += 1
        entry = self.reasons.setdefault(one.reason, {"count": 0, "examples": [], "details": []})
        entry["count"] += 1
        if len(entry["examples"]) < EXAMPLES:
            entry["examples"].append(str(one.origin))
            entry["details"].append(printable(one.detail))
        if listed_of_file < LISTED:
            self.listed.append((one.origin.file, one.origin.line, str(one)))


class Features:
    """The checks' features of all rows, kept in a nameless file until the split is known."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=FEATURES_IN_MEMORY)  # noqa: SIM115
        self._sizes: list[int] = []

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def add(self, data: bytes) -> None:
        """Keep what a job brought."""
        self._file.write(data)
        self._sizes.append(len(data))

    def __iter__(self) -> Iterator[list[Any]]:
        self._file.seek(0)
        for size in self._sizes:
            yield from marshal.loads(self._file.read(size))  # noqa: S302 - a nameless file of this process


@dataclass
class Gathered:
    """Every row of a set, written, before it is split."""

    train: Tally
    held: Tally
    num_train: int
    """Rows of `data.train`; those of a held-out file follow them."""
    keys: Any
    """uint64, rows x `splitting.KEYS`."""


def gather(
    sources: Iterable[Source], staff: Staff, writer: Writer, features: Features, files: list[str]
) -> Gathered:
    """Work through all files. Appends their names to `files`. Raises DataError for what a file or a
    worker has to say."""
    import numpy as np

    tallies = {False: Tally(), True: Tally()}
    kept = Counter[bool]()
    keys = bytearray()
    for source in sources:
        files.append(source.file)
        tally, listed, seen = tallies[source.held], 0, set[str]()
        mapped = Ledger()
        converted: list[Dropped] = []
        for job, done in staff.results(_jobs(source, tally, seen, converted)):
            for one in [
                *converted,
                *(
                    Dropped(Origin(job.file, line, number), reason, detail)
                    for line, number, reason, detail in done.dropped
                ),
            ]:
                tally.drop(one, listed)
                listed += 1
            converted.clear()
            tally.notes.update(done.notes)
            seen |= set(done.seen)
            if done.ledger:
                tally.ledger.merge(done.ledger)
                mapped.merge(done.ledger)
            columns = done.columns | {
                "source": np.full(done.kept, source.number, "<i4").tobytes(),
                "file": np.full(done.kept, len(files) - 1, "<i4").tobytes(),
            }
            writer.add(columns)
            features.add(done.features)
            keys += done.keys
            kept[source.held] += done.kept
        for one in converted:
            tally.drop(one, listed)
        if source.after is not None:
            source.after(seen, mapped)
    table = (
        np.frombuffer(keys, "<u8").reshape(kept[False] + kept[True], -1)
        if keys
        else np.empty((0, 4), "<u8")
    )
    return Gathered(tallies[False], tallies[True], kept[False], table)


def _jobs(source: Source, tally: Tally, seen: set[str], converted: list[Dropped]) -> Iterator[Job]:
    """The rows of a file in jobs. A catalogue's converter is a function of this process, so its
    rows are made here."""
    rows = iter(source.rows)
    while chunk := list(islice(rows, CHUNK_ROWS)):
        tally.read += len(chunk)
        if source.convert is None:
            yield Job(
                source.file,
                source.format,
                source.columns,
                source.weight,
                [(value, at.line, at.row) for value, at in chunk],
            )
            continue
        items = []
        for value, at in chunk:
            seen.update(value if isinstance(value, dict) else ())
            made = source.convert(value, at)
            if isinstance(made, Unusable):
                converted.append(Dropped(at, made.reason, made.detail))
            else:
                items.append((ROW_KINDS[type(made)], token_store.row_bytes(made), at.line, at.row))
        yield Job(source.file, None, {}, source.weight, items)
