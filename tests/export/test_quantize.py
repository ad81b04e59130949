"""A run in few bits: what is written is what was rounded, it says what that cost, and what is not
the run is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import building, exported, story
from safetensors.torch import load_file, save_file

from tunewright.core.errors import TunewrightError
from tunewright.core.telling import Quiet
from tunewright.core.words import set_language
from tunewright.export import card, packed, quant_types, remade
from tunewright.export.gptq import Grid, to_nearest
from tunewright.export.quantize import lines, quantize
from tunewright.models import load


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("quantize")
    story.rows_file(place / "rows.json", 40)
    base = exported.folder_of(place / "base", "llama", intermediate_size=128)
    exported.run_of(place / "run", base, place / "rows.json")
    return place


def write(at: Path, out: Path, **given: Any) -> dict[str, Any]:
    given = {"measure": False, "tell": Quiet(), **given}
    return quantize(given.pop("what", at / "run"), out, **given)


def code_of(at: Path, out: Path, **given: Any) -> str:
    with pytest.raises(TunewrightError) as caught:
        write(at, out, **given)
    assert not out.exists() and [p for p in out.parent.iterdir() if p.name.startswith(".")] == []
    return caught.value.problems[0].code


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_plain_transformers_opens_what_was_written_and_it_is_smaller(
    at: Path, tmp_path: Path, kind: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = write(at, tmp_path / "out", type=kind)
    record = json.loads((tmp_path / "out" / "proof.json").read_text(encoding="utf-8"))
    assert record["type"] == kind and record["matrices"] == 14
    assert record["against_written_weights"]["top1_agreement"] >= 0.9
    assert record["loss"]["held_out_prompts"] and record["weight_bytes"] < record["plain_bytes"]
    with remade.hushed():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
        ids = AutoTokenizer.from_pretrained(tmp_path / "out")("what is it", return_tensors="pt")
        assert bool(model(**ids).logits.isfinite().all())
    assert model.config.quantization_config is not None
    if kind == "int4":  # and so do we, to chat and to evaluate
        ours: Any = load.load_model(tmp_path / "out", dtype="float32")
        assert ours.model.layers[0].mlp.up_proj.weight.shape == (128, 64)
    assert any("held-out loss" in line for line in lines(made))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and str(at) not in text and f"- {kind}" in text


def test_int4_is_calibrated_and_loses_less_than_the_nearest_step(
    at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated = write(at, tmp_path / "a", type="gptq")
    monkeypatch.setattr("tunewright.export.prompts.learnt_rows", lambda *_: [])
    plain = write(at, tmp_path / "b", bits=4)
    assert calibrated["way"] == "gptq" and plain["way"] == "nearest"
    assert calibrated["calibrated_on"]["rows"] > 10 and "--data" in plain["notes"][0]
    assert calibrated["divergence_nats"] < plain["divergence_nats"]


def test_the_packed_numbers_are_those_of_the_grid_in_two_sizes(at: Path, tmp_path: Path) -> None:
    """Unpacked by compressed-tensors itself, straight from the file."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(at / "base", dtype=torch.float32)
    names = {
        "model.layers.0.mlp.up_proj": Grid(4, 32),
        "model.layers.1.self_attn.q_proj": Grid(8, 64),
    }
    made = {n: to_nearest(model.get_submodule(n).weight.data, g) for n, g in names.items()}
    with remade.hushed():
        packed.compress(model, made)
        model.to(torch.bfloat16).save_pretrained(tmp_path)
    packed.state(tmp_path, made)
    stored = load_file(tmp_path / "model.safetensors")
    for name, rounded in made.items():
        shape = torch.Size(stored[f"{name}.weight_shape"].tolist())
        codes = unpack_from_int32(stored[f"{name}.weight_packed"], rounded.grid.bits, shape)
        assert torch.equal(codes, rounded.codes)
        assert torch.equal(stored[f"{name}.weight_scale"].float(), rounded.scales)
    with remade.hushed():
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
        again(input_ids=torch.tensor([[3, 4, 5]]))
    for name, rounded in made.items():
        found = again.get_submodule(name).weight.float()
        torch.testing.assert_close(found, rounded.weight, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"type": "int5"}, "E-EXPORT-50"),
        ({"bits": 5}, "E-EXPORT-50"),
        ({"type": "int8", "bits": 4}, "E-EXPORT-50"),
        ({"bits": 4, "group": 20}, "E-EXPORT-50"),
        ({"type": "awq"}, "E-EXPORT-56"),
        ({"data": "/nowhere.jsonl"}, "E-EXPORT-57"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    at: Path, tmp_path: Path, given: dict[str, Any], code: str
) -> None:
    assert code_of(at, tmp_path / "out", **given) == code


def test_gptq_without_rows_is_refused_and_so_is_a_model_without_a_fitting_matrix(
    at: Path, tmp_path: Path
) -> None:
    assert code_of(at, tmp_path / "out", type="gptq", what=at / "base") == "E-EXPORT-55"
    odd = exported.folder_of(tmp_path / "odd", "llama", hidden_size=40, intermediate_size=72)
    out = tmp_path / "more" / "out"
    out.parent.mkdir()
    assert code_of(at, out, bits=4, what=odd) == "E-EXPORT-54"


def test_a_library_that_is_missing_is_named(
    at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert code_of(at, tmp_path / "out", type="nf4") == "E-EXPORT-51"


def test_what_is_quantised_already_is_refused(at: Path, tmp_path: Path) -> None:
    write(at, tmp_path / "a", bits=8)
    with pytest.raises(TunewrightError) as caught:
        write(at, tmp_path / "b", bits=4, what=tmp_path / "a")
    assert caught.value.problems[0].code == "E-EXPORT-53"


def spoil(folder: Path) -> None:
    """Another scale in one matrix of the file."""
    stored = load_file(folder / "model.safetensors")
    name = next(n for n in stored if n.endswith("down_proj.weight_scale"))
    stored[name] = stored[name].flip(0) * 4
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.wide("base-E-EXPORT-36", "template-E-EXPORT-33", rest="slow")
@pytest.mark.parametrize(
    ("fault", "code"),
    [("scale", "E-EXPORT-35"), ("base", "E-EXPORT-36"),
     ("template", "E-EXPORT-33"), ("key", "E-EXPORT-37"), ("useless", "E-EXPORT-52")],
)  # fmt: skip
def test_a_planted_fault_is_found_and_named(
    at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, code: str
) -> None:
    own = remade.prove

    def prove(tuned: Any, out: Path, folder: Path, asked: Any, written: Any, **given: Any) -> Any:
        if fault == "scale":
            spoil(folder)
        elif fault == "base":
            asked.untouched = written
        elif fault == "key":
            stored = load_file(folder / "model.safetensors")
            stored.pop("model.norm.weight")
            save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        elif fault == "template":
            path = folder / "chat_template.jinja"
            path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
        elif fault == "useless":
            given["bounds"] = remade.Bounds("int4", 0.5, least=1.0)
        return own(tuned, out, folder, asked, written, **given)

    monkeypatch.setattr(remade, "prove", prove)
    found = code_of(at, tmp_path / "out", bits=4)
    assert found == code or (fault == "key" and found == "E-EXPORT-11")


def test_a_stop_token_that_got_lost_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = building.CHATML.replace("<|im_end|>", "<|stop|>")
    tokenizer = exported.tokenizer_of("smollm", template, "<|stop|>")
    base = exported.folder_of(tmp_path / "base", "llama", tokenizer, vocab_size=len(tokenizer))
    run = exported.run_of(tmp_path / "run", base, story.rows_file(tmp_path / "rows.json"))
    own = remade.prove

    def prove(tuned: Any, out: Path, folder: Path, *given: Any, **named: Any) -> Any:
        for name, key, other in (
            ("generation_config.json", "eos_token_id", 0),
            ("config.json", "eos_token_id", 0),
            ("tokenizer_config.json", "eos_token", "<|endoftext|>"),
        ):
            stated = json.loads((folder / name).read_text(encoding="utf-8")) | {key: other}
            (folder / name).write_text(json.dumps(stated), encoding="utf-8")
        path = folder / "chat_template.jinja"
        text = path.read_text(encoding="utf-8").replace("<|stop|>", "<|endoftext|>")
        path.write_text(text, encoding="utf-8")
        return own(tuned, out, folder, *given, **named)

    monkeypatch.setattr(remade, "prove", prove)
    out = tmp_path / "more" / "out"
    out.parent.mkdir()
    assert code_of(tmp_path, out, bits=4) == "E-EXPORT-34"
    assert run.is_dir()


def test_a_card_is_written_in_the_readers_language_and_its_head_is_yaml(
    at: Path, tmp_path: Path
) -> None:
    import yaml

    set_language("zh")
    try:
        write(at, tmp_path / "out", bits=4)
    finally:
        set_language(None)
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---")[1])
    assert head["language"] == ["en"] and head["pipeline_tag"] == "text-generation"
    assert "quantize" in head["tags"] and "base_model" not in head  # its base is a local folder
    assert "如何制作" in text and "{" not in text.split("```")[0]


def test_an_interval_is_wilsons() -> None:
    from scipy.stats import binomtest

    for right, count in ((0, 8), (5, 8), (8, 8), (1900, 2000)):
        found = card.interval(right / count, count)
        wanted = binomtest(right, count).proportion_ci(method="wilson")
        assert found == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_every_type_has_its_bound_and_names_bits_once() -> None:
    assert set(quant_types.LEAST_OF_ROUNDED) == set(quant_types.FORMATS)
    for name, kind in quant_types.FORMATS.items():
        assert quant_types.format_of(name, kind.bits) is kind
    assert quant_types.format_of(None, None).name == "int8"
