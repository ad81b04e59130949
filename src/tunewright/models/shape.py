"""The sizes of a model, read from its raw `config.json`: no torch, no Transformers, no weights.

So a run that cannot fit is refused in milliseconds, and a model that was never downloaded can be
judged from one small file. Roles come from the same cards as `models/anatomy.py`; a family without
a card is taken for a Llama, which is off by a few per cent of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunewright.core.errors import UsageError, problem
from tunewright.core.families import cards
from tunewright.models import anatomy

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model", "dim", "emb_dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
    "vocabulary": ("vocab_size",),
}
HEADS = ("num_attention_heads", "n_head", "n_heads", "attention_heads", "decoder_attention_heads")
INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "decoder_ffn_dim")
LAYER_LISTS = ("layer_types", "layers_block_type", "hybrid_override_pattern")
"""One entry, or one letter, a block: some families say how many they have in no other way."""
STATE_SPACES = {"mamba", "mamba2", "falcon_mamba"}
"""Families whose blocks have no attention and no feed-forward part: one matrix in, one out."""
WITHOUT_HEADS = 64
"""Width of a head where a family states none, as recurrent ones do."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
TIED = {
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gpt2",
    "bloom",
    "falcon",
    "opt",
    "cohere",
    "cohere2",
    "gpt_bigcode",
}
"""Families whose head is the embedding unless the config says otherwise."""
QKV_BIAS = {"qwen2", "qwen2_moe", "qwen2_vl_text", "qwen2_5_vl_text", "gpt2", "phi"}
LEARNT_POSITIONS = {"gpt2", "gpt_bigcode", "opt"}
LARGEST = 10**9
"""No size of a real model comes near; a config that claims more is not believed."""


@dataclass(frozen=True)
class Matrix:
    """One kind of linear layer: how many a model has, and the sizes of each. `share`: the part that
    one token really passes through."""

    count: int
    inputs: int
    outputs: int
    share: float = 1.0

    @property
    def weights(self) -> int:
        """Numbers in all of them."""
        return self.count * self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on. `weight_bytes` are the bytes of the stored checkpoint, 0
    where there is none."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool
    matrices: dict[str, Matrix]
    """Role -> linear layers inside the blocks."""
    targets: dict[str, str]
    """Module name (q_proj) -> role."""
    weight_bytes: int = 0
    stored_dtype: str = "bfloat16"
    experts: int = 0
    context: int = 0
    stored_bits: float = 0.0
    """Bits of a weight of the blocks in a checkpoint that is quantised already, with its share of
    scales; 0 where weights are plain."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], weight_bytes: int = 0) -> ModelShape:
        """The shape that a raw `config.json` describes. Raises UsageError (E-FIT-02) when a size is
        missing or absurd."""
        text = config.get("text_config", config.get("global_config"))
        text = {**config, **text} if isinstance(text, Mapping) else dict(config)
        sizes = {name: _number(text, keys) for name, keys in NAMES.items()}
        sizes["layers"] = sizes["layers"] or _listed_layers(text)
        heads = _heads(text, sizes["hidden"])
        wrong = [NAMES[name][0] for name, value in sizes.items() if not 0 < value <= LARGEST]
        wrong += [HEADS[0]] if not wrong and not 0 < heads <= LARGEST else []
        if wrong:
            raise UsageError(problem("E-FIT-02", "config.json", keys=", ".join(wrong)))
        hidden, layers = sizes["hidden"], sizes["layers"]
        family = str(text.get("model_type") or "llama")
        head_dim = _number(text, ("head_dim",)) or max(1, hidden // heads)
        kv_heads = _number(text, ("num_key_value_heads",)) or (
            1 if text.get("multi_query") else heads
        )
        inner = _number(text, INNER) or (_number(text, ("expand",)) or 4) * hidden
        tied = text.get("tie_word_embeddings")
        experts = _number(text, EXPERTS)
        matrices, targets = _matrices(
            family, layers, hidden, heads * head_dim, kv_heads * head_dim, inner
        )
        if experts > 1:
            matrices |= _expert_matrices(text, layers, hidden, inner, experts)
        return cls(
            family,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            inner,
            sizes["vocabulary"],
            bool(tied) if tied is not None else family in TIED,
            matrices,
            targets,
            weight_bytes,
            str(text.get("dtype") or text.get("torch_dtype") or "bfloat16").removeprefix("torch."),
            experts,
            _number(text, ("max_position_embeddings", "n_positions")),
        )

    @property
    def block_weights(self) -> int:
        """N_b: numbers in the matrices of all blocks."""
        return sum(m.weights for m in self.matrices.values())

    @property
    def active_weights(self) -> int:
        """Numbers that one token passes through: less than `block_weights` where experts are
        chosen."""
        return int(sum(m.weights * m.share for m in self.matrices.values()))

    @property
    def head_weights(self) -> int:
        """N_h: numbers in the output head."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """All weights of the model: blocks, norms, biases, embedding, and the head where it is not
        the embedding."""
        bias = (
            self.layers * (self.heads + 2 * self.kv_heads) * self.head_dim
            if self.family in QKV_BIAS
            else 0
        )
        positions = self.context * self.hidden if self.family in LEARNT_POSITIONS else 0
        return (
            self.block_weights
            + self.head_weights * (1 if self.tied else 2)
            + (2 * self.layers + 1) * self.hidden
            + bias
            + positions
        )

    @property
    def file_bytes(self) -> int:
        """Bytes of the checkpoint: as found, else as the config's dtype makes them."""
        return self.weight_bytes or self.parameters * BYTES.get(self.stored_dtype, 2)


def _number(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    """The first of `keys` that holds a positive whole number, or 0. Some families write a list, one
    entry a layer: its largest."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, list) and value and all(type(v) is int for v in value):
            value = max(value)
        if type(value) is int and value > 0:
            return value
    return 0


def _listed_layers(config: Mapping[str, Any]) -> int:
    """The blocks of a family that lists what each of them is and counts them nowhere."""
    lists = (config.get(key) for key in LAYER_LISTS)
    return next((len(found) for found in lists if isinstance(found, list | str)), 0)


def _heads(config: Mapping[str, Any], hidden: int) -> int:
    """Heads of attention; for a family that has none, as many as would be usual. 0 where what is
    stated cannot be."""
    keys = (*HEADS, "num_heads")
    stated = any(config.get(key) is not None for key in keys)
    return _number(config, keys) if stated else max(1, hidden // WITHOUT_HEADS)


def _matrices(
    family: str, layers: int, hidden: int, query: int, kv: int, inner: int
) -> tuple[dict[str, Matrix], dict[str, str]]:
    """Role -> matrices, and module name -> role, by the family's card."""
    if family in STATE_SPACES:
        thin = {"attention.qkv": (hidden, 2 * inner), "attention.output": (inner, hidden)}
        return (
            {role: Matrix(layers, *size) for role, size in thin.items()},
            {"in_proj": "attention.qkv", "out_proj": "attention.output"},
        )
    card = cards().get(family) or cards()["llama"]
    sizes = {
        "attention.query": (hidden, query),
        "attention.key": (hidden, kv),
        "attention.value": (hidden, kv),
        "attention.qkv": (hidden, query + 2 * kv),
        "attention.output": (query, hidden),
        "mlp.gate": (hidden, inner),
        "mlp.up": (hidden, inner),
        "mlp.gate_up": (hidden, 2 * inner),
        "mlp.down": (inner, hidden),
    }
    matrices = {role: Matrix(layers, *sizes[role]) for role in card["roles"] if role in sizes}
    return matrices, {
        place.rpartition(".")[2]: role for role, places in card["roles"].items() for place in places
    }


def _expert_matrices(
    text: Mapping[str, Any], layers: int, hidden: int, inner: int, experts: int
) -> dict[str, Matrix]:
    """The feed-forward parts of a mixture of experts: all are held, a token passes a few."""
    width = _number(text, ("moe_intermediate_size",)) or inner
    chosen = _number(text, ("num_experts_per_tok", "num_experts_per_token")) or 2
    share = min(1.0, chosen / experts)
    return {
        "mlp.gate": Matrix(layers * experts, hidden, width, share),
        "mlp.up": Matrix(layers * experts, hidden, width, share),
        "mlp.down": Matrix(layers * experts, width, hidden, share),
    }


def roles_of(shape: ModelShape, targets: list[str]) -> list[str]:
    """The roles that `method.targets` selects: roles, groups and module names. What matches nothing
    is left for the loaded model to refuse."""
    found: set[str] = set()
    for target in targets:
        if target in anatomy.WHOLE:
            found.update(shape.matrices)
        elif target in ("attention", "mlp"):
            found.update(role for role in shape.matrices if role.startswith(f"{target}."))
        else:
            found.add(shape.targets.get(target, target))
    # Experts are stored as one parameter of three dimensions, to which no LoRA is attached.
    fused = {role for role in found if shape.experts > 1 and role.startswith("mlp.")}
    return [role for role in (*shape.matrices, "embedding", "head") if role in found - fused]


def rank_of(method: Any) -> int | None:
    """Width of what trains beside the frozen matrices (LoRA's rank, an adapter's waist); None: the
    weights themselves train. No method: LoRA's 16."""
    if method is None:
        return 16
    if getattr(method, "trains_base", False):
        return None
    if hasattr(
        method, "trainable_numbers"
    ):  # a method that counts for itself stands on a frozen base and trains in float32
        return int(getattr(method, "bottleneck", None) or getattr(method, "rank", None) or 1)
    rank = getattr(method, "rank", None)
    return rank if isinstance(rank, int) else None


def trainable_parameters(shape: ModelShape, method: Any) -> int:
    """Numbers that train, as the method's config counts them; all weights where it does not."""
    own = getattr(method, "trainable_numbers", None)
    return shape.parameters if own is None else int(own(shape))
