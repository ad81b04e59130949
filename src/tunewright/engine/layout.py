"""Tree or padded: which layout a model can take, decided before the first step and said with its
reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tunewright.core import findings
from tunewright.core.config import EngineConfig
from tunewright.core.errors import CompatError, problem
from tunewright.core.seeds import stream
from tunewright.core.types import Branch, Sample
from tunewright.core.words import say

KNOWN_LAYERS = {"full_attention", "sliding_attention", "attention"}
TOLERANCE = {"float64": 1e-8, "float32": 2e-3, "bfloat16": 0.25, "float16": 0.1}
"""Largest mean difference of log-probabilities, in nats, between the two layouts on the probe. A
wrong mask on a trained model makes whole nats."""
PROBE_VERSION = 2
"""Rises with every change to what is compared here."""


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
    """Three branches that fork at two depths, of random tokens; the second half of each is learnt,
    so that rows which nobody reads are left out as they are in a run."""
    draw = stream(seed, "layout-probe")
    words = [draw.randrange(vocabulary) for _ in range(48)]
    paths = [words[:24], words[:12] + words[24:36], words[:6] + words[36:48]]
    return [
        Sample([Branch(p, list(range(half, len(p))), [1.0] * (len(p) - half))], i)
        for i, p in enumerate(paths)
        for half in [len(p) // 2]
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
            learnt = torch.tensor(branch.learnt)
            words = torch.tensor(branch.tokens)[learnt]
            parts.append(own_logprobs(policy, branch.tokens)[learnt - 1, words])
    with policy_of(layout) as policy, torch.no_grad():
        return float((policy(samples).logprob.float().cpu() - torch.cat(parts)).abs().mean())


def own_logprobs(policy: Any, tokens: list[int]) -> torch.Tensor:
    """(T, vocabulary): the model's own log-probabilities after each token of one text, by its own
    forward, on the CPU."""
    ids = torch.tensor([tokens], device=policy.device)
    # A learnt prompt may bring rows of its own.
    logits = policy.model(input_ids=ids, use_cache=False).logits[0, -len(tokens) :]
    return torch.log_softmax(logits.float(), -1).cpu()


def foresight(policy_of: Any, vocabulary: int) -> float:
    """Mean absolute difference in nats between what the model says after the same beginning of two
    texts: above rounding where it reads what comes later."""
    first, second = (sample.branches[0].tokens for sample in probe_samples(vocabulary)[:2])
    shared = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    with policy_of("padded") as policy, torch.no_grad():
        one, other = (own_logprobs(policy, tokens)[:shared] for tokens in (first, second))
    return float((one - other).abs().mean())


def choose(
    engine: EngineConfig,
    model: Any,
    needs_layout: str,
    policy_of: Any,
    dtype: str | None = None,
    key: Any = None,
) -> tuple[str, str]:
    """(layout, reason). `auto` takes the tree if nothing speaks against it and the model agrees
    with its own stock attention on a forked sample.

    `dtype` is what the model computes in, where its own weights do not say so: those that train may
    be held in float32. `key` (JSON) holds everything that decides what it computes: a trial that
    was passed under the same key is not made again.
    """
    trial = Trial(
        policy_of,
        model.config.get_text_config().vocab_size,
        TOLERANCE[dtype or str(model.dtype).removeprefix("torch.")],
        key,
    )
    if engine.layout == "padded":
        trial.require_known_head()
        return "padded", say("layout.asked")
    why = obstacle(model, needs_layout)
    if why is None:
        try:
            gap, is_kept = trial.gap("tree")
        except Exception as e:
            why = say("layout.refused", cause=f"{type(e).__name__}: {e}".splitlines()[0][:200])
        else:
            if gap <= trial.tolerance:
                agrees = "layout.agrees_kept" if is_kept else "layout.agrees"
                return "tree", say(agrees, gap=f"{gap:.1e}")
            why = say("layout.differs", gap=f"{gap:.2g}")
    if engine.layout == "tree":
        raise CompatError(problem("E-COMPAT-01", "engine.layout", reason=why))
    trial.require_known_head()
    return "padded", why


@dataclass(frozen=True)
class Trial:
    """A layout against the model's own logits. Only what was passed is kept, under `key`; what was
    not is tried anew, with its reason."""

    policy_of: Any
    vocabulary: int
    tolerance: float
    key: Any

    def gap(self, layout: str) -> tuple[float, bool]:
        """(mean difference in nats, whether it is that of an earlier trial)."""
        return self._measured(layout, lambda: disagreement(self.policy_of, self.vocabulary, layout))

    def _measured(self, what: str, measure: Callable[[], float]) -> tuple[float, bool]:
        key = {"layout": what, "probe": PROBE_VERSION, "by": self.key}
        kept = findings.read("layout", key) if self.key is not None else None
        if isinstance(kept, float) and kept <= self.tolerance:
            return kept, True
        found = measure()
        if self.key is not None and found <= self.tolerance:
            findings.keep("layout", key, found)
        return found, False

    def require_known_head(self) -> None:
        """Raise CompatError where the model reads later words (it would learn to copy what it is
        asked for), and where even one row a sample does not give the model's own log-probabilities:
        its head does something we do not know."""
        ahead, _ = self._measured("ahead", lambda: foresight(self.policy_of, self.vocabulary))
        if not ahead <= self.tolerance:
            raise CompatError(problem("E-COMPAT-92", "model", gap=f"{ahead:.2g}"))
        gap, _ = self.gap("padded")
        if not gap <= self.tolerance:
            raise CompatError(problem("E-COMPAT-04", "model", gap=f"{gap:.2g}"))
