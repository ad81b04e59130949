"""The processes of a run: how many there are, which one this is, and everything they say to each
other. The one place that speaks to `torch.distributed`; the others ask it.

A run by itself is `Ranks` of one process: everything it is asked for is then given back as it is,
and nothing of `torch.distributed` is loaded. Values go through one function (`gather`): each
process gives its own and gets those of all, in the order of the ranks, so that sums have the same
order and the same last digit everywhere. Gradients are summed once a step. Who is lost is found out
by `rank_watch`.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tunewright.core import faults
from tunewright.core.errors import TunewrightError
from tunewright.core.launched import Place
from tunewright.core.types import Figures, Sample
from tunewright.engine.portions import Portions, portions

if TYPE_CHECKING:
    from torch import Tensor

    from tunewright.engine.rank_watch import Watch

T = TypeVar("T")
BUCKET_BYTES = 64 << 20
"""Gradients are summed in pieces of this size: fewer would start later, more would each cost a
round trip."""
MEETING_SECONDS = 600
"""How long the first process to arrive waits for the others."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
FOREVER = datetime.timedelta(days=30)
"""Time limit of a single exchange: a rank may answer questions for an hour while the others wait.
Ranks that are lost are found by their heart-beats."""


class Ranks:
    """The processes of a run, seen from one of them. Made without arguments: a run by itself."""

    def __init__(
        self, place: Place | None = None, watch: Watch | None = None, control: Any = None
    ) -> None:
        self.place, self.watch, self.control = place, watch, control
        self.world = place.world if place is not None else 1
        self.rank = place.rank if place is not None else 0
        self.together = False
        """The shares are put together just now (`sharding.together`)."""
        self.own_device = False
        self.log: Any = None
        """What this rank prints (`run.joining.Log`)."""
        self.sharded = False
        """Weights lie in shares on the ranks (FSDP), so that all run the same number of passes."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    @property
    def is_many(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    @property
    def here(self) -> int:
        """Processes of the run that share the memory of this machine; a GPU is one's own."""
        return self.place.local_world if self.place is not None and not self.own_device else 1

    @property
    def host(self) -> str:
        """What this machine calls itself."""
        return socket.gethostname()

    # ---- values

    def gather(self, value: T) -> list[T]:
        """What every rank gave, in the order of the ranks."""
        if not self.is_many:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        with self._exchange("gather"):
            dist.all_gather_object(found, value, group=self.control)
        return found

    def first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes by itself, on every rank."""
        if not self.is_many:
            return make()
        import torch.distributed as dist

        found: list[Any] = [None]
        if self.is_first:
            with alone():
                found = [make()]
        with self._exchange("first"):
            dist.broadcast_object_list(found, src=0, group=self.control)
        value: T = found[0]
        return value

    def only_first(self, do: Callable[[], object]) -> None:
        """Let rank 0 do something, for which the others wait."""
        if self.is_first:
            with alone():
                do()
        self.wait()

    def wait(self) -> None:
        """Until all are here."""
        self.gather(None)

    def any(self, value: int | None) -> int | None:
        """The first value that is not None, on every rank."""
        return next((one for one in self.gather(value) if one is not None), None)

    def each(self, items: Sequence[T], compute: Callable[[list[T]], Sequence[Any]]) -> list[Any]:
        """`compute(items)`, of which every rank does an even part."""
        if not self.is_many:
            return list(compute(list(items)))
        mine = list(compute(list(items[self.rank :: self.world])))
        found: list[Any] = [None] * len(items)
        for rank, part in enumerate(self.gather(mine)):
            found[rank :: self.world] = part
        return found

    # ---- the samples of a step

    def share(self, samples: Sequence[Sample], *, padded: bool) -> Portions | None:
        """Who takes which samples; None where this process takes all."""
        return portions(samples, self.world, padded=padded) if self.is_many else None

    def most(self, count: int) -> int:
        """The largest of the numbers that the ranks give, where all must run as many passes."""
        return max(self.gather(count)) if self.sharded else count

    # ---- gradients

    def sum_gradients(self, parameters: Sequence[Any]) -> None:
        """Put the sum over the ranks into every gradient. One that no rank has stays None. Shares
        of weights have the mean already, from the backward pass."""
        if not self.is_many:
            return
        import torch

        if self.sharded:
            for p in parameters:
                if p.grad is not None:
                    p.grad.mul_(self.world)
            return

        has = [sum(one) > 0 for one in zip(*self.gather(_has(parameters)), strict=True)]
        wanted = [p for p, one in zip(parameters, has, strict=True) if one]
        for p in wanted:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in _buckets([p.grad for p in wanted]):
            self.sum_(bucket)

    def same_as_first(self, parameters: Sequence[Any]) -> None:
        """Put the numbers of rank 0 into the parameters of all."""
        if not self.is_many:
            return
        import torch
        import torch.distributed as dist

        with torch.no_grad(), self._exchange("weights"):
            for bucket in _buckets([p.data for p in parameters]):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                dist.broadcast(flat, src=0)
                parts = flat.split([tensor.numel() for tensor in bucket])
                for tensor, part in zip(bucket, parts, strict=True):
                    tensor.copy_(part.view_as(tensor))

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their sums over the ranks."""
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._exchange("sum"):
            dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def lost(self, error: BaseException) -> TunewrightError | None:
        """The error of the rank that was lost, where `error` is an exchange that broke for it; None
        where it is anything else."""
        if self.watch is None or not faults.is_broken_line(error):
            return None
        return self.watch.lost(error)

    @contextlib.contextmanager
    def _exchange(self, what: str) -> Iterator[None]:
        """Inside, this rank waits for the others. What `torch.distributed` raises becomes the error
        that names the rank that was lost."""
        if self.watch is None:
            yield
            return
        self.watch.doing(what)
        try:
            yield
        except Exception as e:
            raise self.watch.lost(e) from e
        finally:
            self.watch.doing("")


def _has(parameters: Sequence[Any]) -> list[int]:
    return [int(p.grad is not None) for p in parameters]


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype and device, up to `BUCKET_BYTES` together, in their order."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        first = bucket[0] if bucket else tensor
        bytes_here = tensor.numel() * tensor.element_size()
        alike = (first.dtype, first.device) == (tensor.dtype, tensor.device)
        if bucket and (not alike or size + bytes_here > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += bytes_here
    if bucket:
        yield bucket


def add_up(parts: Sequence[Figures]) -> Figures:
    """The figures of all ranks as one."""
    found: Figures = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = found.get(name, (0.0, 0))
            found[name] = (before[0] + total, before[1] + count)
    return found


ALONE = Ranks()
_current = ALONE


def current() -> Ranks:
    """The processes of the run that this one belongs to."""
    return _current


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process does something by itself that the others do not take part in."""
    global _current
    before, _current = _current, ALONE
    try:
        yield
    finally:
        _current = before


def part() -> None:
    """All that needs several processes is done: each goes on by itself."""
    global _current
    team = _current
    if team.watch is not None:
        import torch.distributed as dist

        team.wait()
        team.watch.let_go()
        dist.destroy_process_group()
    _current = ALONE


@contextlib.contextmanager
def joined(place: Place | None, device: str, timeout: float) -> Iterator[Ranks]:
    """Meet the other processes of `place` for the time of the block. Whatever ends the block on
    one rank is told to the others, so that none of them waits for it."""
    global _current
    if place is None or place.world < 2 or _current.is_many:
        yield _current
        return
    from tunewright.engine import rank_watch

    watch = _meet(place, device, timeout)
    ranks = Ranks(place, watch, _control())
    ranks.own_device = device.startswith("cuda")
    _current = ranks
    try:
        with watch.telling():
            yield ranks
    finally:
        _current = ALONE
        rank_watch.leave(watch)


def _meet(place: Place, device: str, timeout: float) -> Watch:
    """Open the group of all processes, and begin to watch them."""
    import torch
    import torch.distributed as dist

    from tunewright.engine.rank_watch import Watch

    if place.address in LOOPBACK and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = place.address, str(place.port)
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(place.rank), str(place.world)
    is_cuda = device.startswith("cuda")
    if is_cuda:
        torch.cuda.set_device(place.local)
    patience = datetime.timedelta(seconds=MEETING_SECONDS)
    store, rank, world = next(dist.rendezvous("env://", timeout=patience))
    # An agent that starts its processes again may keep its store: there the processes of the last
    # attempt left their addresses.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
        store=dist.PrefixStore(f"attempt/{place.attempt}", store),
        rank=rank,
        world_size=world,
        timeout=patience,
    )
    return Watch(place, timeout)


def _control() -> Any:
    """A group for values that are no tensors of a GPU, in which one may wait for long."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=FOREVER)
