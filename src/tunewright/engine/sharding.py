"""Weights in shares: each process holds a part of every parameter, its gradient and its optimiser
state (Rajbhandari et al. 2020, arXiv 1910.02054), through PyTorch's FSDP2 (`fully_shard`).

A block's weights are put together when it computes and let go afterwards; what lies outside the
blocks (embedding, last norm, head, learnt prompts) belongs to the root, which is the `Policy`. The
gradient is the SUM over the ranks, as without shares: the step's weights have divided it already.
FSDP leaves the mean, which `Ranks.sum_gradients` multiplies (another factor asks for a reduction
that gloo does not have).
Names of parameters stay, so that a method's list of what trains, checkpoints and saved files know
nothing of shares; objects do not stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunewright.core.machine import return_large_blocks
from tunewright.engine import ranks
from tunewright.engine.activation_cache import blocks_of
from tunewright.models.load import room_of

if TYPE_CHECKING:
    from tunewright.engine.policy import Policy


def shard(policy: Policy, device: str, *, hybrid: bool = False, offload: bool = False) -> None:
    """Put the weights of `policy` in shares on the ranks. `hybrid`: whole between machines; to
    `offload` keeps the shares in the machine's memory. Before an optimiser is made."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    team = ranks.current()
    assert team.place is not None
    kind = device.split(":")[0]
    inside = team.place.local_world
    if hybrid and 1 < inside < team.world:
        shape, names = (team.world // inside, inside), ("between", "inside")
    else:
        shape, names = (team.world,), ("inside",)  # type: ignore[assignment]
    how: dict[str, Any] = {"mesh": init_device_mesh(kind, shape, mesh_dim_names=names)}
    if offload:
        how["offload_policy"] = CPUOffloadPolicy(pin_memory=kind == "cuda")
    if kind == "cpu":
        return_large_blocks()
    # From the machine's memory, where they were read, weights go to a GPU a block at a time.
    for block in blocks_of(policy.causal[0]):
        fully_shard(block, **how)
    fully_shard(policy, **how)
    policy.computes_on = torch.device(device)
    policy.register_forward_hook(_let_go)
    team.sharded = True


def _let_go(policy: Any, given: Any, output: Any) -> None:
    """After a pass without gradient, let go what FSDP keeps for a backward pass: whoever looks at
    the parameters then finds the shares."""
    if not torch.is_grad_enabled() and not ranks.current().together:
        policy.reshard()


def parts_of(policy: Policy) -> list[Any]:
    """The modules whose weights are put together at once."""
    from torch.distributed.fsdp import FSDPModule

    return [module for module in policy.modules() if isinstance(module, FSDPModule)]


@contextlib.contextmanager
def together(policy: Policy) -> Iterator[None]:
    """Inside, every rank holds the whole model and computes with it without the others. All ranks
    must come here."""
    if not ranks.current().sharded:
        yield
        return
    parts, team = parts_of(policy), ranks.current()
    team.together = True
    for part in parts:
        part._get_fsdp_state()._lazy_init()
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        team.together = False
        for part in parts:
            part.set_reshard_after_forward(part is not policy, recurse=False)
            part.reshard()


def room(policy: Policy) -> int | None:
    """Tokens that question and answer may have together (`models.load.room_of`). All ranks must
    come here: a learnt prompt lies in shares."""
    with together(policy):
        return room_of(policy.causal[0], policy.model)


def rest(policy: Policy) -> None:
    """Let go what is put together and not needed now."""
    if ranks.current().sharded:
        for part in parts_of(policy):
            part.reshard()


@contextlib.contextmanager
def whole_on_first(policy: Policy) -> Iterator[None]:
    """Inside, rank 0 holds every parameter whole in the machine's memory, gathered one at a time,
    to be saved. All ranks must come here."""
    if not ranks.current().sharded:
        yield
        return
    rest(policy)
    places = [
        (module, name, p)
        for module in policy.modules()
        for name, p in module._parameters.items()
        if p is not None
    ]
    made: dict[int, Any] = {}
    for _, _, p in places:
        if id(p) not in made:
            full = whole(p.detach())
            made[id(p)] = (
                torch.nn.Parameter(full.cpu(), requires_grad=p.requires_grad)
                if ranks.current().is_first
                else None
            )
    first = ranks.current().is_first
    try:
        if first:
            for module, name, p in places:
                module._parameters[name] = made[id(p)]
        yield
    finally:
        if first:
            for module, name, p in places:
                module._parameters[name] = p
        ranks.current().wait()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that lies in shares as one; any other as it is."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def local(tensor: Tensor) -> Tensor:
    """The share of this rank; any other tensor as it is."""
    own = getattr(tensor, "to_local", None)
    return own() if own is not None else tensor


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is finite, on all ranks."""
    good = all(bool(torch.isfinite(local(one)).all()) for one in tensors)
    return all(ranks.current().gather(good)) if ranks.current().sharded else good


def put(p: Tensor, full: Tensor) -> None:
    """Copy a whole tensor into a parameter, of which this rank may hold a share."""
    p.copy_(like(p, full) if hasattr(p, "to_local") else full)


def like(p: Tensor, full: Tensor) -> Tensor:
    """A whole tensor, placed as the parameter `p` is: on its device, and in shares where `p` is."""
    if not hasattr(p, "to_local") or full.shape != p.shape:
        return full.to(p.device)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = p.device_mesh, p.placements  # type: ignore[attr-defined]
    return distribute_tensor(full.to(mesh.device_type), mesh, placements, src_data_rank=None)
