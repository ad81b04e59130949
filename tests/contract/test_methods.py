"""What every method promises, asked of every registered kind on five shapes of model. A kind
without a row here fails the suite.

To add a kind: one `Row` in ROWS. `sign` says how the kind is told from every other one by looking
at what it put on a model, so that a name registered for the wrong method fails; the other fields
say what the kind promises and where it does not promise (with the reason in words).
"""

from __future__ import annotations

import copy
import functools
import json
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from asked import OUTSIDE, names, rows
from helpers import tiny

from tunewright.bench.certificate import distance
from tunewright.core.config import BaseConfig, EngineConfig
from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.core.types import Attached, Sample
from tunewright.engine import recompute
from tunewright.models import anatomy
from tunewright.models.load import load_model, stock_attention

FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gpt2"]
WITH_NORMS = ("lora", "ia3", "prefix_tuning", "houlsby", "full", "norms")
"""One of each family of methods: they are put each time on matrices that lie the other way round
(GPT-2) and beside norms of heads (Qwen3), too. `thorough`: every kind on every family."""
IDS = torch.tensor(
    [[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3], [6, 6, 44, 100, 2, 1, 19, 55, 21, 60, 200]]
)
STEPS = 6
"""Steps of the runs here: methods with a schedule of their own are told so."""


@dataclass
class Case:
    """One kind on one shape, freshly attached. `before` holds the tensors of the untouched model,
    `start` what trains, `rest` everything else."""

    kind: str
    family: str
    causal: Any
    attached: Attached
    before: dict[str, torch.Tensor]
    start: dict[str, torch.Tensor]
    rest: dict[str, torch.Tensor]
    base_logits: torch.Tensor
    start_logits: torch.Tensor | None = None

    @property
    def model(self) -> Any:
        return self.attached.model

    @property
    def layout(self) -> str:
        return "tree" if self.attached.needs.layout == "any" else "padded"

    def logits(self, model: Any = None) -> torch.Tensor:
        """Through stock attention, without gradient, in eval mode."""
        model = model or self.model
        use_stock(self.causal)
        model.eval()
        with torch.no_grad():
            return model(input_ids=IDS, use_cache=False).logits[
                :, -IDS.shape[1] :
            ]  # a learnt prompt may bring rows of its own

    def module(self, part: str) -> Any:
        """The first module that has an attribute `part`."""
        return next(
            (
                m
                for m in self.model.modules()
                if part in (*vars(m), *getattr(m, "_modules", {}), *getattr(m, "_parameters", {}))
            ),
            None,
        )

    def tails(self) -> set[str]:
        """What the trained parameters are called, without the path and PEFT's name of the adapter."""
        return {
            [part for part in name.split(".") if part not in ("default", "weight", "bias")][-1]
            for name in self.attached.parameters
        }


@dataclass(frozen=True)
class Row:
    """What one kind promises."""

    sign: Callable[[Case], bool]
    """True for this kind and for no other, read off the tiny Qwen2 it was just put on."""
    config: dict[str, Any] = field(default_factory=dict)
    identity: float | None = 0.0
    """Largest difference to the base's logits at step 0 as a share of the largest logit; None: the
    paper promises none."""
    disabled: bool = True
    """`disabled()` gives the base's logits bitwise; False: it is None and says why."""
    merges: bool = True
    """`merge` gives plain weights with the same logits; False: it is None and says why."""
    refused: dict[str, str] = field(default_factory=dict)
    """Family -> code of the error with which it is refused."""
    rate: float = 2e-2
    """A rate at which a tiny model learns 8 rows."""
    learns: int | None = 80
    """Steps after which it has learnt 8 rows to a loss under 0.1; None: it has not the capacity,
    and `why` says so."""
    why: str = ""
    spread: float = 0.05
    """Noise on what trains, so that no gradient is zero."""
    bits: int | None = None
    """It needs a base in this many bits."""
    grows: bool = False
    """The result is a larger plain model than the base."""


def lora_scale(case: Case) -> float:
    """What the product of A and B is multiplied by."""
    layer = case.module("lora_A")
    return (
        float(layer.scaling["default"])
        if layer is not None and isinstance(getattr(layer, "scaling", None), dict)
        else float("nan")
    )


def is_plain_lora(case: Case) -> bool:
    """A drawn, B zero, nothing else, on untouched base weights, every parameter at one rate."""
    zero = all(bool((p == 0).all()) == (".lora_B." in name) for name, p in case.start.items())
    same = all(
        torch.equal(case.rest[name], case.before[plain_name(name)])
        for name in case.rest
        if plain_name(name) in case.before
    )
    return (
        case.tails() == {"lora_A", "lora_B"}
        and zero
        and same
        and lora_scale(case) == 2.0
        and not case.attached.rate_factors
    )


def adapters(case: Case) -> tuple[set[str], int, float, bool]:
    """(where bottleneck adapters stand in a block, width of the waist, scale, whether they read
    what their module reads)."""
    parts = {
        n.rpartition(".")[2]: m
        for n, m in case.model.named_modules()
        if n.rpartition(".")[2].startswith("adapter_")
    }
    if not parts or not all(hasattr(m, "down") and hasattr(m, "up") for m in parts.values()):
        return set(), 0, 0.0, False
    first = next(iter(parts.values()))
    hooked = [m for m in case.model.modules() if m._forward_hooks]
    return (
        set(parts),
        first.down.shape[0],
        first.scale,
        not any(hasattr(m, "in_features") for m in hooked),
    )


def only(case: Case, part: str) -> bool:
    """Weights of the model itself train, namely all those with `part` in their names, and nothing
    was put on it."""
    return set(case.before) == {*case.start, *case.rest} and case.attached.parameters == [
        n for n, _ in case.causal.named_parameters() if part in n
    ]


def updates(case: Case) -> tuple[str, Any] | None:
    """(the class of the method's own optimiser, how its first group scales); None where the run's
    optimiser serves."""
    if case.attached.optimizer is None:
        return None
    made = case.attached.optimizer(
        EngineConfig(), [(n, p) for n, p in case.causal.named_parameters() if n in case.start]
    )
    return type(made).__name__, made.param_groups[0].get("scaling")


def has(*tails: str) -> Callable[[Case], bool]:
    """Told by the names of what trains alone."""
    return lambda case: case.tails() == set(tails)


def is_rslora(case: Case) -> bool:
    return case.tails() == {"lora_A", "lora_B"} and lora_scale(case) == 8 / 4**0.5


def is_lora_plus(case: Case) -> bool:
    b = {name for name in case.start if ".lora_B." in name}
    return case.tails() == {"lora_A", "lora_B"} and case.attached.rate_factors == dict.fromkeys(
        b, 16.0
    )


def started(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """(A, B, W) of a query projection whose A and B start as parts of W."""
    name = next((n for n in case.start if n.endswith("q_proj.lora_A.default.trained")), None)
    if name is None:
        return None
    return (
        case.start[name],
        case.start[name.replace("lora_A", "lora_B")],
        case.before["model.layers.0.self_attn.q_proj.weight"],
    )


def is_pissa(case: Case) -> bool:
    """B A is the best approximation of W of that rank: its error is the rest of W's singular values
    (Eckart and Young)."""
    if (found := started(case)) is None:
        return False
    A, B, W = found
    error = torch.linalg.matrix_norm(W - lora_scale(case) * B @ A)
    return bool(torch.isclose(error, torch.linalg.svdvals(W)[4:].square().sum().sqrt(), rtol=1e-4))


def is_olora(case: Case) -> bool:
    """B is orthonormal, and B A is W's part in the space of W's first columns."""
    if (found := started(case)) is None:
        return False
    A, B, W = found
    return (
        torch.allclose(B.T @ B, torch.eye(4), atol=1e-5)
        and torch.allclose(A, B.T @ W, atol=1e-4)
        and torch.allclose((B @ A)[:, :4], W[:, :4], atol=1e-4)
    )


def is_eva(case: Case) -> bool:
    """B zero and the rows of every A orthonormal: directions, not draws."""
    zero = all(bool((p == 0).all()) == (".lora_B." in name) for name, p in case.start.items())
    return (
        case.tails() == {"lora_A", "lora_B"}
        and zero
        and all(
            torch.allclose(p @ p.T, torch.eye(4), atol=1e-4)
            for n, p in case.start.items()
            if ".lora_A." in n
        )
    )


def is_loftq(case: Case) -> bool:
    """The base is quantised and s B A is the best product of that rank for what that took: its
    error is the rest of the singular values."""
    if case.tails() != {"lora_A", "lora_B"} or case.module("number_type") is None:
        return False
    name = next(n for n in case.start if ".lora_A." in n)
    A, B = case.start[name].double(), case.start[name.replace(".lora_A.", ".lora_B.")].double()
    place = name.split(".lora_A.")[0]
    lost = (
        dict(tiny.make_model(case.family).named_parameters())[f"{plain_name(place)}.weight"]
        - case.model.get_submodule(place).get_base_layer().weight
    )
    error = torch.linalg.matrix_norm(lost.double() - lora_scale(case) * B @ A)
    return bool(
        torch.isclose(
            error, torch.linalg.svdvals(lost.double())[4:].square().sum().sqrt(), rtol=1e-3
        )
    )


def prompt_of(case: Case) -> Any:
    made = getattr(case.model, "virtual_prompt", None)
    return made() if made else None


def is_prompt_tuning(case: Case) -> bool:
    """One matrix, whose rows start as rows of the embedding."""
    prompt, rows = prompt_of(case), list(case.start.values())
    return (
        prompt is not None
        and prompt.rows is not None
        and len(rows) == 1
        and all(bool((case.before["model.embed_tokens.weight"] == r).all(1).any()) for r in rows[0])
    )


def is_p_tuning(case: Case) -> bool:
    prompt = prompt_of(case)
    return prompt is not None and prompt.rows is not None and len(case.start) > 1


def is_prefix(case: Case, projected: bool) -> bool:
    """Keys and values for every layer: from a network, or the one trained matrix itself."""
    prompt = prompt_of(case)
    if prompt is None or prompt.keys_values is None or len(prompt.keys_values) != 2:
        return False
    return (len(case.start) > 1) == projected


NO_CONV1D = {"gpt2": "E-METHOD-21"}
PROMPT = {"num_tokens": 20}

OURS: dict[str, Row] = {
    "lora": Row(is_plain_lora, {"rank": 4}),
    "rslora": Row(is_rslora, {"rank": 4}),
    "dora": Row(has("lora_A", "lora_B", "lora_magnitude_vector"), {"rank": 4}),
    "lora_plus": Row(is_lora_plus, {"rank": 4}, rate=2e-3),
    "pissa": Row(is_pissa, {"rank": 4}, identity=1e-5),
    "olora": Row(is_olora, {"rank": 4}, identity=1e-5, refused=NO_CONV1D),
    "eva": Row(is_eva, {"rank": 4}),
    "loftq": Row(is_loftq, {"rank": 4}, identity=None, merges=False, bits=4),
    "loha": Row(
        has("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), {"rank": 4}, refused=NO_CONV1D
    ),
    "lokr": Row(has("lokr_w1", "lokr_w2_a", "lokr_w2_b"), {"rank": 2}, refused=NO_CONV1D),
    "adalora": Row(has("lora_A", "lora_B", "lora_E"), {"rank": 4, "orthogonality": 0.01}),
    "ia3": Row(
        has("ia3_l"),
        learns=None,
        why="a few hundred factors on a frozen random model do not hold 24 random tokens: after 160 steps its loss is 0.3, from 7",
    ),
    "vera": Row(has("vera_lambda_b", "vera_lambda_d"), {"rank": 16}, rate=5e-2),
    "oft": Row(has("oft_R"), {"block_size": 8}, refused=NO_CONV1D),
    "boft": Row(has("boft_R", "boft_s"), {"block_size": 4}, refused=NO_CONV1D),
    "peft": Row(
        has("hra_u"),
        {"type": "HRA", "options": {"r": 4}},
        identity=1e-5,
        refused={"gpt2": "E-METHOD-24"},
    ),
    "prompt_tuning": Row(
        is_prompt_tuning, PROMPT, identity=None, merges=False, rate=1e-1, learns=160
    ),
    "p_tuning": Row(is_p_tuning, PROMPT, identity=None, merges=False, rate=2e-2, learns=160),
    "prefix_tuning": Row(
        lambda case: is_prefix(case, projected=True),
        PROMPT,
        identity=None,
        merges=False,
        rate=2e-2,
        learns=160,
    ),
    "p_tuning_v2": Row(
        lambda case: is_prefix(case, projected=False),
        PROMPT,
        identity=None,
        merges=False,
        rate=2e-1,
        learns=160,
    ),
    "adapter": Row(lambda c: adapters(c) == ({"adapter_mlp"}, 64, 1.0, False), merges=False),
    "houlsby": Row(
        lambda c: adapters(c) == ({"adapter_attention", "adapter_mlp"}, 64, 1.0, False),
        merges=False,
    ),
    "pfeiffer": Row(
        lambda c: adapters(c) == ({"adapter_mlp"}, 3, 1.0, False),
        merges=False,
        learns=None,
        why="its waist is a sixteenth of the width, three numbers on a model this small",
    ),
    "parallel_adapter": Row(
        lambda c: adapters(c) == ({"adapter_mlp"}, 64, 4.0, True), merges=False
    ),
    "full": Row(
        lambda c: (
            only(c, "") and c.attached.optimizer is None and c.attached.with_optimizer is None
        ),
        disabled=False,
    ),
    "galore": Row(
        lambda c: only(c, "") and updates(c) == ("GaLoreAdamW", None),
        {"rank": 4, "refresh": 2},
        disabled=False,
    ),
    "apollo": Row(
        lambda c: only(c, "") and updates(c) == ("ApolloAdamW", "channel"),
        {"rank": 4, "refresh": 2},
        disabled=False,
    ),
    "apollo_mini": Row(
        lambda c: only(c, "") and updates(c) == ("ApolloAdamW", "tensor"),
        {"refresh": 2},
        disabled=False,
    ),
    "lisa": Row(
        lambda c: only(c, "") and c.attached.with_optimizer is not None,
        {"blocks": 2},
        disabled=False,
    ),
    "llama_pro": Row(lambda c: len(anatomy.of(c.causal).blocks) == 3, {"blocks": 1}, grows=True),
    "freeze": Row(lambda c: only(c, "model.layers.1."), {"blocks": 1}),
    "bitfit": Row(
        lambda c: only(c, "bias"),
        refused={"llama": "E-METHOD-01", "qwen3": "E-METHOD-01", "gemma2": "E-METHOD-01"},
        learns=None,
        why="192 biases of attention do not hold 24 random tokens: after 300 steps its loss is 2.2, from 7",
    ),
    "norms": Row(lambda c: only(c, "norm"), rate=5e-2, learns=240),
    "embeddings": Row(lambda c: only(c, "embed_tokens"), rate=5e-2),
    "new_tokens": Row(
        has("trainable_tokens_delta"),
        {"tokens": list(range(3, 40))},
        learns=None,
        why="rows of 37 of 211 tokens train; most tokens of the eight rows keep theirs",
    ),
    "diff_pruning": Row(lambda c: c.tails() == {"w", "gate"}, {"target": 0.2}, rate=1e-2),
    "mixture_of_depths": Row(
        lambda c: c.module("depth_router") is not None,
        identity=1e-6,
        merges=False,
        refused={"gemma2": "E-METHOD-46"},
        learns=None,
        why="of two blocks the first is frozen and the second computes half of the tokens",
    ),
}
ROWS = rows("METHODS", Row, OURS)


def plain_name(name: str) -> str:
    """The name that a base weight had before a method was put on the model."""
    return name.replace("base_model.model.", "").replace(".base_layer", "")


def use_stock(causal: Any) -> None:
    causal.set_attn_implementation(stock_attention(causal))


def put(kind: str, model: Any, **settings: Any) -> Attached:
    """The method as a run attaches it."""
    entry = methods.get(kind)
    assert entry is not None
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attached = entry.function(entry.config(**settings), model, anatomy.of(model), "tiny")
        if attached.look:
            attached.look(
                [b.tokens for sample in tiny.dialogues() + tiny.pairs() for b in sample.branches]
            )
    if attached.begin:
        attached.begin(STEPS)
    return attached


def base_of(kind: str, family: str) -> Any:
    """The tiny model that a kind is put on; a quantised one is read from files, as in a run."""
    if ROWS[kind].bits is None:
        return tiny.make_model(family)
    return copy.deepcopy(quantised_base(family))


PLACE = tempfile.TemporaryDirectory()
"""Goes away with the process: LoftQ reads the weights of its base again when it is attached."""


@functools.cache
def quantised_base(family: str) -> Any:
    return load_model(saved_base(family), dtype="float32", base=BaseConfig(bits=4))


@functools.cache
def saved_base(family: str) -> Path:
    return tiny.save_folder(Path(PLACE.name) / family, family)


def named_tensors(model: Any) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def build(kind: str, family: str) -> Case:
    causal = base_of(kind, family)
    use_stock(causal)
    with torch.no_grad():
        base_logits = causal(input_ids=IDS, use_cache=False).logits
    before = {name: t.detach().clone() for name, t in named_tensors(causal).items()}
    attached = put(kind, causal, **ROWS[kind].config)
    wanted = set(attached.parameters)
    own = set(attached.tensors()) if attached.tensors else set()
    after = {name: t.detach().clone() for name, t in named_tensors(attached.model).items()}
    start = {name: t for name, t in after.items() if name in wanted}
    rest = {name: t for name, t in after.items() if name not in wanted | own}
    return Case(kind, family, causal, attached, before, start, rest, base_logits)


@functools.cache
def fresh(kind: str) -> Case:
    """A case for looking only, on the one shape that every kind fits."""
    return build(kind, "qwen2")


@functools.cache
def trained(kind: str, family: str) -> Case:
    """A case after three steps, for looking only. Building takes most of the time of this suite, so
    one case serves several facts."""
    case = build(kind, family)
    case.start_logits = case.logits()
    stepper = tiny.make_stepper(case.causal, case.attached, case.layout)
    samples = tiny.dialogues()[:3] + tiny.pairs()[:1]
    for number in range(1, 4):
        assert stepper.step(samples, number, 5e-3).applied
    return case


SHAKEN: dict[tuple[str, str], Case] = {}
"""Cases with noise on what trains, left by the test of gradients to the test of merging, which uses
them up."""


def fits(kind: str, family: str) -> bool:
    return family not in ROWS[kind].refused


def home(kind: str) -> str:
    """The first shape that a kind fits, where one shape is enough."""
    return next(family for family in FAMILIES if fits(kind, family))


def gradients(case: Case, layout: str, level: str = "none") -> dict[str, torch.Tensor]:
    """The gradient of one step in a layout, of every parameter that got one; `level`: of
    `engine.recompute`."""
    torch.manual_seed(3)  # noise of the method (gates) is the same in both
    stepper = tiny.make_stepper(case.causal, case.attached, layout)
    undo = recompute.install(stepper.policy, level)
    stepper.gradients(tiny.dialogues() + tiny.pairs())
    undo()
    found = {n: p.grad.clone() for n, p in case.model.named_parameters() if p.grad is not None}
    case.model.zero_grad(set_to_none=True)
    return found


def pairs_of(*, also_refused: bool = False) -> list[Any]:
    return [
        pytest.param(
            k,
            f,
            id=f"{k}-{f}",
            marks=() if also_refused or is_shown(k, f) else pytest.mark.thorough,
        )
        for k in ROWS
        for f in FAMILIES
        if also_refused != fits(k, f)
    ]


def is_shown(kind: str, family: str) -> bool:
    return family == "qwen2" or (family in ("gpt2", "qwen3") and (OUTSIDE or kind in WITH_NORMS))


def eight_rows() -> list[Sample]:
    draw = random.Random(11)
    return [tiny.single([3 + i, *tiny.words(draw, 5)], [(3, 6)], i) for i in range(8)]


def test_every_registered_kind_has_a_row_and_every_row_a_kind() -> None:
    assert sorted(ROWS) == names(methods)


@pytest.mark.parametrize("name", list(ROWS))
def test_a_kind_is_told_from_every_other_so_that_a_wrong_name_fails(name: str) -> None:
    assert {other for other in ROWS if ROWS[name].sign(fresh(other))} == {name}


@pytest.mark.parametrize("name", list(ROWS))
def test_a_kind_says_where_it_comes_from_what_trains_and_what_it_promises(name: str) -> None:
    entry, row = methods.get(name), ROWS[name]
    assert entry is not None
    assert {"source", "trains"} <= set(entry.facts)
    assert entry.facts.get("merges", True) is True or isinstance(entry.facts["merges"], str)
    assert (entry.facts.get("merges", True) is True) == row.merges
    assert row.learns is not None or row.why
    for field_name, info in entry.config.model_fields.items():
        assert info.description, f"{name}.{field_name} is not documented"


@pytest.mark.parametrize(("kind", "family"), pairs_of(also_refused=True))
def test_a_shape_that_a_kind_cannot_take_is_refused_with_its_code(kind: str, family: str) -> None:
    with pytest.raises(TunewrightError) as caught:
        put(kind, tiny.make_model(family), **ROWS[kind].config)
    assert {p.code for p in caught.value.problems} == {ROWS[kind].refused[family]}
    assert all(p.what() and p.remedy() for p in caught.value.problems)


@pytest.mark.parametrize(("kind", "family"), pairs_of())
def test_at_step_0_the_model_is_the_base_where_that_is_promised(kind: str, family: str) -> None:
    case, share = trained(kind, family), ROWS[kind].identity
    assert case.start_logits is not None
    gap = float((case.start_logits - case.base_logits).abs().max() / case.base_logits.abs().max())
    assert gap > 0 if share is None else gap <= share


@pytest.mark.parametrize(("kind", "family"), pairs_of())
def test_exactly_what_is_listed_gets_a_gradient_and_both_layouts_agree_on_it(
    kind: str, family: str
) -> None:
    case = SHAKEN[kind, family] = build(kind, family)
    assert sorted(n for n, p in case.model.named_parameters() if p.requires_grad) == sorted(
        case.attached.parameters
    )
    assert len(case.attached.parameters) == len(case.start) > 0
    tiny.randomise(case.attached, spread=ROWS[kind].spread)
    padded = gradients(case, "padded")
    assert sorted(padded) == sorted(case.attached.parameters)
    assert all(bool(torch.isfinite(g).all()) and float(g.abs().max()) > 0 for g in padded.values())
    wanted = padded if case.layout == "padded" else gradients(case, "tree")
    again = gradients(case, case.layout, "full")
    assert {n: g for n, g in wanted.items() if distance(again[n], g) > 1e-6} == {}
    if case.layout == "padded":
        return
    tree = wanted
    gaps = {name: distance(tree[name], g) for name, g in padded.items()}
    if max(gaps.values()) > 1e-5:
        # A small gradient that is the sum of large ones carries float32's own error, which float64
        # shows.
        SHAKEN.pop((kind, family)).model.double()
        truth = gradients(case, "padded")
        gaps = {
            name: gap
            for name, gap in gaps.items()
            if gap > max(1e-5, 2 * distance(padded[name], truth[name]))
        }
        assert gaps == {}


@pytest.mark.parametrize(("kind", "family"), pairs_of())
def test_training_changes_what_is_listed_and_nothing_else(kind: str, family: str) -> None:
    case = trained(kind, family)
    now = named_tensors(case.model)
    assert [name for name, t in case.rest.items() if not torch.equal(t, now[name])] == []
    assert any(not torch.equal(t, now[name]) for name, t in case.start.items())
    assert all(p.dtype == torch.float32 for name, p in now.items() if name in case.start)


@pytest.mark.parametrize(("kind", "family"), pairs_of())
def test_switched_off_it_is_the_base_bit_for_bit_or_says_why_it_cannot_be(
    kind: str, family: str
) -> None:
    case = trained(kind, family)
    tuned = case.logits()
    assert not torch.equal(tuned, case.base_logits)
    if not ROWS[kind].disabled:
        assert case.attached.disabled is None
        assert case.attached.disabled_reason
        return
    assert case.attached.disabled is not None
    with case.attached.disabled():
        assert torch.equal(case.logits(), case.base_logits)
    assert torch.equal(case.logits(), tuned)


@pytest.mark.parametrize(("kind", "family"), pairs_of())
def test_merged_it_is_a_plain_model_with_the_same_logits_and_merging_again_does_no_harm(
    kind: str, family: str
) -> None:
    if not ROWS[kind].merges:
        case = trained(kind, family)
        assert case.attached.merge is None
        assert case.attached.merge_reason
        return
    case = SHAKEN.pop((kind, family), None) or build(kind, family)
    if all(
        torch.equal(p, case.start[name])
        for name, p in case.model.named_parameters()
        if name in case.start
    ):
        tiny.randomise(case.attached, spread=ROWS[kind].spread)
    tuned = case.logits()
    assert case.attached.merge is not None
    merged = case.attached.merge()
    names, plain = (
        {plain_name(n) for n in dict(merged.named_parameters())},
        set(dict(tiny.make_model(family).named_parameters())),
    )
    assert names > plain if ROWS[kind].grows else names == plain
    assert float((case.logits(merged) - tuned).abs().max()) <= 1e-4 * float(tuned.abs().max())
    try:
        again = case.attached.merge()
    except TunewrightError:
        return
    assert float((case.logits(again) - tuned).abs().max()) <= 1e-4 * float(tuned.abs().max())


@pytest.mark.wide("lora", "full", "galore", "ia3")
@pytest.mark.parametrize("kind", list(ROWS))
def test_it_learns_eight_rows_by_heart_where_it_has_the_capacity(kind: str) -> None:
    row = ROWS[kind]
    if row.learns is None:
        assert len(row.why) > 20
        return
    case = build(kind, home(kind))
    if case.attached.begin:
        case.attached.begin(row.learns)
    stepper = tiny.make_stepper(case.causal, case.attached, case.layout, clip=1.0)
    samples, losses = eight_rows(), []
    for number in range(1, row.learns + 1):
        report = stepper.step(samples, number, row.rate * min(1.0, 2 - 2 * number / row.learns))
        losses.append(sum(v for name, v in report.terms.items() if name == "sft"))
        if losses[-1] < 0.1:
            return
    raise AssertionError(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")


def loop_of(kind: str, family: str, run: Path) -> Any:
    """A `Loop` of STEPS steps over 8 rows with a checkpoint after the half."""
    from tunewright.core.signals import StopFlag
    from tunewright.core.telling import Quiet
    from tunewright.engine.loop import Loop
    from tunewright.engine.schedule import make_schedule
    from tunewright.record.events import EventLog

    case = build(kind, family)
    engine = EngineConfig(steps=STEPS, batch_size=4, save_every=STEPS // 2)
    stepper = tiny.make_stepper(case.causal, case.attached, case.layout, clip=1.0)
    samples = eight_rows()
    run.mkdir(parents=True, exist_ok=True)
    log = EventLog(run / "events.jsonl")
    return Loop(
        stepper,
        make_schedule(engine, len(samples), 1e-2),
        samples,
        [],
        engine,
        run,
        log,
        Quiet(),
        StopFlag(),
        "cpu",
    )


@pytest.mark.wide("lora", "full", "galore")
@pytest.mark.parametrize(("kind", "family"), [(k, home(k)) for k in ROWS])
def test_a_run_that_was_resumed_ends_with_the_same_bits(
    kind: str, family: str, tmp_path: Path
) -> None:
    from tunewright.record import checkpoint

    straight = loop_of(kind, family, tmp_path)
    straight.learn()
    wanted = tiny.trained(straight.stepper.attached)
    resumed = loop_of(kind, family, tmp_path / "again")
    half = checkpoint.load_step(straight.checkpoints, STEPS // 2)
    assert half is not None
    resumed.restore(half)
    assert resumed.progress.step == STEPS // 2
    resumed.learn()
    found = tiny.trained(resumed.stepper.attached)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    straight.log.close()
    resumed.log.close()


CHILD = """
import copy, functools, json, sys, torch
from pathlib import Path
from tunewright.methods.saved import put_on
from tunewright.core.config import BaseConfig
from tunewright.models.load import load_model
torch.set_num_threads(1)
ids = torch.tensor(json.loads(sys.argv[2]))
from safetensors.torch import save_file
@functools.cache
def opened(folder, bits):
    return load_model(Path(folder), dtype="float32", base=BaseConfig(bits=bits))
out = {}
for job in json.loads(Path(sys.argv[1]).read_text()):
    try:
        loaded = opened(job["folder"] if job["whole"] else job["base"], job["bits"])
        model = loaded if job["whole"] else put_on(copy.deepcopy(loaded), Path(job["folder"])).model
        model.eval()
        with torch.no_grad():
            out[job["name"]] = model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :].contiguous()
    except Exception as e:
        print(job["name"], type(e).__name__, e)
save_file(out, sys.argv[1] + ".safetensors")
"""


@pytest.mark.parametrize("shown", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_what_was_saved_gives_the_same_bits_in_a_fresh_process(tmp_path: Path, shown: bool) -> None:
    """`thorough`: the shapes that are so above."""
    from safetensors.torch import load_file

    jobs, wanted = [], {}
    for family in FAMILIES:
        tiny.save_folder(tmp_path / family, family)
        for kind in ROWS:
            if fits(kind, family) and is_shown(kind, family) == shown:
                case, folder = trained(kind, family), tmp_path / f"{kind}-{family}"
                wanted[folder.name] = case.logits()
                case.attached.save(folder)
                assert not [
                    f.name for f in folder.rglob("*") if f.suffix in (".bin", ".pt", ".pkl")
                ]
                jobs.append({"name": folder.name, "base": str(tmp_path / family), "folder": str(folder), "whole": case.attached.saves_model,
                             "bits": ROWS[kind].bits})  # fmt: skip
    listed = tmp_path / "jobs.json"
    listed.write_text(json.dumps(jobs), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(listed), json.dumps(IDS.tolist())],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = load_file(f"{listed}.safetensors")
    assert not done.stdout, done.stdout
    assert sorted(found) == sorted(wanted)
    differ = {
        name: float((found[name] - wanted[name]).abs().max())
        for name in wanted
        if not torch.equal(found[name], wanted[name])
    }
    assert differ == {}
