"""Tiny random models of many families and sets of samples that share in every way. Seeded; weights
are large, so that attention matters."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

from tunewright.core.types import Attached, Branch, Origin, Sample

VOCABULARY = 211
WINDOW = 7
"""Sliding window of the families that have one: far shorter than the samples."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": WINDOW, "head_dim": 12},
    "phi3": {"sliding_window": WINDOW},
    "gemma2": {
        "head_dim": 16, "sliding_window": WINDOW, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "head_dim": 16, "sliding_window": WINDOW, "num_hidden_layers": 4, "query_pre_attn_scalar": 24, "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    },
    "gpt2": {},
    "gpt_neox": {},
    "phi": {"num_key_value_heads": 4},
}  # fmt: skip
WINDOWED = ("mistral", "phi3", "gemma2", "gemma3_text")


def make_config(family: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    sizes = {**_COMMON, **FAMILIES.get(family, {}), **changes}
    if family == "gpt2":
        names = {
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
        }
        sizes = {
            names.get(k, k): v
            for k, v in sizes.items()
            if k not in ("intermediate_size", "num_key_value_heads")
        }
    if family == "gpt_neox":
        sizes.pop("num_key_value_heads")
    config = AutoConfig.for_model(family, **sizes)
    from tunewright.models.load import silence_dropout

    silence_dropout(config)
    return config


def make_model(family: str, dtype: str = "float32", seed: int = 0, **changes: Any) -> Any:
    """A causal language model in eval mode; the weights are drawn in float32, so they are the same
    numbers in every dtype. Each is built once; what is given is a copy."""
    import copy

    import torch

    key = repr((family, dtype, seed, sorted(changes.items())))
    if key not in _built:
        _built[key] = (_build(family, dtype, seed, changes), torch.get_rng_state())
    model, state = _built[key]
    torch.set_rng_state(state)  # as if it had been built now
    return copy.deepcopy(model)


_built: dict[str, tuple[Any, Any]] = {}


def _build(family: str, dtype: str, seed: int, changes: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from tunewright.models.load import stock_attention

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(make_config(family, **changes), dtype=torch.float32)
    # Norm weights and biases start at constants; random ones are a sharper test.
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(torch.randn(p.shape) * 0.2)
            del name
    model.name_or_path = "tiny"  # where PEFT looks for the name of the base
    # As the product opens it: Transformers 5.17 would leave out Gemma 2's cap on the scores.
    model.set_attn_implementation(stock_attention(model))
    return model.to(getattr(torch, dtype)).requires_grad_(False).eval()


def attach_lora(
    model: Any, targets: list[str] | None = None, rank: int = 3, **settings: Any
) -> Attached:
    """LoRA as the product attaches it."""
    from tunewright.core.registry import methods
    from tunewright.models import anatomy

    entry = methods.get("lora")
    assert entry is not None
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="fan_in_fan_out"
        )  # PEFT sets it itself for GPT-2's Conv1D and says so
        return entry.function(
            entry.config(rank=rank, targets=targets or ["linear"], **settings),
            model,
            anatomy.of(model),
            "tiny",
        )


def attach_all(model: Any) -> Attached:
    """Every parameter trains: norms, biases, embeddings and the head, too."""
    from tunewright.core.types import Needs

    model.requires_grad_(True)
    return Attached(
        [n for n, _ in model.named_parameters()], model, Needs(), save=lambda folder: None
    )


def make_stepper(
    model: Any,
    attached: Attached,
    layout: str = "tree",
    rows_per_pass: int = 1 << 30,
    clip: float | None = None,
    **engine: Any,
) -> Any:
    """A `Stepper` as the story of a run puts it together."""
    from tunewright.core.config import EngineConfig
    from tunewright.core.registry import objectives
    from tunewright.engine.optim import optimizer_for
    from tunewright.engine.policy import Policy
    from tunewright.engine.step import Stepper
    from tunewright.models.kernels import tree_attention
    from tunewright.models.kernels.fused import accelerate
    from tunewright.models.load import stock_attention

    accelerate(model)
    tree_attention.register()
    model.set_attn_implementation(
        tree_attention.NAME if layout == "tree" else stock_attention(model)
    )
    entry = objectives.get("sft")
    assert entry is not None
    optimizer = optimizer_for(EngineConfig(**engine), attached, model)
    return Stepper(
        Policy(attached.model, model, layout),
        attached,
        entry.function(entry.config()),
        optimizer,
        rows_per_pass,
        clip,
        0,
    )


def make_scorer(
    kind: str, family: str, layout: str, rows_per_pass: int, **settings: Any
) -> tuple[Any, Attached, Any]:
    """(model, attached, stepper) for an objective that learns a score head; everything trains."""
    import torch

    from tunewright.core.registry import objectives
    from tunewright.engine.loaded import use_layout
    from tunewright.models.scalar_heads import put_heads

    torch.manual_seed(3)
    model = make_model(family)
    attached = attach_all(model)
    put_heads(model, attached, ("score",))
    use_layout(model, layout)
    stepper = make_stepper(model, attached, layout=layout, rows_per_pass=rows_per_pass)
    entry = objectives.get(kind)
    assert entry is not None
    stepper.objective = entry.function(entry.config(**settings))
    stepper.policy.heads = ("score",)
    return model, attached, stepper


def trained(attached: Attached) -> dict[str, Any]:
    """Copies of everything that trains."""
    wanted = set(attached.parameters)
    return {n: p.detach().clone() for n, p in attached.model.named_parameters() if n in wanted}


def gradients(attached: Attached) -> dict[str, Any]:
    """The gradients that lie in the parameters, taken out of them."""
    wanted = set(attached.parameters)
    taken = {
        n: p.grad.clone()
        for n, p in attached.model.named_parameters()
        if n in wanted and p.grad is not None
    }
    for p in attached.model.parameters():
        p.grad = None
    return taken


def randomise(attached: Attached, seed: int = 0, spread: float = 0.05) -> None:
    """Everything that trains gets noise, so that no gradient is zero."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in attached.model.named_parameters():
            if name in set(attached.parameters):
                p.add_((torch.randn(p.shape, generator=generator) * spread).to(p.dtype))


def words(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(3, VOCABULARY) for _ in range(count)]


def branch(tokens: list[int], answers: list[tuple[int, int]], weight: float = 1.0) -> Branch:
    """A branch that learns the tokens of the half-open ranges, cut after the last learnt one as the
    encoder does."""
    learnt = [i for first, after in answers for i in range(max(first, 1), after)]
    return Branch(tokens[: learnt[-1] + 1], learnt, [weight] * len(learnt))


def single(tokens: list[int], answers: list[tuple[int, int]], index: int = 0) -> Sample:
    return Sample([branch(tokens, answers)], index, Origin("rows.jsonl", index + 1, index + 1))


def nothing_shared(seed: int = 1) -> list[Sample]:
    draw = random.Random(seed)
    out = []
    for i, length in enumerate((9, 23, 14, 31)):
        tokens = [10 + i, *words(draw, length)]
        out.append(single(tokens, [(length // 2, length)], i))
    return out


def system_prompt(seed: int = 2) -> list[Sample]:
    draw = random.Random(seed)
    system = words(draw, 20)
    out = []
    for i in range(4):
        question, answer = words(draw, 3 + 4 * i), words(draw, 5 + i)
        tokens = system + question + answer
        out.append(single(tokens, [(len(tokens) - len(answer), len(tokens))], i))
    return out


def dialogues(seed: int = 3) -> list[Sample]:
    """Dialogues whose answers are learnt at every turn and that fork at three depths, one of them
    in the middle of an answer."""
    draw = random.Random(seed)
    trunk = words(draw, 10)
    first = [words(draw, 6), words(draw, 6)]
    second = [words(draw, 5) for _ in range(4)]
    third = [words(draw, 4 + i) for i in range(8)]
    out = []
    for i in range(8):
        tokens = trunk + first[i // 4] + second[i // 2] + third[i]
        # Learnt: the end of the trunk (shared by all), the middle turn, and from inside the second
        # fork on.
        out.append(single(tokens, [(6, 10), (12, 16), (18, len(tokens))], i))
    return out


def duplicates(seed: int = 4) -> list[Sample]:
    draw = random.Random(seed)
    tokens, other = words(draw, 19), words(draw, 8)
    same = [single(tokens, [(7, 19)], i) for i in range(3)]
    # One is a prefix of the others, and one learns other tokens of the same row.
    return [
        *same,
        single(other, [(3, 8)], 3),
        single(tokens[:12], [(9, 12)], 4),
        single(tokens, [(2, 5)], 5),
    ]


def pairs(seed: int = 5) -> list[Sample]:
    """Preference-like samples: two branches that share their prompt and the beginning of the
    answer."""
    draw = random.Random(seed)
    out = []
    for i in range(3):
        prompt, begin = words(draw, 8 + i), words(draw, 3)
        chosen, rejected = prompt + begin + words(draw, 6), prompt + begin + words(draw, 9)
        at = len(prompt)
        out.append(
            Sample(
                [branch(chosen, [(at, len(chosen))]), branch(rejected, [(at, len(rejected))])],
                i,
                Origin("pairs.jsonl", i + 1, i + 1),
            )
        )
    return out


def long_sample(seed: int = 6) -> list[Sample]:
    """Longer than the longest query block, forking after its end, next to a short one."""
    draw = random.Random(seed)
    trunk = words(draw, 170)
    a, b = trunk + words(draw, 60), trunk + words(draw, 40)
    return [
        single(a, [(150, len(a))], 0),
        single(b, [(165, len(b))], 1),
        single(words(draw, 9), [(4, 9)], 2),
    ]


SETS = {
    "nothing": nothing_shared, "system": system_prompt, "dialogues": dialogues, "duplicates": duplicates, "pairs": pairs, "long": long_sample,
}  # fmt: skip


def trie_rows(samples: list[Sample]) -> int:
    """Distinct prefixes that some label needs: the fewest rows any layout can compute. A set of
    tuples; nothing of the engine."""
    seen: set[tuple[int, ...]] = set()
    for sample in samples:
        for b in sample.branches:
            needed = b.tokens[: max(b.learnt)] if b.learnt else b.tokens
            seen.update(tuple(needed[: n + 1]) for n in range(len(needed)))
    return len(seen)


def save_folder(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A whole model in a folder, without a tokenizer."""
    make_model(family, **changes).save_pretrained(folder)
    return folder
