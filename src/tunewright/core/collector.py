"""Python's garbage collector, kept from walking through what a command has imported.

PyTorch, Transformers and PEFT make some 900,000 objects that stay until the end. As it is set by
default, the collector goes through them again and again while they are read in, a fifth to a
quarter of the seconds that the imports take, and once more on the way out, which took 1.3 s.
"""

from __future__ import annotations

import gc

WHILE_IMPORTING = (100_000, 50, 100)
_usual: tuple[int, int, int] | None = None


def rest() -> None:
    """Collect rarely from here on: libraries are imported, which drop next to nothing."""
    global _usual
    if _usual is None:
        _usual = gc.get_threshold()
        gc.set_threshold(*WHILE_IMPORTING)


def work() -> None:
    """Collect as ever from here on, but for what is there now, which stays until the process ends.
    Call it before weights are loaded: those are dropped again. Does nothing unless the collector
    rests."""
    global _usual
    if _usual is not None:
        gc.set_threshold(*_usual)
        _usual = None
        gc.freeze()


def end() -> None:
    """The process ends: nothing is collected any more."""
    gc.disable()
    gc.freeze()
