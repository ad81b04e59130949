"""What writes answers with a model: many asks at once, or a batch that stays open.

The way through the model is chosen at the first prompt (`ways`), who is read and written when is
the batch's business (`batch`), and how a token is drawn is in `drawing`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from tunewright.core.machine import free_bytes
from tunewright.core.pace import Pace, counts_up_to
from tunewright.engine.decoding.batch import Ask, Batch, Written
from tunewright.engine.decoding.ways import Ways
from tunewright.engine.policy import Policy
from tunewright.models.kernels.packed import Packs
from tunewright.models.limits import ANSWERS_AT_ONCE


class Writer:
    """Writes answers with `policy`. `check` is called at every step and may raise. `packed`:
    weights are laid out once for few rows, where there is memory for it, and stay so until
    `forget`; `packs` are those of another writer over the same weights. `paced`: threads follow the
    load (`core.pace`), so that sums may round differently from call to call: not for what a run
    learns from."""

    def __init__(
        self,
        policy: Policy,
        stop_ids: frozenset[int],
        *,
        needs_layout: str = "any",
        vocabulary: int | None = None,
        rows: int = ANSWERS_AT_ONCE,
        cache_bytes: int | None = None,
        packed: bool = True,
        packs: Packs | None = None,
        paced: bool = True,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.policy, self.stop_ids, self.vocabulary = policy, stop_ids, vocabulary
        self.rows, self.cache_bytes, self.check = rows, cache_bytes, check
        self.paced = paced and policy.device.type == "cpu"
        if packs is None and packed and worth_packing(policy.causal[0]):
            packs = Packs()
        self.packs = packs
        self.ways = Ways(policy, self.packs, needs_layout)

    def forget(self) -> None:
        """Free the packed weights; they are made again when they are needed."""
        if self.packs is not None:
            self.packs.forget()

    def pace(self) -> Pace:
        """The threads of its steps, to be entered while it writes."""
        return Pace(counts_up_to(torch.get_num_threads()) if self.paced else ())

    @contextlib.contextmanager
    def opened(
        self, prompt: list[int], *, shared: bool = False, pace: Pace | None = None, **how: Any
    ) -> Iterator[Batch]:
        """An empty batch, to which asks may be added at any time; inside, the model does nothing
        else. `prompt` is one of those that will be read. `shared`: several answers to a prompt hold
        it once, and nothing is guessed. `how` goes to `Batch`."""
        with self.ways.opened(prompt, shared=shared) as way:
            yield Batch(
                self.policy,
                way,
                self.stop_ids,
                rows=self.rows,
                vocabulary=self.vocabulary,
                cache_bytes=self.cache_bytes,
                pace=pace,
                **how,
            )

    def write(
        self,
        asks: Sequence[Ask],
        *,
        logprobs: bool = False,
        progress: Callable[[int, int, int], None] | None = None,
        on_end: Callable[[int, Written], None] | None = None,
    ) -> list[list[Written]]:
        """The answers to every ask, in order. `progress` gets the answers that are done, the tokens
        written and the most that may be; `on_end` gets each answer with the number of
        its ask as soon as it has ended."""
        found = [[Written() for _ in range(ask.answers)] for ask in asks]
        waiting = [i for i, ask in enumerate(asks) if ask.limit > 0 and ask.prompt]
        if not waiting:
            return found
        waiting.sort(key=lambda i: len(asks[i].prompt))
        shared = any(asks[i].answers > 1 for i in waiting)
        first = asks[waiting[-1]].prompt
        done = sum(ask.answers for ask in asks if not ask.limit)
        most = sum(ask.limit * ask.answers for ask in asks)
        with (
            self.pace() as pace,
            self.opened(first, shared=shared, pace=pace, logprobs=logprobs) as batch,
        ):

            def ends(i: int) -> Callable[[int, Written], None]:
                def ended(_: int, answer: Written) -> None:
                    nonlocal done, most
                    done, most = done + 1, most - (asks[i].limit - len(answer.tokens))
                    if on_end is not None:
                        on_end(i, answer)

                return ended

            def check() -> None:
                if progress is not None and batch.tokens:
                    progress(done, batch.tokens, most)
                if self.check is not None:
                    self.check()

            batch.check = check
            for i in waiting:
                found[i] = batch.add(asks[i], ends(i)).written
            while batch.step():
                pass
        return found


def worth_packing(causal: Any) -> bool:
    """Whether there is memory for the weights of a causal model a second time."""
    parameters = list(causal.parameters())
    size = sum(p.numel() * p.element_size() for p in parameters)
    return 3 * size <= free_bytes(str(parameters[0].device))
