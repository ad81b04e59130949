"""What goes on inside the blocks of a model while it learns: seconds forward and backward, and
bytes that autograd keeps. Hooks only; no number changes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tunewright.core.machine import live_bytes

if TYPE_CHECKING:
    from tunewright.engine.opening import Ready


class Watch:
    """Counts, for the inside of each block, seconds forward and backward, and bytes that autograd
    keeps."""

    def __init__(self, opened: Ready) -> None:
        from tunewright.engine.activation_cache import blocks_of

        self.blocks = blocks_of(opened.causal)
        self.forward = [0.0] * len(self.blocks)
        self.backward = [0.0] * len(self.blocks)
        self.learns = [False] * len(self.blocks)
        """Whether a gradient passes through the output of each block."""
        self.kept = [0.0] * (len(self.blocks) + 1)
        self.largest: tuple[float, list[float]] = (0.0, [])
        self._inside = len(self.blocks)
        self._since = 0.0
        self._arrived: tuple[int, float] | None = None
        self._weights = {
            t.untyped_storage().data_ptr()
            for t in (*opened.model.parameters(), *opened.model.buffers())
        }
        self._seen: dict[int, Any] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Watch:
        for number, block in enumerate(self.blocks):
            self._hooks.append(block.register_forward_pre_hook(self._enter(number)))
            self._hooks.append(block.register_forward_hook(self._leave(number)))
        return self

    def __exit__(self, *what: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Take the hooks away. A block that has some answers questions in a slower way."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def reset(self) -> None:
        """Begin to count anew."""
        count = len(self.blocks)
        self.forward, self.backward = [0.0] * count, [0.0] * count
        self._arrived = None

    def forget(self) -> None:
        """Let go of the tensors that were counted."""
        self._seen = {}

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, what autograd keeps is counted."""
        import torch

        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda t: t):
            yield

    def _enter(self, number: int) -> Any:
        def hook(module: Any, given: Any) -> None:
            if number == 0:
                if sum(self.kept) > self.largest[0]:
                    self.largest = (sum(self.kept), self.kept)
                self.kept, self._seen = [0.0] * (len(self.blocks) + 1), {}
            self._inside, self._since = number, time.perf_counter()

        return hook

    def _leave(self, number: int) -> Any:
        def hook(module: Any, given: Any, output: Any) -> None:
            self.forward[number] += time.perf_counter() - self._since
            self._inside = len(self.blocks)
            hidden = output[0] if isinstance(output, tuple) else output
            if getattr(hidden, "requires_grad", False):
                self.learns[number] = True
                hidden.register_hook(self._arrival(number))

        return hook

    def _arrival(self, number: int) -> Any:
        def hook(gradient: Any) -> None:
            now = time.perf_counter()
            self._seen = {}  # so that backward frees them as it does in a run
            if self._arrived is not None and self._arrived[0] == number + 1:
                self.backward[number + 1] += now - self._arrived[1]
            self._arrived = (number, now)

        return hook

    def _keep(self, tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place not in self._weights and place not in self._seen:
            self._seen[place] = tensor
            self.kept[self._inside] += storage.nbytes()
        return tensor

    def kept_at_most(self) -> list[float]:
        """Bytes kept in each block, and outside, of the pass that kept most."""
        return self.kept if sum(self.kept) >= self.largest[0] else self.largest[1]


class Largest:
    """The most bytes that lived in the heap at the end of any operation."""

    live: int = 0

    def look(self) -> None:
        """Compare with what lives now."""
        self.live = max(self.live, live_bytes())


@contextlib.contextmanager
def counting() -> Iterator[Largest]:
    """Inside, what lives in the heap is looked at after every operation of torch, forward and
    backward. No number changes; an operation takes some microseconds longer."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found = Largest()

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, given: Any = (), named: Any = None
        ) -> Any:
            done = function(*given, **(named or {}))
            found.look()
            return done

    with Looking():
        yield found


def tensors_of(opened: Ready) -> list[Any]:
    """The weights of the model and of what is on it."""
    return [*opened.model.parameters(), *opened.model.buffers(), *opened.causal.parameters()]


def bytes_of(tensors: Sequence[Any]) -> int:
    """Bytes of the storages, each counted once."""
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )
