"""Which back end computes attention over the token tree, decided before the first step and said
with its reason.

| `engine.attention` | what it is | where |
| blocks | products over blocks of rows, one after the other (`kernels/tree_attention.py`) | a CPU |
| flex | PyTorch's FlexAttention: one kernel for all rows (`kernels/flex_attention.py`) | CUDA |

Both serve the same plan and give the same numbers up to rounding. Away from a CPU a back end is
tried on the model's own head sizes, forward and backward, before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tunewright.core import findings
from tunewright.core.config import EngineConfig
from tunewright.core.errors import CompatError
from tunewright.core.machine import versions
from tunewright.core.seeds import stream
from tunewright.core.types import Branch, Sample, TokenTree
from tunewright.core.words import say
from tunewright.engine.tree import build_tree
from tunewright.models.kernels.tree_attention import TreePlan, tree_attention

BACKENDS = ("blocks", "flex")
LIMITS = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 4e-2, "float16": 1e-2}
"""Largest difference between two back ends, as a share of the norm of what is compared."""
TRIED_ROWS = 300
"""Rows of the trunk that a back end is tried on: more than two of its blocks, and the last one cut
short."""
TRIAL_VERSION = 1
"""Rises with every change to what is tried."""


def choose(
    engine: EngineConfig, causal: Any, layout: str, device: str, dtype: str
) -> tuple[str, str]:
    """(back end, reason) for a model on `device` in `layout`. Padded rows have none: the word is
    then what the run file says.

    Raises CompatError (E-COMPAT-21) where the one that is asked for cannot be used here.
    """
    wanted = engine.attention
    if layout != "tree":
        return wanted, say("attention.padded")
    if wanted == "blocks":
        return wanted, say("placement.asked")
    if wanted == "auto" and not device.startswith("cuda"):
        return "blocks", say("attention.not_cuda")
    why = trouble("flex", causal, device, dtype)
    if why is None:
        return "flex", say("attention.agrees") if wanted == "auto" else say("placement.asked")
    if wanted == "flex":
        raise CompatError.of("E-COMPAT-21", "engine.attention", backend=wanted, reason=why)
    return "blocks", say("attention.fallback", reason=why)


def trouble(backend: str, causal: Any, device: str, dtype: str) -> str | None:
    """Why `backend` cannot compute the attention of this model here; None where it agrees with
    `blocks`. Found out once for head sizes, device and versions, if it agrees."""
    config = causal.config.get_text_config()
    kinds = sorted(set(_kinds(config)), key=repr)
    key = {
        "backend": backend,
        "kinds": [list(kind) for kind in kinds],
        "device": _name_of(device),
        "dtype": dtype,
        "by": versions(),
        "trial": TRIAL_VERSION,
    }
    if findings.read("attention", key):
        return None
    try:
        gap = max(disagreement(backend, kind, torch.device(device), dtype) for kind in kinds)
    except Exception as e:
        return say("attention.failed", cause=f"{type(e).__name__}: {e}".splitlines()[0][:200])
    if not gap <= LIMITS[dtype]:
        return say("attention.differs", gap=f"{gap:.1e}")
    findings.keep("attention", key, True)
    return None


def _name_of(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


Kind = tuple[int, int, int, int | None, float | None]
"""Query heads, key heads, width of a head, window, softcap."""


def _kinds(config: Any) -> Iterator[Kind]:
    """What the layers of a model ask of attention."""
    heads = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    softcap = getattr(config, "attn_logit_softcapping", None)
    yield heads, keys, width, None, softcap
    if getattr(config, "sliding_window", None):
        # A window as long as the model's own would hide nothing of so few rows.
        yield heads, keys, width, TRIED_ROWS // 4, softcap


def _tree() -> TokenTree:
    """Two branches that fork behind a long trunk, one that forks at its beginning."""
    draw = stream(0, "attention-trial")
    trunk = [draw.randrange(1000) for _ in range(TRIED_ROWS)]
    tails = [[draw.randrange(1000) for _ in range(length)] for length in (70, 90, 40)]
    paths = [trunk + tails[0], trunk + tails[1], trunk[:5] + tails[2]]
    return build_tree([Sample([Branch(p, [len(p) - 1], [1.0])], i) for i, p in enumerate(paths)])


def disagreement(backend: str, kind: Kind, device: torch.device, dtype: str) -> float:
    """Largest difference between `backend` and `blocks` in output and gradients, each as a share
    of its norm, on random numbers."""
    heads, keys, width, window, softcap = kind
    tree, number = _tree(), getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    rows = tree.num_rows
    drawn = [torch.randn(1, n, rows, width, generator=generator) for n in (heads, keys, keys)]
    towards = torch.randn(1, rows, heads, width, generator=generator).to(device, number)
    found: list[list[Tensor]] = []
    for name in ("blocks", backend):
        q, k, v = (x.to(device, number).requires_grad_() for x in drawn)
        plan = TreePlan(tree, device, 0, 1, backend=name)
        out, _ = tree_attention(
            None, q, k, v, None, sliding_window=window, softcap=softcap, tree_plan=plan
        )
        found.append([out.detach(), *torch.autograd.grad(out, (q, k, v), towards)])
    return max(
        float((b.double() - a.double()).norm() / a.double().norm())
        for a, b in zip(*found, strict=True)
    )
