"""Two ways to read prompts and take steps after them, behind one interface.

`TreeWay` reads prompts as one token tree, keeps keys and values itself, and takes steps with
`models.dense` where the family is known, else with the model's own blocks and our attention.
`CacheWay` uses the model's own cache: for layers that are no plain attention. Which it is, is
decided from the configuration and tried on the first prompt against the model's own forward.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tunewright.core.types import Branch, Sample
from tunewright.engine.layout import TOLERANCE, obstacle
from tunewright.engine.policy import Policy, head_of
from tunewright.engine.tree import build_tree, rows_of_branches
from tunewright.models.cache_notes import noted, reorder
from tunewright.models.dense import DenseStep
from tunewright.models.kernels import answer_attention
from tunewright.models.kernels.answer_attention import AnswerMemory
from tunewright.models.kernels.fused import fused_without_gradient
from tunewright.models.kernels.packed import Packs
from tunewright.models.load import stock_attention

TRIED = 48
"""Tokens of the first prompt on which a way is tried."""
_verdicts: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()
"""What was found out about a causal model: the description of a way -> whether it agrees."""


class Way(Protocol):
    """How prompts are read and steps taken. Rows are answers in the order of `read`."""

    joins: bool
    """Whether prompts can be read while answers are being written, whatever their lengths."""

    def read(self, prompts: Sequence[list[int]], group: int) -> Tensor:
        """`group` new rows for each prompt; (new rows, D) after the last norm, from which the first
        token is taken."""
        ...

    def step(self, ids_R: Tensor) -> Tensor:
        """One more token of every row: (R, D) after the last norm."""
        ...

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Go on with these rows. Which rows lie where now."""
        ...

    @property
    def guesses(self) -> bool:
        """Whether `step` takes guessed tokens after the next one of its only row."""
        ...

    def accept(self) -> None:
        """The next guessed token was right."""
        ...

    def clear(self) -> None:
        """No row is left: give their memory back."""
        ...

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """(R, vocabulary) in float32 or wider."""
        ...


class TreeWay:
    """Prompts as a token tree, keys and values of our own."""

    joins = True

    def __init__(self, policy: Policy, dense: DenseStep | None, *, shared: bool) -> None:
        self.policy, self.dense = policy, dense
        self.memory = AnswerMemory(policy.device, shared=shared)
        self.head = head_of(policy.causal[0])

    def read(self, prompts: Sequence[list[int]], group: int) -> Tensor:
        """As of `Way`: beginnings that prompts have in common are computed once."""
        samples = [Sample([Branch(list(p), [], [])], i) for i, p in enumerate(prompts)]
        tree = build_tree(samples)
        kept: dict[int, Any] = {}
        hidden_TD = self.policy.hidden(tree, tree.last, kept=kept)
        virtual = next(iter(kept.values())).k.shape[1] - tree.num_rows
        before = list(range(virtual))
        paths = [
            before + [virtual + row for row in rows] for rows in rows_of_branches(tree, shared=True)
        ]
        self.memory.add(kept, paths, group)
        return hidden_TD[torch.tensor(tree.last, device=hidden_TD.device)].repeat_interleave(
            group, 0
        )

    def step(self, ids_R: Tensor) -> Tensor:
        """As of `Way`."""
        if self.dense is not None:
            return self.dense(ids_R, self.memory)
        position_R = self.memory.begin()
        hidden = self.policy.body(
            input_ids=ids_R[:, None],
            position_ids=position_R[:, None] + self.policy.first_position,
            answer_memory=self.memory,
            use_cache=False,
        ).last_hidden_state[:, 0]
        self.memory.advance()
        found: Tensor = hidden
        return found

    def keep(self, rows: Sequence[int]) -> list[int]:
        """As of `Way`."""
        return self.memory.keep(rows)

    @property
    def guesses(self) -> bool:
        """As of `Way`."""
        return self.dense is not None and not self.memory.shared

    def accept(self) -> None:
        """As of `Way`."""
        self.memory.accept()

    def clear(self) -> None:
        """As of `Way`."""
        self.memory = AnswerMemory(self.policy.device, shared=self.memory.shared)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """As of `Way`."""
        packed = self.dense.head if self.dense is not None else None
        if packed is not None and self.head.module is None:
            z = packed(hidden_RD)
            if self.head.scale != 1.0:
                z = z * self.head.scale
            if self.head.softcap:
                z = torch.tanh(z / self.head.softcap) * self.head.softcap
        else:
            z = self.head.logits(hidden_RD.contiguous())
        return z.to(torch.promote_types(z.dtype, torch.float32))


class CacheWay:
    """The model's own forward and its own cache. `joins`: caches of texts of several lengths can be
    put side by side, the shorter ones filled up on the left; else prompts of one length are
    answered at a time. `cached` False: the whole text is read anew for every token, for the few
    models whose cache does not continue a text."""

    def __init__(self, policy: Policy, *, joins: bool, cached: bool = True) -> None:
        self.policy, self.head, self.joins = policy, head_of(policy.causal[0]), joins
        self.cached = cached
        self.cache: Any = None
        self.named = ""
        """What the model calls its cache."""
        self.positions: list[int] = []
        """The position of each row's next token."""
        self.columns = 0
        """Of the cache: those of the longest row that is or was in it."""
        self.texts: list[list[int]] = []
        """Of a model without a cache: what it reads anew at every token."""

    def read(self, prompts: Sequence[list[int]], group: int) -> Tensor:
        """As of `Way`; without `joins` the prompts have one length, and no rows are left from
        before."""
        found = []
        for _, same in itertools.groupby(prompts, key=len):
            texts = list(same)
            out, positions = self._pass(texts)
            self.named, cache = _cache_of(out) if self.cached else ("", None)
            if group > 1 and cache is not None:
                every = torch.arange(len(texts), device=self.policy.device)
                reorder(cache, every.repeat_interleave(group))
            if self.positions and cache is not None:
                join(self.cache, cache)
            else:
                self.cache, self.columns = cache, 0
            self.columns = max(self.columns, positions)
            self.positions += [positions] * (group * len(texts))
            self.texts += [list(text) for text in texts for _ in range(group)]
            found.append(out.last_hidden_state[:, -1].repeat_interleave(group, 0))
        return torch.cat(found)

    def _pass(self, texts: list[list[int]]) -> tuple[Any, int]:
        """The model's output for whole texts of one length, and the position of what follows."""
        policy, device = self.policy, self.policy.device
        prompt = policy.virtual()
        virtual = prompt.num_tokens if prompt is not None else 0
        own = virtual if prompt is not None and prompt.rows is not None else 0
        ids = torch.tensor(texts, device=device)
        places = torch.arange(virtual - own, virtual + ids.shape[1], device=device)
        places = places + policy.first_position
        out = policy.body(
            **policy.inputs(ids, prompt),
            position_ids=places.expand(len(ids), -1),
            use_cache=self.cached,
        )
        return out, virtual + ids.shape[1]

    def step(self, ids_R: Tensor) -> Tensor:
        """As of `Way`."""
        for text, token in zip(self.texts, ids_R.tolist(), strict=True):
            text.append(token)
        if self.cache is None:
            rows: Tensor = self._pass(self.texts)[0].last_hidden_state[:, -1]
            return rows
        place_R = torch.tensor(self.positions, device=ids_R.device)
        mask = None
        if min(self.positions) < self.columns and any(
            getattr(layer, "keys", None) is not None for layer in self.cache.layers
        ):
            column = torch.arange(self.columns + 1, device=ids_R.device)
            mask = (column >= self.columns - place_R[:, None]).long()
        out = self.policy.body(
            input_ids=ids_R[:, None],
            position_ids=place_R[:, None] + self.policy.first_position,
            attention_mask=mask,
            use_cache=True,
            **{self.named: self.cache},
        )
        self.positions = [position + 1 for position in self.positions]
        self.columns += 1
        found: Tensor = out.last_hidden_state[:, 0]
        return found

    def keep(self, rows: Sequence[int]) -> list[int]:
        """As of `Way`."""
        order = sorted(rows)
        if self.cache is not None and order:
            reorder(self.cache, torch.tensor(order, device=self.policy.device))
        self.texts = [self.texts[row] for row in order]
        self.positions = [self.positions[row] for row in order]
        return order

    guesses = False

    def accept(self) -> None:
        """Never called: nothing is guessed."""
        raise AssertionError("a token was guessed")

    def clear(self) -> None:
        """As of `Way`."""
        self.cache, self.columns, self.positions, self.texts = None, 0, [], []

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """As of `Way`."""
        z = self.head.logits(hidden_RD.contiguous())
        return z.to(torch.promote_types(z.dtype, torch.float32))


def _cache_of(out: Any) -> tuple[str, Any]:
    """The name of the cache that a forward gave, and the cache; None where there is none that can
    be cut to some of its rows."""
    for name in ("past_key_values", "cache_params"):
        found = getattr(out, name, None)
        if hasattr(found, "reorder_cache"):
            return name, found
    return "", None


def join(cache: Any, other: Any) -> None:
    """Put the rows of `other` behind those of `cache`, Transformers' caches both; keys and values
    of the shorter one are filled up on the left. Raises TypeError for a layer that is no plain
    attention and no recurrent state."""
    from transformers import cache_utils

    known = (
        cache_utils.DynamicLayer,
        cache_utils.DummyLayer,
        cache_utils.LinearAttentionLayer,
        cache_utils.LinearAttentionAndFullAttentionLayer,
    )
    if noted(cache) or noted(other):
        raise TypeError("a method keeps notes of its own on the cache")
    layers: list[tuple[Any, Any]] = list(zip(cache.layers, other.layers, strict=True))
    for here, there in layers:
        if type(here) not in known:
            raise TypeError(type(here).__name__)
        if hasattr(here, "recurrent_states"):
            for i in range(here.number_of_states):
                if here.is_conv_states_initialized[i]:
                    here.conv_states[i] = torch.cat([here.conv_states[i], there.conv_states[i]])
                if here.is_recurrent_states_initialized[i]:
                    here.recurrent_states[i] = torch.cat(
                        [here.recurrent_states[i], there.recurrent_states[i]]
                    )
        if getattr(here, "is_initialized", False) and hasattr(here, "keys"):
            here.keys = _side_by_side(here.keys, there.keys)
            here.values = _side_by_side(here.values, there.values)


def _side_by_side(a: Tensor, b: Tensor) -> Tensor:
    """(A, K, n, D) and (B, K, m, D), the shorter filled up on the left: (A + B, K, longer, D)."""
    longer = max(a.shape[2], b.shape[2])
    return torch.cat([torch.nn.functional.pad(x, (0, 0, longer - x.shape[2], 0)) for x in (a, b)])


@contextlib.contextmanager
def attention_of(causal: Any, name: str) -> Iterator[None]:
    """Inside, `causal` (in eval mode) attends by `name`, or by a stock attention if that is ""."""
    before, training = causal.config._attn_implementation, causal.training
    causal.set_attn_implementation(name or stock_attention(causal))
    causal.eval()
    try:
        yield
    finally:
        causal.set_attn_implementation(before)
        causal.train(training)


class Ways:
    """The way of a model, chosen at its first prompt. `packs` None: weights stay as they lie."""

    def __init__(self, policy: Policy, packs: Packs | None, needs_layout: str = "any") -> None:
        causal = policy.causal[0]
        self.tree = Policy(policy.model, causal, "tree")
        self.padded = Policy(policy.model, causal, "padded")
        self.packs = packs
        self.blocked = obstacle(causal, needs_layout)
        answer_attention.register()

    @contextlib.contextmanager
    def opened(self, prompt: list[int], *, shared: bool) -> Iterator[Way]:
        """Inside, the model answers; afterwards it is as before. `prompt` is one of those that will
        be read."""
        causal = self.padded.causal[0]
        shared = shared and answer_attention.may_share(
            causal.config.get_text_config(), self.padded.device
        )
        training = self.padded.model.training
        self.padded.model.eval()
        try:
            with fused_without_gradient(), torch.no_grad():
                for dense in self._candidates(causal):
                    if self._agrees(dense, prompt, shared=shared):
                        with attention_of(causal, answer_attention.NAME):
                            yield TreeWay(self.tree, dense, shared=shared)
                        return
                with attention_of(causal, ""):
                    cached = self._cached(prompt)
                    joins = cached and self._joins(prompt)
                    yield CacheWay(self.padded, joins=joins, cached=cached)
        finally:
            self.padded.model.train(training)

    def _candidates(self, causal: Any) -> Iterator[DenseStep | None]:
        if self.blocked is None:
            dense = DenseStep.of(causal, self.packs)
            if dense is not None:
                yield dense
            yield None

    def _agrees(self, dense: DenseStep | None, prompt: list[int], *, shared: bool) -> bool:
        """Whether the way computes what the model's own forward does, on the beginning of a prompt
        and two steps after it."""
        causal = self.padded.causal[0]
        known = _verdicts.setdefault(causal, {})
        dtype = str(next(causal.parameters()).dtype).rpartition(".")[2]
        name = f"{'blocks' if dense is None else dense.description} {shared} {dtype}"
        if name not in known:
            known[name] = self._gap(dense, prompt, shared=shared) <= TOLERANCE.get(dtype, 0.25)
        return known[name]

    def _gap(self, dense: DenseStep | None, prompt: list[int], *, shared: bool) -> float:
        """Mean difference of log-probabilities in nats; infinite where the way cannot be taken."""
        causal = self.padded.causal[0]
        tokens = (prompt * (6 // len(prompt) + 1))[:TRIED]
        cut = len(tokens) - 3
        with attention_of(causal, ""):
            tree = build_tree([Sample([Branch(tokens, [], [])], 0)])
            own = self.padded.hidden(tree)[cut - 1 : cut + 2]
            expected = _log_softmax(self.tree, own)
        try:
            with attention_of(causal, answer_attention.NAME):
                way = TreeWay(self.tree, dense, shared=shared)
                rows = [way.read([tokens[:cut]], 2 if shared else 1)[:1]]
                for token in tokens[cut : cut + 2]:
                    ids = torch.full((len(way.memory),), token, device=self.padded.device)
                    rows.append(way.step(ids)[:1])
                found = torch.log_softmax(way.logits(torch.cat(rows)), -1)
        except (
            RuntimeError,
            AttributeError,
            TypeError,
            NotImplementedError,
            AssertionError,
            StopIteration,
        ):
            return float("inf")
        gap = (found - expected).abs()
        return float(gap[torch.isfinite(expected)].mean())

    def _cached(self, prompt: list[int]) -> bool:
        """Whether the model's own cache continues a text as the model reads it whole, on the
        beginning of a prompt and two steps after it."""
        causal = self.padded.causal[0]
        known = _verdicts.setdefault(causal, {})
        if "cached" not in known:
            tokens = (prompt * (6 // len(prompt) + 1))[:TRIED]
            found = []
            for cached in (True, False):
                way = CacheWay(self.padded, joins=False, cached=cached)
                try:
                    rows = [way.read([tokens[:-2]], 1)]
                    for token in tokens[-2:]:
                        rows.append(way.step(torch.tensor([token], device=self.padded.device)))
                except (RuntimeError, AttributeError, TypeError, ValueError, IndexError, KeyError):
                    if not cached:
                        raise
                    break
                found.append(_log_softmax(self.padded, torch.cat(rows)))
            dtype = str(next(causal.parameters()).dtype).rpartition(".")[2]
            known["cached"] = len(found) == 2 and float(
                (found[0] - found[1]).abs().mean()
            ) <= TOLERANCE.get(dtype, 0.25)
        return known["cached"]

    def _joins(self, prompt: list[int]) -> bool:
        """Whether texts of two lengths, read apart and put together, get what each gets alone."""
        causal = self.padded.causal[0]
        known = _verdicts.setdefault(causal, {})
        if "joins" not in known:
            long = (prompt * (6 // len(prompt) + 1))[:TRIED]
            texts = [long[2:], long]
            next_R = torch.tensor([long[0], long[1]], device=self.padded.device)
            alone = []
            for text, token in zip(texts, next_R, strict=True):
                way = CacheWay(self.padded, joins=True)
                way.read([text], 1)
                alone.append(_log_softmax(self.padded, way.step(token[None])))
            way = CacheWay(self.padded, joins=True)
            try:
                way.read(texts, 1)
                found = _log_softmax(self.padded, way.step(next_R))
                gap = float((found - torch.cat(alone)).abs().mean())
            except (RuntimeError, AttributeError, TypeError, ValueError, IndexError):
                gap = float("inf")
            dtype = str(next(causal.parameters()).dtype).rpartition(".")[2]
            known["joins"] = way.cache is not None and gap <= TOLERANCE.get(dtype, 0.25)
        return known["joins"]


def _log_softmax(policy: Policy, hidden: Tensor) -> Tensor:
    z = head_of(policy.causal[0]).logits(hidden.contiguous())
    return torch.log_softmax(z.to(torch.promote_types(z.dtype, torch.float32)), -1)
