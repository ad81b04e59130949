"""LISA: embedding, head and a few blocks drawn at random are trained, and the blocks are drawn
again every few steps (Pan et al. 2024, arXiv 2403.17919).

For a model of L blocks, `blocks` awake at a time, and the update t:

    period p = t // every
    awake(p) = `blocks` of the L blocks, each equally likely, drawn from the run's seed and p
    what is awake, the embedding, the head and the last norm learn; all other blocks stand still

A block that falls asleep loses its gradient and its optimiser state; when it wakes it starts with a
fresh one, as in the paper. So gradients, moments and float32 copies exist for the awake part only.
In half precision a sleeping block is held in the model's dtype: what it learnt in float32 is
rounded to one of the two neighbours by lot, so that small moves are kept on average, where rounding
to the nearest would lose them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tunewright.core.config import EngineConfig
from tunewright.core.errors import ModelError, problem
from tunewright.core.registry import method, usual_rate
from tunewright.core.seeds import stream, stream_seed
from tunewright.core.types import Attached, Model
from tunewright.methods.base_weights import HALF, BaseWeights
from tunewright.methods.selecting import attach_whole_part
from tunewright.methods.targets import MethodSection
from tunewright.models.anatomy import Anatomy
from tunewright.models.shape import ModelShape

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

LEAST_EVERY, PERIODS = 5, 50
"""`every: auto`: the run is cut into so many periods, none shorter than this, because Adam's
moments start anew in each."""


class LisaConfig(MethodSection):
    """Embedding, head and a few blocks at a time train; which ones is drawn again and again."""

    blocks: int = Field(default=2, gt=0)
    """How many blocks are trained at a time."""
    every: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Updates after which the blocks are drawn again. `auto`: a fiftieth of the run, at least 5."""

    trains_base: ClassVar[bool] = True

    def trainable_numbers(self, shape: ModelShape) -> int:
        """Numbers that train at a time in a model of this shape, before it is loaded."""
        tables = shape.head_weights * (1 if shape.tied else 2) + shape.hidden
        return int(
            tables
            + min(self.blocks, shape.layers)
            * (shape.block_weights // shape.layers + 2 * shape.hidden)
        )


class BlockDraws:
    """Which blocks are awake. `blocks` holds for each block its parameters by name."""

    def __init__(self, part: BaseWeights, blocks: list[dict[str, nn.Parameter]], count: int):
        self.part, self.blocks, self.count = part, blocks, count
        self.every, self.seed, self.updates = 1, 0, 0
        self.optimizer: Optimizer | None = None

    def drawn(self, period: int) -> list[int]:
        """Numbers of the blocks that are awake in a period."""
        return sorted(stream(self.seed, "lisa", period).sample(range(len(self.blocks)), self.count))

    def move(self, updates: int) -> None:
        """Take the state that the update after `updates` updates has."""
        self.updates = updates
        period = updates // self.every
        awake = set(self.drawn(period))
        for number, parameters in enumerate(self.blocks):
            for place, (name, p) in enumerate(parameters.items()):
                if number in awake:
                    self._wake(p)
                else:
                    self._sleep(
                        name, p, stream_seed(self.seed, "lisa-rounding", period, number, place)
                    )

    def _wake(self, p: nn.Parameter) -> None:
        if str(p.dtype) in HALF:
            p.data = p.data.float()
        p.requires_grad_(True)

    def _sleep(self, name: str, p: nn.Parameter, seed: int) -> None:
        p.requires_grad_(False)
        p.grad = None
        if self.optimizer is not None:
            self.optimizer.state.pop(p, None)
        wanted = self.part.dtypes[name]
        if p.dtype != wanted:
            p.data = rounded_by_lot(p.data, wanted, seed)


def rounded_by_lot(values: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """float32 values in a half-precision type, each rounded to a neighbour with a chance by its
    nearness, so that the expected value is the value.

    What the type holds exactly stays as it is.
    """
    import torch

    near = values.to(dtype)
    lost = values - near.float()
    # The neighbour on the other side of the value: one step of the type up or down from the
    # nearest.
    other = torch.nextafter(near, torch.where(lost > 0, torch.inf, -torch.inf).to(dtype))
    step = (other.float() - near.float()).abs()
    share = torch.where((lost != 0) & step.isfinite(), lost.abs() / step, torch.zeros_like(step))
    draw = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)).to(values.device)
    return torch.where(draw < share, other, near)


@method(
    "lisa",
    LisaConfig,
    source="arXiv 2403.17919",
    trains="embedding, head and a few blocks at a time, drawn by lot",
    leaves="model",
    rate=1e-4,
)
def lisa(config: LisaConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Train the embedding, the head and a few blocks at a time. Raises ModelError (E-METHOD-02) for
    more blocks than the model has."""
    if config.blocks > len(anatomy.blocks):
        raise ModelError(
            problem("E-METHOD-02", "method.blocks", blocks=config.blocks, there=len(anatomy.blocks))
        )
    names = {id(p): name for name, p in model.named_parameters()}
    blocks = [
        {names[id(p)]: p for p in model.get_submodule(block).parameters()}
        for block in anatomy.blocks
    ]
    # All blocks sleep at first, so that the float32 of the whole model never exists.
    part = BaseWeights(
        model, list(names.values()), keep=False, asleep={name for block in blocks for name in block}
    )
    draws = BlockDraws(part, blocks, config.blocks)
    attached = attach_whole_part(part, usual_rate("lisa"))

    def begin(steps: int) -> None:
        draws.every = max(LEAST_EVERY, steps // PERIODS) if config.every == "auto" else config.every
        draws.move(0)

    def with_optimizer(engine: EngineConfig, optimizer: Optimizer) -> None:
        draws.seed, draws.optimizer = engine.seed, optimizer
        draws.move(draws.updates)

    attached.begin, attached.with_optimizer, attached.after_update = (
        begin,
        with_optimizer,
        draws.move,
    )
    attached.state = lambda: {"updates": draws.updates}
    attached.load_state = lambda state: draws.move(int(state["updates"]))
    return attached
