"""A combined adapter is what its way promises, whatever kinds of LoRA went in: against plain PEFT's
own update of every folder."""

from __future__ import annotations

import json
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story, tiny
from peft import PeftModel
from peft.tuners.lora import Linear
from transformers import AutoModelForCausalLM

from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.core.telling import Quiet
from tunewright.export import combine as module
from tunewright.export.combine import combine, lines
from tunewright.models import anatomy
from tunewright.models.load import load_model

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3}, "rslora": {"rank": 5}, "lora_plus": {"rank": 4, "layers": [1]}, "pissa": {"rank": 2}, "olora": {"rank": 2}, "eva": {"rank": 4, "rho": 2},
}  # fmt: skip
WEIGHTS = ([0.7, 0.5], [1.0, -1.0], [1.0, 0.0])
ROWS = [[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3], [6, 6, 44, 100, 2, 1, 19, 55, 21, 60, 200]]


def saved(base: Path, folder: Path, kind: str, seed: int, **settings: Any) -> Path:
    model: Any = load_model(base, dtype="float32")
    entry = methods.get(kind)
    assert entry is not None
    torch.manual_seed(seed)
    attached = entry.function(entry.config(**settings), model, anatomy.of(model), str(base))
    if attached.look is not None:
        attached.look(ROWS)
    tiny.randomise(attached, seed)
    attached.save(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("base"), initializer_range=0.1)


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    place = tmp_path_factory.mktemp("adapters")
    return {
        (kind, n): saved(base, place / f"{kind}{n}", kind, n, **KINDS[kind])
        for kind in KINDS
        for n in (1, 2)
    }


def updates(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Plain PEFT's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    return {
        n: m.get_delta_weight("default").detach().double()
        for n, m in opened.named_modules()
        if isinstance(m, Linear)
    }


@pytest.fixture(scope="module")
def known(
    base: Path, made: dict[tuple[str, int], Path]
) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    return {key: updates(base, folder) for key, folder in made.items()}


def error(got: dict[str, torch.Tensor], one: Any, other: Any, weights: list[float]) -> float:
    apart = whole = 0.0
    for name in {*one, *other}:
        zero = torch.zeros_like(one.get(name, other.get(name)))
        want = weights[0] * one.get(name, zero) + weights[1] * other.get(name, zero)
        apart, whole = (
            apart + float((got.get(name, zero) - want).square().sum()),
            whole + float(want.square().sum()),
        )
    return (apart / whole) ** 0.5


@pytest.mark.wide("lora-lora", "lora-rslora", "lora-pissa")
@pytest.mark.parametrize(("first", "second"), product(KINDS, KINDS))
def test_every_pair_of_kinds_combines_into_the_weighted_sum(
    base: Path, made: Any, known: Any, tmp_path: Path, first: str, second: str
) -> None:
    weights = WEIGHTS[(list(KINDS).index(first) + list(KINDS).index(second)) % 3]
    verdict = combine(
        [str(made[first, 1]), str(made[second, 2])], tmp_path / "out", weights=weights, tell=Quiet()
    )
    assert (
        error(updates(base, tmp_path / "out"), known[first, 1], known[second, 2], weights) <= 1e-5
    )
    assert (
        verdict["relative_error"] <= 1e-5
        and json.loads((tmp_path / "out" / "combine.json").read_text())["verdict"] == "equal"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_all_weights_on_a_kind_whose_scale_is_its_own(
    base: Path, made: Any, known: Any, tmp_path: Path
) -> None:
    for n, weights in enumerate(WEIGHTS):
        combine(
            [str(made["rslora", 1]), str(made["rslora", 2])],
            tmp_path / str(n),
            weights=weights,
            tell=Quiet(),
        )
        assert (
            error(updates(base, tmp_path / str(n)), known["rslora", 1], known["rslora", 2], weights)
            <= 1e-5
        )
    combine([str(made["rslora", 1])], tmp_path / "one", weights=[1.0], tell=Quiet())
    assert error(updates(base, tmp_path / "one"), known["rslora", 1], {}, [1.0, 0.0]) <= 1e-5


@pytest.mark.parametrize("weights", WEIGHTS)
def test_svd_is_the_best_product_of_its_rank(
    base: Path, made: Any, known: Any, tmp_path: Path, weights: list[float]
) -> None:
    combine(
        [str(made["rslora", 1]), str(made["lora", 2])],
        tmp_path / "out",
        weights=weights,
        way="svd",
        tell=Quiet(),
    )
    got = updates(base, tmp_path / "out")
    for name, update in got.items():
        want = weights[0] * known["rslora", 1][name] + weights[1] * known["lora", 2][name]
        least = torch.linalg.svdvals(want)[5:].square().sum().sqrt()  # Eckart and Young
        assert float((update - want).norm()) <= float(least) * 1.001 + 1e-5 * float(want.norm())


@pytest.mark.parametrize("way", ["linear", "ties", "dare_linear", "magnitude_prune", "ties_svd"])
def test_the_other_ways_write_what_plain_peft_opens_and_say_how_far_from_the_sum_it_is(
    base: Path, made: Any, known: Any, tmp_path: Path, way: str
) -> None:
    """`linear` holds products of one adapter's A with another's B. EVA's layers have ranks of their
    own."""
    for kind in ("lora", "eva"):
        same = made[kind, 1]
        verdict = combine(
            [str(same), str(same)], tmp_path / kind, weights=[0.5, 0.5], way=way, tell=Quiet()
        )
        far = error(updates(base, tmp_path / kind), known[kind, 1], known[kind, 1], [0.5, 0.5])
        assert (
            far == pytest.approx(verdict["distance_from_sum"], rel=1e-3, abs=1e-6)
            and verdict["relative_error"] <= 1e-5
        )
    verdict = combine(
        [str(made["lora", 1]), str(made["lora", 2])],
        tmp_path / "minus",
        weights=[1.0, -1.0],
        way=way,
        tell=Quiet(),
    )
    far = error(updates(base, tmp_path / "minus"), known["lora", 1], known["lora", 2], [1.0, -1.0])
    assert far == pytest.approx(verdict["distance_from_sum"], rel=1e-3) and far > 0.1
    assert f"{100 * far:.0f} %" in "\n".join(lines(verdict))


def test_what_does_not_go_together_is_refused_and_leaves_nothing(
    base: Path, made: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def refused(*targets: Path, **settings: Any) -> str:
        with pytest.raises(TunewrightError) as caught:
            combine([str(t) for t in targets], tmp_path / "out", tell=Quiet(), **settings)
        assert not [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "out"))]
        return str(caught.value.problems[0].code)

    assert refused(made["lora", 1], made["rslora", 1], way="linear") == "E-METHOD-24"  # other ranks
    assert (
        refused(saved(base, tmp_path / "dora", "dora", 1, rank=2), made["lora", 1]) == "E-METHOD-30"
    )
    assert (
        refused(saved(base, tmp_path / "vera", "vera", 1, rank=4), made["lora", 1]) == "E-METHOD-30"
    )
    monkeypatch.setattr(module, "LARGEST_ERROR", 1e-12)
    assert refused(made["lora", 1], made["lora", 2], weights=[0.7, 0.3]) == "E-EXPORT-13"
    monkeypatch.undo()
    monkeypatch.setattr(PeftModel, "from_pretrained", classmethod(_broken))
    assert refused(made["lora", 1], made["lora", 2]) in ("E-EXPORT-14", "E-MODEL-40")


def _broken(cls: Any, model: Any, folder: Any, *given: Any, **named: Any) -> Any:
    """Opens the parts, not what was made of them."""
    if ".combining-" in str(folder):
        raise RuntimeError("size mismatch")
    return _own(model, folder, *given, **named)


_own = PeftModel.from_pretrained
