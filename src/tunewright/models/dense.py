"""One token of every answer through a dense decoder, in the fewest visits to memory.

A block of these families is the same few products, norms and a rotation; Transformers' own forward
spends most of a token's time between them, in Python. Here the parts are taken from the modules
once (`DenseStep.of`), methods that sit on linear layers among them, and whatever is no plain part
is called as it is. Which blocks these are is known by family; that what is computed is what the
model's own forward computes is tried on the first prompt by `engine.decoding.ways`, which steps
aside where it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tunewright.models.anatomy import body_of
from tunewright.models.kernels.answer_attention import AnswerMemory
from tunewright.models.kernels.fused import norm_form
from tunewright.models.kernels.packed import FUSED, Packed, Packs, product_of

FAMILIES = frozenset(
    {"gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"}
)
"""Families whose block is: norm, attention, (norm,) residual, norm, gated MLP, (norm,) residual."""
Rows = Callable[[Tensor], Tensor]


def _as_it_is(module: Any) -> bool:
    """Whether a module's own forward, and nothing besides, is what runs."""
    return (
        "forward" not in vars(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and type(module).__module__.startswith("transformers.models.")
    )


def _norm(module: Any) -> Rows:
    """The norm in one kernel where it has that form, else the module."""
    form = norm_form(module)
    if form is None or module._forward_hooks or module._forward_pre_hooks:
        return module
    weight, eps, one = form
    if one and weight.dtype.itemsize < 4:
        return module  # 1 + weight is taken in float32, which the kernel does not
    scale, shape = (weight + 1 if one else weight).detach(), tuple(weight.shape)

    def norm(x: Tensor) -> Tensor:
        # A weight that trains may be held in float32 beside a half-precision model.
        if x.dtype != scale.dtype:
            own: Tensor = module(x)
            return own
        return torch.nn.functional.rms_norm(x, shape, scale, eps)

    return norm


class _Attention:
    """The products around the attention of one block, and its rotation."""

    def __init__(self, module: Any, config: Any, packs: Packs | None, kind: str) -> None:
        self.index, self.kind = int(module.layer_idx), kind
        self.heads = int(config.num_attention_heads)
        self.key_heads = int(config.num_key_value_heads)
        self.size = int(module.head_dim)
        self.rotates = bool(getattr(module, "use_rope", True))
        if hasattr(module, "qkv_proj"):
            self.projections = [module.qkv_proj]
        else:
            self.projections = [module.q_proj, module.k_proj, module.v_proj]
        self.packed = product_of(self.projections, packs)
        self.out: Any = product_of([module.o_proj], packs) or module.o_proj
        norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
        self.norms = [None if norm is None else _norm(norm) for norm in norms]

    def __call__(self, x: Tensor, turn: tuple[Tensor, Tensor], memory: AnswerMemory) -> Tensor:
        """x (R, D) -> (R, heads x size), before the output product."""
        wide = (
            self.packed(x)
            if self.packed is not None
            else torch.cat([module(x) for module in self.projections], -1)
        ).view(len(x), -1, self.size)
        H, K = self.heads, self.key_heads
        turned, v = wide[:, : H + K], wide[:, H + K :]
        if self.norms[0] is not None and self.norms[1] is not None:
            turned = torch.cat([self.norms[0](turned[:, :H]), self.norms[1](turned[:, H:])], 1)
        if self.rotates:
            turned = _rotated(turned, *turn)
        found = memory.layers[self.index]
        out = memory.attend(
            self.index, turned[:, :H], turned[:, H:], v, found.scale, found.window, found.softcap
        )
        return out.reshape(len(x), -1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): x (R, heads, size), cos and sin (R, 1, turned part of the
    size), the first half of sin with its sign turned."""
    part = cos.shape[-1]
    head = x if part == x.shape[-1] else x[..., :part]
    head = (head * cos).addcmul_(head.roll(part // 2, -1), sin)
    return head if part == x.shape[-1] else torch.cat([head, x[..., part:]], -1)


class _Mlp:
    """The gated MLP of one block."""

    def __init__(self, module: Any, packs: Packs | None) -> None:
        self.module = module
        self.gate_up: Packed | None = None
        self.gate: Packed | None = None
        self.up: Packed | None = None
        self.down: Any = None
        self.fused: str | None = None
        self.act: Any = getattr(module, "act_fn", getattr(module, "activation_fn", None))
        if not _as_it_is(module) or self.act is None:
            return
        if hasattr(module, "gate_up_proj"):
            self.gate_up = product_of([module.gate_up_proj], packs)
        elif hasattr(module, "gate_proj") and hasattr(module, "up_proj"):
            self.gate = product_of([module.gate_proj], packs)
            self.up = product_of([module.up_proj], packs)
            if self.gate is None or self.up is None:
                self.gate = self.up = None
        if hasattr(module, "down_proj"):
            self.down = product_of([module.down_proj], packs) or module.down_proj
        if self.gate is not None and self.up is not None:
            plain = self.gate.low is None and self.up.low is None
            self.fused = _name_of(self.act) if plain else None

    @property
    def apart(self) -> bool:
        """Whether the MLP is computed from its parts."""
        return self.down is not None and (self.gate_up is not None or self.gate is not None)

    def inner(self, x: Tensor) -> Tensor:
        """What the last product reads: (R, D) -> (R, inner size)."""
        if self.gate_up is not None:
            gate, up = self.gate_up(x).chunk(2, -1)
            out: Tensor = self.act(gate) * up
            return out
        assert self.gate is not None and self.up is not None
        if self.fused is not None:
            return self.up.times(x, self.gate.activated(x, self.fused))
        out = self.act(self.gate(x)) * self.up(x)
        return out


def _name_of(act: Any) -> str | None:
    """oneDNN's part in an activation of Transformers', by what it computes."""
    from transformers.activations import ACT2FN

    for name in FUSED:
        if type(act) is type(ACT2FN[name]):
            return name
    return None


class _Block:
    def __init__(self, module: Any, config: Any, packs: Packs | None, kind: str) -> None:
        self.attention = _Attention(module.self_attn, config, packs, kind)
        self.mlp = _Mlp(module.mlp, packs)
        self.norm = _norm(module.input_layernorm)
        sandwich = hasattr(module, "pre_feedforward_layernorm")
        after = module.post_attention_layernorm
        self.after_attention = _norm(after) if sandwich else None
        self.before_mlp = _norm(module.pre_feedforward_layernorm) if sandwich else _norm(after)
        self.after_mlp = _norm(module.post_feedforward_layernorm) if sandwich else None

    def __call__(self, h: Tensor, turn: tuple[Tensor, Tensor], memory: AnswerMemory) -> Tensor:
        h = _onto(
            h, self.attention(self.norm(h), turn, memory), self.attention.out, self.after_attention
        )
        x = self.before_mlp(h)
        if self.mlp.apart:
            return _onto(h, self.mlp.inner(x), self.mlp.down, self.after_mlp)
        out = self.mlp.module(x)
        return h + (out if self.after_mlp is None else self.after_mlp(out))


def _onto(h: Tensor, x: Tensor, product: Any, norm: Rows | None) -> Tensor:
    """h + norm(product of x)."""
    if norm is not None:
        return h + norm(product(x))
    if isinstance(product, Packed):
        return product.added(x, h)
    out: Tensor = h + product(x)
    return out


def _text_body(causal: Any) -> Any:
    """The stack of blocks that reads words: where images come in as well it stands one deeper."""
    body = body_of(causal)
    return body if hasattr(body, "layers") else getattr(body, "language_model", body)


class DenseStep:
    """A causal model of one of `FAMILIES`, ready to take one token of every row."""

    def __init__(self, causal: Any, packs: Packs | None) -> None:
        body = _text_body(causal)
        config = causal.config.get_text_config()
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(body.layers)
        self.embed, self.rotary = body.get_input_embeddings(), body.rotary_emb
        self.by_kind = config.model_type == "gemma3_text"
        self.kinds = list(dict.fromkeys(kinds)) if self.by_kind else [""]
        self.blocks = [
            _Block(block, config, packs, kind if self.by_kind else "")
            for block, kind in zip(body.layers, kinds, strict=True)
        ]
        self.norm = _norm(body.norm)
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        head = causal.get_output_embeddings()
        self.head = product_of([head], packs) if type(head) is nn.Linear else None

    @classmethod
    def of(cls, causal: Any, packs: Packs | None) -> DenseStep | None:
        """The step of a model whose blocks are known and are what runs, else None."""
        if causal.config.get_text_config().model_type not in FAMILIES:
            return None
        body = _text_body(causal)
        blocks = list(getattr(body, "layers", ()))
        if (
            not blocks
            or not all(_as_it_is(part) for block in blocks for part in (block, block.self_attn))
            or not _as_it_is(body)
        ):
            return None
        return cls(causal, packs)

    def reaches(self, positions: int) -> bool:
        """Whether the rotation of that many positions is a table: one that changes with the length
        of the text (dynamic, LongRoPE) is only up to the length where it changes."""
        for kind in self.kinds:
            name = self.rotary.rope_type[kind] if self.by_kind else self.rotary.rope_type
            if name in ("dynamic", "longrope"):
                config = self.rotary.config
                parameters = config.rope_parameters
                parameters = parameters.get(kind, parameters) if self.by_kind else parameters
                limit = parameters.get("original_max_position_embeddings")
                if positions > int(limit or config.max_position_embeddings):
                    return False
        return True

    def _table(self, kind: str, positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of at least that many positions, (positions, 1, turned size); of sin the
        first half has its sign turned (`_rotated`)."""
        found = self._tables.get(kind)
        if found is None or len(found[0]) < positions:
            count = 256
            while count < positions:
                count *= 2
            if not self.reaches(count):
                count = positions
            place = torch.arange(count, device=like.device)[None]
            cos, sin = self.rotary(like, place, kind) if kind else self.rotary(like, place)
            half = sin.shape[-1] // 2
            signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
            found = self._tables[kind] = cos[0][:, None], signed[0][:, None]
        return found

    def __call__(self, ids_R: Tensor, memory: AnswerMemory) -> Tensor:
        """(R, D) after the last norm: the next token of every row, written into `memory`; or the
        next one of its only row and the guessed ones after it."""
        ahead = len(ids_R) - len(memory)
        position_R = memory.begin(ahead)
        h = self.embed(ids_R)
        most = memory.columns + 1 + ahead
        turns = {}
        for kind in self.kinds:
            cos, sin = self._table(kind, most, h)
            turns[kind] = cos[position_R], sin[position_R]
        for block in self.blocks:
            h = block(h, turns[block.attention.kind], memory)
        memory.advance()
        return self.norm(h)

    @property
    def description(self) -> str:
        """Which parts are computed here, and with what on them: the same words, the same code."""
        parts = {
            (
                block.attention.packed is not None,
                block.attention.packed is not None and block.attention.packed.low is not None,
                isinstance(block.attention.out, Packed),
                block.mlp.apart,
                block.mlp.fused,
                isinstance(block.mlp.down, Packed),
            )
            for block in self.blocks
        }
        return f"dense {sorted(map(str, parts))}"
