"""Weights and blocks that are left out: which ones, against slow references, and the whole way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import exported, story

from tunewright.core.errors import TunewrightError
from tunewright.core.telling import Quiet
from tunewright.export import prune as pruning
from tunewright.export import shrink
from tunewright.export.proof import Prompts, logits_of, loss_of
from tunewright.export.prune import prune
from tunewright.export.quantize import prepare
from tunewright.export.walking import Walk
from tunewright.models import load

ROWS = [[5, 9, 17, 33, 4, 8, 90], [120, 7, 7, 3, 55, 12], [2, 60, 61, 62, 63, 64, 65, 66]]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prune")
    story.rows_file(place / "rows.json", 40)
    base = exported.folder_of(place / "base", "qwen2", num_hidden_layers=4)
    exported.run_of(place / "run", base, place / "rows.json")
    return place


def code_of(at: Path, out: Path, what: str = "run", **given: Any) -> str:
    with pytest.raises(TunewrightError) as caught:
        prune(at / what, out, tell=Quiet(), **given)
    assert list(out.parent.iterdir()) == []
    return caught.value.problems[0].code


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_a_walk_gives_every_module_the_inputs_that_the_whole_model_gives_it(
    tmp_path: Path, family: str
) -> None:
    model: Any = load.load_model(exported.folder_of(tmp_path, family), dtype="float32")
    name = next(n for n, _ in model.named_modules() if n.endswith("1.mlp.down_proj"))
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, a: seen.append(a[0][0]))
    with torch.no_grad():
        for row in ROWS:
            model(input_ids=torch.tensor([row]), use_cache=False)
    hook.remove()
    x = torch.cat(seen)
    for number, inputs in Walk(model, ROWS).blocks_with_inputs([name], whole=True):
        if number == 1:
            torch.testing.assert_close(inputs.sums[name], x.T @ x, rtol=1e-3, atol=1e-4)
            wanted = x.square().mean(0)
            torch.testing.assert_close(inputs.strength(name), wanted, rtol=1e-3, atol=1e-5)


def test_wanda_leaves_out_the_smallest_products_of_each_row() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    strength = torch.arange(1.0, 9.0)
    pruning._zero(weight, weight.abs() * strength.sqrt(), "wanda", 0.5)
    for row, old in zip(weight.tolist(), before.tolist(), strict=True):
        scores = sorted(range(8), key=lambda i: abs(old[i]) * (i + 1) ** 0.5)
        assert [i for i, w in enumerate(row) if w == 0] == sorted(scores[:4])


def test_two_of_four_and_the_whole_matrix() -> None:
    draw = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(6, 16, generator=draw))
    pruning._zero(weight, weight.abs(), "2:4", 0.5)
    assert bool(((weight.view(6, 4, 4) == 0).sum(-1) == 2).all())
    other = torch.nn.Parameter(torch.randn(6, 16, generator=draw))
    kept = other.detach().abs().flatten().sort().values[32:]
    pruning._zero(other, other.abs(), "magnitude", 1 / 3)
    found = other.detach().abs().flatten()
    assert torch.equal(found[found > 0].sort().values, kept)


@pytest.mark.wide("wanda", "2:4")
@pytest.mark.parametrize("way", ["magnitude", "wanda", "2:4"])
def test_half_of_every_matrix_is_zero_in_the_folder(at: Path, tmp_path: Path, way: str) -> None:
    made = prune(at / "run", tmp_path / "out", way=way, tell=Quiet())
    assert made["share"] == pytest.approx(0.5, abs=0.01) and made["loss"]["held_out_prompts"]
    model: Any = load.load_model(tmp_path / "out", dtype="float32")
    weight = model.model.layers[1].mlp.up_proj.weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert "Figures" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert any("zero" in line for line in pruning.lines(made))


def test_the_block_without_which_the_loss_is_least_goes_first(at: Path, tmp_path: Path) -> None:
    """Held against models that are really built without each block."""
    base, out = at / "base", tmp_path / "out"
    rows = str(at / "rows.json")
    made = prune(base, out, way="blocks", blocks=2, data=rows, tell=Quiet())
    job = pruning.Pruning(prepare(base, rows, Quiet()), out, "blocks", 0.5, 2, Quiet())
    asked = Prompts(job.rows, "data", [[1.0] * len(row) for row in job.rows])
    whole: Any = load.load_model(base, dtype="float32")
    losses = []
    for gone in range(4):
        small = shrink.without_blocks(whole, [i for i in range(4) if i != gone], "").eval()
        losses.append(loss_of(logits_of(small, asked), asked))
    first = made["steps"][0]
    assert first["block"] == losses.index(min(losses))
    assert first["loss"] == pytest.approx(min(losses), rel=1e-5)
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == made["blocks"] == 2
    assert load.parameter_count(out) == made["parameters"] < made["parameters_before"]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"way": "random"}, "E-EXPORT-60"),
        ({"share": 0.0}, "E-EXPORT-61"),
        ({"share": 1.0}, "E-EXPORT-61"),
        ({"way": "2:4", "share": 0.3}, "E-EXPORT-61"),
        ({"way": "wanda", "what": "base"}, "E-EXPORT-62"),
        ({"way": "blocks", "what": "base"}, "E-EXPORT-62"),
        ({"way": "blocks", "blocks": 4}, "E-EXPORT-63"),
        ({"way": "blocks", "blocks": 0}, "E-EXPORT-63"),
    ],
)
def test_what_cannot_be_is_refused(
    at: Path, tmp_path: Path, given: dict[str, Any], code: str
) -> None:
    assert code_of(at, tmp_path / "out", **given) == code
