"""LoRA on experts: the tensors that hold one matrix for each expert, and the routers before them.

The layers are PEFT's (`target_parameters`, its ParamWrapper): W_e + s B_e A_e for every expert e.
An expert sees only its share of the tokens, so it gets a share of the rank: the rank divided by the
experts that a token visits (Schulman et al. 2025, "LoRA Without Regret"). A token then passes as
many trained numbers as in a dense layer; in all, more train, because experts are many.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.errors import CompatError, problem, raise_all
from tunewright.core.types import Attached, Model
from tunewright.core.words import say
from tunewright.methods.targets import LowRankSection, Ranks, tensor_of
from tunewright.models.anatomy import Anatomy
from tunewright.models.load import size_of

PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")


def per_token(config: Any) -> int:
    """Experts that a token visits, as a model's configuration says; 1 where it says nothing."""
    return size_of(config.get_text_config(), *PER_TOKEN) or 1


def rank_of(config: LowRankSection, model: Model) -> int:
    """The rank of one expert's update."""
    return config.expert_rank or max(1, config.rank // per_token(model.config))


def require(
    config: LowRankSection, names: list[str], anatomy: Anatomy, start: str, *, dora: bool
) -> None:
    """Raise CompatError for what PEFT has no form of on tensors, and for a rank of experts where
    none is chosen. `start`: PiSSA or another start than zero, by name."""
    tensors = [name for name in names if name in anatomy.parameters]
    wrong = []
    if config.expert_rank is not None and not any("expert" in name for name in tensors):
        wrong.append(problem("E-METHOD-91", "method.expert_rank", value=config.expert_rank))
    if tensors and start:
        wrong.append(problem("E-METHOD-77", "method.targets", start=start, module=tensors[0]))
    for what in ("DoRA" if dora else "", "dropout" if config.dropout else ""):
        if tensors and what:
            wrong.append(problem("E-METHOD-90", "method.targets", what=what, module=tensors[0]))
    raise_all(wrong, CompatError)


def short_names(names: list[str], anatomy: Anatomy) -> list[str]:
    """The tensors of `names` as PEFT is told them: ends of names where these choose no other."""
    tensors = [name for name in names if name in anatomy.parameters]
    ends = {".".join(name.split(".")[-2:]) for name in tensors}
    matched = {name for name in anatomy.parameters if any(name.endswith(f".{e}") for e in ends)}
    return sorted(ends) if matched == set(tensors) else sorted(tensors)


def told(attached: Attached, ranks: Ranks, config: LowRankSection, model: Model) -> Attached:
    """Say what each expert got."""
    if not ranks.experts:
        return attached
    causal = getattr(model, "get_base_model", lambda: model)()
    count = numbers = 0
    for name, rank in ranks.experts.items():
        parent, _, own = name.rpartition(".")
        tensor = tensor_of(causal, name)
        if tensor is None:  # PEFT has put its layers around the module
            tensor = _inside(causal.get_submodule(parent), own)
        count = max(count, int(tensor.shape[0]))
        numbers += int(tensor.shape[0]) * rank * int(tensor.shape[1] + tensor.shape[2])
    attached.notes.append(
        say(
            "methods.expert_rank",
            rank=max(ranks.experts.values()),
            count=count,
            visits=per_token(causal.config),
            whole=config.rank,
            numbers=f"{numbers:,}",
        )
    )
    return attached


def _inside(module: Any, own: str) -> Any:
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module._parameters[own]
