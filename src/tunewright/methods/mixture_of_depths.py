"""Mixture of depths: chosen blocks compute only the tokens that a learnt router picks; the others
pass by on the residual (Raposo et al. 2024, arXiv 2404.02258).

For row i of a sample of S rows, x_i its hidden state before a routed block f(x) + x, n(x) = x /
rms(x), and a capacity c:

    r_i = 1 + w . n(x_i)                                              weight of the router (the
    paper has no 1: a trained block starts at full strength)
    picked: the first row, and of the others the largest r until      of this sample alone, so
    neither padding nor the cut of a step matters
            ceil(c S) are picked
    y_i = x_i + r_i f(picked rows up to i)_i  if i is picked          y_i = x_i  if not

A picked row attends to picked rows only. Which rows are the largest is known only when all rows are
there, so a model that writes cannot route like this. A predictor learns to say it from the row
alone (section 3.5 of the paper, the second way):

    p_i = sigmoid(v . relu(U n(x_i) + b) + a (r_i - t) + d)           with x_i and r_i detached: it
    changes nothing but itself
    t: moving mean of the smallest r that was picked                  so a capacity that falls is
    followed at once
    loss term `predictor`: mean over rows and routed blocks of the binary cross-entropy between p_i
    and "i is picked"

Whenever the model is measured or answers, the rows with p_i > 0.5 are picked, so what is measured
is what answers, with a cache and without; the cache of a routed block holds the picked rows only.
While it learns, the largest are picked for the first `settle` of the steps, as in the paper; from
then on the rows with p_i > 0.5, so that the weights end on the routing with which they will be
used. The predictor learns from the largest to the end, which keeps the capacity. Without that
second phase learning and writing agreed on only 82 to 87 % of the (block, token) decisions of a
small model (docs/LOG.md): one sample has more heavy tokens than another, and every wrong guess
changes the input of the blocks above. a (r_i - t) and the second phase are ours.

The paper trains from scratch. For a model that is already trained three things here keep what it
knows (figures in docs/LOG.md): the first row of a text is always picked, because trained attention
rests on it; the blocks at either end are not routed; and the capacity falls from 1 to c over the
first `ramp` of the steps, from a start at which w = 0 and every row is picked, which is the base
model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tunewright.core.errors import CompatError, ModelError, problem
from tunewright.core.registry import method, usual_rate
from tunewright.core.types import Attached, Model, Needs, Term
from tunewright.core.words import say
from tunewright.methods import saved
from tunewright.methods.base_weights import BaseWeights
from tunewright.methods.depth_routing import Routing, routed_forward, routing_of, watch_mask
from tunewright.methods.targets import MethodSection
from tunewright.models.anatomy import Anatomy
from tunewright.models.anatomy import of as anatomy_of
from tunewright.models.shape import ModelShape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tunewright.methods.layers import Router

NO_MERGE = "which tokens a block computes is decided anew for every text"
ROUTER = "depth_router"
FOLLOW = 0.3
"""How far the edge t moves in one step to the smallest picked weight of that step's samples."""
RECENT = 50
"""Steps over which the agreement of predictor and router is averaged."""


class MixtureOfDepthsConfig(MethodSection):
    """Blocks that compute only the tokens a router picks."""

    capacity: float = Field(default=0.5, gt=0, le=1)
    """Share of a sample's tokens that a routed block computes. The paper trains from scratch with
    0.125; a trained model loses less with more."""
    every: int = Field(default=2, gt=0)
    """Every how many of the blocks between the ends one is routed, never the first of all."""
    ends: float = Field(default=0.1, ge=0, lt=0.5)
    """Share of the blocks at either end of the model that compute every token. 0: as in the paper.
    """
    ramp: float = Field(default=0.4, ge=0, le=1)
    """Share of the steps over which the capacity falls from 1 to `capacity`. 0: at `capacity` from
    the first step on, as in the paper."""
    train: Literal["blocks", "model", "router"] = "blocks"
    """What is trained besides routers and predictors: the routed blocks, the whole model, or
    nothing."""
    settle: float = Field(default=0.5, gt=0, le=1)
    """Share of the steps after which training also routes by the predictor, as answering does. 1:
    never, as in the paper."""
    predictor: int = Field(default=32, gt=0)
    """Width of the predictor."""
    predictor_weight: float = Field(default=0.01, gt=0)
    """Weight of the predictor's loss term, which trains only the predictor."""
    router_rate: float = Field(default=20.0, gt=0)
    """Routers and predictors, which start new, learn at this multiple of the learning rate."""

    trains_base: ClassVar[bool] = True

    def trainable_numbers(self, shape: ModelShape) -> int:
        routed = len(routed_places(self, shape.layers))
        new = routed * ((self.predictor + 1) * (shape.hidden + 1) + self.predictor + 1)
        inside = {
            "router": 0,
            "model": shape.parameters,
            "blocks": routed * (shape.block_weights // shape.layers + 2 * shape.hidden),
        }
        return int(new + inside[self.train])


def routed_places(config: MixtureOfDepthsConfig, blocks: int) -> range:
    """Which of `blocks` blocks are routed. The first counts the rows of the cache for the whole
    model, so it is never among them."""
    ends = int(config.ends * blocks)
    return range(max(1, ends, config.every - 1), blocks - ends, config.every)


def _routed_blocks(config: MixtureOfDepthsConfig, anatomy: Anatomy, model: Model) -> list[str]:
    """Names of the blocks to route. Raises CompatError (E-METHOD-46) for a model whose blocks do
    not all see everything, or with too few blocks."""
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = (
        getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    )
    routed = [anatomy.blocks[i] for i in routed_places(config, len(anatomy.blocks))]
    if kinds != {"full_attention"} or window or not routed:
        raise CompatError(
            problem(
                "E-METHOD-46",
                "method.kind",
                family=anatomy.family,
                kinds=", ".join(sorted(kinds)),
                blocks=len(anatomy.blocks),
            )
        )
    return routed


def load(
    config: MixtureOfDepthsConfig, model: Model, folder: Path, base_path: str, trainable: bool
) -> Attached:
    """The saved routers and weights of `folder` on `model`. Raises ModelError (E-METHOD-42) where
    they do not fit."""
    try:
        attached = mixture_of_depths(
            config, model, anatomy_of(model), base_path or saved.read(folder).base
        )
    except CompatError as e:
        raise ModelError(e.problems) from e
    saved.fill(model, attached.parameters, folder, trainable)
    routing = routing_of(model)
    routing.ramps, routing.capacity = False, config.capacity
    edges = saved.read(folder).more.get("edges", {})
    for name, router in _routers(model).items():
        if name not in edges:
            raise ModelError(
                problem("E-METHOD-41", str(folder), cause=f"no edge of {name} in {saved.OWN}")
            )
        router.edge = float(edges[name])
    if not trainable:
        model.eval()
    return attached


@method(
    "mixture_of_depths",
    MixtureOfDepthsConfig,
    source="arXiv 2404.02258",
    trains="routers that let tokens skip blocks, and those blocks",
    merges=NO_MERGE,
    load=load,
    rate=5e-5,
    one_process=True,
)
def mixture_of_depths(
    config: MixtureOfDepthsConfig, model: Model, anatomy: Anatomy, base_path: str
) -> Attached:
    """Route every `every`-th block of `model`. Routers and predictors train in float32, and so do
    the weights of the base that `train` names."""
    import torch

    from tunewright.methods.layers import Router

    names = _routed_blocks(config, anatomy, model)
    chosen = {"blocks": tuple(f"{name}." for name in names), "model": ("",), "router": ()}[
        config.train
    ]
    inside = [n for n, _ in model.named_parameters() if n.startswith(chosen)] if chosen else []
    routing = Routing(capacity=1.0 if config.ramp else config.capacity)
    reference = next(model.parameters())
    width = int(model.config.get_text_config().hidden_size)
    part = BaseWeights(model, inside, keep=True)
    new: list[str] = []
    for name in names:
        block = model.get_submodule(name)
        router = Router(
            width,
            config.predictor,
            config.ramp > 0,
            reference.device,
            torch.promote_types(part_dtype(part, reference), torch.float32),
        )
        block.add_module(ROUTER, router)
        block.forward = routed_forward(block, router, routing, name)
        new += [f"{name}.{ROUTER}.{n}" for n, _ in router.named_parameters()]
    watch_mask(model, routing)
    vars(model)["depth_routing"] = routing
    parameters = saved.in_order(model, [*inside, *new])
    life = _Lifecycle(config, model, base_path, routing, part, parameters)
    return Attached(
        parameters=parameters,
        model=model,
        needs=Needs(layout="padded", frozen_base=config.train == "router"),
        save=life.save,
        disabled=life.disabled,
        merge=None,
        merge_reason=say("methods.depths_no_merge"),
        penalties=life.penalties,
        begin=life.begin,
        after_update=life.after_update,
        state=life.state,
        load_state=life.load_state,
        learning_rate=usual_rate("mixture_of_depths"),
        rate_factors={name: config.router_rate for name in parameters if name in new},
    )


def _routers(model: Model) -> dict[str, Router]:
    """The routers by the names of their blocks."""
    return {
        name.removesuffix(f".{ROUTER}"): m
        for name, m in model.named_modules()
        if name.endswith(f".{ROUTER}")
    }


def part_dtype(part: BaseWeights, reference: Tensor) -> torch.dtype:
    """The dtype that the model computes in, also where its weights are now held wider."""
    return next(iter(part.dtypes.values()), reference.dtype)


class _Lifecycle:
    """What the engine asks of the method while it trains: the capacity of each step, the routers'
    edges, the loss of their predictors, and what is saved."""

    def __init__(
        self,
        config: MixtureOfDepthsConfig,
        model: Model,
        base_path: str,
        routing: Routing,
        part: BaseWeights,
        parameters: list[str],
    ):
        self.config, self.model, self.base_path = config, model, base_path
        self.routing, self.part, self.parameters = routing, part, parameters
        self.routers = _routers(model)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is its base."""
        self.routing.on = False
        try:
            with self.part.originals():
                yield
        finally:
            self.routing.on = True

    def penalties(self) -> dict[str, Term]:
        """The predictors' loss in the passes since it was last asked for."""
        routing = self.routing
        losses = [loss for loss, _ in routing.pending]
        rows = sum(count for _, count in routing.pending)
        right = sum(count for count, _ in routing.right)
        routing.pending, routing.right = [], []
        if not losses:
            return {}
        routing.agreement = [*routing.agreement, right / rows][-RECENT:]
        return {"predictor": (sum(losses[1:], losses[0]) / rows, self.config.predictor_weight)}

    def begin(self, steps: int) -> None:
        """The run will take so many steps."""
        ramp, settle = self.config.ramp, self.config.settle
        self.routing.ramp_steps = round(ramp * steps) if self.routing.ramps else 0
        self.routing.settle_step = max(1, round(settle * steps)) if settle < 1 else None
        self._move(0)

    def after_update(self, number: int) -> None:
        """Let the edges follow what was picked in step `number`."""
        for name, (total, count) in self.routing.edges.items():
            if count:
                router = self.routers[name]
                router.edge += FOLLOW * (total / count - router.edge)
        self.routing.edges = {}
        self._move(number)

    def _move(self, updates: int) -> None:
        """Take the capacity and the way of routing that the step after `updates` updates has."""
        routing = self.routing
        done = min(1.0, updates / routing.ramp_steps) if routing.ramp_steps else 1.0
        routing.updates = updates
        routing.capacity = 1 + (self.config.capacity - 1) * done
        routing.settled = routing.settle_step is not None and updates >= routing.settle_step

    def edges(self) -> dict[str, float]:
        """The edge of each router."""
        return {name: router.edge for name, router in self.routers.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides weights."""
        routing = self.routing
        told = {"agreement": routing.agreement, "updates": routing.updates}
        return {**told, "edges": self.edges()}

    def load_state(self, given: dict[str, Any]) -> None:
        """Take up `state`."""
        self.routing.agreement = [float(share) for share in given["agreement"]]
        for name, edge in given["edges"].items():
            self.routers[name].edge = float(edge)
        self._move(int(given["updates"]))

    def save(self, folder: Path) -> None:
        """Write the trained weights, the edges and how often the predictors were right."""
        agreed = self.routing.agreement
        saved.write(
            folder,
            "mixture_of_depths",
            self.config,
            self.base_path,
            saved.tensors_of(self.model, self.parameters),
            predictor_agreement=sum(agreed) / len(agreed) if agreed else None,
            edges=self.edges(),
        )
