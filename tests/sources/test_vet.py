"""What speaks against opening a folder, found without opening it."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.building import codes, write_safetensors

from tunewright.core.errors import ModelError, error_text, first_line
from tunewright.models import load
from tunewright.sources import vet
from tunewright.sources.find import resolve
from tunewright.text.tokenizer import load_tokenizer

Edit = Callable[..., Path]


def test_a_whole_folder_has_no_problem(folder: Path) -> None:
    assert vet.problems_of(folder) == []


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def plant(folder: Path, canary: Path) -> None:
    """Python that creates a file when imported, beside every kind of pickle."""
    for name in (
        "modeling_tiny.py",
        "configuration_tiny.py",
        "tokenization_tiny.py",
        "sitecustomize.py",
    ):
        (folder / name).write_text(
            f"open({str(canary)!r}, 'w').close()\nclass Tiny: pass\n", encoding="utf-8"
        )
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "rng_state.pth",
        "optimizer.pt",
        "x.ckpt",
        "x.pkl",
        "x.mdl",
    ):
        (folder / name).write_bytes(pickle.dumps(Canary(canary)))


@pytest.mark.parametrize(
    ("name", "keys", "code"),
    [
        (
            "config.json",
            {"text_config": {"auto_map": {"AutoConfig": "configuration_tiny.Tiny"}}},
            "E-MODEL-05",
        ),
        (
            "config.json",
            {"auto_map": {"AutoModelForCausalLM": "modeling_tiny.Tiny"}, "model_type": "tiny_own"},
            "E-MODEL-50",
        ),
        (
            "config.json",
            {
                "auto_map": {"AutoModelForCausalLM": "someone/else--modeling_tiny.Tiny"},
                "model_type": "tiny_own",
            },
            "E-MODEL-53",
        ),
        (
            "config.json",
            {"auto_map": {"AutoModelForCausalLM": "not_here.Tiny"}, "model_type": "tiny_own"},
            "E-MODEL-55",
        ),
        (
            "tokenizer_config.json",
            {
                "auto_map": {"AutoTokenizer": ["tokenization_tiny.Tiny", None]},
                "tokenizer_class": "Tiny",
            },
            "E-MODEL-50",
        ),
        ("config.json", {"_attn_implementation_internal": "someone/kernel"}, "E-MODEL-08"),
        (
            "config.json",
            {"text_config": {"_attn_implementation_internal": "someone/kernel"}},
            "E-MODEL-08",
        ),
        ("config.json", {"_experts_implementation_internal": "someone/kernel"}, "E-MODEL-08"),
        ("config.json", {"_attn_implementation": "kernels-community/flash-attn2"}, "E-MODEL-07"),
        (
            "config.json",
            {"attn_implementation": {"text_config": "kernels-community/x@v1:f"}},
            "E-MODEL-07",
        ),
        ("config.json", {"trust_remote_code": True}, "E-MODEL-06"),
        (
            "config.json",
            {"keypoint_detector_config": {"a": [{"trust_remote_code": "yes"}]}},
            "E-MODEL-06",
        ),
        ("generation_config.json", {"trust_remote_code": True}, "E-MODEL-06"),
        ("config.json", {"_loads_code_from": "x"}, "E-MODEL-08"),
        ("config.json", {"model_type": "not_known_to_anyone"}, "E-MODEL-09"),
        ("config.json", {"model_type": None}, "E-MODEL-09"),
    ],
)
def test_a_config_that_asks_for_code_is_refused_and_nothing_runs(
    folder: Path, edit: Edit, tmp_path: Path, name: str, keys: dict[str, Any], code: str
) -> None:
    canary = tmp_path / "canary"
    plant(folder, canary)
    edit(name, **keys)
    before = set(sys.modules)
    assert code in codes(vet.problems_of(folder))
    for opening in (
        lambda: load.load_model(folder, dtype="float32"),
        lambda: load_tokenizer(folder),
        lambda: resolve(str(folder)),
    ):
        with pytest.raises(ModelError) as caught:
            opening()
        assert code in codes(caught.value)
    assert not canary.exists()
    assert not [m for m in set(sys.modules) - before if "tiny" in m.lower() and "conftest" not in m]


def test_names_and_flags_that_transformers_writes_itself_are_allowed(edit: Edit) -> None:
    keys: dict[str, Any] = {
        "_name_or_path": "a/b",
        "_commit_hash": "0",
        "_attn_implementation": "sdpa",
        "_attn_implementation_autoset": True,
    }
    assert vet.problems_of(edit(**keys, trust_remote_code=False)) == []


def test_all_problems_come_at_once(edit: Edit) -> None:
    folder = edit(
        auto_map={"AutoConfig": "x.Y"}, model_type="own", trust_remote_code=True, _private=1
    )
    assert {"E-MODEL-04", "E-MODEL-06", "E-MODEL-08"} <= set(codes(vet.problems_of(folder)))


def test_pickled_weights_are_refused_with_the_reason_and_never_opened(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "model.safetensors").unlink()
    plant(folder, tmp_path / "canary")
    assert codes(vet.problems_of(folder)) == ["E-MODEL-10"]
    with pytest.raises(ModelError, match="pickle"):
        load.load_model(folder, dtype="float32")
    assert not (tmp_path / "canary").exists()


def test_a_folder_without_weights_is_refused_only_when_weights_are_asked_for(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert codes(vet.problems_of(folder)) == ["E-MODEL-11"]
    assert vet.problems_of(folder, weights=False) == []


def test_a_missing_config_and_a_broken_one_are_told_apart(folder: Path) -> None:
    (folder / "config.json").write_text("{broken", encoding="utf-8")
    assert codes(vet.problems_of(folder)) == ["E-MODEL-03"]
    (folder / "config.json").unlink()
    assert codes(vet.problems_of(folder)) == ["E-MODEL-02"]
    assert codes(vet.problems_of(folder / "nowhere")) == ["E-MODEL-01"]


def test_a_config_nested_without_end_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100 + "1" + "}" * 100, encoding="utf-8")
    assert "E-MODEL-03" in codes(vet.problems_of(folder))
    (folder / "config.json").write_text("[" * 200_000, encoding="utf-8")
    assert codes(vet.problems_of(folder)) == ["E-MODEL-03"]


def test_missing_shards_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (found,) = vet.problems_of(folder)
    assert found.code == "E-MODEL-13"
    assert "model-00002-of-00002" in found.what()


def test_a_shard_name_that_leaves_the_folder_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert codes(vet.problems_of(folder)) == ["E-MODEL-03"]


def test_a_truncated_file_is_found_from_its_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert codes(vet.problems_of(folder)) == ["E-MODEL-14"]


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0" * 7, b"\xff" * 8 + b"{}", (2**62).to_bytes(8, "little") + b"{}", (5).to_bytes(8, "little") + b"{,,,}", (2).to_bytes(8, "little") + b"[]"],
)  # fmt: skip
def test_a_header_that_lies_is_refused_without_reading_what_it_claims(
    folder: Path, raw: bytes
) -> None:
    (folder / "model.safetensors").write_bytes(raw)
    assert codes(vet.problems_of(folder)) == ["E-MODEL-14"]


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
        {"dtype": "PICKLE", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32"},
        7,
    ],
)
def test_an_entry_that_does_not_fit_its_shape_or_file_is_refused(folder: Path, entry: Any) -> None:
    write_safetensors(folder / "model.safetensors", {"a": entry}, b"\0" * 8)
    assert codes(vet.problems_of(folder)) == ["E-MODEL-14"]


def test_overlapping_tensors_are_refused(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write_safetensors(folder / "model.safetensors", {"a": entry, "b": entry}, b"\0" * 8)
    assert codes(vet.problems_of(folder)) == ["E-MODEL-14"]


def adapter(folder: Path, **keys: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "someone/base",
        "auto_mapping": None,
        **keys,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    write_safetensors(
        folder / "adapter_model.safetensors",
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        b"\0" * 8,
    )
    return folder


def test_an_adapter_is_not_a_model_and_its_base_is_not_followed(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")
    assert vet.problems_of(folder, kind="adapter") == []
    with pytest.raises(ModelError) as caught:
        load.load_model(folder, dtype="float32")
    assert codes(caught.value) == ["E-MODEL-12"]
    assert "someone/base" in str(caught.value)


def test_an_adapter_lying_in_a_model_folder_is_refused(folder: Path) -> None:
    adapter(folder)
    assert codes(vet.problems_of(folder)) == ["E-MODEL-34"]


def test_an_adapter_that_names_a_module_to_import_or_has_only_a_pickle_is_refused(
    tmp_path: Path,
) -> None:
    folder = adapter(
        tmp_path / "adapter", auto_mapping={"base_model_class": "X", "parent_library": "os"}
    )
    assert codes(vet.problems_of(folder, kind="adapter")) == ["E-MODEL-04"]
    (adapter(folder) / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert codes(vet.problems_of(folder, kind="adapter")) == ["E-MODEL-10"]


def test_secrets_are_blotted_out_of_causes() -> None:
    fits_not = "Error(s) in loading state_dict for A:\n\tsize mismatch for w: (4, 64) in the file, (4, 48) in the model.\n\tsize mismatch for v: more."
    assert (
        first_line(fits_not)
        == "Error(s) in loading state_dict for A: size mismatch for w: (4, 64) in the file, (4, 48) in the model"
    )
    assert (
        first_line("one:\ntwo:") == "one: two"
        and first_line(ValueError()) == "ValueError"
        and first_line("a.\nb") == "a"
    )
    assert (
        first_line("\n got https://me:pass@host/x with hf_abcdefghijkl\nmore")
        == "got https://***@host/x with ***"
    )


def test_every_code_has_its_texts_in_both_languages_with_the_same_fields() -> None:
    import re

    from tunewright.core.words import catalogue

    english, chinese = (
        {k: v for k, v in catalogue(lang).items() if k.startswith(("models.", "E-MODEL-"))}
        for lang in ("en", "zh")
    )
    assert set(english) == set(chinese)
    for key, text in english.items():
        pairs = (
            [(text, chinese[key])]
            if isinstance(text, str)
            else [(text[part], chinese[key][part]) for part in ("what", "do", "page")]
        )
        for one, other in pairs:
            assert sorted(re.findall(r"{(\w+)", one)) == sorted(re.findall(r"{(\w+)", other)), key
    assert error_text("E-MODEL-10")["page"]


def test_a_number_that_json_has_not_is_no_private_key(folder: Path) -> None:
    """Transformers writes the time steps of Mamba 2, Falcon-H1 and Granite 4 so; anything else under
    that name is still refused."""
    config = json.loads((folder / "config.json").read_text())
    config["time_step_limit"] = [0.0, {"__float__": "Infinity"}]
    (folder / "config.json").write_text(json.dumps(config))
    assert vet.problems_of(folder) == []
    config["time_step_limit"] = [0.0, {"__float__": "os.system"}]
    (folder / "config.json").write_text(json.dumps(config))
    assert [p.code for p in vet.problems_of(folder)] == ["E-MODEL-08"]
