"""The update rules, from kept libraries.

| `engine.optimizer` | rule | whose | state, bytes a number |
| adamw | Loshchilov and Hutter 2019 | PyTorch | 8 |
| adafactor | Shazeer and Stern 2018, the run's own rate, no first moment | Transformers | about 0 |
| adamw_8bit | Dettmers et al. 2022 | bitsandbytes | 2 |
| muon | Jordan et al. 2024 for matrices inside the blocks, AdamW for the rest | PyTorch | 4 |
"""

from __future__ import annotations

from typing import Any

import torch

from tunewright.core.config import EngineConfig
from tunewright.core.errors import ConfigError, problem
from tunewright.core.types import Attached


class JoinedOptimizer(torch.optim.Optimizer):
    """Several optimisers as one: their groups side by side, their state in one place, one step."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every part."""
        del closure
        for part in self.parts:
            part.step()


def optimizer_for(engine: EngineConfig, attached: Attached, causal: Any) -> torch.optim.Optimizer:
    """The optimiser of a run: the method's own where it has one, else the one that
    `engine.optimizer` names."""
    wanted = set(attached.parameters)
    named = [(name, p) for name, p in attached.model.named_parameters() if name in wanted]
    own = attached.optimizer
    made: torch.optim.Optimizer = (
        own(engine, named)
        if own
        else make_optimizer(engine, named, attached.rate_factors, tables_of(causal))
    )
    if attached.with_optimizer is not None:
        attached.with_optimizer(engine, made)
    return made


def tables_of(causal: Any) -> set[int]:
    """Identities of the parameters in embeddings and in the output head: matrices that look up or
    classify, and do not transform."""
    places = [
        causal.get_input_embeddings(),
        causal.get_output_embeddings(),
        *(m for m in causal.modules() if isinstance(m, torch.nn.Embedding)),
    ]
    return {id(p) for place in places if place is not None for p in place.parameters()}


def make_optimizer(
    engine: EngineConfig,
    named: list[tuple[str, torch.nn.Parameter]],
    rate_factors: dict[str, float] | None = None,
    tables: set[int] | None = None,
) -> torch.optim.Optimizer:
    """The optimiser that `engine.optimizer` names over the named parameters; vectors (biases,
    norms) are not decayed.

    Parameters in `rate_factors` learn at that multiple of the step's rate. `tables` (identities of
    parameters) are kept from Muon. Raises ConfigError (E-METHOD-08) when a library is missing.
    """
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    for name, p in sorted(named, key=lambda entry: entry[1].ndim <= 1):
        factor, vector = (rate_factors or {}).get(name, 1.0), p.ndim <= 1
        turns = engine.optimizer == "muon" and p.ndim == 2 and id(p) not in (tables or set())
        new = {
            "params": [],
            "weight_decay": 0.0 if vector else engine.weight_decay,
            "rate_factor": factor,
        }
        groups.setdefault((factor, vector, turns), new)["params"].append(p)
    plain = [group for (_, _, turns), group in groups.items() if not turns]
    if engine.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        # Scaling by the size of the weights would leave LoRA's B, which starts at 0, a thousandth
        # of the rate.
        return Adafactor(
            plain, lr=0.0, scale_parameter=False, relative_step=False, warmup_init=False
        )
    moments: dict[str, Any] = {"betas": engine.betas, "eps": engine.epsilon}
    moments = {name: value for name, value in moments.items() if value is not None}
    if engine.optimizer == "adamw_8bit":
        adamw_8bit: torch.optim.Optimizer = _bitsandbytes().optim.AdamW8bit(
            plain, lr=0.0, **moments
        )
        return adamw_8bit
    parts: list[torch.optim.Optimizer] = (
        [torch.optim.AdamW(plain, lr=0.0, **moments)] if plain else []
    )
    turned = [group for (_, _, turns), group in groups.items() if turns]
    if turned:
        # The update of a matrix is brought to the size that AdamW's would have, so one rate suits
        # both parts.
        parts.append(
            torch.optim.Muon(
                turned, lr=0.0, weight_decay=engine.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return parts[0] if len(parts) == 1 else JoinedOptimizer(parts)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as e:
        raise ConfigError(problem("E-METHOD-08", "engine.optimizer")) from e
    return bitsandbytes
