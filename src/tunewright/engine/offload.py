"""What is kept elsewhere until it is needed: the optimiser's state, and what blocks keep for their
backward pass.

| device | elsewhere |
| a GPU | the host's memory, pinned |
| a CPU | a file without a name in the cache folder, which is gone when the process is |

Bytes are copied there and back as they are, layout of rows and columns included, so that every
product meets the operands it would have met. Numbers do not change by a bit.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from tunewright.core.publish import cache_root
from tunewright.engine.activation_cache import blocks_of
from tunewright.models.limits import AT_ONCE

if TYPE_CHECKING:
    from tunewright.engine.policy import Policy

LEVELS = ("none", "optimizer", "activations", "all")
SMALLEST = 1 << 16
"""Bytes below which a tensor stays where it is: a copy of its own costs more than it frees."""


class Slot(Protocol):
    """A tensor that lies elsewhere."""

    def get(self) -> Tensor:
        """A copy of it on its own device, in the layout in which it was put."""

    def set(self, tensor: Tensor) -> None:
        """Other numbers for it, of the same shape and layout."""

    def on_host(self) -> Tensor:
        """It as the host sees it, to be read once and not changed."""


class Store(Protocol):
    """Where tensors lie in between."""

    def put(self, tensor: Tensor, device: torch.device) -> Slot:
        """Keep a copy of `tensor`, whose numbers lie without gaps and which belongs on `device`."""

    def finish(self) -> None:
        """Wait until what was put is there."""


def store_for(device: torch.device) -> Store:
    """Where the tensors of `device` go. Raises OSError where a file is needed and cannot be."""
    return HostStore() if device.type == "cuda" else FileStore()


class HostStore:
    """The host's memory: pinned where the device is a GPU, so that no copy waits."""

    def put(self, tensor: Tensor, device: torch.device) -> Slot:
        """As of `Store`."""
        slot = _HostSlot(_like(tensor, pin_memory=device.type == "cuda"), device)
        slot.set(tensor)
        return slot

    def finish(self) -> None:
        """As of `Store`."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()


class _HostSlot:
    def __init__(self, host: Tensor, device: torch.device) -> None:
        self.host, self.device = host, device

    def get(self) -> Tensor:
        return _like(self.host, device=self.device).copy_(self.host, non_blocking=True)

    def set(self, tensor: Tensor) -> None:
        self.host.copy_(tensor, non_blocking=True)

    def on_host(self) -> Tensor:
        return self.host


class FileStore:
    """A file that no folder names. Places are given out one after the other, and from the start
    again when nothing is kept any more."""

    def __init__(self) -> None:
        self.file = _nameless()
        weakref.finalize(self, self.file.close)
        # Backward passes run in threads of their own.
        self.lock = threading.Lock()
        self.end = self.kept = 0
        self._map: tuple[int, mmap.mmap] | None = None

    def put(self, tensor: Tensor, device: torch.device) -> Slot:
        """As of `Store`."""
        slot = _FileSlot(self, self.end, tensor)
        # Numbers of a tensor start at a multiple of their size.
        self.end += -(-tensor.numel() * tensor.element_size() // 64) * 64
        slot.set(tensor)
        self.kept += 1
        weakref.finalize(slot, self._forget)
        return slot

    def finish(self) -> None:
        """As of `Store`."""

    def write(self, data: memoryview, place: int) -> None:
        """Lay bytes at a place of the file. Raises OSError where the disk is full."""
        with self.lock:
            self.file.seek(place)
            while data:
                data = data[self.file.write(data) :]

    def read(self, data: memoryview, place: int) -> None:
        """Fill `data` from a place of the file."""
        with self.lock:
            self.file.seek(place)
            while data:
                done = self.file.readinto(data)
                if not done:
                    raise OSError("a file that keeps activations ended too early")
                data = data[done:]

    def mapped(self) -> mmap.mmap:
        """The file as memory of its own, of which the system holds what is read."""
        if self._map is None or self._map[0] != self.end:
            size, access = self.end, mmap.ACCESS_COPY
            os.truncate(self.file.fileno(), size)
            self._map = (size, mmap.mmap(self.file.fileno(), size, access=access))
        return self._map[1]

    def _forget(self) -> None:
        self.kept -= 1
        if not self.kept:
            self.end = 0


class _FileSlot:
    def __init__(self, store: FileStore, place: int, tensor: Tensor) -> None:
        self.store, self.place = store, place
        self.size, self.stride, self.dtype = tensor.size(), tensor.stride(), tensor.dtype

    def get(self) -> Tensor:
        made = torch.empty_strided(self.size, self.stride, dtype=self.dtype)
        self.store.read(_bytes_of(made), self.place)
        return made

    def set(self, tensor: Tensor) -> None:
        self.store.write(_bytes_of(tensor), self.place)

    def on_host(self) -> Tensor:
        flat = torch.frombuffer(
            self.store.mapped(), dtype=self.dtype, count=self.size.numel(), offset=self.place
        )
        return flat.as_strided(self.size, self.stride)


def _like(tensor: Tensor, **where: Any) -> Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, **where)


def _nameless() -> Any:
    folder = cache_root() / "offload"
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder, buffering=0)


def _flat(tensor: Tensor) -> Tensor:
    """The numbers of a tensor without gaps in the order in which they lie."""
    return tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def _bytes_of(tensor: Tensor) -> memoryview:
    data: Any = _flat(tensor).view(torch.uint8).numpy()
    return memoryview(data)


def has_no_gaps(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor fill a piece of memory, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(
        (stride, size)
        for stride, size in zip(tensor.stride(), tensor.size(), strict=True)
        if size != 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


# ---- activations


def keep_activations_away(policy: Policy, store: Store) -> Callable[[], None]:
    """Let the blocks of `policy`'s model lay what they keep for their backward pass into `store`.
    The last block is left alone: its backward pass comes first. What is returned undoes it."""
    causal = policy.causal[0]
    own = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    undo = [_watch(block, store, own) for block in blocks_of(causal)[:-1]]

    def remove() -> None:
        for one in reversed(undo):
            one()

    return remove


def _watch(module: Any, store: Store, own: set[int]) -> Callable[[], None]:
    forward, had_one = module.forward, "forward" in vars(module)

    def pack(tensor: Tensor) -> Any:
        away = (
            tensor.numel() * tensor.element_size() >= SMALLEST
            and tensor.is_floating_point()
            and tensor.untyped_storage().data_ptr() not in own
            and has_no_gaps(tensor)
        )
        return store.put(tensor, tensor.device) if away else tensor

    def unpack(kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept.get()

    def watched(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled() or not module.training:
            return forward(*given, **named)
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return forward(*given, **named)

    def undo() -> None:
        if had_one:
            module.forward = forward
        else:
            del module.forward

    module.forward = watched
    return undo


# ---- the optimiser's state


class AwayOptimizer(torch.optim.Optimizer):
    """An optimiser whose state lies in `store` between the updates of its parameters, a part of
    them at a time. Any rule will do that updates a parameter from its own state alone."""

    def __init__(self, inner: torch.optim.Optimizer, store: Store):
        super().__init__(inner.param_groups, {})
        self.inner, self.store = inner, store
        self.slots: dict[tuple[int, str], Slot] = {}
        """Those of what is on the device now."""
        self.state = inner.state
        self.param_groups = inner.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of everything that has a gradient."""
        del closure
        self._by_parts(self.inner.step)

    def average_into(self) -> None:
        """As of the parts of the optimiser that hand out other weights than they learn with."""
        parts = getattr(self.inner, "parts", [self.inner])
        averages = [part for part in parts if hasattr(part, "average_into")]
        self._by_parts(lambda: [part.average_into() for part in averages])

    def _by_parts(self, work: Callable[[], object]) -> None:
        for parameters in self._parts():
            with self._only(parameters):
                for p in parameters:
                    self._fetch(p)
                work()
                for p in parameters:
                    self._put_away(p)
        self.store.finish()

    def _parts(self) -> Iterator[list[Tensor]]:
        part: list[Tensor] = []
        size = 0
        for p in [p for group in self.param_groups for p in group["params"]]:
            own = 2 * 4 * p.numel()
            if part and size + own > AT_ONCE:
                yield part
                part, size = [], 0
            part.append(p)
            size += own
        if part:
            yield part

    @contextlib.contextmanager
    def _only(self, parameters: list[Tensor]) -> Iterator[None]:
        """Inside, the groups hold these parameters alone."""
        wanted = {id(p) for p in parameters}
        everything = [group["params"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                group["params"] = [p for p in group["params"] if id(p) in wanted]
            yield
        finally:
            for group, parameters_ in zip(self.param_groups, everything, strict=True):
                group["params"] = parameters_

    def _fetch(self, p: Tensor) -> None:
        state = self.state.get(p, {})
        for name, value in state.items():
            if isinstance(value, _HostSlot | _FileSlot):
                self.slots[id(p), name], state[name] = value, value.get()

    def _put_away(self, p: Tensor) -> None:
        state = self.state.get(p, {})
        for name, value in state.items():
            slot = self.slots.pop((id(p), name), None)
            if isinstance(value, Tensor) and _is_large(value):
                state[name] = self.kept(value, p, slot)

    def kept(self, value: Tensor, p: Tensor, slot: Slot | None = None) -> Any:
        """`value`, which belongs to `p`, as the state holds it: in `slot` where it has one."""
        if not _is_large(value):
            return value.to(p.device)
        if slot is None:
            return self.store.put(value, p.device)
        slot.set(value)
        return slot


def _is_large(value: Tensor) -> bool:
    return value.numel() * value.element_size() >= SMALLEST and has_no_gaps(value)


def on_host(value: Any) -> Any:
    """A value of an optimiser's state, wherever it lies."""
    return value.on_host() if isinstance(value, _HostSlot | _FileSlot) else value
