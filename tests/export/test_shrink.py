"""A model with fewer blocks: the same model with the others left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import story, tiny

from tunewright.core.errors import ModelError, UsageError
from tunewright.export.shrink import kept_blocks, shrink
from tunewright.models import load
from tunewright.text.tokenizer import load_tokenizer


def test_blocks_are_kept_at_even_distances_the_first_and_the_last_among_them() -> None:
    assert kept_blocks(6, 3) == [0, 2, 5] and kept_blocks(5, 3) == [0, 2, 4]
    for total in range(2, 40):
        for wanted in range(1, total):
            kept = kept_blocks(total, wanted)
            assert (
                kept == sorted(set(kept))
                and len(kept) == wanted
                and kept[0] == 0
                and (wanted == 1 or kept[-1] == total - 1)
            )


@pytest.mark.parametrize(
    ("family", "blocks", "kept"),
    [("llama", "half", [0, 4]), ("llama", "3", [0, 2, 4]), ("gemma3_text", "4", [0, 1, 3, 4])],
)
def test_the_folder_holds_the_kept_blocks_and_everything_around_them(
    tmp_path: Path, family: str, blocks: str, kept: list[int]
) -> None:
    kinds = {
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
        ]
    }
    folder = tmp_path / "m"
    model = tiny.make_model(
        family, vocab_size=320, num_hidden_layers=5, **(kinds if family == "gemma3_text" else {})
    )
    story.model_folder(folder)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    model.save_pretrained(folder)
    result = shrink(str(folder), tmp_path / "small", blocks=blocks)
    assert (
        result["kept"] == kept
        and result["blocks_before"] == 5
        and result["parameters"] < result["parameters_before"]
    )
    small = load.load_model(tmp_path / "small", dtype="float32")
    load_tokenizer(tmp_path / "small")
    # By hand: the hidden rows go through the kept blocks only.
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in kept])
    model.config.num_hidden_layers = len(kept)
    if family == "gemma3_text":
        model.config.layer_types = [kinds["layer_types"][i] for i in kept]
    ids = torch.tensor([[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3]])
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids, use_cache=False).logits for m in (small, model))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", ["0", "2", "9", "most", "-1"])
def test_a_number_of_blocks_that_makes_no_student_is_refused(tmp_path: Path, blocks: str) -> None:
    with pytest.raises(UsageError) as caught:
        shrink(str(story.model_folder(tmp_path / "m")), tmp_path / "small", blocks=blocks)
    assert caught.value.problems[0].code == "E-OBJ-08" and not (tmp_path / "small").exists()


def test_an_adapter_is_refused_and_an_occupied_folder_too(tmp_path: Path) -> None:
    folder = story.model_folder(tmp_path / "m")
    attached = tiny.attach_lora(load.load_model(folder, dtype="float32"))
    attached.model.peft_config["default"].base_model_name_or_path = str(folder)
    attached.save(tmp_path / "adapter")
    with pytest.raises(ModelError) as caught:
        shrink(str(tmp_path / "adapter"), tmp_path / "small")
    assert caught.value.problems[0].code == "E-OBJ-07"
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError):
        shrink(str(folder), tmp_path / "small")
