"""The one thread that computes: it owns the models, and everybody's answers grow in it.

Every model has a lane: a batch that stays open, which requests join and leave between two tokens.
Lanes take turns, a token of each; that is right for every kind of method, and one that is asked
alone has the machine for itself. Callers in other threads hand in requests and get told about all
of a step's tokens at once.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tunewright.core import faults
from tunewright.core.pace import Pace, counts_up_to
from tunewright.core.publish import cache_root
from tunewright.engine.decoding.batch import Ask, Batch, Job, Written
from tunewright.models.kernels.fused import fused_without_gradient
from tunewright.serve.pool import Served


@dataclass(eq=False)
class Ticket:
    """A request in the worker's hands. Its callbacks are called by the worker's thread."""

    served: Served
    ask: Ask
    on_end: Callable[[int, Written], None]
    on_fail: Callable[[Exception], None]
    job: Job | None = None
    left: int = field(init=False)
    """Answers that have not ended."""

    def __post_init__(self) -> None:
        self.left = self.ask.answers


@dataclass
class _Lane:
    """A model's open batch."""

    batch: Batch
    leave: contextlib.ExitStack
    tickets: set[Ticket] = field(default_factory=set)


class Worker:
    """Computes in a thread of its own from `start` to `stop`. `after_step` is called after every
    step, when all callbacks of that step have been made."""

    def __init__(self, after_step: Callable[[], None] = lambda: None, rows: int = 64) -> None:
        self.after_step, self.rows = after_step, rows
        self.lanes: dict[Served, _Lane] = {}
        self.under_way: set[Ticket] = set()
        """Handed in and not ended: waiting or being written."""
        self.tokens = 0
        """Written since the start."""
        self.steps = 0
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tunewright-worker", daemon=True)

    # ---- for other threads

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self, seconds: float = 30.0) -> None:
        """End after the step that is being taken; what is being written fails."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        """Whether it computes."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return sum(len(lane.batch.rows) for lane in list(self.lanes.values()))

    def submit(self, ticket: Ticket) -> None:
        """Let a request join its model's batch."""
        self.under_way.add(ticket)
        self._inbox.put(lambda: self._join(ticket))

    def cancel(self, ticket: Ticket) -> None:
        """Write no more for a request: nothing of it is called any more."""
        self._inbox.put(lambda: self._cancel(ticket))

    def release(self, served: Served) -> None:
        """Free what a model that is served no more holds; its requests fail."""
        self._inbox.put(lambda: self._close(served, RuntimeError("the model was unloaded")))

    # ---- in its thread

    def _run(self) -> None:
        with torch.no_grad(), fused_without_gradient(), Pace(_counts()) as pace:
            self.pace = pace
            while self._take_in():
                for served in list(self.lanes):
                    self._step(served)
                self.after_step()
        for served in list(self.lanes):
            self._close(served, RuntimeError("the server stops"))
        for ticket in list(self.under_way):
            self._fail(ticket, RuntimeError("the server stops"))
        self.after_step()

    def _take_in(self) -> bool:
        """Do what others want done, waiting for it while nothing is written; False to stop."""
        busy = any(lane.batch.rows or lane.batch.queue for lane in self.lanes.values())
        while True:
            try:
                wanted = self._inbox.get(block=not busy)
            except queue.Empty:
                return True
            if wanted is None:
                return False
            wanted()
            busy = True

    def _join(self, ticket: Ticket) -> None:
        if ticket not in self.under_way:
            return
        try:
            lane = self.lanes.get(ticket.served) or self._open(ticket)
        except Exception as error:
            self._fail(ticket, error)
            return
        lane.tickets.add(ticket)
        ticket.job = lane.batch.add(ticket.ask, lambda n, answer: self._ended(ticket, n, answer))

    def _open(self, ticket: Ticket) -> _Lane:
        writer = ticket.served.model.writer
        writer.rows = self.rows
        leave = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            batch = opening.enter_context(writer.opened(ticket.ask.prompt, pace=self.pace))
            leave = opening.pop_all()
        lane = self.lanes[ticket.served] = _Lane(batch, leave)
        return lane

    def _step(self, served: Served) -> None:
        lane = self.lanes[served]
        if not lane.batch.rows and not lane.batch.queue:
            return
        before = lane.batch.tokens
        try:
            lane.batch.step()
        except Exception as error:
            faults.keep(error, cache_root() / "tracebacks")
            self._close(served, error)
            return
        self.steps += 1
        self.tokens += lane.batch.tokens - before

    def _ended(self, ticket: Ticket, number: int, answer: Written) -> None:
        ticket.left -= 1
        if ticket not in self.under_way:
            return
        if not ticket.left:
            self._forget(ticket)
        ticket.on_end(number, answer)

    def _cancel(self, ticket: Ticket) -> None:
        if ticket not in self.under_way:
            return
        self._forget(ticket)
        lane = self.lanes.get(ticket.served)
        if lane is not None and ticket.job is not None:
            lane.batch.cancel(ticket.job)

    def _forget(self, ticket: Ticket) -> None:
        self.under_way.discard(ticket)
        lane = self.lanes.get(ticket.served)
        if lane is not None:
            lane.tickets.discard(ticket)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if ticket in self.under_way:
            self._forget(ticket)
            ticket.on_fail(error)

    def _close(self, served: Served, error: Exception) -> None:
        """Leave a lane: the model is as before, its memory for keys and values is free, and what
        was being written fails with `error`."""
        lane = self.lanes.pop(served, None)
        if lane is None:
            return
        with contextlib.suppress(Exception):  # `error` is what is told
            lane.leave.close()
        for ticket in list(lane.tickets):
            self._fail(ticket, error)


def _counts() -> tuple[int, ...]:
    return counts_up_to(torch.get_num_threads())
