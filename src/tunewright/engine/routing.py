"""What the routers of a mixture of experts decide while a run learns: the load-balancing loss as a
term of its own, and which experts its tokens visit.

The loss is the model's own (Switch Transformer, Fedus et al. 2021, equations 4 to 6, as
Transformers computes it over all layers at once): experts x sum over experts of (share of tokens
that visit e) x (mean probability of e). A row of the token tree counts as often as there are
samples that share it, and padding counts for nothing, so that a pass gives what the model gives on
the same samples one by one. Its denominator is the tokens of the step, not the learnt ones: each
pass weighs as much as the tokens that it holds.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunewright.core.errors import CompatError, problem
from tunewright.core.types import Sample, Term, TokenTree
from tunewright.engine.tree import rows_of_branches
from tunewright.models import anatomy
from tunewright.models.load import size_of

TERM = "balance"
USUAL = 0.001
"""Weight where a configuration states none, as Mixtral's and Qwen3-MoE's do."""
PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")


def has_experts(causal: Any) -> bool:
    """Whether the blocks of a causal model choose among experts."""
    return any(role.startswith("experts.") for role in anatomy.of(causal).roles)


def weight_of(asked: float | str | None, causal: Any) -> float | None:
    """The weight of the load-balancing loss that `engine.balance` asks for."""
    if asked != "auto":
        return None if asked is None else float(asked)
    stated = getattr(causal.config.get_text_config(), "router_aux_loss_coef", None)
    return float(stated) if isinstance(stated, float) and stated > 0 else USUAL


def watching(causal: Any, asked: float | str | None) -> Routing | None:
    """What watches the routers of a model, None where it has no experts. Raises CompatError
    (E-COMPAT-91) where a balancing loss is asked for all the same."""
    if has_experts(causal):
        return Routing(causal, weight_of(asked, causal))
    if asked is not None:
        family = causal.config.get_text_config().model_type
        raise CompatError(problem("E-COMPAT-91", "engine.balance", family=family))
    return None


@dataclass
class Routing:
    """Watches the routers of `causal` during passes. `weight`: of the load-balancing loss, None
    where it is no part of the loss."""

    causal: Any
    weight: float | None = None
    visits: dict[str, Tensor] = field(default_factory=dict)
    """For each layer of experts, (experts,) tokens that visited it."""
    _rows: Tensor | None = None
    """(T,) how many samples have each row of the pass that runs."""
    _read: tuple[frozenset[int], Tensor | None] = (frozenset(), None)
    """Modules of the last block, and the rows that alone are right in it; None: all."""
    _logits: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises CompatError (E-COMPAT-90) for a balancing loss of a family that has none."""
        self.experts = [
            (name, module)
            for name, module in self.causal.named_modules()
            if hasattr(module, "num_experts") and "Experts" in type(module).__name__
        ]
        for name, module in self.experts:
            module.register_forward_pre_hook(self._counts(name))
        if self.weight is None:
            return
        kind, index = _recorded(self.causal)
        for module in self.causal.modules():
            if type(module) is kind:
                module.register_forward_hook(self._keeps(index))

    def _counts(self, name: str) -> Any:
        def seen(module: Any, given: tuple[Any, ...]) -> None:
            if self._rows is None or len(given) < 2 or given[1].dtype.is_floating_point:
                return
            chosen_TK = given[1].reshape(-1, given[1].shape[-1])
            if len(chosen_TK) != len(self._rows):
                return
            rows_T, (last, read) = self._rows, self._read
            if read is not None and id(module) in last:
                rows_T = torch.zeros_like(rows_T).index_copy(0, read, rows_T[read])
            weight = rows_T[:, None].expand(chosen_TK.shape).reshape(-1).double()
            count = int(module.num_experts)
            found = torch.bincount(chosen_TK.reshape(-1), weight, count)[:count].cpu()
            before = self.visits.get(name)
            self.visits[name] = found if before is None else before + found

        return seen

    def _keeps(self, index: int) -> Any:
        def seen(module: Any, given: Any, out: Any) -> None:
            logits = out[index] if isinstance(out, tuple) else out
            if self._rows is not None and torch.is_grad_enabled():
                self._logits.append(logits.reshape(-1, logits.shape[-1]))

        return seen

    def begin(
        self, rows_T: Tensor, last: frozenset[int] = frozenset(), read: Tensor | None = None
    ) -> None:
        """A pass over rows begins, each of which stands for so many samples; 0 for padding. In the
        modules `last` only the rows `read` are right."""
        self._rows, self._logits, self._read = rows_T, [], (last, read)

    def terms(self) -> dict[str, Term]:
        """The load-balancing loss of the pass that is over times its tokens, with its weight."""
        kept, self._logits = self._logits, []
        rows_T, self._rows = self._rows, None
        if self.weight is None or not kept or rows_T is None:
            return {}
        chosen = size_of(self.causal.config.get_text_config(), *PER_TOKEN) or 2
        loss = balancing_loss(kept, rows_T, chosen)
        return {TERM: (loss * rows_T.sum(), self.weight)}

    def state(self) -> dict[str, list[float]]:
        """The visits so far, for a checkpoint."""
        return {name: counts.tolist() for name, counts in self.visits.items()}

    def load_state(self, state: dict[str, list[float]]) -> None:
        """The inverse of `state`."""
        self.visits = {n: torch.tensor(c, dtype=torch.float64) for n, c in state.items()}

    def found(self) -> dict[str, Any] | None:
        """What a report says of the visits: layers, experts, the largest share of one expert, and
        who was never visited. None where nothing was counted."""
        shares = [float(v.max() / v.sum()) for v in self.visits.values() if float(v.sum())]
        if not shares:
            return None
        return {
            "layers": len(self.visits),
            "experts": max(len(v) for v in self.visits.values()),
            "largest_share": max(shares),
            "unseen": self.unseen(),
        }

    def unseen(self) -> dict[str, list[int]]:
        """For each layer of experts, those that no token visited; layers of which all were visited
        are left out."""
        found = {n: (v == 0).nonzero().flatten().tolist() for n, v in self.visits.items()}
        return {name: experts for name, experts in found.items() if experts}


def balancing_loss(logits: list[Tensor], rows_T: Tensor, chosen: int) -> Tensor:
    """The load-balancing loss of all layers together: `logits` (T, E) of each, `rows_T` how often
    each row counts, `chosen` experts a token visits. A scalar."""
    weight_T = rows_T.to(torch.float32)
    visits_E = probability_E = None
    for layer_TE in logits:
        share_TE = torch.softmax(layer_TE, -1)
        top_TK = torch.topk(share_TE, chosen, -1).indices
        count_E = torch.zeros(share_TE.shape[1], device=share_TE.device).scatter_add_(
            0, top_TK.reshape(-1), weight_T.repeat_interleave(chosen)
        )
        sum_E = (share_TE.float() * weight_T[:, None]).sum(0)
        visits_E = count_E if visits_E is None else visits_E + count_E
        probability_E = sum_E if probability_E is None else probability_E + sum_E
    assert visits_E is not None and probability_E is not None
    total = weight_T.sum() * len(logits)
    return (visits_E / total * probability_E / total).sum() * len(visits_E)


def tokens_of(samples: list[Sample]) -> float:
    """The denominator of the loss for a step: all tokens of its samples."""
    return float(sum(len(b.tokens) for s in samples for b in s.branches))


def shared_by(tree: TokenTree, before: int = 0) -> list[int]:
    """How many branches have each row of a tree; 0 for `before` rows in front (a learnt prompt)."""
    counts = [0] * tree.num_rows
    for rows in rows_of_branches(tree, shared=True):
        for row in rows:
            counts[row] += 1
    return [0] * before + counts


def _recorded(causal: Any) -> tuple[type[Any], int]:
    """(class of the routers, place of the logits in what they return), as Transformers records them
    for the loss of its own. Raises CompatError where there is none."""
    home = sys.modules.get(type(causal).__module__)
    for module in causal.modules():
        found = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits")
        if found is not None and hasattr(home, "load_balancing_loss_func"):
            return found.target_class, int(found.index)
    raise CompatError(
        problem("E-COMPAT-90", "engine.balance", family=causal.config.get_text_config().model_type)
    )
