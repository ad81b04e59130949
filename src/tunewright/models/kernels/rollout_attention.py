"""Attention while answers are being written: many answers to each prompt, whose keys and values are
computed once and kept once.

Registered through Transformers' attention interface, so model code is never copied. R = P x k
answers (P prompts, k answers each), K key heads, G query heads a key head, D head size. At a step
every answer has one new row. Its scores over the prompt are one product for all k x G queries of a
prompt, its scores over what the answer has so far another; both go through one softmax in float32.
Stock attention would hold a prompt's keys k times, copy all of them at every step and visit them
once a query head: half of the time of a step with 64 answers on a CPU (docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NAME = "tunewright_rollout"


@dataclass
class Layer:
    """Keys and values of one layer: of the prompts (P, K, Lp, D) and of the answers so far (R, K,
    room, D)."""

    prompt_k: Tensor
    prompt_v: Tensor
    new_k: Tensor | None = None
    new_v: Tensor | None = None


@dataclass
class RolloutMemory:
    """What every attention layer of a batch of answers needs; handed to the model as the keyword
    `rollout_memory`.

    `lengths` are the prompts' tokens, `group` is k, `room` the most tokens an answer may get,
    `num_virtual` the learnt keys in front of every prompt.
    """

    lengths: Tensor
    group: int
    room: int
    num_virtual: int = 0
    layers: dict[int, Layer] = field(default_factory=dict)
    written: int = 0
    """Tokens that every answer has so far."""
    reading: bool = True
    """The prompts are being read; afterwards a step at a time is written."""

    def keep(self, prompts: Tensor, rows: Tensor, group: int) -> None:
        """Go on with these prompts and these answers only, `group` to each prompt."""
        self.lengths, self.group = self.lengths[prompts], group
        for layer in self.layers.values():
            layer.prompt_k, layer.prompt_v = layer.prompt_k[prompts], layer.prompt_v[prompts]
            if layer.new_k is not None and layer.new_v is not None:
                layer.new_k, layer.new_v = layer.new_k[rows], layer.new_v[rows]

    def hidden_prompt(self, count: int, window: int | None) -> Tensor:
        """(P, count): True where a prompt's key is padding, or further back than a sliding window
        lets the new row see."""
        place = torch.arange(count, device=self.lengths.device) - self.num_virtual
        hidden = place >= self.lengths[:, None]
        if window is not None:
            hidden = hidden | (self.lengths[:, None] + self.written - place >= window)
        return hidden


def _read(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    virtual: int,
) -> Tensor:
    """Causal attention over whole prompts, padding on the right: (P, H, T, D) -> (P, T, H, D)."""
    T = q.shape[2]
    row = torch.arange(T, device=q.device)[:, None]
    key = torch.arange(k.shape[2], device=q.device)[None] - virtual
    seen = key <= row
    if window is not None:
        seen &= row - key < window
    if softcap is None:
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2)
    repeat = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(repeat, 1).transpose(2, 3) * scale
    scores = torch.tanh(scores / softcap) * softcap
    chance = torch.softmax(scores.float().masked_fill(~seen, float("-inf")), -1).to(q.dtype)
    return (chance @ v.repeat_interleave(repeat, 1)).transpose(1, 2)


def _write(
    memory: RolloutMemory,
    layer: Layer,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One new row of every answer: (R, H, 1, D) -> (R, 1, H, D)."""
    R, H, _, D = q.shape
    K, P, n = k.shape[1], len(memory.lengths), memory.written
    G, group, Lp = H // K, memory.group, layer.prompt_k.shape[2]
    if layer.new_k is None or layer.new_v is None:
        layer.new_k, layer.new_v = (
            k.new_empty(R, K, memory.room, D),
            v.new_empty(R, K, memory.room, D),
        )
    layer.new_k[:, :, n], layer.new_v[:, :, n] = k[:, :, 0], v[:, :, 0]
    own_k, own_v = (
        layer.new_k.view(R * K, memory.room, D)[:, : n + 1],
        layer.new_v.view(R * K, memory.room, D)[:, : n + 1],
    )
    by_prompt = q.reshape(P, group, K, G, D).transpose(1, 2).reshape(P * K, group * G, D)
    far = (
        torch.bmm(by_prompt, layer.prompt_k.reshape(P * K, Lp, D).transpose(1, 2))
        .view(P, K, group, G, Lp)
        .transpose(1, 2)
    )
    near = torch.bmm(q.reshape(R * K, G, D), own_k.transpose(1, 2)).view(R, K, G, n + 1)
    scores = (
        torch.cat([far.reshape(R, K, G, Lp), near], -1)
        .to(torch.promote_types(q.dtype, torch.float32))
        .mul_(scale)
    )
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    hidden = memory.hidden_prompt(Lp, window).repeat_interleave(group, 0)[:, None, None]
    scores[..., :Lp].masked_fill_(hidden, float("-inf"))
    if window is not None and n + 1 > window:
        scores[..., Lp : Lp + n + 1 - window] = float("-inf")
    chance = torch.softmax(scores, -1).to(q.dtype)
    far_chance = (
        chance[..., :Lp].view(P, group, K, G, Lp).transpose(1, 2).reshape(P * K, group * G, Lp)
    )
    out = (
        torch.bmm(far_chance, layer.prompt_v.reshape(P * K, Lp, D))
        .view(P, K, group, G, D)
        .transpose(1, 2)
        .reshape(R, K * G, D)
    )
    out = out + torch.bmm(chance[..., Lp:].reshape(R * K, G, n + 1), own_v).view(R, K * G, D)
    return out[:, None]


def rollout_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    rollout_memory: RolloutMemory | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """The attention function as Transformers calls it. Raises AssertionError without a memory."""
    assert rollout_memory is not None, "rollout attention was called without a memory"
    memory, index = rollout_memory, int(module.layer_idx)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if memory.reading:
        memory.layers[index] = Layer(key, value)
        return _read(query, key, value, scale, sliding_window, softcap, memory.num_virtual), None
    return _write(
        memory, memory.layers[index], query, key, value, scale, sliding_window, softcap
    ), None


def register() -> None:
    """Make the name known to Transformers; calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, rollout_attention)
