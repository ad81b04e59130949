"""Several adapters on one base: switched, stacked, combined with weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.errors import CompatError, UsageError
from tunewright.core.registry import methods
from tunewright.core.telling import Quiet
from tunewright.export.combine import combine
from tunewright.export.composition import compose, obstacles
from tunewright.methods.saved import put_on
from tunewright.models import anatomy

IDS = torch.tensor([[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3]])


def saved(folder: Path, seed: int, kind: str = "lora", **settings: Any) -> Path:
    model = tiny.make_model("llama")
    entry = methods.get(kind)
    assert entry is not None
    torch.manual_seed(seed)
    attached = entry.function(entry.config(**settings), model, anatomy.of(model), "tiny")
    tiny.randomise(attached, seed)
    attached.save(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def alone(folder: Path) -> torch.Tensor:
    return logits(put_on(tiny.make_model("llama"), folder).model)


def merged_weights(folder: Path) -> dict[str, torch.Tensor]:
    attached = put_on(tiny.make_model("llama"), folder)
    assert attached.merge is not None
    return dict(attached.merge().named_parameters())


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Path]:
    return {
        "a": saved(tmp_path / "a", 1, rank=3),
        "b": saved(tmp_path / "b", 2, rank=5, targets=["attention", "mlp.down"]),
    }


def test_switching_gives_each_adapter_as_if_it_were_alone_and_none_is_the_base(
    two: dict[str, Path],
) -> None:
    composed = compose(tiny.make_model("llama"), two)
    for name in ("a", "b", "a"):
        composed.use(name)
        assert torch.allclose(logits(composed.wrapped), alone(two[name]), atol=1e-5)
    composed.use()
    assert torch.equal(logits(composed.wrapped), logits(tiny.make_model("llama")))
    with pytest.raises(UsageError) as caught:
        composed.use("c")
    assert [p.code for p in caught.value.problems] == ["E-METHOD-33"]


def test_stacked_and_combined_adapters_add_their_weighted_updates(
    two: dict[str, Path], tmp_path: Path
) -> None:
    """Against weights folded one adapter at a time and added by hand."""
    base = dict(tiny.make_model("llama").named_parameters())
    folded = {name: merged_weights(folder) for name, folder in two.items()}

    def by_hand(weights: dict[str, float]) -> torch.Tensor:
        model = tiny.make_model("llama")
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(
                    base[name]
                    + sum(w * (folded[part][name] - base[name]) for part, w in weights.items())
                )
        return logits(model)

    composed = compose(tiny.make_model("llama"), two)
    composed.use("a", "b")
    assert torch.allclose(logits(composed.wrapped), by_hand({"a": 1.0, "b": 1.0}), atol=1e-4)
    composed.combine("both", {"a": 0.7, "b": -0.4})
    wanted = by_hand({"a": 0.7, "b": -0.4})
    assert torch.allclose(logits(composed.wrapped), wanted, atol=1e-4)
    composed.save("both", tmp_path / "both")
    assert torch.allclose(alone(tmp_path / "both"), wanted, atol=1e-4)
    assert sorted(f.name for f in (tmp_path / "both").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_what_is_no_plain_product_is_refused_with_its_reason(tmp_path: Path) -> None:
    folders = {
        "dora": saved(tmp_path / "dora", 1, "dora", rank=3), "loha": saved(tmp_path / "loha", 1, "loha", rank=3),
        "prompt": saved(tmp_path / "prompt", 1, "prompt_tuning"), "pissa": saved(tmp_path / "pissa", 1, "pissa", rank=3),
    }  # fmt: skip
    assert {p.where: p.fields["type"] for p in obstacles(folders)} == {
        "dora": "DoRA",
        "loha": "LOHA",
        "prompt": "PROMPT_TUNING",
    }


def test_the_command_combines_folders_of_one_base(tmp_path: Path) -> None:
    import json

    from helpers import story

    base = story.model_folder(tmp_path / "model")
    from tunewright.models.load import load_model

    for name, seed in (("a", 1), ("b", 2)):
        model = load_model(base, dtype="float32")
        entry = methods.get("lora")
        assert entry is not None
        attached = entry.function(entry.config(rank=2), model, anatomy.of(model), str(base))
        tiny.randomise(attached, seed)
        attached.save(tmp_path / name)
    words = ["export", "combine", str(tmp_path / "out"), str(tmp_path / "a"), str(tmp_path / "b")]
    done = story.tunewright(*words, "--weights", "0.5,0.25", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["rank"], made["weights"]) == (4, [0.5, 0.25])
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(base)
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    for settings, code in (
        ({"out": tmp_path / "out"}, "E-EXPORT-01"),
        ({"weights": [1.0]}, "E-METHOD-32"),
        ({"way": "sum"}, "E-METHOD-34"),
    ):
        with pytest.raises(UsageError) as caught:
            combine(**{"targets": folders, "out": tmp_path / "new", "tell": Quiet(), **settings})
        assert [p.code for p in caught.value.problems] == [code]
    assert not (tmp_path / "new").exists()
    svd = combine(folders, tmp_path / "svd", way="svd", tell=Quiet())
    assert (svd["rank"], svd["weights"]) == (2, [0.5, 0.5])
    other = story.model_folder(tmp_path / "other")
    (tmp_path / "b" / "adapter_config.json").write_text(
        (tmp_path / "b" / "adapter_config.json").read_text().replace(str(base), str(other))
    )
    with pytest.raises(CompatError) as refused:
        combine(folders, tmp_path / "new", tell=Quiet())
    assert [p.code for p in refused.value.problems] == ["E-METHOD-31"]
