"""Learnt prompts: the model stays as it is, and virtual tokens come before every input.

Two ways to give the model a token that is no word. As an input embedding (prompt tuning, P-tuning):
the token runs through all layers like any other. As ready keys and values in every layer (prefix
tuning, P-tuning v2): nothing runs, every row just sees them. PEFT's encoders make both; the layouts
place them (`engine/policy.py`), so that a token tree has them once at its root. Positions are
counted as PEFT counts them: M virtual tokens take 0 to M - 1, real ones begin at M. What is saved
is PEFT's folder: the embeddings, or the keys and values, without the encoder.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunewright.core.errors import CompatError, ConfigError, Problem, problem, raise_all
from tunewright.core.registry import method, usual_rate
from tunewright.core.types import Attached, Model, Needs, VirtualPrompt
from tunewright.core.words import say
from tunewright.methods.peft import rate_of_type, settings_of, wrap
from tunewright.methods.targets import MethodSection
from tunewright.models.anatomy import Anatomy
from tunewright.models.shape import ModelShape
from tunewright.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedConfig

FIELDS = {"num_tokens": "num_virtual_tokens"}
"""Where PEFT's descriptions of prompts hold our fields."""


class PromptTuningConfig(MethodSection):
    """Learnt input embeddings before every input."""

    num_tokens: int = Field(default=20, gt=0)
    """Virtual tokens; they take room in the context."""
    text: str | None = None
    """Start at the embeddings of this text, repeated or cut to `num_tokens`. Default: at embeddings
    of words drawn from the vocabulary."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        return self.num_tokens * shape.hidden


class PTuningConfig(MethodSection):
    """Learnt input embeddings that a small network makes."""

    num_tokens: int = Field(default=20, gt=0)
    """Virtual tokens; they take room in the context."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network that makes the embeddings; the paper's is a two-way LSTM with a small network
    behind it."""
    encoder_size: int | None = Field(default=None, gt=0)
    """Width of the network. Default: the model's own."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """Numbers that train on a model of `shape`: the embeddings and the network over them."""
        D = shape.hidden
        S = self.encoder_size or D
        if self.encoder == "mlp":
            return int(self.num_tokens * D + D * S + S + S * S + S + S * D + D)
        lstm = 8 * (D * S + S * S + 2 * S) + 8 * (
            2 * S * S + S * S + 2 * S
        )  # two layers, two ways, four gates
        return int(self.num_tokens * D + lstm + 4 * S * S + 2 * S + 2 * S * D + D)


class PrefixTuningConfig(MethodSection):
    """Learnt keys and values in every layer, made by a small network."""

    num_tokens: int = Field(default=20, gt=0)
    """Virtual tokens; they take room in the context."""
    encoder_size: int | None = Field(default=None, gt=0)
    """Width of the network that makes keys and values; it trains and is not saved. Default: 512, or
    the model's width if that is smaller."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """Numbers that train on a model of `shape`: the embeddings and the network that makes keys
        and values of all layers."""
        K, S = shape.kv_heads * shape.head_dim, self.encoder_size or min(512, shape.hidden)
        return self.num_tokens * K + K * S + S + (S + 1) * shape.layers * 2 * K


class PTuningV2Config(MethodSection):
    """Learnt keys and values in every layer, trained directly."""

    num_tokens: int = Field(default=20, gt=0)
    """Virtual tokens; they take room in the context."""
    text: str | None = None
    """Start at the keys and values that the model has for this text, repeated or cut to
    `num_tokens`. Default: for words drawn from the vocabulary."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """Numbers that train on a model of `shape`: a key and a value for each layer and virtual
        token."""
        return self.num_tokens * shape.layers * 2 * shape.kv_heads * shape.head_dim


ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
"""Kinds of layers that keep a key and a value of every token."""


def rows_obstacles(config: MethodSection | None, model_config: PreTrainedConfig) -> list[Problem]:
    """What in a model's configuration speaks against learnt input embeddings, before its weights
    are read."""
    text = model_config.get_text_config()
    # A virtual token is no token of the vocabulary, so its rows for the blocks cannot be looked up.
    return (
        [problem("E-METHOD-75", "method.kind", family=text.model_type)]
        if vars(text).get("hidden_size_per_layer_input")
        else []
    )


def keys_obstacles(config: MethodSection | None, model_config: PreTrainedConfig) -> list[Problem]:
    """What in a model's configuration speaks against learnt keys and values, before its weights are
    read."""
    text = model_config.get_text_config()
    kinds = sorted({str(kind) for kind in getattr(text, "layer_types", None) or ()} - ATTENTION)
    if not kinds and not hasattr(text, "num_attention_heads"):
        kinds = [str(text.model_type)]
    # Keys that are made anew from a short row for each token have other sizes than the values.
    kinds += ["kv_lora_rank"] if getattr(text, "kv_lora_rank", None) else []
    kinds += ["altup_num_inputs"] if vars(text).get("altup_num_inputs") else []
    return (
        [problem("E-METHOD-74", "method.kind", family=text.model_type, kinds=", ".join(kinds))]
        if kinds
        else []
    )


_NO_MERGE = "a learnt prompt stands before the input"


@method(
    "prompt_tuning",
    PromptTuningConfig,
    by="PEFT",
    source="arXiv 2104.08691",
    trains="virtual input tokens",
    merges=_NO_MERGE,
    on_quantised=True,
    obstacles=rows_obstacles,
    rate=1e-2,
    peft_types=("PROMPT_TUNING", "P_TUNING"),
    peft_fields=FIELDS,
)
def prompt_tuning(
    config: PromptTuningConfig, model: Model, anatomy: Anatomy, base_path: str
) -> Attached:
    """Prompt tuning (Lester et al. 2021): the model reads [P; X] with P (M, D) trained."""
    import peft
    import torch

    settings = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=config.num_tokens,
        prompt_tuning_init="SAMPLE_VOCAB",
    )
    ids = None if config.text is None else _tokens_of(config.text, model, config.num_tokens)
    wrapped = wrap_prompt(model, settings, base_path)
    if ids is not None:
        with torch.no_grad():
            embedding_of(wrapped).weight.copy_(model.get_input_embeddings()(ids))
    return attach_prompt(wrapped)


@method(
    "p_tuning",
    PTuningConfig,
    by="PEFT",
    source="arXiv 2103.10385",
    trains="a network that makes virtual input tokens",
    merges=_NO_MERGE,
    on_quantised=True,
    obstacles=rows_obstacles,
    rate=2e-4,
    peft_types=("P_TUNING", "PROMPT_TUNING"),
    goes_on=False,
)
def p_tuning(config: PTuningConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """P-tuning (Liu et al. 2021): the model reads [f(E); X] with E (M, D) and the network f
    trained. It changes nothing inside the model."""
    import peft

    settings = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=config.num_tokens,
        encoder_reparameterization_type=config.encoder.upper(),
        encoder_hidden_size=config.encoder_size or model.config.get_text_config().hidden_size,
    )
    return attach_prompt(wrap_prompt(model, settings, base_path))


@method(
    "prefix_tuning",
    PrefixTuningConfig,
    by="PEFT",
    source="arXiv 2101.00190",
    trains="a network that makes keys and values for every layer",
    merges=_NO_MERGE,
    on_quantised=True,
    obstacles=keys_obstacles,
    rate=2e-4,
    peft_types=("PREFIX_TUNING",),
    goes_on=False,
)
def prefix_tuning(
    config: PrefixTuningConfig, model: Model, anatomy: Anatomy, base_path: str
) -> Attached:
    """Prefix tuning (Li and Liang 2021): in every layer attention reads [K_p; K] and [V_p; V],
    where (K_p, V_p) = MLP(E) for all layers at once."""
    import peft

    width = config.encoder_size or min(512, model.config.get_text_config().hidden_size)
    settings = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=config.num_tokens,
        prefix_projection=True,
        encoder_hidden_size=width,
    )
    return attach_prompt(wrap_prompt(model, settings, base_path))


@method(
    "p_tuning_v2",
    PTuningV2Config,
    by="PEFT",
    source="arXiv 2110.07602",
    trains="keys and values for every layer",
    merges=_NO_MERGE,
    on_quantised=True,
    obstacles=keys_obstacles,
    rate=1e-2,
    peft_types=("PREFIX_TUNING",),
    peft_fields=FIELDS,
)
def p_tuning_v2(
    config: PTuningV2Config, model: Model, anatomy: Anatomy, base_path: str
) -> Attached:
    """P-tuning v2 (Liu et al. 2021): the keys and values of a prefix in every layer, trained
    directly: no network, no projection.

    They start as keys and values that the model has for real words (Li and Liang 2021, section
    7.4): random ones cost the model most of what it knows.
    """
    import peft
    import torch
    from transformers import DynamicCache

    drawn = torch.randint(
        model.config.get_text_config().vocab_size, (config.num_tokens,), device=model.device
    )
    ids = drawn if config.text is None else _tokens_of(config.text, model, config.num_tokens)
    settings = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=config.num_tokens, prefix_projection=False
    )
    wrapped = wrap_prompt(model, settings, base_path)
    prefix = settings_of(wrapped)
    with torch.no_grad():
        seen = model(
            input_ids=ids[None], past_key_values=DynamicCache(), use_cache=True
        ).past_key_values
        # PEFT's order: for each virtual token, for each layer, keys then values. Layers that have
        # fewer or smaller ones, or none, leave the rest at 0.
        heads = prefix.num_attention_heads
        made_MLKD = torch.zeros(
            len(ids), 2 * prefix.num_layers, heads, prefix.token_dim // heads, device=model.device
        )
        for number, layer in enumerate(seen.layers[: prefix.num_layers]):
            for part, t in enumerate((layer.keys, layer.values)):
                if t is not None and t.shape[-2] == len(ids):
                    made_MLKD[:, 2 * number + part, : t.shape[1], : t.shape[3]] = t[0].transpose(
                        0, 1
                    )
        embedding_of(wrapped).weight.copy_(made_MLKD.flatten(1))
    return attach_prompt(wrapped)


def embedding_of(wrapped: PeftModel) -> nn.Embedding:
    """The embedding of PEFT's prompt encoder."""
    encoder: Any = wrapped.prompt_encoder["default"]
    embedding: nn.Embedding = encoder.embedding
    return embedding


def _tokens_of(text: str, model: Model, count: int) -> Tensor:
    """(count,) token ids of a text, repeated or cut, by the tokenizer that lies beside the model's
    weights. Raises ConfigError when there are none."""
    import torch

    ids: list[int] = load_tokenizer(Path(str(model.name_or_path)))(text, add_special_tokens=False)[
        "input_ids"
    ]
    if not ids:
        raise ConfigError(problem("E-METHOD-29", "method.text", reason=repr(text)))
    return torch.tensor((ids * (-(-count // len(ids))))[:count], device=model.device)


def key_shapes(text: PreTrainedConfig) -> list[tuple[int, int]]:
    """For each layer (heads, head size) of its keys; in some families layers differ."""
    by_layer = getattr(text, "per_layer_config", None)
    shapes = []
    for number in range(text.num_hidden_layers):
        layer = text if by_layer is None else by_layer[number]
        size = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
        shapes.append(
            (getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads, size)
        )
    return shapes


def wrap_prompt(model: Model, settings: Any, base_path: str) -> PeftModel:
    """PEFT's model with a prompt encoder. Raises CompatError for a prompt that fills the context,
    or that the model cannot take."""
    text = model.config.get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    if context is not None and settings.num_virtual_tokens >= context:
        raise CompatError(
            problem(
                "E-METHOD-27",
                "method.num_tokens",
                tokens=settings.num_virtual_tokens,
                context=context,
            )
        )
    by_keys = settings.peft_type.value == "PREFIX_TUNING"
    raise_all((keys_obstacles if by_keys else rows_obstacles)(None, model.config), CompatError)
    if by_keys and settings.token_dim is None:
        # What a layer's keys are, read from the model: PEFT takes the hidden size, which is not
        # heads x head size in every family. Where layers differ there is room for the largest, and
        # a smaller one takes what it needs, as in PEFT.
        shapes = key_shapes(text)
        heads, size = max(h for h, _ in shapes), max(d for _, d in shapes)
        settings.num_attention_heads, settings.token_dim = heads, heads * size
    wrapped = wrap(model, settings, base_path)
    _require_taken(wrapped)
    return wrapped


def _require_taken(wrapped: PeftModel) -> None:
    """Raise CompatError where the model falls over with a prompt before its input: a family that
    nobody thought of."""
    import torch

    if wrapped.device.type == "meta":  # only looked at; it is asked again when it has weights
        return
    ids = (
        torch.arange(3, 7, device=wrapped.device)[None]
        % wrapped.config.get_text_config().vocab_size
    )
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (
        RuntimeError,
        ValueError,
        IndexError,
        TypeError,
        AttributeError,
        NotImplementedError,
    ) as e:
        cause, family = (
            (str(e) or type(e).__name__).splitlines()[0][:200],
            wrapped.config.get_text_config().model_type,
        )
        raise CompatError(problem("E-METHOD-76", "method.kind", family=family, cause=cause)) from e


def attach_prompt(wrapped: PeftModel) -> Attached:
    """The `Attached` of a model that carries a learnt prompt, new or loaded."""
    config = settings_of(wrapped)
    root: Any = wrapped
    off = [False]

    def virtual_prompt() -> VirtualPrompt | None:
        return None if off[0] else _virtual(wrapped)

    @contextlib.contextmanager
    def disabled() -> Iterator[None]:
        with wrapped.disable_adapter():
            off[0] = True
            try:
                yield
            finally:
                off[0] = False

    root.virtual_prompt = virtual_prompt
    projected = getattr(config, "prefix_projection", False)
    return Attached(
        parameters=[name for name, p in wrapped.named_parameters() if p.requires_grad],
        model=wrapped,
        needs=Needs(frozen_base=True),
        save=lambda folder: wrapped.save_pretrained(str(folder), save_embedding_layers=False),
        disabled=disabled,
        merge_reason=say("methods.no_merge_prompt"),
        learning_rate=usual_rate("prefix_tuning")
        if projected
        else rate_of_type(config.peft_type.value),
    )


def _virtual(wrapped: PeftModel) -> VirtualPrompt:
    """What PEFT's encoder gives now: rows (M, D), or for each layer keys and values (K, M, head
    size)."""
    config = settings_of(wrapped)
    M = config.num_virtual_tokens
    if config.peft_type.value != "PREFIX_TUNING":
        return VirtualPrompt(M, rows=wrapped.get_prompt(1)[0])
    root: Any = wrapped
    stored, tokens = embedding_of(wrapped).weight, root.prompt_tokens["default"][:M]
    encoder, dtype = root.prompt_encoder["default"], root.base_model_torch_dtype
    made = stored if config.inference_mode else encoder(tokens.to(stored.device)[None])[0]
    made = made.to(dtype or made.dtype)
    # PEFT's order: for each virtual token, for each layer, keys then values.
    made_LKMD = made.view(M, config.num_layers * 2, config.num_attention_heads, -1).permute(
        1, 2, 0, 3
    )
    shapes = key_shapes(wrapped.config.get_text_config())
    return VirtualPrompt(
        M,
        keys_values=[
            (made_LKMD[2 * i, :h, :, :d], made_LKMD[2 * i + 1, :h, :, :d])
            for i, (h, d) in enumerate(shapes)
        ],
    )
