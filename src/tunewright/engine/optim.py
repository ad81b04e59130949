"""The update rules, from kept libraries.

| `engine.optimizer` | rule | whose | state, bytes a number |
| adamw | Loshchilov and Hutter 2019 | PyTorch | 8 |
| adafactor | Shazeer and Stern 2018, the run's own rate, no first moment | Transformers | about 0 |
| adamw_8bit | Dettmers et al. 2022 | bitsandbytes | 2 |
| muon | Jordan et al. 2024 for matrices inside the blocks, AdamW for the rest | PyTorch | 4 |
| lion | Chen et al. 2023, the sign of a momentum | `update_rules.py` | 4 |
| adamw_schedule_free | Defazio et al. 2024: a mean, no falling rate | `update_rules.py` | 8 |
| adam_mini | Zhang et al. 2024, one second moment a row or head | `update_rules.py` | 4 |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tunewright.core.config import EngineConfig
from tunewright.core.errors import ConfigError, problem
from tunewright.core.types import Attached
from tunewright.engine.rates import factors
from tunewright.engine.update_rules import EACH, WHOLE, AdamMini, Lion, ScheduleFreeAdamW
from tunewright.models.load import size_of


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


LION_RATE = 0.2
"""Of the rate that suits AdamW, what suits Lion, whose every update has the full size: its authors
say a third to a tenth."""


@dataclass(frozen=True)
class Places:
    """What some rules must know of where a parameter stands, by the identity of the parameter."""

    tables: set[int] = field(default_factory=set)
    """Parameters of embeddings and the output head."""
    rows: Mapping[int, int] = field(default_factory=dict)
    """Rows of one attention head, of the matrices that make queries and keys."""


def optimizer_for(
    engine: EngineConfig,
    attached: Attached,
    causal: Any,
    roles: Mapping[str, list[str]] | None = None,
) -> torch.optim.Optimizer:
    """The optimiser of a run: the method's own where it has one, else the one that
    `engine.optimizer` names. `roles` are those of the model's anatomy, before anything was put on
    it. Raises ConfigError for a library that is missing and CompatError for a part in
    `engine.rates` that does not train."""
    wanted = set(attached.parameters)
    named = [(name, p) for name, p in attached.model.named_parameters() if name in wanted]
    own, roles = attached.optimizer, roles or {}
    if engine.rates:
        attached.rate_factors = factors(
            engine.rates, [name for name, _ in named], roles, attached.rate_factors
        )
    heads = heads_of(causal, roles) if engine.optimizer == "adam_mini" else {}
    places = Places(tables_of(causal), heads)
    made: torch.optim.Optimizer = (
        own(engine, named) if own else make_optimizer(engine, named, attached.rate_factors, places)
    )
    if attached.with_optimizer is not None:
        attached.with_optimizer(engine, made)
    return made


def heads_of(causal: Any, roles: Mapping[str, list[str]]) -> dict[int, int]:
    """Identity of every weight that makes queries or keys -> rows of one head."""
    config, found = causal.config.get_text_config(), {}
    usual = size_of(config, "head_dim")
    if not usual:
        usual = size_of(config, "hidden_size") // (size_of(config, "num_attention_heads") or 1)
    modules = dict(causal.named_modules())
    for name in [*roles.get("attention.query", []), *roles.get("attention.key", [])]:
        weight = getattr(modules.get(name), "weight", None)
        # Layers may have heads of different sizes.
        size = getattr(modules.get(name.rpartition(".")[0]), "head_dim", None) or usual
        if isinstance(weight, torch.nn.Parameter) and size and weight.shape[0] % int(size) == 0:
            found[id(weight)] = int(size)
    return found


def averages(optimizer: torch.optim.Optimizer) -> list[ScheduleFreeAdamW]:
    """The parts of an optimiser that hand out other weights than they learn with."""
    inner = getattr(optimizer, "inner", None)
    if inner is not None:  # its state lies elsewhere: it is the one that can be asked
        return [optimizer] if averages(inner) else []  # type: ignore[list-item]
    parts = optimizer.parts if isinstance(optimizer, JoinedOptimizer) else [optimizer]
    return [part for part in parts if isinstance(part, ScheduleFreeAdamW)]


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
    places: Places | None = None,
) -> torch.optim.Optimizer:
    """The optimiser that `engine.optimizer` names over the named parameters; vectors (biases,
    norms) are not decayed.

    Parameters in `rate_factors` learn at that multiple of the step's rate. Raises ConfigError
    (E-METHOD-08) when a library is missing.
    """
    places = places or Places()
    groups: dict[tuple[float, bool, bool, int], dict[str, Any]] = {}
    for name, p in sorted(named, key=lambda entry: entry[1].ndim <= 1):
        factor, vector = (rate_factors or {}).get(name, 1.0), p.ndim <= 1
        turns = engine.optimizer == "muon" and p.ndim == 2 and id(p) not in places.tables
        rows = _rows_of_block(name, p, places) if engine.optimizer == "adam_mini" else 0
        new = {
            "params": [],
            "weight_decay": 0.0 if vector else engine.weight_decay,
            "rate_factor": factor,
            **({"rows": rows} if engine.optimizer == "adam_mini" else {}),
        }
        groups.setdefault((factor, vector, turns, rows), new)["params"].append(p)
    plain = [group for (_, _, turns, _), group in groups.items() if not turns]
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
    if engine.optimizer == "lion":
        return Lion(plain, **({"betas": engine.betas} if engine.betas else {}))
    if engine.optimizer == "adamw_schedule_free":
        return ScheduleFreeAdamW(plain, **moments)
    if engine.optimizer == "adam_mini":
        return AdamMini(plain, **moments)
    parts: list[torch.optim.Optimizer] = (
        [torch.optim.AdamW(plain, lr=0.0, **moments)] if plain else []
    )
    turned = [group for (_, _, turns, _), group in groups.items() if turns]
    if turned:
        # The update of a matrix is brought to the size that AdamW's would have, so one rate suits
        # both parts.
        parts.append(
            torch.optim.Muon(
                turned, lr=0.0, weight_decay=engine.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return parts[0] if len(parts) == 1 else JoinedOptimizer(parts)


def _rows_of_block(name: str, p: torch.nn.Parameter, places: Places) -> int:
    """Rows that share one second moment of Adam-mini: a head of queries or keys, else one output
    neuron or token; a norm is one block, a bias none."""
    if p.ndim <= 1:
        return EACH if name.endswith("bias") else WHOLE
    return places.rows.get(id(p), 1)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as e:
        raise ConfigError(problem("E-METHOD-08", "engine.optimizer")) from e
    return bitsandbytes
