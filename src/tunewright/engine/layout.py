"""Tree or padded: which layout a model can take, decided before the first step and said with its
reason."""

from __future__ import annotations

from typing import Any

import torch

from tunewright.core.config import EngineConfig
from tunewright.core.errors import CompatError, problem
from tunewright.core.seeds import stream
from tunewright.core.types import Branch, Sample
from tunewright.core.words import say

KNOWN_LAYERS = {"full_attention", "sliding_attention", "attention"}
TOLERANCE = {"float64": 1e-8, "float32": 2e-3, "bfloat16": 0.25, "float16": 0.1}
"""Largest mean difference of log-probabilities, in nats, between the two layouts on the probe. A
wrong mask on a trained model makes whole nats."""


def obstacle(model: Any, needs_layout: str) -> str | None:
    """Why the tree layout cannot be right for this model or method, judged from the config alone;
    None if nothing speaks against it."""
    config = model.config.get_text_config()
    if needs_layout == "padded":
        return say("layout.method")
    kinds = set(getattr(config, "layer_types", None) or []) - KNOWN_LAYERS
    if kinds:
        return say("layout.layers", kinds=", ".join(sorted(kinds)))
    if not getattr(model, "_supports_attention_backend", False) and not getattr(
        model, "_supports_sdpa", False
    ):
        return say("layout.backend", family=config.model_type)
    if getattr(config, "attention_sinks", None) or config.model_type in ("gpt_oss",):
        return say("layout.sinks")
    return None


def probe_samples(vocabulary: int, seed: int = 0) -> list[Sample]:
    """Three branches that fork at two depths, of random tokens."""
    draw = stream(seed, "layout-probe")
    words = [draw.randrange(vocabulary) for _ in range(48)]
    paths = [words[:24], words[:12] + words[24:36], words[:6] + words[36:48]]
    return [
        Sample([Branch(p, list(range(1, len(p))), [1.0] * (len(p) - 1))], i)
        for i, p in enumerate(paths)
    ]


def disagreement(policy_of: Any, vocabulary: int, layout: str) -> float:
    """Mean absolute difference in nats between a layout and the model's own logits, one branch at a
    time, on the probe.

    `policy_of(layout)` gives a context manager around a `Policy`.
    """
    samples = probe_samples(vocabulary)
    with policy_of("padded") as policy, torch.no_grad():
        parts = []
        for branch in (b for s in samples for b in s.branches):
            ids = torch.tensor(branch.tokens, device=policy.device)
            logits = policy.model(input_ids=ids[None], use_cache=False).logits[
                0, -len(ids) :
            ]  # a learnt prompt may bring rows of its own
            parts.append(torch.log_softmax(logits.float(), -1)[torch.arange(len(ids) - 1), ids[1:]])
    with policy_of(layout) as policy, torch.no_grad():
        return float((policy(samples).logprob.float() - torch.cat(parts)).abs().mean())


def choose(
    engine: EngineConfig, model: Any, needs_layout: str, policy_of: Any, dtype: str | None = None
) -> tuple[str, str]:
    """(layout, reason). `auto` takes the tree if nothing speaks against it and the model agrees
    with its own stock attention on a forked sample.

    `dtype` is what the model computes in, where its own weights do not say so: those that train may
    be held in float32.
    """
    vocabulary, tolerance = (
        model.config.get_text_config().vocab_size,
        TOLERANCE[dtype or str(model.dtype).removeprefix("torch.")],
    )
    if engine.layout == "padded":
        _require_known_head(policy_of, vocabulary, tolerance)
        return "padded", say("layout.asked")
    why = obstacle(model, needs_layout)
    if why is None:
        try:
            gap = disagreement(policy_of, vocabulary, "tree")
        except Exception as e:
            why = say("layout.refused", cause=f"{type(e).__name__}: {e}".splitlines()[0][:200])
        else:
            if gap <= tolerance:
                return "tree", say("layout.agrees", gap=f"{gap:.1e}")
            why = say("layout.differs", gap=f"{gap:.2g}")
    if engine.layout == "tree":
        raise CompatError(problem("E-COMPAT-01", "engine.layout", reason=why))
    _require_known_head(policy_of, vocabulary, tolerance)
    return "padded", why


def _require_known_head(policy_of: Any, vocabulary: int, tolerance: float) -> None:
    """Raise CompatError where even one row a sample does not give the model's own
    log-probabilities: its head does something we do not know."""
    gap = disagreement(policy_of, vocabulary, "padded")
    if not gap <= tolerance:
        raise CompatError(problem("E-COMPAT-04", "model", gap=f"{gap:.2g}"))
