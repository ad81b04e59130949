"""A run among the other processes of its launcher: they meet, agree on the folder, prove that they
see the same run and rows, and keep a log each.

Rank 0 speaks and writes for all. What another rank prints goes into its log, `ranks/rank-1.log` in
the run folder once that is there; the error of a rank that was lost shows the end of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tunewright.core import launched
from tunewright.core.errors import CompatError, UsageError, problem, raise_all
from tunewright.core.machine import peak_memory_bytes, versions
from tunewright.core.runfile import ParsedRun, as_dict, flatten, parse_run, parse_value
from tunewright.core.telling import Relay, Tell
from tunewright.core.words import say
from tunewright.engine import placement, rank_watch, ranks
from tunewright.record import folder as run_folder
from tunewright.run.prepare import Plan
from tunewright.run.questions import Questions
from tunewright.sources.fingerprint import fingerprint

if TYPE_CHECKING:
    from tunewright.engine.opening import Ready

LOGS = "ranks"
"""Folder of the logs in the run folder."""
MOST_HASHED = 20_000
"""Rows that are compared between the ranks, spread over all; their number and tokens always."""
PROCESS_KEYS = (
    "engine.processes",
    "engine.parallel",
    "engine.hybrid",
    "engine.offload_shares",
    "engine.rank_timeout",
    "engine.max_restarts",
)
"""What a run may change when it is continued."""
LOCAL_KEYS = ("out", "engine.processes", "engine.max_restarts")
"""What each process may say otherwise: rank 0's folder counts, and the launcher's number."""


@contextlib.contextmanager
def with_others(
    parsed: ParsedRun, resume: Path | None, tell: Tell
) -> Iterator[tuple[ParsedRun, Path | None, Tell]]:
    """Inside, this process is one of its run's. Gives the run, the folder that is continued and how
    to tell; unchanged in a run by itself. Raises UsageError where the processes see another run or
    other versions."""
    place = launched.here()
    if place is None or place.world < 2:
        yield parsed, resume, tell
        return
    engine = parsed.config.engine
    device, _ = placement.resolve_device(engine.device)
    log = Log(place)
    with log.kept(), ranks.joined(place, device, engine.rank_timeout) as team:
        team.log = log
        assert team.watch is not None
        team.watch.log = log.path
        _require_same(team, {"key": as_dict(parsed.config), "versions": _versions()})
        asked = team.gather(None if resume is None else str(resume))
        resume = None if asked[0] is None else Path(asked[0])
        out = team.first(lambda: str(resume or run_folder.out_of(parsed.config)))
        if resume is None and place.attempt and (Path(out) / "run.yaml").is_file():
            # torchrun started the processes again: they go on where the last ones ended.
            resume = Path(out)
            parsed = parse_run(run_folder.read_run(resume), {})
        parsed = _with_out(parsed, out)
        if not team.is_first or resume is not None:
            team.watch.folder = Path(out)
        tell = log.copying(tell) if team.is_first else tell
        _say_processes(team, engine.processes, tell)
        try:
            yield parsed, resume, tell
        finally:
            log.speaks = rank_watch.speaks(team.watch)


def going_on(given: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """The keys of a run that is continued, with `words` (`key=value`) that say by which processes.
    Raises UsageError for words that say anything else: a run is what its run.yaml says."""
    for word in words:
        key, _, text = word.partition("=")
        if key not in PROCESS_KEYS:
            raise UsageError.of("E-RUN-08", "--resume")
        given = {**given, key: parse_value(text)}
    place = launched.here()
    if given.get("engine.processes", 1) == 1 and (place is None or place.world == 1):
        # One process goes on with what several began.
        given = {k: v for k, v in given.items() if k not in PROCESS_KEYS}
    return given


def _with_out(parsed: ParsedRun, out: str) -> ParsedRun:
    where = {**parsed.where, "out": parsed.where.get("out", "default")}
    return parse_run({**parsed.given, "out": out}, where)


def _say_processes(team: ranks.Ranks, asked: int | str, tell: Tell) -> None:
    assert team.place is not None
    if isinstance(asked, int) and asked not in (1, team.world):
        tell.line(say("ranks.launcher_decides", asked=asked, world=team.world, by=team.place.by))
    if team.is_first:
        tell.line(say("ranks.processes", world=team.world, hosts=team.place.hosts))


def _versions() -> dict[str, str]:
    import torch

    return {**versions(), "torch": str(torch.__version__)}


def require_same_rows(plan: Plan) -> None:
    """Raise UsageError, on every rank, unless all ranks see the same rows, model and questions."""
    team = ranks.current()
    if not team.is_many:
        return
    data = plan.data
    _require_same(
        team,
        {
            "rows": {"data.train": len(data.train), "data.held_out": len(data.held_out)},
            "content": {"data.train": _digest(data.train), "data.held_out": _digest(data.held_out)},
            "model": {"model": fingerprint(plan.source.folder)},
        },
    )


def _digest(samples: Sequence[Any]) -> str:
    """A digest of what is learnt."""
    digest = hashlib.blake2b(digest_size=12)
    step = max(1, -(-len(samples) // MOST_HASHED))
    for i in range(0, len(samples), step):
        sample = samples[i]
        seen = [(b.tokens, b.learnt, b.weights) for b in sample.branches]
        digest.update(repr((seen, sample.weight)).encode())
    return digest.hexdigest()


def _require_same(team: ranks.Ranks, facts: dict[str, Any]) -> None:
    """Raise UsageError for the first facts in which a rank differs from rank 0."""
    flat = {
        f"{part}|{key}": str(value)
        for part, values in facts.items()
        for key, value in flatten(values).items()
        if key not in LOCAL_KEYS
    }
    told = team.gather((team.host, flat))
    ours = told[0][1]
    found = []
    for rank, (host, theirs) in enumerate(told):
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                part, _, name = key.partition("|")
                found.append(
                    problem(
                        "E-DIST-04",
                        f"rank {rank}, {host}",
                        rank=rank,
                        host=host,
                        what=say(f"ranks.facts.{part}", name=name),
                        theirs=theirs.get(key, "-"),
                        ours=ours.get(key, "-"),
                    )
                )
    raise_all(found[:8], UsageError)


def require_folder(out: Path) -> None:
    """Raise UsageError, on every rank, unless all of them see the run folder."""
    team = ranks.current()
    if not team.is_many:
        return
    told = team.gather((team.host, (out / "run.yaml").is_file()))
    raise_all(
        [
            problem("E-DIST-05", str(out), rank=rank, host=host)
            for rank, (host, seen) in enumerate(told)
            if not seen
        ],
        UsageError,
    )
    assert team.watch is not None
    team.watch.folder = out
    if team.log is not None:
        team.log.move(out / LOGS)
        team.watch.log = team.log.path
    team.wait()


def with_what_can_be_asked(plan: Plan, world: placement.World, tell: Tell) -> Plan:
    """The plan without questions, where no process has room for the whole model: it learns in
    shares, and answers need all of it."""
    if world.holds_whole:
        return plan
    tell.line(say("ranks.not_asked"))
    config = plan.config.model_copy(update={"forgetting": "off"})
    none = Questions([], plan.questions.scored, [])
    return replace(plan, parsed=replace(plan.parsed, config=config), questions=none)


def written_by_first(path: Path) -> Path:
    """Where this rank writes what only rank 0 should: the file, or nowhere."""
    return path if ranks.current().is_first else Path(os.devnull)


def take(hold: run_folder.Hold, folder: Path) -> None:
    """Hold the run folder, for all ranks. Raises UsageError where another run does."""
    if ranks.current().is_first:
        hold.take(folder)


def by_first(opened: Ready, world: placement.World, do: Callable[[], object]) -> None:
    """Let rank 0 do something with the model in memory, for which the others wait; nothing where
    no process has room for it."""
    from tunewright.engine import sharding  # torch is loaded with the first weight

    if not world.holds_whole:
        return
    with sharding.together(opened.stepper.policy):
        ranks.current().only_first(do)


def part(world: placement.World) -> list[dict[str, Any]]:
    """What each rank was, at the end of what they do together; nothing of a run by itself. The
    others then leave, and rank 0 goes on alone."""
    team = ranks.current()
    if not team.is_many:
        return []
    memory = peak_memory_bytes(world.device)
    told = team.gather({"host": team.host, "device": world.device, "peak_memory_bytes": memory})
    ranks.part()
    return [{"rank": rank, **one} for rank, one in enumerate(told)]


class Log:
    """What a rank prints, in a file. Rank 0 goes on printing, and its lines are copied."""

    def __init__(self, place: launched.Place):
        given = os.environ.get(launched.FOLDER)
        self.folder = Path(given or tempfile.mkdtemp(prefix="tunewright-ranks-"))
        self.is_own = not given
        self.rank = place.rank
        self.path = self.folder / f"rank-{place.rank}.log"
        self._file: TextIO | None = None
        self._streams: list[int] = []
        self.speaks = False
        """Rank 0 was lost, and this one says so."""

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, another rank than the first prints into its log."""
        self._open(self.path)
        if self.rank:
            self._streams = [os.dup(1), os.dup(2)]
            self._redirect()
        try:
            yield
        except BaseException:
            if not self.rank or self.speaks:
                self._restore()
            raise  # the others say their error into their logs
        self._restore()

    def _restore(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in enumerate(self._streams, 1):
            os.dup2(saved, number)
            os.close(saved)
        if self._file is not None:
            self._file.close()

    def _open(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - as long as the run

    def _redirect(self) -> None:
        assert self._file is not None
        sys.stdout.flush()
        sys.stderr.flush()
        for number in (1, 2):
            os.dup2(self._file.fileno(), number)

    def write(self, line: str) -> None:
        """Copy a line that was told."""
        if self._file is not None and not self._file.closed:
            self._file.write(line + "\n")

    def move(self, folder: Path) -> None:
        """Go on in the run folder, with what was printed so far."""
        folder.mkdir(exist_ok=True)
        before, old = self.path.read_text(encoding="utf-8", errors="replace"), self._file
        source = self.path
        self._open(folder / self.path.name)
        assert self._file is not None
        self._file.write(before)
        if self.rank:
            self._redirect()
        if old is not None:
            old.close()
        with contextlib.suppress(OSError):
            source.unlink()
            if self.is_own:
                self.folder.rmdir()

    def copying(self, tell: Tell) -> Tell:
        """`tell`, whose lines also go into the log."""
        return _Copied(tell, self)


class _Copied(Relay):
    """Copies every line into a log."""

    def __init__(self, inner: Tell, log: Log):
        super().__init__(inner)
        self.log = log

    def line(self, text: str) -> None:
        """One finished line."""
        self.log.write(text)
        self.inner.line(text)


def require_alone(what: str) -> None:
    """Raise CompatError where several processes were started for something that only one can do."""
    place = launched.here()
    if place is not None and place.world > 1:
        raise CompatError(problem("E-DIST-06", what, world=place.world, by=place.by))
