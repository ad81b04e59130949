"""The keys and values of answers that are being written, and attention over them.

R answers (rows), K key heads, G query heads a key head, D head size. Every row has columns: a
learnt prefix if there is one, its prompt, what it has written so far. Column c holds the token at
position c. The buffers grow by a half when a step finds them full, and shrink when new rows join
and most of the columns are nobody's: one long prompt does not make them long for ever. A step
writes one column of every row and copies nothing.

Several answers to one prompt hold the prompt's columns once: at a step their queries meet them in
one product (`far`), each row's own columns in another (`near`), and the two softmaxes are put
together by their sums of exponentials (Milakov and Gimelshein 2018; Juravsky et al. 2024,
"Hydragen"). Registered through Transformers' attention interface for models whose own blocks take
the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tunewright.models.kernels.tree_attention import Kept, tree_attention

NAME = "tunewright_answers"
GROWTH, CHUNK = 1.5, 64
"""A buffer that is full grows to this multiple, in chunks of so many columns."""
SLACK, SMALL = 4, 1 << 20
"""A buffer of more than `SMALL` bytes is made anew where rows join that need less than a part of
its columns. Not for fewer rows: they come and go with every answer."""


class _Buffer:
    """(rows, K, columns, D) that grow without losing what is in them."""

    def __init__(self) -> None:
        self.data: Tensor | None = None

    def need(self, like: Tensor, rows: int, columns: int, *, joining: bool = False) -> Tensor:
        """The buffer with room for that much, which includes whatever is still read. `like` (K, n,
        D) says the shape and dtype. `joining`: this is the moment to shrink."""
        K, _, D = like.shape
        old = self.data
        if old is not None and old.shape[0] >= rows and old.shape[2] >= columns:
            long = old.shape[2] > SLACK * max(columns, CHUNK)
            if not joining or old.nbytes <= SMALL or not long:
                return old
        elif old is not None and columns > old.shape[2]:
            columns = max(columns, int(old.shape[2] * GROWTH))
        columns = -(-columns // CHUNK) * CHUNK
        new = like.new_zeros(rows, K, columns, D)
        if old is not None:
            there = old[:rows, :, :columns]
            new[: len(there), :, : there.shape[2]] = there
        self.data = new
        return new

    def move(self, here: int, there: int, columns: int) -> None:
        if self.data is not None and columns:  # a row that took no step has no place yet
            self.data[there, :, :columns] = self.data[here, :, :columns]


class _Layer:
    def __init__(self, like: Kept) -> None:
        self.scale, self.window, self.softcap = like.scale, like.window, like.softcap
        self.k, self.v, self.far_k, self.far_v = _Buffer(), _Buffer(), _Buffer(), _Buffer()


class AnswerMemory:
    """What every attention layer needs while answers are written. `shared`: rows come in groups
    that hold their prompt once."""

    def __init__(self, device: torch.device, *, shared: bool = False) -> None:
        self.device, self.shared = device, shared
        self.lengths: list[int] = []
        """Columns of each row of its own."""
        self.prompt_of: list[int] = []
        """With `shared`, the prompt of each row."""
        self.far_lengths: list[int] = []
        self.layers: dict[int, _Layer] = {}
        self._step: _Step | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def columns(self) -> int:
        """Columns of the longest row, its prompt's among them."""
        return max(self.positions, default=0)

    @property
    def positions(self) -> list[int]:
        """The position that each row's next token has."""
        if not self.shared:
            return self.lengths
        return [n + self.far_lengths[p] for n, p in zip(self.lengths, self.prompt_of, strict=True)]

    def add(self, kept: Mapping[int, Kept], paths: Sequence[Sequence[int]], group: int = 1) -> None:
        """`group` new rows for each path: `kept` is what a pass over prompts saw of every layer, a
        path the places of one prompt's columns in it."""
        if not self.shared:
            paths = [path for path in paths for _ in range(group)]
        rows, prompts = len(self.lengths), len(self.far_lengths)
        before = self.far_lengths if self.shared else self.lengths
        columns = max([*map(len, paths), *before])
        for index, seen in kept.items():
            layer = self.layers.setdefault(index, _Layer(seen))
            stores = (layer.far_k, layer.far_v) if self.shared else (layer.k, layer.v)
            start = prompts if self.shared else rows
            for store, found in zip(stores, (seen.k, seen.v), strict=True):
                data = store.need(found, start + len(paths), columns, joining=True)
                for i, path in enumerate(paths):
                    places = torch.tensor(path, device=self.device)
                    data[start + i, :, : len(path)] = found.index_select(1, places)
        if self.shared:
            self.far_lengths += [len(path) for path in paths]
            self.prompt_of += [prompts + i for i in range(len(paths)) for _ in range(group)]
            self.lengths += [0] * (group * len(paths))
        else:
            self.lengths += [len(path) for path in paths]

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Go on with these rows only. The order in which they lie now: the last ones fill the
        places of those that went."""
        kept = set(rows)
        order = list(range(len(self.lengths)))
        for hole in range(len(rows)):
            if order[hole] in kept:
                continue
            last = max(i for i in range(len(order)) if order[i] in kept and i > hole)
            for layer in self.layers.values():
                layer.k.move(order[last], hole, self.lengths[order[last]])
                layer.v.move(order[last], hole, self.lengths[order[last]])
            order[hole], order[last] = order[last], -1
        order = order[: len(rows)]
        self.lengths = [self.lengths[i] for i in order]
        if self.shared:
            self.prompt_of = [self.prompt_of[i] for i in order]
            self._keep_prompts()
        return order

    def _keep_prompts(self) -> None:
        """Let prompts go that no row asks any more."""
        used = set(self.prompt_of)
        place: dict[int, int] = {}
        for hole in range(len(used)):
            if hole in used:
                place[hole] = hole
                continue
            last = max(used - set(place))
            for layer in self.layers.values():
                layer.far_k.move(last, hole, self.far_lengths[last])
                layer.far_v.move(last, hole, self.far_lengths[last])
            self.far_lengths[hole], place[last] = self.far_lengths[last], hole
            used.discard(last)
            used.add(hole)
        self.far_lengths = self.far_lengths[: len(used)]
        self.prompt_of = [place.get(p, p) for p in self.prompt_of]

    def begin(self, ahead: int = 0) -> Tensor:
        """Start a step: one more token of every row, or of the only row `ahead` more after it that
        are guessed. Their positions, (R,) or (1 + ahead,)."""
        self._step = _Step(self, ahead)
        return self._step.position_R

    def advance(self) -> None:
        """The step's columns are written; of guessed ones the first. The others count once
        `accept` says so, and are written over else."""
        self.lengths = [n + 1 for n in self.lengths]
        self._step = None

    def accept(self) -> None:
        """The next guessed token of the only row was right."""
        self.lengths[0] += 1

    def attend(
        self,
        index: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attention of one new token of every row in layer `index`: q (R, H, D), k and v (R, K, D)
        -> (R, H, D of v)."""
        step = self._step
        assert step is not None, "a step was not begun"
        layer = self.layers[index]
        R, H, _ = q.shape
        K, n = k.shape[1], step.columns
        keys = layer.k.need(k.transpose(0, 1), len(self.lengths), n)
        values = layer.v.need(v.transpose(0, 1), len(self.lengths), n)
        keys[step.row_R, :, step.column_R] = k
        values[step.row_R, :, step.column_R] = v
        own_k, own_v = keys[: len(self.lengths), :, :n], values[: len(self.lengths), :, :n]
        asked = q.reshape(R, K, H // K, -1)
        if step.ahead:
            one_row = asked.transpose(0, 1).reshape(1, K, R * (H // K), -1)
            mask = step.guessed(window, q.dtype, H // K)
            out = _softmax_over(one_row, own_k, own_v, mask, scale, softcap)
            return out.view(K, R, H // K, -1).transpose(0, 1).reshape(R, H, -1)
        if not self.shared:
            mask = step.near(window, q.dtype)
            return _softmax_over(asked, own_k, own_v, mask, scale, softcap).reshape(R, H, -1)
        near, near_sum = _flash(asked, own_k, own_v, step.near(window, q.dtype), scale)
        P, most = len(self.far_lengths), step.most
        together = asked[step.seat_PS].view(P, most, K, H // K, -1).transpose(1, 2)
        together = together.reshape(P, K, most * (H // K), -1)
        columns = max(self.far_lengths)
        assert layer.far_k.data is not None and layer.far_v.data is not None
        mask, hidden = step.far(window, q.dtype, H // K)
        far, far_sum = _flash(
            together,
            layer.far_k.data[:P, :, :columns],
            layer.far_v.data[:P, :, :columns],
            mask,
            scale,
        )
        if hidden is not None:
            far_sum = far_sum.masked_fill(hidden, -math.inf)
        far = far.view(P, K, most, H // K, -1).transpose(1, 2).reshape(P * most, K, H // K, -1)
        far_sum = far_sum.view(P, K, most, H // K).transpose(1, 2).reshape(P * most, K, H // K)
        share = torch.sigmoid(far_sum[step.seat_R] - near_sum).to(q.dtype).unsqueeze(-1)
        return torch.lerp(near, far[step.seat_R], share).reshape(R, H, -1)


class _Step:
    """One token of every row: where its column goes, and what it may not see."""

    def __init__(self, memory: AnswerMemory, ahead: int = 0) -> None:
        device = memory.device
        self.memory, self.ahead = memory, ahead
        self.row_R = torch.arange(len(memory.lengths), device=device)
        self.column_R = torch.tensor(memory.lengths, device=device)
        self.position_R = torch.tensor(memory.positions, device=device)
        if ahead:
            assert len(memory) == 1 and not memory.shared, "only one answer is guessed ahead"
            self.row_R = self.row_R.expand(1 + ahead)
            self.column_R = self.column_R + torch.arange(1 + ahead, device=device)
            self.position_R = self.column_R
        self.columns = max(memory.lengths) + 1 + ahead
        self._near: dict[Any, Tensor | None] = {}
        self._far: dict[Any, tuple[Tensor | None, Tensor | None]] = {}
        if memory.shared:
            self._seat(memory)

    def _seat(self, memory: AnswerMemory) -> None:
        """Every prompt's rows side by side, as many places as the busiest prompt needs; free places
        are taken by row 0 and read by nobody."""
        seats: list[list[int]] = [[] for _ in memory.far_lengths]
        place = []
        for row, prompt in enumerate(memory.prompt_of):
            place.append((prompt, len(seats[prompt])))
            seats[prompt].append(row)
        self.most = max(map(len, seats))
        flat = [row for rows in seats for row in [*rows, *[0] * (self.most - len(rows))]]
        self.seat_PS = torch.tensor(flat, device=memory.device)
        self.seat_R = torch.tensor([p * self.most + s for p, s in place], device=memory.device)

    def near(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """(R, 1, 1, columns) to add to the scores over a row's own columns; None for nothing."""
        if window is not None and window > self.columns:
            window = None
        key = (window, dtype)
        if key not in self._near:
            column = torch.arange(self.columns, device=self.row_R.device)
            hidden = column > self.column_R[:, None]
            if window is not None:
                hidden = hidden | (self.column_R[:, None] - column >= window)
            self._near[key] = _as_scores(hidden[:, None, None], dtype)
        return self._near[key]

    def guessed(self, window: int | None, dtype: torch.dtype, group: int) -> Tensor | None:
        """(1, 1, tokens x G, columns) to add to the scores of tokens of one row."""
        mask = self.near(window, dtype)
        return None if mask is None else mask[:, 0, 0].repeat_interleave(group, 0)[None, None]

    def far(
        self, window: int | None, dtype: torch.dtype, group: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """(P, 1, 1 or seats x G, columns) to add to the scores over the prompts, and which of them
        see nothing of their prompt (P, 1, seats x G)."""
        longest = int(max(self.memory.positions))
        if window is not None and window > longest:
            window = None
        key = (window, dtype)
        if key not in self._far:
            lengths = torch.tensor(self.memory.far_lengths, device=self.row_R.device)
            column = torch.arange(int(lengths.max()), device=lengths.device)
            hidden = (column >= lengths[:, None])[:, None, None]
            blind = None
            if window is not None:
                now = self.position_R[self.seat_PS].view(len(lengths), self.most)
                now = now.repeat_interleave(group, 1)
                hidden = hidden | (now[:, None, :, None] - column >= window)
                blind = hidden.all(-1)
            self._far[key] = _as_scores(hidden, dtype), blind
        return self._far[key]


def _as_scores(hidden: Tensor, dtype: torch.dtype) -> Tensor | None:
    """0, and minus infinity where `hidden`; None where nothing is."""
    if not bool(hidden.any()):
        return None
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(
        hidden, -math.inf
    )


def _softmax_over(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """(B, K, n, D) queries over (B, K, m, D) keys -> (B, K, n, D of v)."""
    if softcap is None:
        if q.device.type == "cpu" and k.shape[-1] == v.shape[-1]:
            return _flash(q, k, v, mask, scale)[0]
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale
        )
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype), v)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """PyTorch's own flash attention on a CPU, which also gives the logarithm of each query's sum of
    exponentials: (B, K, n, D) and (B, K, n)."""
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=mask, scale=scale
    )
    return found


def may_share(config: Any, device: torch.device) -> bool:
    """Whether several answers to one prompt can hold it once."""
    return device.type == "cpu" and not getattr(config, "attn_logit_softcapping", None)


def answer_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    answer_memory: AnswerMemory | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """The attention function as Transformers calls it. With a `tree_plan` prompts are read; else it
    is one new token of every row: query (R, H, 1, D) -> (R, 1, H, D). Raises AssertionError without
    a memory."""
    if "tree_plan" in unused:
        return tree_attention(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling,
            dropout,
            sliding_window,
            softcap,
            **unused,
        )
    assert answer_memory is not None, "the attention of answers was called without a memory"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = answer_memory.attend(
        int(module.layer_idx),
        query[:, :, 0],
        key[:, :, 0],
        value[:, :, 0],
        scale,
        sliding_window,
        softcap,
    )
    return out[:, None], None


def register() -> None:
    """Make the name known to Transformers; calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, answer_attention)
